"""Where the model's work is done: here, shard after shard, unless an engine does it elsewhere."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, TypeVar, Unpack, runtime_checkable

import torch

from steerlens.errors import SteerlensError
from steerlens.models.host import Model

Key = TypeVar("Key")
Shard = TypeVar("Shard")
Result = TypeVar("Result")


@runtime_checkable
class Engine(Protocol):
    """Runs functions of the model on shards of a job; `distributed.Ray` does it on other machines.

    A function and its shards may travel: they hold no model, and the same comes out of the same.
    """

    def run(
        self,
        model: Model,
        work: Callable[[Model, Shard], Result],
        shards: Iterable[tuple[Key, Shard]],
    ) -> Iterator[tuple[Key, Result]]:
        """The key of each shard with what `work` makes of it: once each, in any order.

        Shards are taken when there is room for them, so that they may be made while it runs.
        """

    def device(self, model: Model) -> torch.device:
        """What the work will run on, for batches of the right size."""


class LocalEngine:
    """The model at hand does it all, in order.

    >>> list(LOCAL.run(load_model(), lambda model, text: len(text), [("a", "one"), ("b", "three")]))
    [('a', 3), ('b', 5)]
    """

    def run(
        self,
        model: Model,
        work: Callable[[Model, Shard], Result],
        shards: Iterable[tuple[Key, Shard]],
    ) -> Iterator[tuple[Key, Result]]:
        """One shard after the other."""
        for key, shard in shards:
            yield key, work(model, shard)

    def device(self, model: Model) -> torch.device:
        """The model's."""
        return torch.device(model.cfg.device)


LOCAL = LocalEngine()


class RunOptions(TypedDict, total=False):
    """How a job is run, which changes nothing of what comes out.

    Functions with many arguments take these as `**run: Unpack[RunOptions]` and pass them on.
    """

    batch_size: int
    """Rows of one batch, at most."""
    progress: bool
    """Whether a terminal shows a progress bar."""
    engine: Engine
    """Where the model runs."""


@dataclass(frozen=True)
class RunSettings:
    """`RunOptions` with what holds where nothing was said."""

    batch_size: int | None = None
    """None: as many rows as a function finds best."""
    progress: bool = True
    engine: Engine = LOCAL

    def given(self) -> RunOptions:
        """As they are passed on."""
        options = RunOptions(progress=self.progress, engine=self.engine)
        if self.batch_size is not None:
            options["batch_size"] = self.batch_size
        return options


RUN = RunSettings()


def run_settings(**run: Unpack[RunOptions]) -> RunSettings:
    """Checked, for functions that do not just pass them on; raises TypeError for unknown ones.

    >>> run_settings(batch_size=8, progress=False).batch_size
    8
    """
    settings = RunSettings(**run)
    if settings.batch_size is not None and settings.batch_size < 1:
        raise SteerlensError(f"got batch_size={settings.batch_size}; expected at least 1")
    return settings


def halving(work: Callable[[Sequence[Shard]], Result], shards: Sequence[Shard]) -> list[Result]:
    """`work` of everything at once; where memory runs out, of its halves, one after the other.

    >>> halving(sum, [1, 2, 3])
    [6]
    """
    try:
        return [work(shards)]
    except torch.OutOfMemoryError:
        if len(shards) == 1:
            raise
    torch.cuda.empty_cache()  # only out here is the memory of the failed batch free
    half = len(shards) // 2
    return [result for part in (shards[:half], shards[half:]) for result in halving(work, part)]
