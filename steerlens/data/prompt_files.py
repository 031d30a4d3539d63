"""Prompts and contrasting pairs from files, steerlens's own and those of other projects."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.prompts import Prompt, require_prompt
from steerlens.data.row_files import PAIRS, TOPICS, RowFile, read_row_file
from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike

PROMPT_COLUMNS = ("prompt", "messages")
"""Columns read as prompts by default; others must be named, or be the only column of texts."""
SIDES = ("positive", "negative")

_LAYOUTS = {
    ("instruction", "input", "output"): ("instruction", "input"),  # Alpaca
    ("question", "answer_matching_behavior"): ("question",),  # CAA
    ("input", "output_concept"): ("input",),  # AxBench
}
"""Columns that identify a known layout → those that hold its prompts."""


def load_prompts(path: PathLike) -> dict[str, Any]:
    """The prompts of a file by part; a file without parts has one, called "all".

    In a file of prompts by topic, a part is a dict: topic → list of prompts.

    Args:
        path: Text with one prompt per line, or JSON, JSON lines, CSV, TSV or Parquet.

    >>> list(load_prompts(demo_file("questions.json")))
    ['train', 'validation', 'test']
    """
    file = read_row_file(path)
    if file.format != TOPICS:
        return {name: _prompts_of(file, name, ()) for name in file.parts}
    return {
        name: {
            topic: _checked([row[topic] for row in rows if topic in row], file)
            for topic in dict.fromkeys(chain.from_iterable(rows))
        }
        for name, rows in file.parts.items()
    }


def read_prompts(path: PathLike, part: str = "", columns: Sequence[str] = ()) -> list[Prompt]:
    """All prompts of a file, or of one of its parts.

    Args:
        path: Text with one prompt per line, or rows as JSON, JSON lines, CSV, TSV or Parquet.
        part: A part of a JSON file; empty for all of them.
        columns: The columns of the prompt; the texts of several are joined by a blank line.
            Default: `prompt` or `messages` (a chat), or the only column of texts.

    >>> read_prompts(demo_file("questions.json"), "test")[0]
    'Suggest some plants for a bathroom without a window.'
    """
    return _prompts_of(read_row_file(path), part, columns)


def read_pairs(path: PathLike, columns: Sequence[str] = ()) -> ContrastiveDataset:
    """Read a contrastive dataset, or rows with a column for each side.

    Args:
        path: A file of `ContrastiveDataset.save`, or rows as JSON (also CAST's), JSON lines, CSV,
            TSV or Parquet. Lists of rows by part become the dataset's parts.
        columns: The columns of the positive and the negative prompts. Default: `positive`,
            `negative`.

    >>> read_pairs(demo_file("harmful.json"))
    ContrastiveDataset('harmful': 764 pairs, parts train, validation, test)
    """
    file = read_row_file(path)
    if file.format == PAIRS:
        if columns:
            raise SteerlensError(f"{file.path!r} names its sides itself; leave out the columns")
        return ContrastiveDataset.load(path)
    names = tuple(columns) or SIDES
    if len(names) != 2:
        raise SteerlensError(f"got the columns {list(names)}; expected two, one for each side")
    every = file.part("")
    in_lists = (
        not columns and every and all(isinstance(row, list) and len(row) == 2 for row in every)
    )
    if not in_lists:
        _require_columns(file, names, "--pair-columns POSITIVE,NEGATIVE")
    pairs: list[tuple[Prompt, Prompt]] = []
    parts = {}
    for name, rows in file.parts.items():
        first = len(pairs)
        for index, row in enumerate(rows):
            where = f"pair {index} of {name!r} in {file.path!r}"
            pair = tuple(row) if in_lists else _sides_of(row, names, where)
            for prompt in pair:
                require_prompt(prompt, where)
            pairs.append(pair)
        parts[name] = (range(first, len(pairs)), range(0))
    return ContrastiveDataset(
        pairs, name=Path(path).stem, parts={} if set(parts) == {"all"} else parts
    )


def _sides_of(row: Any, names: Sequence[str], where: str) -> tuple[Any, Any]:
    if not isinstance(row, dict):
        raise SteerlensError(f"{where} is {short_repr(row)}; expected {', '.join(names)}")
    return row.get(names[0]), row.get(names[1])


def _prompts_of(file: RowFile, part: str, columns: Sequence[str]) -> list[Prompt]:
    rows = file.part(part)
    if not rows:
        raise SteerlensError(f"{file.path!r} holds no prompts; expected at least one")
    if file.columns or columns:
        chosen = _chosen_columns(file, columns)
        rows = [_joined(row, chosen) if isinstance(row, dict) else row for row in rows]
    return _checked(rows, file)


def _checked(prompts: list[Any], file: RowFile) -> list[Prompt]:
    for index, prompt in enumerate(prompts):
        require_prompt(prompt, f"row {index} of {file.path!r}")
    return prompts


def _joined(row: dict[str, Any], columns: Sequence[str]) -> Any:
    """The value of one column, or the non-empty texts of several, joined."""
    values = [row.get(name) for name in columns]
    if len(values) == 1:
        return values[0]
    return "\n\n".join(str(value) for value in values if value is not None and str(value).strip())


def _chosen_columns(file: RowFile, columns: Sequence[str]) -> Sequence[str]:
    if columns:
        _require_columns(file, columns, "--prompt-column NAME")
        return columns
    known = file.columns
    named = [name for name in PROMPT_COLUMNS if name in known]
    if named:
        return named[:1]
    if file.format == TOPICS:
        raise SteerlensError(
            f"{file.path!r} groups its prompts by topic; choose one with --prompt-column "
            f"(columns= in Python): {', '.join(known)}"
        )
    texts = [name for name in known if all(isinstance(row.get(name), str) for row in _rows(file))]
    if len(texts) == 1:
        return texts
    likely: Sequence[str] = next(
        (prompts for layout, prompts in _LAYOUTS.items() if set(layout) <= set(known)), ["NAME"]
    )
    raise SteerlensError(
        f"{file.path!r} has the columns {', '.join(known)[:300]}; name the one with the prompts: "
        + " ".join(f"--prompt-column {name}" for name in likely)
        + " (columns= in Python)"
    )


def _rows(file: RowFile) -> list[dict[str, Any]]:
    return [row for rows in file.parts.values() for row in rows if isinstance(row, dict)]


def _require_columns(file: RowFile, columns: Sequence[str], option: str) -> None:
    missing = [name for name in columns if name not in file.columns]
    if missing and not file.columns:
        raise SteerlensError(
            f"{file.path!r} holds single texts; expected rows with the columns {', '.join(columns)}"
        )
    if missing:
        raise SteerlensError(
            f"{file.path!r} has no column {missing[0]!r}; its columns are "
            f"{', '.join(file.columns)[:300]}: name them with {option}"
        )
