"""A directory of result files, each read by its format."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import ConfigDict, Field

from steerlens.dashboards.tables import kind_of
from steerlens.data.prompts import Prompt
from steerlens.errors import SteerlensError, short_repr
from steerlens.evaluation.evaluation import Evaluation
from steerlens.evaluation.sweep_store import Sweep
from steerlens.files import PathLike, as_path, read_json, read_parquet
from steerlens.schemas import Declared, FileModel, Many, check_file
from steerlens.steering.batch_plans import as_plans
from steerlens.steering.condition_search import ConditionSearch, SearchFile
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

RESULTS_FORMAT = "steerlens.demo/1"
REPLIES_FORMAT = "steerlens.replies/1"
REPORT = "report.html"
"""The page that `report` writes; it is not a result."""
VECTOR_ENDINGS = (".safetensors", ".svec", ".gguf", ".pt", ".npz")

_TABLES: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".parquet": read_parquet,
    ".csv": pd.read_csv,
}

_DIRECTORIES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "evaluations": ("evaluation.json", Evaluation.load),
    "sweeps": ("plan.json", Sweep.load),
}
"""Results that are directories: field of `Study`, the file that marks one, and its reader."""


class _Results(FileModel):
    model_config = ConfigDict(extra="ignore")

    title = "results"
    format: Literal["steerlens.demo/1"]
    run: dict[str, Any]
    rows: Many[dict[str, Any]]


class _Compared(Declared):
    model_config = ConfigDict(extra="ignore")

    prompt: str = ""
    unsteered: str = ""
    steered: str = ""
    fired: list[bool] = Field(default=[])


class _Replies(FileModel):
    model_config = ConfigDict(extra="ignore")

    title = "replies before and after steering"
    format: Literal["steerlens.replies/1"]
    steering: str
    rows: Many[_Compared]


@dataclass(frozen=True)
class Study:
    """The results in a directory, each by its path in the directory without the ending."""

    directory: Path
    results: dict[str, Any] = field(default_factory=dict)
    """Of `steerlens demo`."""
    replies: dict[str, Any] = field(default_factory=dict)
    """Replies before and after steering."""
    vectors: dict[str, SteeringVector] = field(default_factory=dict)
    searches: dict[str, ConditionSearch] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Other tables, such as summaries of sweeps."""
    manifests: dict[str, Any] = field(default_factory=dict)
    """`manifest.json` files: how the tables were made."""
    pages: dict[str, Path] = field(default_factory=dict)
    """HTML pages."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Files that could not be read, and why."""


def read_study(directory: PathLike) -> Study:
    """Read all results in a directory and its subdirectories.

    Files that cannot be read are in `left_out`, with the reason. A folder of Parquet files is one
    table.

    Args:
        directory: Written by `steerlens demo --out`, sweeps, evaluations, or your own.

    >>> sorted(read_study("figures/study").searches)
    ['base', 'crime', 'harmful', 'hate', 'health', 'intimate', 'legal']
    """
    directory = as_path(directory)
    if not directory.is_dir():
        raise SteerlensError(
            f"got {str(directory)!r}, which is no directory; expected one that `steerlens demo "
            "--out`, a sweep or an evaluation wrote to"
        )
    study = Study(directory)
    # vectors first: reading a search needs its vector
    entries = sorted(_entries(directory), key=lambda path: path.suffix not in VECTOR_ENDINGS)
    for path in entries:
        name = path.relative_to(directory) if path != directory else Path(directory.resolve().name)
        try:
            _read(path, (name if path.is_dir() else name.with_suffix("")).as_posix(), study)
        except SteerlensError as error:
            study.left_out[name.as_posix()] = str(error)
    return study


def compared(
    prompts: Sequence[Prompt],
    unsteered: Sequence[str],
    steered: Sequence[str],
    steering: Steering | Sequence[Steering],
    gates: Sequence[Sequence[bool]] = (),
) -> dict[str, Any]:
    """Replies before and after steering, and which gates were open, as the content of a file.

    Args:
        prompts: One per reply.
        steering: One or several, of the steered replies.
        gates: Of each condition, whether it fired on each prompt.
    """
    rows = [
        {
            "prompt": str(prompt),
            "unsteered": before,
            "steered": after,
            "fired": [bool(gate[row]) for gate in gates],
        }
        for row, (prompt, before, after) in enumerate(zip(prompts, unsteered, steered, strict=True))
    ]
    told = "; ".join(map(repr, as_plans(steering)))
    return {"format": REPLIES_FORMAT, "steering": told, "rows": rows}


def _entries(directory: Path) -> Iterator[Path]:
    if _saved_as(directory):
        yield directory
        return
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name == REPORT:
            continue
        if not path.is_dir() or _saved_as(path):
            yield path
        elif any(path.glob("[!.]*.parquet")):
            yield path
            yield from (other for other in _entries(path) if other.suffix != ".parquet")
        else:
            yield from _entries(path)


def _saved_as(directory: Path) -> str | None:
    """The kind of result that this directory is, if it is one."""
    marks = ((kind, mark) for kind, (mark, _) in _DIRECTORIES.items())
    return next((kind for kind, mark in marks if (directory / mark).is_file()), None)


def _read(path: Path, name: str, study: Study) -> None:
    if path.suffix == ".html":
        study.pages[name] = path
        return
    kind: dict[str, Any]
    saved = _saved_as(path) if path.is_dir() else None
    if saved is not None:
        kind, value = getattr(study, saved), _DIRECTORIES[saved][1](path)
    elif path.is_dir():
        parts = sorted(path.glob("[!.]*.parquet"))
        frames = [_table(part, read_parquet) for part in parts]
        kind, value = study.tables, pd.concat(frames, ignore_index=True)
    elif path.suffix in VECTOR_ENDINGS:
        kind, value = study.vectors, SteeringVector.load(path)
    elif path.suffix in _TABLES:
        kind, value = study.tables, _table(path, _TABLES[path.suffix])
    elif path.suffix == ".json":
        kind, value = _content(path, name, study)
    else:
        ending = f"the ending {path.suffix}" if path.suffix else "no ending"
        known = ", ".join([".json", *_TABLES, *VECTOR_ENDINGS])
        raise SteerlensError(f"got {ending}; expected {known}")
    if name in kind:
        raise SteerlensError(f"got two results of the same kind named {name}; rename one")
    kind[name] = value


def _content(path: Path, name: str, study: Study) -> tuple[dict[str, Any], Any]:
    """Where a JSON file belongs, by its "format"; lists of rows by their columns."""
    content = read_json(path)
    format_name = content.get("format") if isinstance(content, dict) else None
    if path.name == "manifest.json" and isinstance(content, dict):
        return study.manifests, content
    if format_name in SearchFile.formats():
        return study.searches, _search(path, name, content, study.vectors)
    rows = content.get("rows") if isinstance(content, dict) else content
    if format_name in (RESULTS_FORMAT, REPLIES_FORMAT):
        check_file(content, path, _Results, _Replies)
        return study.results if format_name == RESULTS_FORMAT else study.replies, content
    table = pd.DataFrame(rows) if _are_records(rows) else pd.DataFrame()
    if kind_of(table) is None:
        known = ", ".join((*SearchFile.formats(), RESULTS_FORMAT, REPLIES_FORMAT))
        raise SteerlensError(
            f"got the format {short_repr(format_name)}; expected {known}, or a table with known "
            "columns"
            if format_name
            else 'got JSON without "format"; expected a result file of this version of steerlens'
        )
    return study.tables, table


def _search(
    path: Path, name: str, content: Mapping[str, Any], vectors: Mapping[str, SteeringVector]
) -> ConditionSearch:
    matching = {
        known: vector
        for known, vector in vectors.items()
        if vector.provenance.get("pairs_hash") == content.get("vector")
    }
    if not matching:
        raise SteerlensError(
            "got a condition search without its vector; expected the vector in this directory"
        )
    return ConditionSearch.load(path, matching.get(name) or next(iter(matching.values())))


def _table(path: Path, read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    try:
        return read(path)
    except Exception as error:  # the libraries raise anything on a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SteerlensError(f"got a file that is no valid table: {reason}") from error


def _are_records(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
