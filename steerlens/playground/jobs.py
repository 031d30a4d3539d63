"""A job queue with one worker, the model, and the state of each open tab."""

import logging
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

from cachetools import TTLCache

from steerlens.errors import SteerlensError, short_repr
from steerlens.models.progress import watching

MOST_TABS = 32
"""Tabs whose state is kept; a new one replaces the one unused for longest."""
TAB_TTL = 3600.0
"""Seconds without a request after which a tab is forgotten."""

LONGEST_KEY = 100
"""Characters; a page's own key has 43."""

Result = TypeVar("Result")
Entry = TypeVar("Entry")


class State(Enum):
    """The state of a job."""

    WAITING = "waiting"
    WORKING = "working"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


class _StoppedError(Exception):
    """Ends a step of a job that is to stop."""


class Job(Generic[Result]):
    """Work in steps that shows its latest result, and can be stopped.

    It stops between two steps, or within one whenever a progress bar moves.
    """

    def __init__(self, steps: Callable[[], Generator[Result, None, None]]) -> None:
        self.state = State.WAITING
        self.latest: Result | None = None
        self.error = ""
        self.progress = ""
        """How far the current step is, in words."""
        self._steps = steps
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        """Whether `latest` will not change any more."""
        return self.state not in (State.WAITING, State.WORKING)

    def stop(self) -> None:
        """End after the current step, or at once if the job waits; the latest result is kept."""
        with self._lock:
            self._stopping.set()
            if self.state is State.WAITING:
                self.state = State.STOPPED

    def work(self) -> None:
        """Take steps until the last one or `stop`; the generator is closed either way."""
        with self._lock:
            if self.ended:
                return
            self.state = State.WORKING
        try:
            with watching(self._tell), closing(self._steps()) as steps:
                for self.latest in steps:
                    self.progress = ""
                    if self._stopping.is_set():
                        break
        except _StoppedError:
            self.state = State.STOPPED
        except SteerlensError as error:
            self._fail(str(error))
        except Exception as error:  # the page is the only place to report it
            logging.getLogger(__name__).exception("a job of the playground failed")
            self._fail(f"{type(error).__name__}: {error}; see the terminal")
        else:  # only now: an ended job has removed its hooks
            self.state = State.STOPPED if self._stopping.is_set() else State.DONE

    def _tell(self, progress: str) -> None:
        self.progress = progress
        if self._stopping.is_set():
            raise _StoppedError

    def _fail(self, error: str) -> None:
        self.error = error
        self.state = State.FAILED


class JobQueue:
    """Runs jobs one at a time, in the order of submission."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="playground")
        self._jobs: list[Job] = []
        self._lock = threading.Lock()

    def submit(self, job: Job) -> None:
        """Append a job."""
        with self._lock:
            self._jobs = [*self._unfinished(), job]
            self._pool.submit(job.work)

    def position(self, job: Job) -> int:
        """How many unfinished jobs come before this one."""
        jobs = self._unfinished()
        return jobs.index(job) if job in jobs else 0

    def close(self) -> None:
        """Stop all jobs, and wait until the running one has left the model."""
        for job in self._jobs:
            job.stop()
        self._pool.shutdown()

    def _unfinished(self) -> list[Job]:
        return [job for job in self._jobs if not job.ended]


@dataclass
class Tab(Generic[Entry, Result]):
    """The state of one open page."""

    own: dict[str, Entry] = field(default_factory=dict)
    """The vectors uploaded in it."""
    lists: dict[str, Any] = field(default_factory=dict)
    """Conditions that can be made in it."""
    cuts: dict[str, Any] = field(default_factory=dict)
    """The thresholds of the link that it was opened with."""
    job: Job[Result] | None = None


class _TabCache(TTLCache):
    """Tabs by key; the job of a tab that is dropped is stopped."""

    def expire(self, time: float | None = None) -> Any:
        dropped = list(super().expire(time))
        for _, tab in dropped:
            _stop(tab)
        return dropped

    def popitem(self) -> Any:
        key, tab = super().popitem()
        _stop(tab)
        return key, tab


def _stop(tab: Tab[Any, Any]) -> None:
    if tab.job is not None:
        tab.job.stop()


class Tabs(Generic[Entry, Result]):
    """The open tabs by key: a bounded number, and none unused for longer than `ttl` seconds."""

    def __init__(
        self,
        most: int = MOST_TABS,
        ttl: float = TAB_TTL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tabs = _TabCache(most, ttl, clock)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._tabs)

    def get(self, key: str) -> Tab[Entry, Result]:
        """The tab of a key, made if there is none; may drop the one unused for longest."""
        if not isinstance(key, str) or not 0 < len(key) <= LONGEST_KEY:
            raise SteerlensError(
                f"got {short_repr(key)} as the key of a tab; reload the page for a new one"
            )
        with self._lock:
            tab: Tab[Entry, Result] = self._tabs.get(key) or Tab()
            self._tabs[key] = tab  # restarts its ttl
        return tab
