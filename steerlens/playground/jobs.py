"""Work that takes turns on one model: who waits, who works, who stops."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from steerlens.errors import SteerlensError

MOST_TABS = 32
"""Tabs whose state is kept; a new one takes the place of the one that was silent longest."""
SILENCE = 3600.0
"""Seconds after which a tab that says nothing is forgotten."""

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
    heard: float = field(default_factory=time.monotonic)


class Tabs(Generic[Entry, Result]):
    """The open pages by their keys: a bounded number, and none that has long been silent."""

    def __init__(self, most: int = MOST_TABS, silence: float = SILENCE) -> None:
        self._tabs: OrderedDict[str, Tab[Entry, Result]] = OrderedDict()
        self._most, self._silence = most, silence
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tabs)

    def of(self, key: str) -> Tab[Entry, Result]:
        """The tab of a key, new if need be; makes room by forgetting others, whose jobs stop."""
        now = time.monotonic()
        with self._lock:
            tab = self._tabs.setdefault(key, Tab())
            tab.heard = now
            self._tabs.move_to_end(key)
            while self._is_too_much(next(iter(self._tabs.values())), now):
                _, gone = self._tabs.popitem(last=False)
                if gone.job is not None:
                    gone.job.stop()
        return tab

    def _is_too_much(self, oldest: Tab[Entry, Result], now: float) -> bool:
        return len(self._tabs) > self._most or oldest.heard < now - self._silence
