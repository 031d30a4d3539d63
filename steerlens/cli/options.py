"""What the commands share: the app, and the options with their parsers.

Options are parsed and checked before the command begins, and so before torch is imported.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from os.path import exists, isdir  # unlike Path's, they raise nothing
from pathlib import Path
from typing import Annotated, Any

import typer

from steerlens.cli.names import (
    ESTIMATOR_NAMES,
    JUDGE_NAMES,
    METHOD_NAMES,
    PICTURE_NAMES,
    POSITION_NAMES,
    TOKEN_NAMES,
    VECTOR_ENDINGS,
    WRITTEN_ENDINGS,
    require_model,
)
from steerlens.errors import SteerlensError
from steerlens.files import as_path, require_writable
from steerlens.layer_text import parse_layers

START, VECTORS, CONDITIONS, GENERATE, MEASURE, SHOW, SERVE = (
    "Start here", "Vectors", "Conditions", "Generate", "Measure", "Show", "Serve",
)  # fmt: skip
"""The groups of commands in `--help`, in the order of the work."""

app = typer.Typer(
    help="Activation steering and conditional activation steering on TransformerLens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"steerlens {version('steerlens')}")
        raise typer.Exit
    return asked


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


# Parsers


def checked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser for typer: a text that it refuses is a mistake in the command line."""

    def parse(text: str) -> Any:
        try:
            return read(text)
        except SteerlensError as error:
            raise typer.BadParameter(str(error)) from error

    return parse


def parse_strengths(strengths: str) -> list[float]:
    """Parse comma-separated numbers.

    >>> parse_strengths("-1,0,0.5")
    [-1.0, 0.0, 0.5]
    """
    try:
        numbers = [float(piece) for piece in strengths.split(",")]
    except ValueError as error:
        raise SteerlensError(
            f'got strengths {strengths!r}; expected numbers such as "-1,0,0.5"'
        ) from error
    if not all(map(math.isfinite, numbers)):
        raise SteerlensError(f"got strengths {strengths!r}; expected finite numbers")
    return numbers


def parse_sizes(sizes: str) -> list[int]:
    """Parse comma-separated whole numbers; an empty text gives none.

    >>> parse_sizes("8,64")
    [8, 64]
    """
    try:
        return [int(piece) for piece in sizes.split(",") if sizes]
    except ValueError as error:
        raise SteerlensError(
            f'got sizes {sizes!r}; expected whole numbers such as "8,64"'
        ) from error


def parse_windows(layers: str) -> list[list[int]]:
    """Parse comma-separated layers and windows of layers.

    >>> parse_windows("1,2-4")
    [[1], [2, 3, 4]]
    """
    return [parse_layers(window, "layers") or [] for window in layers.split(",")]


def one_of(names: tuple[str, ...], what: str) -> Callable[[str], str]:
    """A parser that takes one of these names."""
    return lambda text: _known([text], names, what)[0]


def parse_tokens(tokens: str) -> str | int:
    """Parse a name of tokens, or k for the last k.

    >>> parse_tokens("last"), parse_tokens("3")
    ('last', 3)
    """
    if tokens.isdecimal() and len(tokens) < 10 and int(tokens):
        return int(tokens)
    return _known([tokens], TOKEN_NAMES, "tokens", "or a number k, for the last k")[0]


def parse_judges(names: str) -> str:
    """Check comma-separated names of judges.

    >>> parse_judges("refusal, sentiment")
    'refusal,sentiment'
    """
    return ",".join(_known(names.split(","), JUDGE_NAMES, "judges"))


def parse_methods(names: str) -> list[str]:
    """Parse comma-separated names of ways to get a vector; none are all of them.

    >>> parse_methods("bipo, reps"), len(parse_methods(""))
    (['bipo', 'reps'], 7)
    """
    given = [name for name in names.split(",") if name.strip()]
    return _known(given or list(METHOD_NAMES), METHOD_NAMES, "methods")


def parse_positions(names: str) -> list[str]:
    """Parse comma-separated names of positions."""
    return _known(names.split(","), POSITION_NAMES, "positions")


def parse_pictures(names: str) -> list[str]:
    """Parse comma-separated picture formats."""
    return _known(names.split(","), PICTURE_NAMES, "picture formats")


def parse_pair_columns(names: str) -> list[str]:
    """Parse the columns of the positive and the negative prompts.

    >>> parse_pair_columns("harmful,harmless")
    ['harmful', 'harmless']
    """
    columns = [name.strip() for name in names.split(",")]
    if len(columns) != 2 or not all(columns):
        raise SteerlensError(f"got columns {names!r}; expected two: POSITIVE,NEGATIVE")
    return columns


def _known(names: list[str], known: tuple[str, ...], what: str, more: str = "") -> list[str]:
    stripped = [name.strip() for name in names]
    unknown = [name for name in stripped if name not in known]
    if unknown:
        raise SteerlensError(
            f"unknown {what}: {', '.join(map(repr, unknown))}; choose from {', '.join(known)} "
            + more
        )
    return stripped


def existing_file(text: str) -> Path:
    """The path of an existing file."""
    path = as_path(text)
    if isdir(path):
        raise SteerlensError(f"got the directory {text!r}; expected a file")
    if not exists(path):
        raise SteerlensError(f"there is no file {text!r}")
    return path


def existing_directory(text: str) -> Path:
    """The path of an existing directory."""
    path = as_path(text)
    if not isdir(path):
        raise SteerlensError(
            f"got the file {text!r}; expected a directory"
            if exists(path)
            else f"there is no directory {text!r}"
        )
    return path


def vector_file(text: str) -> Path:
    """The path of an existing file with the ending of a vector file."""
    path = existing_file(text)
    return with_ending(path, VECTOR_ENDINGS)


def written_vector(text: str) -> Path:
    """A path with an ending that vectors are written to."""
    return with_ending(as_path(text), WRITTEN_ENDINGS)


def with_ending(path: Path, endings: tuple[str, ...]) -> Path:
    """The path, if its name ends in one of these."""
    if path.suffix.lower() not in endings:
        raise SteerlensError(
            f"got {str(path)!r}; expected a name that ends in one of {', '.join(endings)}"
        )
    return path


def require_outputs(*paths: Path | None) -> None:
    """Raise before long work if a file cannot be written."""
    for path in paths:
        if path is not None:
            if isdir(as_path(path)):
                raise SteerlensError(
                    f"got the directory {str(path)!r}; expected the name of a file"
                )
            require_writable(path.parent)


def engine_of(
    model: str, workers: int, address: str | None, gpus_per_worker: float
) -> Callable[[], AbstractContextManager[Any]]:
    """A function that starts the engine of `--workers`, `--ray` and `--gpus-per-worker`."""
    use_ray = bool(workers) or address is not None
    if gpus_per_worker and not use_ray:
        raise SteerlensError(
            f"got --gpus-per-worker {gpus_per_worker:g} without --workers; give --workers, too"
        )

    def open_engine() -> AbstractContextManager[Any]:
        from steerlens.models.engine import LOCAL
        from steerlens.models.ray import Ray

        if not use_ray:
            return nullcontext(LOCAL)
        return Ray(model, workers or 2, address, gpus_per_worker=gpus_per_worker)

    return open_engine


# The options


def taking(read: Callable[[str], Any], what: str, help: str, *names: str) -> Any:
    """An option with a parser."""
    return typer.Option(*names, parser=checked(read), metavar=what, help=help)


def argument(read: Callable[[str], Any], what: str, help: str) -> Any:
    """An argument with a parser."""
    return typer.Argument(parser=checked(read), metavar=what, help=help)


PROMPTS_HELP = "Prompts: text with one per line, JSON, JSON lines, CSV, TSV or Parquet."

ModelName = Annotated[
    Any,
    taking(
        require_model,
        "MODEL",
        "tiny-chat (ships with steerlens), smollm2, a Hugging Face directory, a GGUF file, "
        "or a hub name.",
        "--model",
    ),
]
VectorFile = Annotated[Path, argument(vector_file, "VECTOR", "The vector to steer with.")]
VectorFiles = Annotated[
    list[Path], argument(vector_file, "VECTORS", "Vectors to compare, named by their files.")
]
WrittenVector = Annotated[
    Path,
    taking(
        written_vector,
        "FILE",
        "The file to write: .safetensors keeps everything; .svec and .gguf are for other programs.",
    ),
]
PairsFile = Annotated[
    Path,
    argument(
        existing_file,
        "DATASET",
        "Positive and negative prompts: a dataset (JSON), or a table of two columns.",
    ),
]
PairColumns = Annotated[
    Any,
    taking(
        parse_pair_columns,
        "NAME,NAME",
        "In a table: the columns of the two sides. Default: positive,negative.",
    ),
]
PromptsFile = Annotated[Path, argument(existing_file, "PROMPTS", PROMPTS_HELP)]
PromptsOption = Annotated[Path, taking(existing_file, "FILE", PROMPTS_HELP)]
PromptColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt-column",
        help="In a table: the column of the prompts. Repeat it to join several columns.",
    ),
]
Part = Annotated[str, typer.Option(help="The part of a JSON file to use. Default: all of it.")]
Layers = Annotated[
    Any,
    taking(
        partial(parse_layers, argument="layers"),
        "LAYERS",
        'Such as "3", "2-5" or "1,4-6". Default: all.',
    ),
]
Tokens = Annotated[
    Any, taking(parse_tokens, "TOKENS", f"Tokens to read: {', '.join(TOKEN_NAMES)}, or the last k.")
]
EstimatorName = Annotated[
    Any,
    taking(one_of(ESTIMATOR_NAMES, "estimator"), "NAME", f"One of {', '.join(ESTIMATOR_NAMES)}."),
]
Strength = Annotated[
    float,
    typer.Option(
        help="The steering coefficient: multiplies the direction; layers share it equally."
    ),
]
FoundStrength = Annotated[
    float | None,
    typer.Option(
        help="The steering coefficient; layers share it equally. Default: calibrated, so that text "
        "stays whole (a learned vector: 1, as it was learned)."
    ),
]
Doses = Annotated[
    list[float] | None,
    typer.Option(
        help="Repeat it to measure dose and response. Default: calibrated, so that text stays "
        "whole (a learned vector: 1)."
    ),
]
Strengths = Annotated[Any, taking(parse_strengths, "NUMBERS", 'Such as "-1,0,1".')]
Relative = Annotated[
    bool,
    typer.Option("--relative", help="Strengths are fractions of the layer's mean activation norm."),
]
Judges = Annotated[
    Any, taking(parse_judges, "NAMES", f"Separated by commas: {', '.join(JUDGE_NAMES)}.")
]
JudgeName = Annotated[
    str, taking(one_of(JUDGE_NAMES, "judge"), "NAME", f"One of {', '.join(JUDGE_NAMES)}.")
]
KLBudget = Annotated[
    float | None,
    typer.Option(help="KL per token on neutral text, 95th percentile. Default: 0.5 nats."),
]
Lowers = Annotated[
    bool,
    typer.Option("--lowers", help="The steering is meant to lower the first judge's score."),
]
Ask = Annotated[
    str, typer.Option(help="Words before each prompt that ask for the effect: arms beside it.")
]
AskSystem = Annotated[
    str, typer.Option(help="A system message that asks for the effect: arms beside it.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random choice.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a stopped run.")]
Workers = Annotated[
    int,
    typer.Option(
        min=0, help=r"Ray workers that run the model (needs steerlens\[ray]); 0: run it here."
    ),
]
RayAddress = Annotated[
    str | None, typer.Option("--ray", help='The address of a Ray cluster; "auto": the running one.')
]
GpusPerWorker = Annotated[
    float, typer.Option(min=0, help="GPUs per worker; 0: workers run on CPUs.")
]
