"""Layers as text: (2, 3, 5) ⇄ "2-3,5"."""

from collections.abc import Sequence

from steerlens.errors import SteerlensError


def layers_as_text(layers: Sequence[int]) -> str:
    """Layers as people write them."""
    runs = consecutive(layers)
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def consecutive(numbers: Sequence[int]) -> list[range]:
    """Increasing numbers as the unbroken runs that they consist of."""
    runs: list[range] = []
    for number in numbers:
        if runs and number == runs[-1].stop:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs


def parse_layers(layers: str | None) -> list[int] | None:
    """`"1,4-6"` as [1, 4, 5, 6]; None stays None, which stands for all layers.

    >>> parse_layers("1,4-6")
    [1, 4, 5, 6]
    """
    if layers is None:
        return None
    numbers: list[int] = []
    try:
        for piece in layers.split(","):
            first, dash, last = piece.partition("-")
            numbers += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError as error:
        raise SteerlensError(
            f'--layers {layers!r} cannot be read; write "3", "2-5", "1,4-6"'
        ) from error
    if not numbers:
        raise SteerlensError(f"--layers {layers!r} names no layer; write the lower one first")
    return numbers
