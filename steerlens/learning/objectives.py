"""What a vector is learned for: functions of a batch, giving each prompt's loss.

An objective asks the batch how likely the model finds the wanted and the unwanted replies, under
the vector at whatever strength or edit it needs; anybody's function will do. Settings are given by
`functools.partial`: `learn(model, data, partial(bipo, beta=0.5))`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from einops import einsum
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from steerlens.errors import SteerlensError
from steerlens.learning.batches import Batch
from steerlens.steering.hooks import steering_hook

Objective = Callable[[Batch], Float[Tensor, " prompt"]]
"""`(batch) -> loss` of each prompt in it; `learn` takes their mean."""


def reply_likelihood(batch: Batch) -> Float[Tensor, " prompt"]:
    """−ln p of the wanted reply under the vector, per token.

    The plainest objective, and the only one here that needs no unwanted replies beside `reft_r1`.
    """
    return -batch.wanted().means


def bipo(batch: Batch, beta: float = 0.1) -> Float[Tensor, " prompt"]:
    """Bidirectional preference: v makes the wanted reply the likelier one, and −v the unwanted.

    −ln σ(d β [ln p(wanted | d v)/p(wanted) − ln p(unwanted | d v)/p(unwanted)]), where d is 1 or
    −1, by a coin for each step (arXiv 2406.00045).
    """
    sign = 1.0 if batch.random <= 0.5 else -1.0
    wanted = batch.wanted(sign).sums - batch.wanted(0).sums
    unwanted = batch.unwanted(sign).sums - batch.unwanted(0).sums
    return -logsigmoid(sign * beta * (wanted - unwanted))


@steering_hook
def suppress_direction(
    resid: Float[Tensor, "batch pos d_model"],
    direction: Float[Tensor, " d_model"],
    strength: Any,
) -> Float[Tensor, "batch pos d_model"]:
    """Take out what lies along the direction, where it points the same way; leave the opposite."""
    along = einsum(resid, direction, "batch pos d_model, d_model -> batch pos")
    length = einsum(direction, direction, "d_model, d_model ->")
    return resid - strength * (along.relu() / length)[..., None] * direction


def reps(batch: Batch, strengths: tuple[float, ...] = (0.5, 1.0, 1.5)) -> Float[Tensor, " prompt"]:
    """Reference-free preference: adding v prefers the wanted reply, taking v out the unwanted.

    −ln σ(Δ⁺) − ln σ(Δ⁻), with Δ⁺ = β⁺ w(s v) − u(s v) and Δ⁻ = β⁻ u(v taken out) − w(v taken out);
    w and u are ln p per token of the wanted and of the unwanted reply, s is drawn for each step,
    and β⁺ = max(ln p(unwanted) − ln p(wanted), 1), β⁻ the other way round, are of the unsteered
    model and of whole replies (arXiv 2505.20809).
    """
    strength = strengths[min(int(batch.random * len(strengths)), len(strengths) - 1)]
    ahead = batch.unwanted(0).sums - batch.wanted(0).sums
    wanted, unwanted = batch.wanted(strength).means, batch.unwanted(strength).means
    wanted_without = batch.wanted(edit=suppress_direction).means
    unwanted_without = batch.unwanted(edit=suppress_direction).means
    steered = ahead.clamp_min(1) * wanted - unwanted
    suppressed = (-ahead).clamp_min(1) * unwanted_without - wanted_without
    return -logsigmoid(steered) - logsigmoid(suppressed)


def reft_r1(batch: Batch, k: int = 8, sparsity: float = 0.005) -> Float[Tensor, " prompt"]:
    """Rank-one: the unit direction detects the concept, and is added as far as it is there.

    −ln p per token of the wanted reply, with the mean of the k largest ReLU(h·w) of a text added
    along w, and λ times the sum of all others (arXiv 2501.17148; w = v / |v|, the first token left
    out). The vector that comes out has the mean length that was added. Read by a `Condition` with
    `similarities.projection`, it is the detector.
    """
    found = _detected(batch, k)
    return -batch.wanted(found.strength).means + sparsity * found.rest


class _Detected(NamedTuple):
    strength: Float[Tensor, " prompt"]
    """Of v, not of its unit."""
    rest: Float[Tensor, " prompt"]


def _detected(batch: Batch, k: int) -> _Detected:
    if len(batch.directions) != 1:
        raise SteerlensError(
            f"reft_r1 detects where it steers, at one layer, but {len(batch.directions)} came; "
            "give one layer, or another objective"
        )
    stream = batch.stream()
    [direction] = batch.directions
    length = direction.norm()
    along = einsum(stream.values, direction, "text pos d_model, d_model -> text pos") / length
    latent = along.relu() * stream.real
    top = latent.topk(min(k, latent.shape[1]), dim=1).values
    n_top = stream.real.sum(dim=1).clamp_max(k)
    return _Detected(top.sum(dim=1) / n_top / length, latent.sum(dim=1) - top.sum(dim=1))


def _reft_r1_strength(batch: Batch, k: int = 8, sparsity: float = 0.005) -> Tensor:
    return _detected(batch, k).strength


reft_r1.strength = _reft_r1_strength  # type: ignore[attr-defined]


OBJECTIVES: dict[str, Objective] = {
    "reply_likelihood": reply_likelihood,
    "bipo": bipo,
    "reps": reps,
    "reft_r1": reft_r1,
}
"""The names under which the command line has them."""
