"""What a playground page asks for: one prompt, one vector at work, and when."""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.playground.library import Cut, Entry, Shelf
from steerlens.playground.token_view import Reading, read_prompt
from steerlens.steering.batch_plans import BatchPlan
from steerlens.steering.conditions import Condition
from steerlens.steering.generation import stream
from steerlens.steering.rules import apply_rules
from steerlens.steering.similarities import cosine
from steerlens.steering.steering import Steering
from steerlens.steering.transcripts import GateReport, Replies

LONGEST_PROMPT = 2000
LONGEST_RULE = 1000
"""Characters."""
LONGEST_REPLY = 200
"""Tokens: a tab's turn on the model ends with them."""
STRONGEST = {True: 1.5, False: 50.0}
"""By whether strength is relative; far beyond what leaves a text readable."""
STEERING = "steer"
"""How rules name the steering, whatever its vector."""


@dataclass(frozen=True)
class Trial:
    """The settings of a page. Refuses, when built, what is out of bounds."""

    vector: str
    layers: tuple[int, int]
    """The first and the last."""
    strength: float
    prompt: str = ""
    rule: str = ""
    """Over the names of conditions; empty: always."""
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    max_new_tokens: int = 40

    def __post_init__(self) -> None:
        for what, text, most in (
            ("prompt", self.prompt, LONGEST_PROMPT),
            ("rule", self.rule, LONGEST_RULE),
        ):
            if len(text) > most:
                raise SteerlensError(
                    f"the {what} has {len(text)} characters; at most {most} are read"
                )
        if not 1 <= self.max_new_tokens <= LONGEST_REPLY:
            raise SteerlensError(
                f"{self.max_new_tokens} new tokens came; needed are 1 to {LONGEST_REPLY}"
            )

    def entry(self, shelf: Shelf) -> Entry:
        """The entry whose vector steers."""
        if self.vector not in shelf:
            raise SteerlensError(
                f"the vector {self.vector!r} is not here; choose another or upload it again"
            )
        return shelf[self.vector]

    def steering(self, shelf: Shelf) -> Steering:
        """The vector put to work, before any rule; relative if the vector knows its norms."""
        vector = self.entry(shelf).vector
        relative = vector.norms is not None
        if not abs(self.strength) <= STRONGEST[relative]:
            raise SteerlensError(
                f"strength {self.strength} came; at most ±{STRONGEST[relative]:g} is offered here"
            )
        first, last = self.layers
        chosen = [layer for layer in vector.layers if first <= layer <= last]
        if not chosen:
            raise SteerlensError(f"{vector} has none of the layers {first} to {last}")
        return Steering(vector, chosen, self.strength, relative=relative, name=self.vector)

    def conditions(self, shelf: Shelf) -> dict[str, Condition]:
        """A condition for each cut: the signed cosine at the prompt's last token."""
        return {
            name: Condition(
                shelf[name].vector,
                cut.layer,
                above=cut.above,
                similarity=cosine,
                tokens="last",
                name=name,
            )
            for name, cut in self.cuts.items()
            if name in shelf
        }

    def plan(self, shelf: Shelf) -> tuple[Steering, ...]:
        """What `generate` takes; refuses rules that cannot be read or cannot be met."""
        steering = self.steering(shelf)
        if not self.rule.strip():
            return (steering,)
        return apply_rules(self.rule, self.conditions(shelf), {STEERING: steering})


class Outcome(NamedTuple):
    """How far a trial has come."""

    trial: Trial
    reading: Reading
    replies: Replies | None = None
    """Unsteered, then steered."""

    @property
    def gates(self) -> tuple[tuple[GateReport, float, bool], ...]:
        """What each condition of the rule saw of the prompt, and whether it fired."""
        reports = () if self.replies is None else self.replies.gates
        return tuple(
            (report, report.similarity[1, 0].item(), bool(report.open[1])) for report in reports
        )


def run(model: Model, trial: Trial, shelf: Shelf) -> Generator[Outcome, None, None]:
    """Read the prompt, then write both replies token by token, as two rows of one batch."""
    plan = [_side_by_side(steering) for steering in trial.plan(shelf)]
    outcome = Outcome(trial, read_prompt(model, trial.prompt, shelf))
    yield outcome
    prompts = [trial.prompt] * 2
    with closing(stream(model, prompts, plan, max_new_tokens=trial.max_new_tokens)) as steps:
        for replies in steps:
            yield outcome._replace(replies=replies)


def _side_by_side(steering: Steering) -> BatchPlan:
    """Of two rows, the first is left as it is."""
    strengths = torch.zeros(2, len(steering.layers_steered))
    strengths[1] = torch.tensor(steering.strengths)
    return BatchPlan(steering, strengths)


def python(trial: Trial, shelf: Shelf, model_name: str) -> str:
    """The script that gives the steered reply of a trial."""
    plan = trial.plan(shelf)
    [steering] = plan
    conditions = {condition.name: condition for condition in steering.conditions}
    used = {name: shelf[name] for name in dict.fromkeys([trial.vector, *conditions])}
    sources = [line for entry in used.values() if entry.source for line in ("", "", entry.source)]
    lines = [
        "import steerlens as sl",
        *(line.rstrip("\n") for line in sources),
        *(["", ""] if sources else [""]),
        f"model = sl.load_model({model_name!r})",
        "vectors = {",
        *(f"    {name!r}: {entry.code}," for name, entry in used.items()),
        "}",
        "steering = sl.Steering(",
        f"    vectors[{trial.vector!r}], layers={list(steering.layers_steered)}, "
        f"strength={trial.strength!r}, relative={steering.relative}",
        ")",
    ]
    if conditions:
        lines += [
            "conditions = {",
            *(
                f"    {name!r}: sl.Condition(\n"
                f"        vectors[{name!r}], {cut.layer}, above={cut.above!r},\n"
                f'        similarity=sl.similarities.cosine, tokens="last", name={name!r},\n'
                "    ),"
                for name in conditions
                for cut in [trial.cuts[name]]
            ),
            "}",
            "plan = sl.apply_rules(",
            f"    {trial.rule!r}, conditions, {{{STEERING!r}: steering}}",
            ")",
        ]
    lines += [
        f"[reply] = sl.generate(model, [{trial.prompt!r}], {'plan' if conditions else 'steering'}, "
        f"max_new_tokens={trial.max_new_tokens})",
        "print(reply)",
    ]
    return "\n".join(lines)
