"""Work that takes turns on one model: who waits, who works, who stops."""

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

MOST_TABS = 32
"""Tabs whose state is kept; a new one takes the place of the one that was silent longest."""
SILENCE = 3600.0
"""Seconds after which a tab that says nothing is forgotten."""

LONGEST_KEY = 100
"""Characters; a page's own key has 43."""

Result = TypeVar("Result")
Entry = TypeVar("Entry")


class State(Enum):
    """Where a job stands."""

    WAITING = "waiting"
    WORKING = "working"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


class Job(Generic[Result]):
    """A stretch of work that shows how far it has come, and can be stopped between two steps."""

    def __init__(self, steps: Callable[[], Generator[Result, None, None]]) -> None:
        self.state = State.WAITING
        self.latest: Result | None = None
        self.error = ""
        self._steps = steps
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state not in (State.WAITING, State.WORKING)

    def stop(self) -> None:
        """End at the next step, or at once if none was taken; what has come so far stays."""
        with self._lock:
            self._stopping.set()
            if self.state is State.WAITING:
                self.state = State.STOPPED

    def work(self) -> None:
        """Take all steps, or as many as there are until `stop`; the steps are closed either way."""
        with self._lock:
            if self.ended:
                return
            self.state = State.WORKING
        try:
            with closing(self._steps()) as steps:
                for self.latest in steps:
                    if self._stopping.is_set():
                        break
        except SteerlensError as error:
            self._fail(str(error))
        except Exception as error:  # a page has nobody else to tell
            logging.getLogger(__name__).exception("a job of the playground failed")
            self._fail(f"{type(error).__name__}: {error}; the terminal says more")
        else:  # only now: when a job has ended, its hooks are gone
            self.state = State.STOPPED if self._stopping.is_set() else State.DONE

    def _fail(self, error: str) -> None:
        self.error = error
        self.state = State.FAILED


class Turns:
    """One worker: jobs are done one at a time, in the order they came."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="turns")
        self._line: list[Job] = []
        self._lock = threading.Lock()

    def ask(self, job: Job) -> None:
        """Put a job at the end of the line."""
        with self._lock:
            self._line = [*(other for other in self._line if not other.ended), job]
            self._pool.submit(job.work)

    def ahead_of(self, job: Job) -> int:
        """How many others are to be done first."""
        line = [other for other in self._line if not other.ended]
        return line.index(job) if job in line else 0

    def close(self) -> None:
        """Stop all jobs, and wait for the one at work to let go of the model."""
        for job in self._line:
            job.stop()
        self._pool.shutdown()


@dataclass
class Tab(Generic[Entry, Result]):
    """What belongs to one open page, and to no other."""

    own: dict[str, Entry] = field(default_factory=dict)
    """What was uploaded there."""
    job: Job[Result] | None = None


class _Open(TTLCache):
    """Tabs by their keys; the job of one that is forgotten stops."""

    def expire(self, time: float | None = None) -> Any:
        gone = list(super().expire(time))
        for _, tab in gone:
            _stop(tab)
        return gone

    def popitem(self) -> Any:
        key, tab = super().popitem()
        _stop(tab)
        return key, tab


def _stop(tab: Tab[Any, Any]) -> None:
    if tab.job is not None:
        tab.job.stop()


class Tabs(Generic[Entry, Result]):
    """The open pages by their keys: a bounded number, and none that has long been silent."""

    def __init__(
        self,
        most: int = MOST_TABS,
        silence: float = SILENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = _Open(most, silence, clock)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._open)

    def of(self, key: str) -> Tab[Entry, Result]:
        """The tab of a key, new if need be; makes room by forgetting the one silent longest."""
        if not isinstance(key, str) or not 0 < len(key) <= LONGEST_KEY:
            raise SteerlensError(f"got the key {short_repr(key)} of a page; reload it for another")
        with self._lock:
            tab: Tab[Entry, Result] = self._open.get(key) or Tab()
            self._open[key] = tab  # it spoke: its time begins again
        return tab
