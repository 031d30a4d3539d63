"""Gates that open by degrees: how strongly to steer, as a function of a condition's score."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr
from steerlens.steering.conditions import Condition

Opening = Callable[[Float[Tensor, " score"]], Float[Tensor, " score"]]
"""`(margin) -> factor`: the margin is how far a score is beyond its threshold, negative before."""


@dataclass(frozen=True)
class Linear:
    """`offset + slope × margin`, on both sides of the threshold.

    >>> Linear(slope=2.0)(torch.tensor([-0.5, 1.0]))
    tensor([0., 3.])
    """

    slope: float = 1.0
    offset: float = 1.0

    def __call__(self, margin: Float[Tensor, " score"]) -> Float[Tensor, " score"]:
        return self.offset + self.slope * margin


@dataclass(frozen=True)
class Relu:
    """`slope × margin` beyond the threshold, 0 before it.

    >>> Relu(slope=2.0)(torch.tensor([-0.5, 1.0]))
    tensor([0., 2.])
    """

    slope: float = 1.0

    def __call__(self, margin: Float[Tensor, " score"]) -> Float[Tensor, " score"]:
        return self.slope * margin.relu()


@dataclass(frozen=True)
class Logistic:
    """From 0 far before the threshold to 1 far beyond it; ½ at it.

    >>> Logistic(steepness=4.0)(torch.tensor([0.0, 1.0]))
    tensor([0.5000, 0.9820])
    """

    steepness: float = 1.0

    def __call__(self, margin: Float[Tensor, " score"]) -> Float[Tensor, " score"]:
        return (self.steepness * margin).sigmoid()


OPENINGS: dict[str, Callable[..., Opening]] = {
    "linear": Linear,
    "relu": Relu,
    "logistic": Logistic,
}
"""The functions of a score by the names under which files and commands have them."""


@dataclass(frozen=True, eq=False)
class SoftGate:
    """Steers as much as a condition's score says, as `when` or `when_token` of a `Steering`.

    The strength is multiplied by a function of the margin: how far the score is beyond the
    condition's threshold. Where the factor is 0, nothing is edited.

    Args:
        condition: Gives the score; its threshold is where the margin is 0.
        opening: `Linear`, `Relu`, `Logistic`, or any function `(margin) -> factor` of a tensor.

    >>> v = SteeringVector(torch.eye(2), layers=(0, 1))
    >>> SoftGate(Condition(v, layers=0, above=0.5, name="harmful"), Relu(3.0))
    SoftGate(Relu(slope=3.0) of harmful)
    """

    condition: Condition
    opening: Opening = Relu()

    def __post_init__(self) -> None:
        if not isinstance(self.condition, Condition) or not callable(self.opening):
            raise SteerlensError(
                f"got a soft gate of {short_repr(self.condition)} and {short_repr(self.opening)}; "
                "expected one Condition and a function of its margin, such as Relu(2.0)"
            )

    def leaves(self) -> Iterator[Condition]:
        """Its one condition."""
        yield self.condition

    def truth(self, of: Callable[[Any], Any]) -> Any:
        """Whether it counts as having fired: where the score is beyond the threshold."""
        return of(self.condition)

    def factor(self, similarities: Float[Tensor, "batch layer ..."]) -> Float[Tensor, " batch"]:
        """What the strength is multiplied by; 0 where a score is missing (attention sinks).

        Args:
            similarities: Of each row, one column for each layer that the condition reads.

        Raises:
            SteerlensError: The opening gave anything but a finite number for each score.
        """
        margin = self.condition.margin(similarities)
        known = ~margin.isnan()
        factor: Any = self.opening(margin[known])
        shaped = isinstance(factor, Tensor) and factor.shape == margin[known].shape
        if not shaped or not factor.isfinite().all():
            raise SteerlensError(
                f"{self} returned {short_repr(factor)} for {int(known.sum())} scores; expected a "
                "finite number for each"
            )
        return torch.zeros_like(margin).masked_scatter(known, factor.to(margin))

    def __repr__(self) -> str:
        name = getattr(self.opening, "__name__", None) or repr(self.opening)
        return f"SoftGate({name} of {self.condition})"

    __str__ = __repr__
