"""A request of the page: one prompt, steering vectors, and rules."""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from steerlens.errors import SteerlensError, short_repr
from steerlens.playground.library import NONE, Cut, Entry, Library, Lists, Offer, Shelf, scale_of
from steerlens.playground.token_view import Reading, read_prompt
from steerlens.steering.batch_plans import BatchPlan
from steerlens.steering.conditions import Condition
from steerlens.steering.generation import stream
from steerlens.steering.hooks import (
    ablate_direction,
    ablate_then_add,
    add_direction,
    clamp_direction,
)
from steerlens.steering.places import parse_positions
from steerlens.steering.rules import Rule, apply_rules, parse_rules
from steerlens.steering.sampling import Sampling
from steerlens.steering.similarities import cosine
from steerlens.steering.steering import Steering
from steerlens.steering.transcripts import GateReport, Replies

LONGEST_PROMPT = 2000
LONGEST_RULE = 1000
"""Characters."""
LONGEST_REPLY = 200
"""Tokens; other tabs wait meanwhile."""
WARMEST = 2.0
MOST_VECTORS = 4
STEERING = "steer"
"""In rules, all chosen vectors; a vector's own name is that vector alone."""
EDITS = {
    edit.__name__: edit
    for edit in (add_direction, ablate_direction, ablate_then_add, clamp_direction)
}
POSITIONS = ("all", "prompt", "generated", "last", "reply", "generated[:8]", "generated[8:]")
LADDER = (1.0, 0.5, 1.5, 2.0, 3.0)
"""Shares of the chosen strengths that a ladder tries, the whole first."""


@dataclass(frozen=True)
class Push:
    """One vector of a trial."""

    vector: str
    layers: tuple[int, int]
    """First and last."""
    strength: float | None = None
    """None: calibrated when the prompt is sent."""


@dataclass(frozen=True)
class Trial:
    """The settings of a page, checked when built."""

    pushes: tuple[Push, ...]
    prompt: str = ""
    rule: str = ""
    """Such as "if harmful then steer". A vector that no rule names always steers."""
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    """Thresholds; those of the entries where none is given."""
    max_new_tokens: int = 40
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    edit: str = "add_direction"
    positions: str = "all"
    keep_norm: bool = False
    ladder: bool = False
    """Also at other shares of the strengths."""

    def __post_init__(self) -> None:
        names = [push.vector for push in self.pushes]
        if not 1 <= len(set(names)) == len(names) <= MOST_VECTORS:
            raise SteerlensError(
                f"got {len(names)} vectors; choose 1 to {MOST_VECTORS} different ones"
            )
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
        for what, name, known in (
            ("edit", self.edit, (*EDITS,)),
            ("positions", self.positions, POSITIONS),
        ):
            if name not in known:
                raise SteerlensError(
                    f"got {short_repr(name)} as {what}; expected one of {', '.join(known)}"
                )

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, with each vector under its own name."""
        if not self.rule.strip():
            return ()
        names = [push.vector for push in self.pushes]
        return tuple(
            replace(rule, steering=name)
            for rule in parse_rules(self.rule)
            for name in (names if rule.steering == STEERING else [rule.steering])
        )

    def needs(self, offers: Mapping[str, Offer]) -> tuple[str, ...]:
        """The vectors that it steers with, and those of its conditions.

        Raises:
            SteerlensError: if there is no such vector, or a rule cannot be parsed or names what is
                unknown.
        """
        names = [push.vector for push in self.pushes]
        for name in names:
            if name not in offers:
                raise SteerlensError(
                    f"there is no vector {short_repr(name)}; choose another or upload it again"
                )
        conditions = [name for name, offer in offers.items() if offer.condition]
        for rule in self.rules:
            if rule.steering not in names:
                raise SteerlensError(
                    f"got the rule {str(rule)!r}, but steered are {', '.join(names)}; choose "
                    f"{rule.steering!r} as a vector too, or write 'then {STEERING}'"
                )
            for leaf in rule.conditions:
                if leaf not in conditions:
                    raise SteerlensError(
                        f"got the rule {str(rule)!r} with the unknown condition {leaf!r}; expected "
                        f"conditions among {', '.join(map(repr, conditions)) or 'none'}"
                    )
                names.append(leaf)
        return tuple(dict.fromkeys(names))

    def steering(self, push: Push, library: Library) -> Steering:
        """A push without any rule; relative if the vector knows its norms."""
        vector, scale = library[push.vector].vector, scale_of(library[push.vector].vector)
        edit = EDITS[self.edit]
        strength = push.strength
        if strength is None:
            if edit is not add_direction:
                raise SteerlensError(
                    f"got {self.edit} without a strength; only additions are calibrated: set one "
                    f"for {push.vector!r} (1 removes a direction wholly)"
                )
            strength = 1.0
        if not abs(strength) <= scale.most:
            raise SteerlensError(f"got strength {strength}; expected at most ±{scale.most:g}")
        first, last = push.layers
        layers = [layer for layer in vector.layers if first <= layer <= last]
        if not layers:
            raise SteerlensError(
                f"got layers {first} to {last}, none of which {vector} has; choose others"
            )
        return Steering(
            vector,
            layers,
            strength,
            edit=edit,
            positions=parse_positions(self.positions),
            keep_norm=self.keep_norm,
            relative=scale.relative,
            name=push.vector,
        )

    def conditions(self, library: Library) -> dict[str, Condition]:
        """A condition for each name that a rule uses, on its cosine with the prompt."""
        names = dict.fromkeys(name for rule in self.rules for name in rule.conditions)
        return {name: self._condition(library[name]) for name in names}

    def _condition(self, entry: Entry) -> Condition:
        if entry.searched is not None:
            return entry.searched
        cut = self.cuts.get(entry.name, entry.cut)
        assert cut is not None  # of what is no condition, `needs` has said so
        return Condition(
            entry.vector,
            cut.layer,
            above=cut.above,
            similarity=cosine,
            tokens=entry.tokens,
            name=entry.name,
        )

    def with_rule(self, library: Library) -> tuple[Steering, ...]:
        """The steerings under their rules, for `generate`.

        Raises:
            SteerlensError: as `needs`, and if layers or strengths do not fit.
        """
        self.needs({name: entry.offer for name, entry in library.items()})
        steerings = {push.vector: self.steering(push, library) for push in self.pushes}
        rules = self.rules
        ruled = apply_rules(map(str, rules), self.conditions(library), steerings) if rules else ()
        named = {rule.steering for rule in rules}
        return (*ruled, *(steering for name, steering in steerings.items() if name not in named))

    def same_as(self, sent: "Trial", library: Library) -> bool:
        """Whether this gives what was sent; strengths that were found meanwhile are the same."""
        found = {push.vector: push.strength for push in sent.pushes}
        pushes = tuple(
            replace(push, strength=found.get(push.vector)) if push.strength is None else push
            for push in self.pushes
        )
        known = {name: entry.cut for name, entry in library.items() if entry.cut}
        names = {name for rule in self.rules for name in rule.conditions}
        now, then = (
            {name: trial.cuts.get(name, known.get(name)) for name in names}
            for trial in (self, sent)
        )
        return now == then and replace(self, pushes=pushes, cuts={}) == replace(sent, cuts={})


class Outcome(NamedTuple):
    """The result of a trial so far."""

    trial: Trial
    """With the strengths that were found."""
    stage: str = ""
    """What is being made before the prompt can be read."""
    reading: Reading | None = None
    replies: Replies | None = None
    """Unsteered, steered, and at the other rungs of a ladder."""

    @property
    def gates(self) -> tuple[tuple[GateReport, float, bool], ...]:
        """Each condition of the rules with its similarity, and whether it fired."""
        reports = () if self.replies is None else self.replies.gates
        return tuple(
            (report, report.compared[1, 0].item(), bool(report.open[1])) for report in reports
        )


def run(
    shelf: Shelf, trial: Trial, own: dict[str, Entry], lists: Mapping[str, Lists] = NONE
) -> Generator[Outcome, None, None]:
    """Make what is missing, read the prompt, then generate all replies as rows of one batch.

    What the tab's own lists give is added to `own`; all else is shared by the tabs. Yields the
    result so far before each thing that is made, after reading, and after each decoding step.
    """
    for name in trial.needs(shelf.offers(own, lists)):
        if name not in {**shelf.made, **own}:
            yield Outcome(trial, f"Making {name!r}, once")
            if name in lists:
                own[name] = shelf.follow(lists[name])
            else:
                shelf.make(name)
    library = {**shelf.made, **own}
    trial.with_rule(library)  # what cannot work is refused before anything is calibrated
    for push in trial.pushes:
        if push.strength is None:
            yield Outcome(trial, f"Finding a strength of {push.vector!r} that leaves text whole")
            found = shelf.strength_of(trial.steering(push, library))
            pushes = [replace(one, strength=found) if one is push else one for one in trial.pushes]
            trial = replace(trial, pushes=tuple(pushes))
    shares = (0.0, *(LADDER if trial.ladder else (1.0,)))
    plans = [_side_by_side(steering, shares) for steering in trial.with_rule(library)]
    outcome = Outcome(trial, reading=read_prompt(shelf.model, trial.prompt, library))
    yield outcome
    prompts = [trial.prompt] * len(shares)
    writing = stream(
        shelf.model,
        prompts,
        plans,
        max_new_tokens=trial.max_new_tokens,
        sampling=trial.sampling,
    )
    with closing(writing) as steps:
        for replies in steps:
            yield outcome._replace(replies=replies)


def _side_by_side(steering: Steering, shares: tuple[float, ...]) -> BatchPlan:
    """A row for each share of the strength; the first is not steered."""
    strengths = torch.tensor(shares)[:, None] * torch.tensor(steering.strengths)
    acts = torch.ones_like(strengths, dtype=torch.bool)
    acts[0] = False
    return BatchPlan(steering, strengths, acts=acts)
