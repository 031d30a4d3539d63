"""Files of rows: text with one row per line, JSON, JSON lines, CSV, TSV, Parquet."""

import csv
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike, decode_text, lines_of, parse_json, read_bytes

PAIRS, PROMPTS, TOPICS = "steerlens.contrast/1", "steerlens.prompts/1", "steerlens.topics/1"
REPLIES = "steerlens.replies/1"
"""The "format" of steerlens's own JSON files of rows."""
TEXT_ENDINGS = ("", ".txt", ".text")
ENDINGS = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet")
_JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
_TABLES = {".csv": ("CSV", ",;\t"), ".tsv": ("TSV", "\t")}
"""Ending → its kind, and the possible delimiters."""
_FOREIGN = {
    b"PK\x03\x04": "a ZIP archive (as .xlsx and .docx are)",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "compressed by gzip",
    b"GGUF": "a GGUF file",
}
"""First bytes of files that hold no rows → what they are."""


@dataclass(frozen=True)
class RowFile:
    """The rows of a file by part; a file without parts has one, called "all"."""

    path: str
    kind: str
    """Such as "JSON" or "CSV"."""
    parts: dict[str, list[Any]]
    """Rows are texts, dicts (column → value) or lists (pairs)."""
    format: str = ""
    """The "format" of a JSON file."""

    @property
    def columns(self) -> list[str]:
        """Column names in order of appearance; none if the rows are texts."""
        rows = (row for part in self.parts.values() for row in part if isinstance(row, dict))
        return list(dict.fromkeys(str(name) for row in rows for name in row))

    def part(self, name: str) -> list[Any]:
        """The rows of one part, or of all parts if the name is empty."""
        if not name:
            return [row for part in self.parts.values() for row in part]
        if name not in self.parts:
            has = f"it has {list(self.parts)}" if len(self.parts) > 1 else "it is one list"
            raise SteerlensError(f"{self.path!r} has no part {name!r}; {has}")
        return self.parts[name]


def read_row_file(path: PathLike) -> RowFile:
    """Read rows by the file's content and ending; other files are refused by name."""
    content = read_bytes(path)
    ending = Path(path).suffix.lower()
    foreign = next((kind for mark, kind in _FOREIGN.items() if content.startswith(mark)), None)
    if foreign:
        raise SteerlensError(f"{str(path)!r} is {foreign}; {_EXPECTED}")
    if content.startswith(b"PAR1") or ending == ".parquet":
        return RowFile(str(path), "Parquet", {"all": _parquet(path)})
    text = decode_text(content, path)
    if ending in _TABLES:
        kind, delimiters = _TABLES[ending]
        return RowFile(str(path), kind, {"all": _separated(text, path, delimiters)})
    if ending in _JSON_ENDINGS:
        return _json_lines(text, path) if _is_json_lines(text, path) else _json(text, path)
    if text.lstrip()[:1] in ("[", "{"):
        with suppress(SteerlensError):  # otherwise it is text that begins with a bracket
            return _json_lines(text, path) if _is_json_lines(text, path) else _json(text, path)
    if ending not in TEXT_ENDINGS:
        raise SteerlensError(f"got the ending {ending!r} in {str(path)!r}; {_EXPECTED}")
    return RowFile(str(path), "text", {"all": lines_of(text)})


_EXPECTED = f"expected text with one prompt per line, or a table: {', '.join(ENDINGS)}"


def _json(text: str, path: PathLike) -> RowFile:
    content = parse_json(text, path)
    parts = _parts(content, path)
    for name, rows in parts.items():
        wrong = [row for row in rows if not isinstance(row, str | dict | list)]
        if wrong:
            raise SteerlensError(
                f"{str(path)!r} holds {short_repr(wrong[0])} in {name!r}; expected texts, or "
                "tables (column → value)"
            )
    declared = content.get("format", "") if isinstance(content, dict) else ""
    return RowFile(str(path), "JSON", parts, str(declared))


def _parts(content: Any, path: PathLike) -> dict[str, list[Any]]:
    """Part → rows: of a list, a table of lists (as in CAST's files), or steerlens's formats."""
    if isinstance(content, list):
        return {"all": content}
    if not isinstance(content, dict):
        raise SteerlensError(f"{str(path)!r} holds {short_repr(content)}; expected a list of rows")
    declared = content.get("format")
    if str(declared).startswith("steerlens.") and declared not in (PAIRS, PROMPTS, TOPICS, REPLIES):
        raise SteerlensError(
            f'{str(path)!r} holds no rows: its "format" is {short_repr(declared)}; {_EXPECTED}'
        )
    parts = content.get("parts") if "format" in content else content
    if "format" in content and "parts" not in content and isinstance(content.get("rows"), list):
        return {"all": content["rows"]}
    if not isinstance(parts, dict) or not parts:
        raise SteerlensError(
            f'{str(path)!r} has no "parts" with rows in them (its format: '
            f"{short_repr(content.get('format'))}, its keys: {short_repr(list(content))})"
        )
    parse = _PARSERS.get(str(content.get("format")), _list_of_rows)
    return {str(name): parse(part, str(name), path, content) for name, part in parts.items()}


def _list_of_rows(part: Any, name: str, path: PathLike, content: dict[str, Any]) -> list[Any]:
    if isinstance(part, list):
        return part
    if "format" in content:
        raise SteerlensError(
            f"the part {short_repr(name)} of {str(path)!r} holds {short_repr(part)}; expected a "
            "list of rows"
        )
    raise SteerlensError(
        f"{str(path)!r} is a table with the keys {short_repr(list(content))}; expected a list of "
        'rows, or lists of rows by part, such as {"train": [...], "test": [...]}'
    )


def _list_of_pairs(part: Any, name: str, path: PathLike, content: dict[str, Any]) -> list[Any]:
    pairs = part.get("pairs") if isinstance(part, dict) else None
    rows = _list_of_rows(pairs, name, path, content)
    if not all(isinstance(row, list) and len(row) == 2 for row in rows):
        raise SteerlensError(
            f"got the part {short_repr(name)} of {str(path)!r} with other rows than pairs; "
            "expected [positive, negative] in each"
        )
    return [dict(zip(("positive", "negative"), row, strict=True)) for row in rows]


def _rows_of_topics(part: Any, name: str, path: PathLike, content: dict[str, Any]) -> list[Any]:
    if not isinstance(part, dict) or not all(isinstance(rows, list) for rows in part.values()):
        raise SteerlensError(
            f"the part {short_repr(name)} of {str(path)!r} holds {short_repr(part)}; expected a "
            "table: topic → list of prompts"
        )
    longest = max((len(rows) for rows in part.values()), default=0)
    return [
        {topic: rows[index] for topic, rows in part.items() if index < len(rows)}
        for index in range(longest)
    ]


_PARSERS: dict[str, Callable[..., list[Any]]] = {PAIRS: _list_of_pairs, TOPICS: _rows_of_topics}
"""Format → parser of a part that is not a list of rows."""


def _is_json_lines(text: str, path: PathLike) -> bool:
    """Whether there are several lines, the first of which is complete JSON."""
    lines = lines_of(text)
    if len(lines) < 2:
        return Path(path).suffix.lower() in (".jsonl", ".ndjson")
    with suppress(SteerlensError):
        return isinstance(parse_json(lines[0], path), dict | str)
    return False


def _json_lines(text: str, path: PathLike) -> RowFile:
    lines = enumerate(lines_of(text), 1)
    rows = [parse_json(line, f"{path} (line {number})") for number, line in lines]
    if len(rows) == 1 and isinstance(rows[0], list):  # JSON in a file named .jsonl
        return RowFile(str(path), "JSON", {"all": rows[0]})
    wrong = [n for n, row in enumerate(rows, 1) if not isinstance(row, str | dict)]
    if wrong:
        raise SteerlensError(
            f"line {wrong[0]} of {str(path)!r} is neither a text nor a table (column → value)"
        )
    return RowFile(str(path), "JSON lines", {"all": rows})


def _separated(text: str, path: PathLike, delimiters: str) -> list[Any]:
    """Rows of a CSV or TSV file, whose first line names the columns and shows the delimiter."""
    delimiter = max(delimiters, key=text.lstrip().partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise SteerlensError(f"line {reader.line_num} of {str(path)!r}: {error}") from error
    if not lines:
        return []
    (_, header), *rows = lines
    names = [name.strip() for name in header]
    if len(set(names)) < len(names):
        raise SteerlensError(
            f"{str(path)!r} has two columns of one name: {short_repr(names)}; rename one"
        )
    for number, row in rows:
        if len(row) != len(names):
            raise SteerlensError(
                f"line {number} of {str(path)!r} has {len(row)} values; its first line names "
                f"{len(names)} columns: {short_repr(names)}"
            )
    return [dict(zip(names, row, strict=True)) for _, row in rows]


def _parquet(path: PathLike) -> list[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise SteerlensError(
            f"{str(path)!r} is Parquet, which pyarrow reads; install it with "
            "pip install 'steerlens[sweeps]'"
        ) from error
    try:
        rows: list[Any] = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SteerlensError(f"{str(path)!r} is not a readable Parquet file: {reason}") from error
    return rows
