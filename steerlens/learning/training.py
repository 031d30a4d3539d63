"""The optimisation: a schedule of prompts, steps of Adam, checks on held-out prompts."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.batching import BATCH_TOKENS, CPU_BATCH_TOKENS, by_length
from steerlens.errors import SteerlensError
from steerlens.learning.batches import Batch
from steerlens.learning.objectives import Objective
from steerlens.learning.passes import Passes
from steerlens.learning.replies import ReplyPair
from steerlens.models.engine import halving
from steerlens.models.progress import progress_bar

Directions = Float[Tensor, "layer d_model"]


MIDDLE = 0.5
"""In place of a step's random number, where an objective is measured."""


@dataclass(frozen=True)
class Training:
    """How a vector is learned; the defaults take a small model a minute on a CPU."""

    steps: int = 60
    batch_size: int = 8
    """Prompts of one step."""
    learning_rate: float = 0.005
    """How far Adam moves the vector in a step, at most about: as a fraction of the layer's mean
    activation norm, so that it means the same in every model and layer."""
    weight_decay: float = 0.0
    """Share of the vector that is lost in each step."""
    norm_budget: float | None = None
    """Longest vector, as a fraction of the layer's mean activation norm; cut back at every step."""
    replies: int = 4
    """Of many wanted replies that all prompts share, how many are learned: those that the unsteered
    model finds likeliest per token. One vector says a few things well, or many badly."""
    replies_drawn: int = 128
    """About how many different prompt-and-reply texts are used; fewer repeat sooner, and what is
    below the vector is run once for each."""
    continued: int = 24
    """How many tokens are added to a reply that is only a beginning, as the unsteered model would
    go on; there the steered model is kept near it, so that the text does not begin again."""
    drift_weight: float = 1.0
    """Weight of KL(unsteered ‖ steered) per token there, in the loss."""
    held_out: float = 0.125
    """Share of the prompts that are never learned from if no validation data is given."""
    check_every: int = 10
    """Steps between checks on held-out prompts; the best vector of all checks is kept."""
    patience: int | None = None
    """Stop after so many checks without improvement; None: never."""
    seed: int = 0

    def __post_init__(self) -> None:
        whole = ("steps", "batch_size", "replies", "replies_drawn", "check_every")
        wrong = [name for name in whole if getattr(self, name) < 1]
        wrong += [
            name
            for name, fits in (
                ("learning_rate", self.learning_rate > 0),
                ("weight_decay", 0 <= self.weight_decay < 1),
                ("norm_budget", self.norm_budget is None or self.norm_budget > 0),
                ("continued", self.continued >= 0),
                ("drift_weight", self.drift_weight >= 0),
                ("held_out", 0 <= self.held_out < 1),
                ("patience", self.patience is None or self.patience >= 1),
            )
            if not fits
        ]
        if wrong:
            given = ", ".join(f"{name}={getattr(self, name)}" for name in wrong)
            raise SteerlensError(
                f"got {given}; expected steps, batch_size, replies, replies_drawn, check_every and patience "
                "of at least 1, learning_rate and norm_budget above 0, the rest not negative, and "
                "held_out and weight_decay below 1"
            )


class Check(NamedTuple):
    """The vector on held-out prompts, after so many steps."""

    step: int
    loss: float
    gain: float
    """How much likelier than unsteered the wanted replies are, in nats per token."""


@dataclass
class Progress:
    """How far the learning of one vector has come."""

    directions: Directions
    losses: list[float] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    best: Directions | None = None
    interrupted: bool = False

    @property
    def found(self) -> Directions:
        """The best of all checks, or what there is."""
        return self.directions if self.best is None else self.best


def schedule(prompts: Sequence[Sequence[ReplyPair]], training: Training) -> list[list[ReplyPair]]:
    """The prompts of each step, each with one of its replies: every prompt before any again."""
    drawn = random.Random(training.seed)
    each = -(-training.replies_drawn // len(prompts))
    replies = [cycle(drawn.sample(pairs, min(each, len(pairs)))) for pairs in prompts]
    order: Iterator[int] = _epochs(len(prompts), drawn)
    size = min(training.batch_size, len(prompts))
    return [[next(replies[next(order)]) for _ in range(size)] for _ in range(training.steps)]


def _epochs(n_prompts: int, drawn: random.Random) -> Iterator[int]:
    while True:
        yield from drawn.sample(range(n_prompts), n_prompts)


def first_directions(norms: Float[Tensor, " layer"], width: int, seed: int) -> Directions:
    """Where learning begins: a random direction of a thousandth of the stream's length."""
    generator = torch.Generator().manual_seed(seed)
    random_ones = torch.randn(len(norms), width, generator=generator)
    return random_ones / random_ones.norm(dim=1, keepdim=True) * norms[:, None] * 1e-3


def train(
    passes: Passes,
    objective: Objective,
    steps: Sequence[Sequence[ReplyPair]],
    held_out: Sequence[ReplyPair],
    norms: Float[Tensor, " layer"],
    training: Training,
    progress: bool = True,
) -> Progress:
    """Steps of Adam on the mean loss of each step's prompts; Ctrl-C keeps the best so far."""
    device = passes.model.cfg.device
    start = first_directions(norms, passes.plan.vector.width, training.seed)
    live = start.to(device).requires_grad_()
    rows = [row.clone() for row in live.detach()]
    optimizer = torch.optim.Adam(
        [
            {"params": [row], "lr": training.learning_rate * float(norm) / len(row) ** 0.5}
            for row, norm in zip(rows, norms, strict=True)
        ]
    )
    longest = None if training.norm_budget is None else training.norm_budget * norms.to(device)
    state = Progress(start)
    drawn = random.Random(training.seed)
    with progress_bar(len(steps), "step", progress, what="learning") as bar, torch.enable_grad():
        try:
            for number, pairs in enumerate(steps, start=1):
                loss, gradient = _loss_and_gradient(
                    passes, objective, pairs, live, training, drawn.random()
                )
                for row, own in zip(rows, gradient, strict=True):
                    row.mul_(1 - training.weight_decay)
                    row.grad = own
                optimizer.step()
                if longest is not None:
                    _shorten(rows, longest)
                live = torch.stack(rows).requires_grad_()
                state.directions = live.detach().cpu()
                state.losses.append(loss)
                last = number == len(steps)
                if held_out and (last or number % training.check_every == 0):
                    _check(state, passes, objective, held_out, training, number)
                bar.update()
                bar.set_postfix(_shown(state), refresh=False)
                if _gives_up(state, training):
                    break
        except KeyboardInterrupt:
            if not state.losses:
                raise
            state.interrupted = True
    return state


def _shown(state: Progress) -> dict[str, str]:
    shown = {"loss": f"{state.losses[-1]:.3f}"}
    if state.checks:
        last = state.checks[-1]
        shown |= {"held out": f"{last.loss:.3f}", "gain": f"{last.gain:+.2f} nats/token"}
    return shown


def _gives_up(state: Progress, training: Training) -> bool:
    if training.patience is None or not state.checks:
        return False
    losses = [check.loss for check in state.checks]
    return len(losses) - 1 - losses.index(min(losses)) >= training.patience


def _check(
    state: Progress,
    passes: Passes,
    objective: Objective,
    held_out: Sequence[ReplyPair],
    training: Training,
    step: int,
) -> None:
    """Note how the vector does on held-out prompts, and keep it if it is the best."""
    live = state.directions.to(passes.model.cfg.device)
    loss = mean_loss(passes, objective, held_out, live, training)
    if all(loss < check.loss for check in state.checks):
        state.best = state.directions
    state.checks.append(Check(step, loss, gain(passes, held_out, live)))


@torch.no_grad()
def mean_loss(
    passes: Passes,
    objective: Objective,
    pairs: Sequence[ReplyPair],
    directions: Directions,
    training: Training,
) -> float:
    """The mean loss over prompts, as in a step, without its gradient."""

    def part(some: Sequence[ReplyPair]) -> float:
        return float(_losses(passes, objective, some, directions, training, MIDDLE).sum())

    return _over_batches(passes, pairs, part) / len(pairs)


@torch.no_grad()
def gain(passes: Passes, pairs: Sequence[ReplyPair], directions: Directions) -> float:
    """How much likelier the wanted replies are than unsteered, in nats per token."""

    def part(some: Sequence[ReplyPair]) -> float:
        batch = Batch(some, passes, directions)
        return float((batch.wanted().means - batch.wanted(0).means).sum())

    return _over_batches(passes, pairs, part) / len(pairs)


def mean_strength(
    passes: Passes, objective: Objective, pairs: Sequence[ReplyPair], directions: Directions
) -> float:
    """How strongly the objective adds the vector, on average; 1 unless it says otherwise."""
    own = getattr(getattr(objective, "func", objective), "strength", None)
    if own is None:
        return 1.0
    live = directions.to(passes.model.cfg.device)
    settings = getattr(objective, "keywords", {})

    def part(some: Sequence[ReplyPair]) -> float:
        return float(own(Batch(some, passes, live), **settings).sum())

    with torch.no_grad():
        return _over_batches(passes, pairs, part) / len(pairs)


def _loss_and_gradient(
    passes: Passes,
    objective: Objective,
    pairs: Sequence[ReplyPair],
    live: Directions,
    training: Training,
    number: float,
) -> tuple[float, Directions]:
    """Summed over batches that memory holds, so that the prompts of a step may be many."""
    gradient = torch.zeros_like(live)

    def part(some: Sequence[ReplyPair]) -> float:
        losses = _losses(passes, objective, some, live, training, number)
        [found] = torch.autograd.grad(losses.sum() / len(pairs), [live])
        gradient.add_(found)
        return float(losses.detach().sum())

    loss = _over_batches(passes, pairs, part) / len(pairs)
    if not gradient.isfinite().all():
        raise SteerlensError(
            f"the gradient is not finite (loss {loss}): the vector broke the model's numbers; "
            "lower learning_rate, set norm_budget, or load the model in float32"
        )
    return loss, gradient


def _losses(
    passes: Passes,
    objective: Objective,
    pairs: Sequence[ReplyPair],
    directions: Directions,
    training: Training,
    number: float,
) -> Float[Tensor, " prompt"]:
    batch = Batch(pairs, passes, directions, number)
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
    passes: Passes, pairs: Sequence[ReplyPair], part: Callable[[Sequence[ReplyPair]], float]
) -> float:
    """The sum of a part's values over batches within a token budget; halved where memory ends."""
    cpu = torch.device(passes.model.cfg.device).type == "cpu"
    n_shared = 0 if passes.streams is None else passes.streams.n_shared
    lengths = [len(pair.wanted.ids) - n_shared for pair in pairs]
    batches = by_length(lengths, tokens=CPU_BATCH_TOKENS if cpu else BATCH_TOKENS)
    return sum(
        value for batch in batches for value in halving(part, [pairs[index] for index in batch])
    )


def _shorten(rows: Sequence[Tensor], longest: Float[Tensor, " layer"]) -> None:
    """Cut each direction back to its longest length."""
    for row, length in zip(rows, longest, strict=True):
        row.mul_(length / row.norm().clamp_min(length))
