"""An objective over many prompts: its mean, its gradient, and what the vector has gained."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.batching import BATCH_TOKENS, CPU_BATCH_TOKENS, by_length
from steerlens.errors import SteerlensError
from steerlens.learning.batches import Batch
from steerlens.learning.objectives import Objective
from steerlens.learning.passes import Passes
from steerlens.learning.replies import ReplyPair
from steerlens.learning.training import Training
from steerlens.models.engine import halving

Directions = Float[Tensor, "layer d_model"]
MIDDLE = 0.5
"""In place of a step's random number, where an objective is measured."""


@torch.no_grad()
def loss_and_gain(
    passes: Passes,
    objective: Objective,
    pairs: Sequence[ReplyPair],
    directions: Directions,
    training: Training,
) -> tuple[float, float]:
    """The mean loss over prompts, as in a step, without its gradient; and `gain`, in one pass."""

    def part(some: Sequence[ReplyPair]) -> Tensor:
        batch = Batch(some, passes, directions, MIDDLE)
        return torch.stack([_losses(batch, objective, training).sum(), _gains(batch).sum()])

    loss, gained = (_over_batches(passes, pairs, part) / len(pairs)).tolist()
    return loss, gained


@torch.no_grad()
def gain(passes: Passes, pairs: Sequence[ReplyPair], directions: Directions) -> float:
    """How much likelier the wanted replies are than unsteered, in nats per token."""

    def part(some: Sequence[ReplyPair]) -> Tensor:
        return _gains(Batch(some, passes, directions)).sum()

    return float(_over_batches(passes, pairs, part)) / len(pairs)


def _gains(batch: Batch) -> Float[Tensor, " prompt"]:
    return batch.wanted().means - batch.wanted(0).means


def mean_strength(
    passes: Passes, objective: Objective, pairs: Sequence[ReplyPair], directions: Directions
) -> float:
    """How strongly the objective adds the vector, on average; 1 unless it says otherwise."""
    own = getattr(getattr(objective, "func", objective), "strength", None)
    if own is None:
        return 1.0
    live = directions.to(passes.model.cfg.device)
    settings = getattr(objective, "keywords", {})

    def part(some: Sequence[ReplyPair]) -> Tensor:
        total: Tensor = own(Batch(some, passes, live), **settings).sum()
        return total

    with torch.no_grad():
        return float(_over_batches(passes, pairs, part)) / len(pairs)


def loss_and_gradient(
    passes: Passes,
    objective: Objective,
    pairs: Sequence[ReplyPair],
    directions: Directions,
    training: Training,
    number: float,
) -> tuple[float, Directions]:
    """Summed over batches that memory holds, so that the prompts of a step may be many."""
    live = directions.detach().requires_grad_()
    gradient = torch.zeros_like(live)

    def part(some: Sequence[ReplyPair]) -> Tensor:
        losses = _losses(Batch(some, passes, live, number), objective, training)
        [found] = torch.autograd.grad(losses.sum() / len(pairs), [live])
        gradient.add_(found)
        return losses.detach().sum()

    with torch.enable_grad():
        loss = float(_over_batches(passes, pairs, part)) / len(pairs)
    if not gradient.isfinite().all():
        raise SteerlensError(
            f"the gradient is not finite (loss {loss}): the vector broke the model's numbers; "
            "lower learning_rate, set norm_budget, or load the model in float32"
        )
    return loss, gradient


def _losses(batch: Batch, objective: Objective, training: Training) -> Float[Tensor, " prompt"]:
    pairs = batch.pairs
    losses = objective(batch)
    if losses.shape != (len(pairs),):
        raise SteerlensError(
            f"the objective {getattr(objective, '__name__', objective)} returned shape "
            f"{tuple(losses.shape)} for {len(pairs)} prompts; expected one loss for each"
        )
    if training.drift_weight and any(len(pair.wanted.ids) > pair.wanted.end for pair in pairs):
        losses = losses + training.drift_weight * batch.drift()
    return losses


def _over_batches(
    passes: Passes, pairs: Sequence[ReplyPair], part: Callable[[Sequence[ReplyPair]], Tensor]
) -> Tensor:
    """The sum of a part's values over batches within a token budget; halved where memory ends."""
    cpu = torch.device(passes.model.cfg.device).type == "cpu"
    n_shared = 0 if passes.streams is None else passes.streams.n_shared
    lengths = [len(pair.wanted.ids) - n_shared for pair in pairs]
    batches = by_length(lengths, tokens=CPU_BATCH_TOKENS if cpu else BATCH_TOKENS)
    values = [
        value for batch in batches for value in halving(part, [pairs[index] for index in batch])
    ]
    return torch.stack(values).sum(dim=0)
