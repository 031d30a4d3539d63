"""What learning will cost, said before it is begun."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from steerlens.learning.learning import LESSONS, passes_of, prepared
from steerlens.learning.losses import loss_and_gradient
from steerlens.learning.objectives import Objective, reply_likelihood
from steerlens.learning.passes import Passes
from steerlens.learning.replies import ReplyPair, ReplyText
from steerlens.learning.training import Training
from steerlens.models.host import Model
from steerlens.steering.positions import Positions


@dataclass(frozen=True)
class Forecast:
    """The cost of a vector: texts and tokens are counted, time is measured on the first step."""

    layers: tuple[int, ...]
    prompts: int
    held_out: int
    texts: int
    """That are run once below the vector."""
    tokens: int
    """Of these, without what they share."""
    steps: int
    seconds: float

    def __str__(self) -> str:
        layers = ", ".join(map(str, self.layers))
        return (
            f"layer {layers}: {self.prompts} prompts to learn from, {self.held_out} held out; "
            f"{self.texts} texts of {self.tokens:,} tokens, {self.steps} steps, about "
            f"{self.seconds:.0f} s"
        )


def forecast(
    model: Model,
    data: LESSONS,
    objective: Objective = reply_likelihood,
    layers: Iterable[int] | int | None = None,
    *,
    site: str = "resid_post",
    positions: Positions = "all",
    validation: LESSONS | None = None,
    training: Training = Training(),  # noqa: B008 - frozen
) -> Forecast:
    """What `learn` with these arguments would cost, at the price of two of its steps.

    Continuing beginnings is not counted.

    >>> print(forecast(model, [("Hi.", "No."), ("Why?", "No.")]))  # doctest: +ELLIPSIS
    layer 2: 2 prompts to learn from, 0 held out; 2 texts of ... tokens, 50 steps, about ... s
    """
    job = prepared(model, data, layers, site, positions, validation, training)
    texts, [first, *_] = job.lessons.texts, job.lessons.steps
    own = list(
        dict.fromkeys(
            text for pair in first for text in (pair.wanted, pair.unwanted) if text is not None
        )
    )
    begun = perf_counter()
    passes = passes_of(model, job.plan, own, progress=False)
    below = perf_counter() - begun
    shared = 0 if passes.streams is None else passes.streams.n_shared
    step = _seconds_of_a_step(passes, objective, first, training)
    return Forecast(
        job.plan.layers_steered,
        len({pair.wanted.ids[: pair.wanted.start] for pair in job.lessons.learned}),
        len(job.lessons.held_out),
        len(texts),
        _own_tokens(texts, shared),
        training.steps,
        below * _own_tokens(texts, shared) / max(1, _own_tokens(own, shared))
        + step * training.steps,
    )


def _own_tokens(texts: list[ReplyText], shared: int) -> int:
    return sum(len(text.ids) - shared for text in texts)


def _seconds_of_a_step(
    passes: Passes, objective: Objective, pairs: Sequence[ReplyPair], training: Training
) -> float:
    """Of the second one: the first pays for what only a first one does."""
    directions = torch.full_like(passes.plan.vector.directions, 1e-3).to(passes.model.cfg.device)
    seconds = 0.0
    for _ in range(2):
        begun = perf_counter()
        loss_and_gradient(passes, objective, pairs, directions, training, 0.5)
        seconds = perf_counter() - begun
    return seconds
