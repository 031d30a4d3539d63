"""How fast steerlens is against the programs it replaces, as ratios from one run.

python tests/benchmarks/run.py --out out/bench [--quick] [--only decoding search …]
"""

import argparse
import gc
import json
import logging
import platform
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import contest
import eight_billion
import generating
import growth
import learning
import limits
import page
import reading
import torch
from hosts import FULL, QUICK, Hosts, Size, make_llama
from rich.console import Console
from transformers.utils import logging as transformers_logging

import steerlens as sl

VERSIONS = (
    "torch", "transformers", "transformer-lens", "numpy", "scikit-learn", "steering-vectors",
    "repeng",
)  # fmt: skip

JOBS: dict[str, Callable[[Hosts, Size], Iterator[contest.Job]]] = {
    "decoding": generating.decoding,
    "gated": generating.gated,
    "overhead": generating.overhead,
    "sweep": partial(generating.sweep, at_least=6),
    "sweep-tiny-chat": partial(generating.sweep, at_least=15),
    "extraction": reading.extraction,
    "suffixes": reading.suffixes,
    "search": reading.search,
    "directions": reading.directions,
    "learning": learning.learning,
}


def main() -> None:
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    _quiet()
    gc.freeze()  # what is imported need not be looked through during runs
    console = Console()
    if not console.is_terminal:
        console.width = 200
    facts = environment(options.device)
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes: list[contest.Outcome] = []
    accounts: list[limits.Account] = []
    curves: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        size = QUICK if options.quick else FULL
        folder = make_llama(Path(temporary), size)
        llama = Hosts("a random Llama", folder, options.device)
        chat = Hosts("tiny-chat", sl.demo_file("tiny-chat"), options.device)
        rates = limits.measure(llama.ours)
        facts["matrix products"] = f"{rates.flops / 1e9:,.0f} GFLOP/s"
        facts["memory"] = f"{rates.bytes / 1e9:,.1f} GB/s"
        for name in options.only:
            if name not in JOBS:
                continue
            for job in JOBS[name](chat if name == "sweep-tiny-chat" else llama, size):
                found = contest.compete(job, options.repeats)
                outcomes += found
                for outcome in found:
                    console.print("  ".join(page.cells(outcome)), highlight=False, soft_wrap=True)
                accounts.append(limits.account(job, rates, median(found[0].ours)))
        if "growth" in options.only:
            curves = list(growth.curves(folder, torch.get_num_threads(), options.quick))
    gpu_rows = eight_billion.run(options.device, options.quick) if options.gpu_jobs else []
    _write(options.out, facts, outcomes, accounts, curves, gpu_rows, console)


def _write(
    out: Path,
    facts: dict[str, Any],
    outcomes: list[contest.Outcome],
    accounts: list[limits.Account],
    curves: list[dict[str, Any]],
    gpu_rows: list[dict[str, Any]],
    console: Console,
) -> None:
    tables, figures = [], []
    if outcomes:
        tables += [page.ratio_table(outcomes), page.account_table(accounts)]
        figures += [page.ratio_bars(outcomes, shares) for shares in (False, True)]
        figures.append(page.share_bars(accounts))
    if curves:
        tables.append(page.growth_table(curves))
        figures.append(page.growth_curves(curves))
    if gpu_rows:
        tables.append(page.gpu_table(gpu_rows))
    for table in tables:
        console.print(table)
    results = {
        "environment": facts,
        "outcomes": [outcome.as_dict() for outcome in outcomes],
        "accounts": [one._asdict() for one in accounts],
        "growth": curves,
        "gpu": gpu_rows,
    }
    (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False))
    (out / "benchmarks.html").write_text(page.html(facts, figures, tables))
    console.print(f"written: {out / 'results.json'}, {out / 'benchmarks.html'}")


def environment(device: str) -> dict[str, Any]:
    """What a reader needs to know to compare these numbers with others."""
    on_gpu = device.startswith("cuda")
    installed = {}
    for name in VERSIONS:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return {
        "device": torch.cuda.get_device_name() if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "Python": platform.python_version(),
        **installed,
        "steerlens": version("steerlens") + _commit(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Of the checkout that this file is in, if it is one."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""


def _quiet() -> None:
    """The libraries' advice and progress bars would cost time and hide the table."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = [*JOBS, "growth"]
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rows")
    parser.add_argument("--only", nargs="+", choices=every, default=every, metavar="JOB")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of interleaved runs")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gpu-jobs", action="store_true", help="also with --device cpu")
    options = parser.parse_args()
    options.gpu_jobs |= options.device.startswith("cuda")
    return options


if __name__ == "__main__":
    main()
