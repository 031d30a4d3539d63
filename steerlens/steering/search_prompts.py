"""The prompts that a condition is chosen on, and the ones it is scored on."""

import numpy as np

from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.models.tokenizing import Sides, TokenRow, tokenize_sides

SideRows = tuple[list[TokenRow], list[TokenRow]]
"""Positives and negatives."""


def chosen_and_scored(
    model: Model, data: Sides, held_out: Sides | None, seed: int
) -> tuple[SideRows, SideRows]:
    """The prompts to choose a condition on, and other prompts to score it on."""
    chosen = _rows_of_sides(model, data)
    if held_out is None:
        return _halves(chosen, seed)
    scored = _rows_of_sides(model, held_out)
    shared = {*chosen[0], *chosen[1]} & {*scored[0], *scored[1]}
    if shared:
        raise SteerlensError(
            f"got {len(shared)} prompts both in data and in held_out; expected none, since the "
            "score is to be of unseen prompts: remove them from one of the two"
        )
    return chosen, scored


def _rows_of_sides(model: Model, data: Sides) -> SideRows:
    positive, negative = (list(dict.fromkeys(rows)) for rows in tokenize_sides(model, data))
    both = set(positive) & set(negative)
    if both:
        raise SteerlensError(
            f"got {len(both)} prompts both as positive and as negative; expected each on one side "
            "only: no condition can separate them"
        )
    return positive, negative


def _halves(sides: SideRows, seed: int) -> tuple[SideRows, SideRows]:
    if min(map(len, sides)) < 2:
        raise SteerlensError(
            f"got {len(sides[0])} positive and {len(sides[1])} negative prompts; expected at least "
            "two of each, to choose on one half and score on the other: give more, or held_out="
        )
    random = np.random.default_rng(seed)
    shuffled = [[rows[index] for index in random.permutation(len(rows))] for rows in sides]
    first, second = zip(
        *[(rows[: len(rows) // 2], rows[len(rows) // 2 :]) for rows in shuffled], strict=True
    )
    return (first[0], first[1]), (second[0], second[1])
