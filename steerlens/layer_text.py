"""Layers as text: (2, 3, 5) ⇄ "2-3,5"."""

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

from steerlens.errors import SteerlensError, short_repr

MOST_LAYERS = 10_000
"""More than any model has; a far longer range would fill the memory."""


def layers_as_text(layers: Sequence[int], *, dash: str = "-", comma: str = ",") -> str:
    """Layers as a user types them; `parse_layers` reads them back.

    >>> layers_as_text((1, 4, 5, 6))
    '1,4-6'
    """
    runs = consecutive(layers)
    return comma.join(f"{run[0]}{dash}{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def display_layers(layers: Sequence[int]) -> str:
    """Layers for messages and figures; `parse_layers` reads these, too.

    >>> display_layers((1, 4, 5, 6))
    '1, 4–6'
    """
    return layers_as_text(layers, dash="–", comma=", ")


def consecutive(numbers: Sequence[int]) -> list[range]:
    """Increasing numbers as runs of consecutive ones.

    >>> consecutive([1, 4, 5, 6])
    [range(1, 2), range(4, 7)]
    """
    runs: list[range] = []
    for number in numbers:
        if runs and number == runs[-1].stop:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs


def as_layers(layers: Any, argument: str = "layers") -> list[int]:
    """A list of layer numbers; refuses text, a single number and what are no integers.

    >>> as_layers(range(2, 4))
    [2, 3]
    """
    listed = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else None
    if listed is None or any(isinstance(layer, bool | str) for layer in listed):
        raise SteerlensError(
            f"got {argument}={short_repr(layers)}; expected a list of layer numbers, such as [2, 3]"
        )
    try:
        return [index(layer) for layer in listed]
    except TypeError as error:
        raise SteerlensError(
            f"got {argument}={short_repr(listed)}; expected whole numbers, such as [2, 3]"
        ) from error


def parse_layers(text: str | None, argument: str = "--layers") -> list[int] | None:
    """Layers from text such as "1,4-6".

    Args:
        text: The layers; None stands for all of them, and stays None.
        argument: What the user calls this argument, for messages.

    >>> parse_layers("1,4-6")
    [1, 4, 5, 6]
    """
    if text is None:
        return None
    numbers: list[int] = []
    empty = ""
    try:
        for piece in text.replace("–", "-").split(","):
            first, dash, last = piece.partition("-")
            low, high = int(first), int(last if dash else first)
            if high > MOST_LAYERS:
                raise ValueError
            layers = range(low, high + 1)
            if not layers:
                empty = piece.strip()
            numbers += layers
    except ValueError as error:
        raise SteerlensError(
            f'{argument} {text!r} cannot be read; write "3", "2-5" or "1,4-6"'
        ) from error
    if empty:
        raise SteerlensError(
            f"{argument} {text!r} holds the empty range {empty!r}; write the lower layer first"
        )
    return numbers
