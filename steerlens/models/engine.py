"""Engines: where the shards of a job are run, on this model or elsewhere."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, TypeVar, Unpack, runtime_checkable

import torch

from steerlens.models.host import Model
from steerlens.numerics import require_count

Key = TypeVar("Key")
Shard = TypeVar("Shard")
Result = TypeVar("Result")


@runtime_checkable
class Engine(Protocol):
    """Runs functions of the model on the shards of a job; `Ray` does so on other machines.

    Functions and shards can be sent elsewhere: they hold no model, and are deterministic.
    """

    def run(
        self,
        model: Model,
        work: Callable[[Model, Shard], Result],
        shards: Iterable[tuple[Key, Shard]],
    ) -> Iterator[tuple[Key, Result]]:
        """The key and result of each shard, once each, in any order.

        Args:
            model: The model.
            work: Called with the model and a shard.
            shards: Key and shard; taken one by one, as workers become free.
        """

    def device(self, model: Model) -> torch.device:
        """The device that the work will run on, which decides the size of batches."""


class LocalEngine:
    """Runs every shard on this model, in order.

    >>> list(LOCAL.run(load_model(), lambda model, text: len(text), [("a", "one"), ("b", "three")]))
    [('a', 3), ('b', 5)]
    """

    def run(
        self,
        model: Model,
        work: Callable[[Model, Shard], Result],
        shards: Iterable[tuple[Key, Shard]],
    ) -> Iterator[tuple[Key, Result]]:
        """The result of one shard after the other."""
        for key, shard in shards:
            yield key, work(model, shard)

    def device(self, model: Model) -> torch.device:
        """The model's device."""
        return torch.device(model.cfg.device)


LOCAL = LocalEngine()


class RunOptions(TypedDict, total=False):
    """How a job is run; its results do not depend on these.

    Functions with many arguments take them as `**run: Unpack[RunOptions]` and pass them on.
    """

    batch_size: int
    """Most rows of a batch."""
    progress: bool
    """Whether to show a progress bar."""
    engine: Engine
    """Where the model runs, such as `Ray`; this process by default."""


@dataclass(frozen=True)
class RunSettings:
    """`RunOptions` with their defaults."""

    batch_size: int | None = None
    """None leaves it to the function."""
    progress: bool = True
    engine: Engine = LOCAL

    def given(self) -> RunOptions:
        """The settings as options, to pass on."""
        options = RunOptions(progress=self.progress, engine=self.engine)
        if self.batch_size is not None:
            options["batch_size"] = self.batch_size
        return options


RUN = RunSettings()


def run_settings(**run: Unpack[RunOptions]) -> RunSettings:
    """Options → checked settings, for functions that use them; unknown names raise TypeError.

    >>> run_settings(batch_size=8, progress=False).batch_size
    8
    """
    settings = RunSettings(**run)
    if settings.batch_size is not None:
        require_count("batch_size", settings.batch_size)
    return settings


def halving(work: Callable[[Sequence[Shard]], Result], shards: Sequence[Shard]) -> list[Result]:
    """Results of `work` on all shards at once, or on halves of them where memory runs out.

    >>> halving(sum, [1, 2, 3])
    [6]
    """
    try:
        return [work(shards)]
    except torch.OutOfMemoryError:
        if len(shards) == 1:
            raise
    torch.cuda.empty_cache()  # after the `except`, the memory of the failed batch is free
    half = len(shards) // 2
    return [result for part in (shards[:half], shards[half:]) for result in halving(work, part)]
