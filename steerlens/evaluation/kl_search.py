"""The search for the strength at which KL on neutral text reaches a budget."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
import torch

from steerlens.evaluation.teacher_forcing import as_text, kl_percentiles, teacher_forced
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.tokenizing import TokenRow
from steerlens.steering.steering import Steering

FIRST = (1 / 8, 1 / 2)
"""Strengths tried first, in norms of the residual stream. Unless they bracket the budget, others
are tried, 4 and 16 times as far."""
WIDEST = 8
"""Most strengths tried for a bracket: by then up to 4,000 times as far."""
ROUNDS = 16
"""Most batches: four for the bracket of a factor of 4, which is then halved to under 0.1 %."""

Tried = dict[float, float]
"""KL percentiles by strength, without the steering's sign."""


def search_strengths(
    model: Model,
    rows: Sequence[TokenRow],
    steerings: Sequence[Steering],
    kl_budget: float,
    tolerance: float,
    **run: Unpack[RunOptions],
) -> list[Tried]:
    """What was tried of each steering; in lockstep: what they try next are rows of one batch.

    Args:
        model: The model.
        rows: Neutral texts.
        steerings: As for `calibrate_strength`.
        kl_budget: 95th percentile of KL per token, in nats.
        tolerance: How far below the budget a result may lie, as a share of it.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.
    """
    tried: list[Tried] = [{} for _ in steerings]
    for _ in range(ROUNDS):
        wanted = [
            _next_strengths(_unit_strength(steering), kls, kl_budget, tolerance)
            for steering, kls in zip(steerings, tried, strict=True)
        ]
        if not any(wanted):
            break
        trials = [
            with_strength(steering, strength)
            for steering, strengths in zip(steerings, wanted, strict=True)
            for strength in strengths
        ]
        measured = iter(percentiles(model, rows, trials, **run))
        for kls, strengths in zip(tried, wanted, strict=True):
            kls.update({strength: next(measured) for strength in strengths})
    return tried


def _next_strengths(unit: float, tried: Tried, budget: float, tolerance: float) -> list[float]:
    """The strengths to try next; none once the budget is bracketed closely, or never will be."""
    if not tried:
        return [unit * first for first in FIRST]
    strengths, first = first_exceeding(tried, budget)
    if 0 < first < len(strengths):
        low, high = strengths[first - 1 : first + 1]
        near = tried[low] >= (1 - tolerance) * budget or high / low < 1 + 1e-5
        return [] if near else _between(low, high, tried, (1 - tolerance / 2) * budget)
    if len(strengths) >= WIDEST:
        return []
    return (
        [4 * strengths[-1], 16 * strengths[-1]] if first else [strengths[0] / 16, strengths[0] / 4]
    )


def _between(low: float, high: float, tried: Tried, target: float) -> list[float]:
    """The geometric middle of a bracket, and where a power law through its ends is the target."""
    middle = (low * high) ** 0.5
    if not (0 < tried[low] < target < tried[high] < np.inf):
        return [middle]
    fraction = np.log(target / tried[low]) / np.log(tried[high] / tried[low])
    return sorted({middle, float(low * (high / low) ** fraction)})


def first_exceeding(tried: Tried, budget: float) -> tuple[list[float], int]:
    """The strengths tried, weakest first, and the index of the first that exceeds the budget."""
    strengths = sorted(tried)
    exceeding = (index for index, strength in enumerate(strengths) if tried[strength] > budget)
    return strengths, next(exceeding, len(strengths))


def percentiles(
    model: Model, rows: Sequence[TokenRow], steerings: Sequence[Steering], **run: Unpack[RunOptions]
) -> list[float]:
    """The 95th percentile of KL per token under each steering, in nats."""
    forced = teacher_forced(model, rows, [as_text(steering) for steering in steerings], **run)
    return kl_percentiles(forced).tolist()


def with_strength(steering: Steering, strength: float) -> Steering:
    """Keeps the sign of one number, and the ratios of strengths by layer."""
    given = torch.as_tensor(steering.strength)
    scaled = sign_of(steering) * strength if given.ndim == 0 else given * strength
    return replace(steering, strength=scaled)


def times(steering: Steering, factor: float) -> Steering:
    """All its strengths so many times as strong."""
    given = np.multiply(steering.strength, factor).tolist()
    return replace(steering, strength=given)


def sign_of(steering: Steering) -> float:
    """−1 for one negative number as strength; the signs of strengths by layer stay with them."""
    given = torch.as_tensor(steering.strength)
    return -1.0 if given.ndim == 0 and given < 0 else 1.0


def _unit_strength(steering: Steering) -> float:
    """The strength that adds about one mean activation norm."""
    vector = steering.vector.at(steering.layers_steered)
    lengths = vector.directions.norm(dim=1)
    if steering.relative or vector.norms is None or not lengths.all():
        return 1.0
    return float((vector.norms / lengths).mean())
