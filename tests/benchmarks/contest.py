"""Timing one job done by several programs in turn, and whether they agree on its result."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

ENOUGH_SECONDS = 150
"""A job whose rounds have taken this long is repeated no more…"""
FEWEST_ROUNDS = 3
"""…than this many times…"""
LONGEST_SECONDS = 300
"""…unless they take this long: then once is enough."""


class Agreement(NamedTuple):
    """How two results compare; a ratio of times without it means nothing."""

    text: str
    holds: bool


MISSING = Agreement("not installed", True)


@dataclass(frozen=True)
class Rival:
    """Another way to do a job, and what ratio to it is aimed at."""

    name: str
    run: Callable[[], Any] | None
    """None: not installed."""
    agree: Callable[[Any, Any], Agreement]
    """Takes our result and the rival's."""
    at_least: float | None = None
    """Aimed at: so many times faster."""
    at_most: float | None = None
    """Aimed at: no more than this share of the rival's time."""


@dataclass(frozen=True)
class Job:
    name: str
    ours: Callable[[], Any]
    rivals: list[Rival]
    model: Any = None
    """What `ours` runs, for counting its arithmetic."""
    bytes_read: float = 0
    """Of a job that runs no model: what it must at least read."""
    remark: Callable[[Any, float], str] = lambda result, seconds: ""
    """What else there is to say of our result and its median time."""


@dataclass(frozen=True)
class Outcome:
    """A job against one rival: seconds in the order of the rounds."""

    job: str
    rival: str
    ours: list[float]
    theirs: list[float]
    """Empty if it is not installed."""
    agreement: Agreement
    at_least: float | None
    at_most: float | None
    remark: str

    @property
    def ratios(self) -> list[float]:
        """By round: theirs / ours; ours / theirs where a share of their time is aimed at."""
        pairs = zip(self.ours, self.theirs, strict=False)
        return [a / b if self.at_most is not None else b / a for a, b in pairs]

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def reached(self) -> bool | None:
        """None where nothing was aimed at, or the rival is missing."""
        if self.ratio is None or self.at_least is self.at_most is None:
            return None
        return (
            self.ratio <= self.at_most if self.at_most is not None else self.ratio >= self.at_least
        )

    def as_dict(self) -> dict[str, Any]:
        return vars(self) | {
            "agreement": self.agreement.text,
            "agrees": bool(self.agreement.holds),
            "ratios": self.ratios,
            "ratio": self.ratio,
            "reached": self.reached,
        }


def seconds(run: Callable[[], Any]) -> float:
    """How long one call takes, all of its work on an accelerator included."""
    _finish()
    start = time.perf_counter()
    run()
    _finish()
    return time.perf_counter() - start


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compete(job: Job, rounds: int) -> list[Outcome]:
    """Warm all up, compare their results, then time them in turn: A B C A B C …"""
    ready = {rival.name: rival.run for rival in job.rivals if rival.run is not None}
    ours = job.ours()
    theirs = {name: run() for name, run in ready.items()}
    times: dict[str, list[float]] = {name: [] for name in ("", *ready)}
    began = time.perf_counter()
    for done in range(rounds):
        taken = time.perf_counter() - began
        if taken > (ENOUGH_SECONDS if done >= FEWEST_ROUNDS else LONGEST_SECONDS):
            break
        for name, run in {"": job.ours, **ready}.items():
            times[name].append(seconds(run))
    remark = job.remark(ours, statistics.median(times[""]))
    return [
        Outcome(
            job.name,
            rival.name,
            times[""],
            times.get(rival.name, []),
            rival.agree(ours, theirs[rival.name]) if rival.name in theirs else MISSING,
            rival.at_least,
            rival.at_most,
            remark,
        )
        for rival in job.rivals
    ]
