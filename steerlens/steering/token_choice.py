"""Which tokens of a forward pass a steering edits, and by what its strength is multiplied there."""

from collections.abc import Mapping
from functools import reduce
from operator import and_, mul
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr
from steerlens.shapes import TokenMask
from steerlens.steering.clocks import PassTokens
from steerlens.steering.conditions import Condition, Gate
from steerlens.steering.positions import Place, Positions
from steerlens.steering.predicates import Predicate
from steerlens.steering.schedules import AsText, Schedule
from steerlens.steering.soft_gates import SoftGate
from steerlens.steering.token_gates import TokenGate

Mask = Bool[Tensor, "#batch #pos"]
Factor = Float[Tensor, "#batch #pos"]


@runtime_checkable
class TokenRule(Protocol):
    """What a `Steering` says about tokens."""

    @property
    def positions(self) -> Positions: ...
    @property
    def skip_bos(self) -> bool: ...
    @property
    def schedule(self) -> Schedule | None: ...
    @property
    def when(self) -> Predicate | SoftGate | None: ...
    @property
    def when_token(self) -> Predicate | SoftGate | None: ...


class Gates(NamedTuple):
    """What the conditions of a run have seen."""

    prompt: Mapping[Condition, Gate]
    token: Mapping[Condition, TokenGate]


class ChosenTokens(NamedTuple):
    """What a steering does to the tokens of a pass."""

    edited: Mask | None
    """Which are edited; None: all."""
    factor: Factor | None
    """What the strength is multiplied by; None: 1."""


def has_factor(rule: TokenRule) -> bool:
    """Whether the strength differs between tokens or prompts."""
    soft = isinstance(rule.when, SoftGate) or isinstance(rule.when_token, SoftGate)
    return soft or rule.schedule is not None


def choose_tokens(
    rule: TokenRule, tokens: PassTokens, row_masks: TokenMask | None, gates: Gates
) -> ChosenTokens:
    """What a steering does to the tokens of a pass, by positions, schedule and gates.

    Args:
        rule: The steering.
        tokens: The tokens of the pass.
        row_masks: A mask for each row, which replaces the positions.
        gates: What the conditions have seen.
    """
    masks = [tokens.steered(rule.positions, rule.skip_bos, row_masks)]
    factors = [] if rule.schedule is None else [_by_age(rule.schedule, tokens)]
    if isinstance(rule.when, SoftGate):
        seen = gates.prompt[rule.when.condition].similarity
        factors.append(rule.when.factor(seen)[:, None])
    elif rule.when is not None:
        masks.append(rule.when.truth(lambda condition: gates.prompt[condition].open)[:, None])
    if isinstance(rule.when_token, SoftGate):
        seen = gates.token[rule.when_token.condition].similarity
        of_tokens = rule.when_token.factor(seen.flatten(0, 1))
        factors.append(of_tokens.unflatten(0, seen.shape[:2]))
    elif rule.when_token is not None:
        masks.append(_open_tokens(rule.when_token, tokens, gates.token))
    factor: Factor | None = reduce(mul, factors) if factors else None
    if factor is not None:
        masks.append(factor != 0)  # at strength 0, some edits would still act
    edited = [mask for mask in masks if mask is not None]
    return ChosenTokens(reduce(and_, edited) if edited else None, factor)


def _open_tokens(
    predicate: Predicate, tokens: PassTokens, gates: Mapping[Condition, TokenGate]
) -> TokenMask:
    """Where a predicate over conditions and places is true; never at an attention sink."""
    leaves = list(predicate.leaves())
    places = [leaf for leaf in leaves if isinstance(leaf, Place)]
    with_text = any(place.reads_text for place in places)
    seen = tokens.seen(f"steering where {predicate}", with_text)
    opened: TokenMask = predicate.truth(
        lambda leaf: leaf.chosen(seen) if isinstance(leaf, Place) else gates[leaf].open
    )
    read = [gates[leaf].never for leaf in leaves if isinstance(leaf, Condition)]
    return reduce(and_, (~never for never in read), opened)


def _by_age(schedule: Schedule, tokens: PassTokens) -> Float[Tensor, "batch pos"]:
    """What a schedule gives for each token of a pass."""
    seen = tokens.seen(f"the schedule {schedule!r}")
    before = 1 if isinstance(schedule, AsText) else seen.length
    age = (seen.place - before + 1).clamp_min(0).float()
    factor: Any = schedule(age)
    fits = isinstance(factor, Tensor) and factor.shape == age.shape
    if not fits or not factor.isfinite().all():
        raise SteerlensError(
            f"the schedule {schedule!r} returned {short_repr(factor)}; expected a finite factor "
            f"for each of {tuple(age.shape)} tokens"
        )
    return factor.float()
