"""How time and memory grow with the size of a job; each point in a process of its own.

As a script it measures one point, described as JSON, and prints seconds and bytes as JSON.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

POINTS: dict[str, dict[str, Any]] = {
    "extraction against pairs": {"axis": "pairs", "values": (100, 300, 1000, 3000)},
    "extraction against prompt length": {
        "axis": "length", "values": (16, 64, 256, 1000), "pairs": 32,
    },
    "extraction against layers": {"axis": "layers", "values": (1, 2, 4, 8)},
    "search against prompts": {
        "axis": "prompts", "values": (100, 1000, 10_000, 100_000), "what": "search",
    },
}  # fmt: skip
QUICK_POINTS: dict[str, dict[str, Any]] = {
    "extraction against pairs": {"axis": "pairs", "values": (4, 16)},
    "search against prompts": {"axis": "prompts", "values": (100, 1000), "what": "search"},
}
RESOLVED = {"seconds": 1e-6, "bytes": 2**20}
"""Less than this is not told from nothing."""
USUAL = {"what": "extraction", "pairs": 200, "length": 24, "layers": 8, "prompts": 1000}


def curves(folder: Path, threads: int, quick: bool) -> Iterator[dict[str, Any]]:
    """One curve at a time, with the exponents that fit it best."""
    for name, curve in (QUICK_POINTS if quick else POINTS).items():
        fixed = {key: value for key, value in curve.items() if key in USUAL}
        points = [
            _in_a_process(
                USUAL | fixed | {curve["axis"]: value, "folder": str(folder), "threads": threads}
            )
            for value in curve["values"]
        ]
        columns = {key: [point[key] for point in points] for key in ("seconds", "bytes")}
        yield {
            "name": name,
            "axis": curve["axis"],
            "values": list(curve["values"]),
            **columns,
            "exponents": {
                key: _exponent(curve["values"], ys, RESOLVED[key]) for key, ys in columns.items()
            },
        }


def _exponent(xs: Any, ys: Any, least: float) -> float:
    """Slope in logarithms, over the larger half of the curve, where fixed costs matter least."""
    half = max(2, len(xs) // 2 + 1)
    return float(np.polyfit(np.log(xs[-half:]), np.log(np.maximum(ys[-half:], least)), 1)[0])


def _in_a_process(point: dict[str, Any]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(point)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"measuring {point} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class _Peak(threading.Thread):
    """Largest resident memory, looked at every two milliseconds."""

    def __init__(self) -> None:
        import psutil

        super().__init__(daemon=True)
        self._memory = psutil.Process().memory_info
        self.before = self.most = self._memory().rss
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.002):
            self.most = max(self.most, self._memory().rss)


def _measure(point: dict[str, Any]) -> dict[str, float]:
    import torch

    torch.set_num_threads(point["threads"])
    run = {"extraction": _extraction, "search": _search}[point["what"]](point)
    peak = _Peak()
    peak.start()
    start = time.perf_counter()
    run()
    took = time.perf_counter() - start
    peak.over.set()
    peak.join()
    return {"seconds": took, "bytes": peak.most - peak.before}


def _extraction(point: dict[str, Any]) -> Any:
    import steerlens as sl

    model = sl.load_model(point["folder"])
    layers = range(min(point["layers"], model.cfg.n_layers))
    random = np.random.default_rng(0)

    def pairs(n: int) -> tuple[list[list[int]], list[list[int]]]:
        tokens = random.integers(10, 3000, (2, n, point["length"]))
        return tuple(tokens.tolist())

    def extract(data: Any) -> None:
        sl.extract(model, data, tokens="all", layers=layers, progress=False)

    extract(pairs(2))
    data = pairs(point["pairs"])
    return lambda: extract(data)


def _search(point: dict[str, Any]) -> Any:
    from steerlens.steering.thresholds import Similarities, find_thresholds

    random = np.random.default_rng(0)
    values = random.normal(size=(2, point["prompts"] // 2, point["layers"]))
    sides = Similarities(values[0] + 0.5, values[1])
    find_thresholds(Similarities(sides.positive[:10], sides.negative[:10]), range(point["layers"]))
    return lambda: find_thresholds(sides, range(point["layers"]))


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
