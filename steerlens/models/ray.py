"""An engine of Ray workers, each with its own copy of the model; the driver merges results."""

import math
import os
import platform
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch

from steerlens.errors import SteerlensError, import_extra
from steerlens.models.engine import Key, Result, Shard
from steerlens.models.fingerprint import LIBRARIES, fingerprint
from steerlens.models.host import Model, require_no_hooks
from steerlens.models.loading import TINY_CHAT, load_model

Worker = TypeVar("Worker")
Job = TypeVar("Job")

IN_FLIGHT = 2
"""Shards that a worker holds: the one it works on, and the next, so that it never waits."""
RETRIES = 3
"""How often a shard is retried after its worker died; one that kills four is at fault."""


@dataclass(frozen=True)
class Ray:
    """Ray workers that load a model once and run shards of a job; pass it as `engine=`.

    Workers start at first use. A worker that dies is replaced, and its shards are run again. Errors
    of the work are raised unchanged.

    >>> with Ray("tiny-chat", workers=2) as engine:
    ...     vector = extract(load_model(), refusals.train, pairs_at_once=256, engine=engine)
    """

    model: str = TINY_CHAT
    """A name for `load_model`; the model passed along with the engine must be the same one."""
    workers: int = 2
    address: str | None = None
    """The cluster ("auto" for this machine's); None for one that Ray is connected to (`ray.init`,
    RAY_ADDRESS), or else a new one that ends with the engine."""
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    """If not 0, workers use CUDA; 0.5 lets two workers share a GPU."""
    dtype: torch.dtype = torch.float32
    """The dtype of the workers' weights."""

    def __post_init__(self) -> None:
        import_extra("ray", "ray", "Ray(...), here and on every node,")
        if self.workers < 1 or self.cpus_per_worker <= 0 or self.gpus_per_worker < 0:
            raise SteerlensError(
                f"got workers={self.workers} with {self.cpus_per_worker} CPUs and "
                f"{self.gpus_per_worker} GPUs each; expected at least one worker, more than 0 CPUs "
                "and no negative number of GPUs"
            )

    def run(
        self,
        model: Model,
        work: Callable[[Model, Shard], Result],
        shards: Iterable[tuple[Key, Shard]],
    ) -> Iterator[tuple[Key, Result]]:
        """The result of each shard as it is finished; only a few shards are in flight.

        Raises the errors of the work, and SteerlensError if the workers' model or libraries differ
        from the driver's, or a shard's workers keep dying.
        """
        import ray

        require_no_hooks(
            model, "the workers' models would not have them, so pass a steering instead"
        )
        origin = _Origin.of(model)
        workers = self._pool.workers
        _result([worker.require.remote(origin) for worker in workers])
        sent = ray.put(work)
        jobs = scheduled(
            shards,
            workers,
            submit=lambda worker, shard: worker.run.remote(origin, sent, shard),
            first_done=lambda jobs: ray.wait(jobs)[0][0],
        )
        for key, job in jobs:
            yield key, _result(job)

    def device(self, model: Model) -> torch.device:
        """The workers' device."""
        return torch.device(self._device)

    def close(self) -> None:
        """End the workers, and the cluster if it was started for them."""
        import ray

        pool = self.__dict__.pop("_pool", None)
        if pool is None or not ray.is_initialized():
            return
        for worker in pool.workers:
            ray.kill(worker)
        if pool.owns_cluster:
            ray.shutdown()

    def __enter__(self) -> "Ray":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _device(self) -> str:
        return "cuda" if self.gpus_per_worker else "cpu"

    @cached_property
    def _pool(self) -> "_Pool":
        import ray

        owns_cluster = not ray.is_initialized()
        if owns_cluster:
            self._join_cluster()
        try:
            self._require_resources(ray.cluster_resources())
        except SteerlensError:
            if owns_cluster:
                ray.shutdown()
            raise
        actor = ray.remote(
            num_cpus=self.cpus_per_worker,
            num_gpus=self.gpus_per_worker,
            scheduling_strategy="SPREAD",
            max_restarts=-1,
            max_task_retries=RETRIES,
        )(_Worker)
        name = str(Path(self.model).resolve()) if Path(self.model).is_dir() else self.model
        started = [actor.remote(name, self._device, self.dtype) for _ in range(self.workers)]
        return _Pool(started, owns_cluster)

    def _join_cluster(self) -> None:
        import ray

        address = self.address or os.environ.get("RAY_ADDRESS")
        if address is None:
            cpus = math.ceil(self.workers * self.cpus_per_worker)
            ray.init(address="local", num_cpus=cpus, include_dashboard=False)
            return
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            if host:  # Ray itself would retry for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address)
        except (OSError, ValueError) as error:
            raise SteerlensError(
                f"no Ray cluster answers at address={address!r} ({error}); start one with "
                "`ray start --head`, or leave the address out to work on this machine"
            ) from error

    def _require_resources(self, cluster: Mapping[str, float]) -> None:
        needs = {
            "CPU": self.workers * self.cpus_per_worker,
            "GPU": self.workers * self.gpus_per_worker,
        }
        lacking = [
            f"{need:g} {kind}s (there are {cluster.get(kind, 0):g})"
            for kind, need in needs.items()
            if need > cluster.get(kind, 0)
        ]
        if lacking:
            raise SteerlensError(
                f"{self.workers} workers need {' and '.join(lacking)}; ask for fewer workers, or "
                "wait until every node has joined the cluster (see `ray status`)"
            )


class _Pool(NamedTuple):
    workers: list[Any]
    owns_cluster: bool


class _Origin(NamedTuple):
    """What must be the same on driver and workers for equal results."""

    versions: dict[str, str]
    weights: str
    dtype: str

    @classmethod
    def of(cls, model: Model) -> "_Origin":
        # "2.6.0+cpu" and "2.6.0+cu124" are one version.
        versions = {library: version(library).partition("+")[0] for library in LIBRARIES}
        return cls(versions, fingerprint(model), str(model.cfg.dtype))


class _Worker:
    """Holds the model for as long as it lives; its replacement loads the model again."""

    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        self._name, self._device, self._dtype = name, device, dtype

    def run(self, origin: _Origin, work: Callable[[Model, Any], Any], shard: Any) -> Any:
        self.require(origin)
        return work(self._model, shard)

    def require(self, driver: _Origin) -> None:
        """Refuse a driver with another model or other libraries."""
        differing = [
            f"{library} {installed} here, {driver.versions[library]} there"
            for library, installed in self._origin.versions.items()
            if installed != driver.versions[library]
        ]
        if differing:
            raise SteerlensError(
                f"a worker on {platform.node()} has other libraries than the driver "
                f"({'; '.join(differing)}); install the same on every node"
            )
        if self._origin != driver:
            raise SteerlensError(
                f"the workers loaded {self._name!r} (weights {self._origin.weights}, "
                f"{self._origin.dtype}), but the driver's model has weights {driver.weights}, "
                f"{driver.dtype}; give Ray(...) the model= and dtype= that the driver's was loaded "
                "with, and pass that one as it was loaded"
            )

    # Loaded in a call, not when built, so that its errors reach the driver unchanged.
    @cached_property
    def _model(self) -> Model:
        return load_model(self._name, device=self._device, dtype=self._dtype)

    @cached_property
    def _origin(self) -> _Origin:
        return _Origin.of(self._model)


def scheduled(
    shards: Iterable[tuple[Key, Shard]],
    workers: Sequence[Worker],
    submit: Callable[[Worker, Shard], Job],
    first_done: Callable[[list[Job]], Job],
    each: int = IN_FLIGHT,
) -> Iterator[tuple[Key, Job]]:
    """The finished job of every shard; each worker has at most `each` shards at a time.

    A shard is taken only when a worker can accept it, and none while the consumer is busy.

    Args:
        shards: Key and shard of each job.
        workers: The workers.
        submit: Gives a shard to a worker; returns the job.
        first_done: Waits for the first of several jobs.
        each: Most shards per worker.
    """
    free = deque([*workers] * each)  # a worker is listed once for each shard it can accept
    running: dict[Job, tuple[Key, Worker]] = {}
    coming = iter(shards)
    while True:
        for key, shard in islice(coming, len(free)):
            worker = free.popleft()
            running[submit(worker, shard)] = key, worker
        if not running:
            return
        job = first_done(list(running))
        key, worker = running.pop(job)
        free.append(worker)
        yield key, job


def _result(job: Any) -> Any:
    """The result of a job, or of a list of jobs; raises the errors raised there."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(job)
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if not isinstance(cause, SteerlensError):  # the user's code: show where it failed
            cause.add_note(str(error))
        raise cause from None
    except RayError as error:
        raise SteerlensError(
            f"a shard was lost {1 + RETRIES} times with the worker that had it "
            f"({type(error).__name__}: {error}); if memory ran out, make batches smaller "
            "(pairs_at_once=, batch_tokens=, batch_size=) or give workers more"
        ) from error
