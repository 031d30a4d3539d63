"""What the commands share: the app, common options, reading arguments, showing tables."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steerlens.data.prompt_files import load_prompts
from steerlens.errors import SteerlensError
from steerlens.files import read_lines
from steerlens.intervals import Interval
from steerlens.models.engine import LOCAL, Engine
from steerlens.models.ray import Ray
from steerlens.vectors.estimators import ESTIMATORS, Estimator

app = typer.Typer(
    help="Activation steering and conditional activation steering on TransformerLens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = Console()
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        help="tiny-chat (ships with steerlens), a local Hugging Face directory, or a hub name.",
    ),
]
Layers = Annotated[
    str | None, typer.Option(help='Layers, such as "3", "2-5" or "1,4-6". Default: all.')
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Workers = Annotated[
    int, typer.Option(help="Ray workers that run the model (needs steerlens[ray]); 0: run it here.")
]
RayAddress = Annotated[
    str | None, typer.Option("--ray", help='The cluster of the workers; "auto": the one here.')
]
GpusPerWorker = Annotated[float, typer.Option(help="GPUs of each worker; 0: it runs on a CPU.")]


def estimator_of(name: str) -> Estimator:
    """What `--estimator` names."""
    if name not in ESTIMATORS:
        raise SteerlensError(
            f"--estimator {name!r} is unknown; choose one of {', '.join(ESTIMATORS)}"
        )
    return ESTIMATORS[name]


def engine_of(
    model: str, workers: int, address: str | None, gpus_per_worker: float
) -> AbstractContextManager[Engine]:
    """What `--workers`, `--ray` and `--gpus-per-worker` ask for; ends with the `with` block."""
    if workers or address is not None:
        return Ray(model, workers or 2, address, gpus_per_worker=gpus_per_worker)
    if gpus_per_worker:
        raise SteerlensError(f"--gpus-per-worker {gpus_per_worker:g} came without --workers")
    return nullcontext(LOCAL)


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Show steerlens's own errors as a message, not as a traceback; exit with 2."""

    @wraps(command)
    def reported(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except SteerlensError as error:
            Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
            raise typer.Exit(2) from error

    return reported


def parse_strengths(strengths: str) -> list[float]:
    """`"-1,0,0.5"` as numbers.

    >>> parse_strengths("-1,0,0.5")
    [-1.0, 0.0, 0.5]
    """
    try:
        return [float(piece) for piece in strengths.split(",")]
    except ValueError as error:
        raise SteerlensError(
            f'--strengths {strengths!r} cannot be read; write numbers such as "-1,0,0.5"'
        ) from error


def prompts_in(path: Path, part: str = "") -> list[str]:
    """The lines of a text file, or the prompts of a JSON file or of one of its parts."""
    if path.suffix != ".json":
        if part:
            raise SteerlensError(f"{str(path)!r} has no part {part!r}: a text file is one list")
        return read_lines(path)
    parts = load_prompts(path)
    if part:
        if part not in parts:
            raise SteerlensError(f"{str(path)!r} has no part {part!r}; it has {list(parts)}")
        parts = {part: parts[part]}
    if not all(isinstance(part, list) for part in parts.values()):
        raise SteerlensError(f"{str(path)!r} groups its prompts by topic; give a list of prompts")
    return [row for part in parts.values() for row in part]


def print_frame(frame: pd.DataFrame, title: str) -> None:
    """A table for the terminal; a value and the ends of its interval share a column."""
    for name in {"mean", "refused", "f1"} & set(frame.columns):
        ends = ("f1_low", "f1_high") if name == "f1" else ("low", "high")
        shown = [str(Interval(*row)) for row in frame[[name, *ends]].itertuples(index=False)]
        frame = frame.assign(**{name: shown}).drop(columns=[*ends])
    table = Table(*map(str, frame.columns), title=title)
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table)
