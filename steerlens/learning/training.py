"""How a vector is learned: the settings, and which prompts each step learns from."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

from steerlens.errors import SteerlensError
from steerlens.learning.replies import ReplyPair


@dataclass(frozen=True)
class Training:
    """How a vector is learned; the defaults take a small model a minute on a CPU."""

    steps: int = 50
    batch_size: int = 8
    """Prompts of one step."""
    learning_rate: float = 0.025
    """How far Adam moves the vector in a step, at most about: as a fraction of the layer's mean
    activation norm, so that it means the same in every model and layer."""
    weight_decay: float = 0.0
    """Share of the vector that is lost in each step."""
    norm_budget: float | None = None
    """Longest vector, as a fraction of the layer's mean activation norm; cut back at every step."""
    kl_budget: float | None = None
    """Largest 95th percentile of KL per token on neutral text, in nats, as `calibrate_strength`
    measures it. A vector that exceeds it is shortened to it after the last step."""
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
                ("kl_budget", self.kl_budget is None or self.kl_budget > 0),
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
                f"got {given}; expected steps, batch_size, replies, replies_drawn, check_every and "
                "patience of at least 1, learning_rate and budgets above 0, the rest not negative, "
                "and held_out and weight_decay below 1"
            )


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
