"""A request of the page: one prompt, one steering vector, and a rule."""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.playground.library import Cut, Entry, Library
from steerlens.playground.token_view import Reading, read_prompt
from steerlens.steering.batch_plans import BatchPlan
from steerlens.steering.conditions import Condition
from steerlens.steering.generation import stream
from steerlens.steering.rules import apply_rules, parse_rules
from steerlens.steering.similarities import cosine
from steerlens.steering.steering import Steering
from steerlens.steering.transcripts import GateReport, Replies

LONGEST_PROMPT = 2000
LONGEST_RULE = 1000
"""Characters."""
LONGEST_REPLY = 200
"""Tokens; other tabs wait meanwhile."""
STRONGEST = {True: 1.5, False: 50.0}
"""By whether strength is relative; far beyond what leaves text readable."""
STEERING = "steer"
"""The name of the steering in rules, for any vector; the vector's own name does as well."""


@dataclass(frozen=True)
class Trial:
    """The settings of a page, checked when built."""

    vector: str
    layers: tuple[int, int]
    """First and last."""
    strength: float
    prompt: str = ""
    rule: str = ""
    """Such as "if harmful then steer"; empty: always steer."""
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    max_new_tokens: int = 40

    def __post_init__(self) -> None:
        for what, text, most in (
            ("prompt", self.prompt, LONGEST_PROMPT),
            ("rule", self.rule, LONGEST_RULE),
        ):
            if len(text) > most:
                raise SteerlensError(
                    f"got a {what} of {len(text)} characters; expected at most {most}"
                )
        if not 1 <= self.max_new_tokens <= LONGEST_REPLY:
            raise SteerlensError(
                f"got {self.max_new_tokens} new tokens; expected 1 to {LONGEST_REPLY}"
            )

    def entry(self, library: Library) -> Entry:
        """The entry of the steering vector."""
        if self.vector not in library:
            raise SteerlensError(
                f"there is no vector {self.vector!r}; choose another or upload it again"
            )
        return library[self.vector]

    def steering(self, library: Library) -> Steering:
        """The steering without any rule; relative if the vector knows its norms."""
        entry = self.entry(library)
        vector, relative = entry.vector, entry.relative
        if not abs(self.strength) <= STRONGEST[relative]:
            raise SteerlensError(
                f"got strength {self.strength}; expected at most ±{STRONGEST[relative]:g}"
            )
        first, last = self.layers
        layers = [layer for layer in vector.layers if first <= layer <= last]
        if not layers:
            raise SteerlensError(
                f"got layers {first} to {last}, none of which {vector} has; choose others"
            )
        return Steering(vector, layers, self.strength, relative=relative, name=self.vector)

    def conditions(self, library: Library) -> dict[str, Condition]:
        """A condition for each threshold, on the cosine at the prompt's last token."""
        return {
            name: Condition(
                library[name].vector,
                cut.layer,
                above=cut.above,
                similarity=cosine,
                tokens="last",
                name=name,
            )
            for name, cut in self.cuts.items()
            if name in library
        }

    def with_rule(self, library: Library) -> tuple[Steering, ...]:
        """The steerings that the rule gives, for `generate`.

        Raises:
            SteerlensError: if the rule cannot be parsed or names what is unknown.
        """
        steering = self.steering(library)
        if not self.rule.strip():
            return (steering,)
        actions = dict.fromkeys((STEERING, self.vector), steering)
        rules = parse_rules(self.rule)
        others = [rule.steering for rule in rules if rule.steering in {*library} - {*actions}]
        if others:
            raise SteerlensError(
                f"the rule steers with {others[0]!r}, but the chosen vector is {self.vector!r}; "
                f"choose {others[0]!r} above, or write 'then {STEERING}'"
            )
        if len({rule.steering for rule in rules}) > 1:
            raise SteerlensError(
                f"the rules call the steering both {STEERING!r} and {self.vector!r}; use one name, "
                "so that it acts once"
            )
        return apply_rules(self.rule, self.conditions(library), actions)


class Outcome(NamedTuple):
    """The result of a trial so far."""

    trial: Trial
    reading: Reading
    replies: Replies | None = None
    """Unsteered, then steered."""

    @property
    def gates(self) -> tuple[tuple[GateReport, float, bool], ...]:
        """Each condition of the rule with its similarity, and whether it fired."""
        reports = () if self.replies is None else self.replies.gates
        return tuple(
            (report, report.compared[1, 0].item(), bool(report.open[1])) for report in reports
        )


def run(model: Model, trial: Trial, library: Library) -> Generator[Outcome, None, None]:
    """Read the prompt, then generate both replies as two rows of one batch.

    Yields the result so far after reading and after each decoding step.
    """
    plans = [_side_by_side(steering) for steering in trial.with_rule(library)]
    outcome = Outcome(trial, read_prompt(model, trial.prompt, library))
    yield outcome
    prompts = [trial.prompt] * 2
    with closing(stream(model, prompts, plans, max_new_tokens=trial.max_new_tokens)) as steps:
        for replies in steps:
            yield outcome._replace(replies=replies)


def _side_by_side(steering: Steering) -> BatchPlan:
    """Two rows, of which only the second is steered."""
    strengths = torch.zeros(2, len(steering.layers_steered))
    strengths[1] = torch.tensor(steering.strengths)
    return BatchPlan(steering, strengths)


def python(trial: Trial, library: Library, model_name: str) -> str:
    """A script that reproduces the steered reply of a trial."""
    [steering] = trial.with_rule(library)
    conditions = {condition.name: condition for condition in steering.conditions}
    used = {name: library[name] for name in dict.fromkeys([trial.vector, *conditions])}
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
            "steering = sl.apply_rules(",
            f"    {trial.rule!r}, conditions, {{{steering.name!r}: steering}}",
            ")",
        ]
    lines += [
        f"[reply] = sl.generate(model, [{trial.prompt!r}], steering, "
        f"max_new_tokens={trial.max_new_tokens})",
        "print(reply)",
    ]
    return "\n".join(lines)
