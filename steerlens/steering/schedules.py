"""Schedules: how the strength changes over the tokens of a reply."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Num
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.numerics import is_number

Age = Num[Tensor, "*batch"]
"""How many tokens of the reply there are, up to each token; 0 in the prompt."""
Schedule = Callable[[Age], Age]
"""`(age) -> factor` of the strength at each token; a function of one's own may be any."""


@dataclass(frozen=True)
class Decay:
    """A schedule: half as strong after each `half_life` generated tokens; full in the prompt.

    >>> Decay(half_life=2)(torch.tensor([0, 2, 4]))
    tensor([1.0000, 0.5000, 0.2500])
    """

    half_life: float

    def __post_init__(self) -> None:
        _require_positive(self, self.half_life)

    def __call__(self, age: Age) -> Age:
        return 0.5 ** (age / self.half_life)


@dataclass(frozen=True)
class Ramp:
    """A schedule: from nothing in the prompt to full strength at the n-th generated token.

    >>> Ramp(over=4)(torch.tensor([0, 2, 8]))
    tensor([0.0000, 0.5000, 1.0000])
    """

    over: float

    def __post_init__(self) -> None:
        _require_positive(self, self.over)

    def __call__(self, age: Age) -> Age:
        return (age / self.over).clamp_max(1.0)


def _require_positive(schedule: Any, tokens: float) -> None:
    if not is_number(tokens) or not tokens > 0:
        raise SteerlensError(f"got {schedule}; expected a number of tokens above 0")


@dataclass(frozen=True)
class AsText:
    """A schedule for a text read at once, as though the model had written it from token 1 on."""

    schedule: Schedule

    def __call__(self, age: Age) -> Age:
        return self.schedule(age)
