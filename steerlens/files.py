"""Reading and writing files; nothing is ever half written."""

import codecs
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from steerlens.errors import SteerlensError, import_extra, short_repr

PathLike = str | os.PathLike[str]


def write_atomically(path: PathLike, write: Callable[[Path], object]) -> Path:
    """Write a temporary file in the same directory, then move it to `path`.

    The file that was there before stays intact until the new one is complete, also on a full disk.

    Args:
        path: The file.
        write: Writes the content to the path that it gets.

    >>> write_atomically("note.txt", lambda temporary: temporary.write_text("Hi.")).read_text()
    'Hi.'
    """
    path = as_path(path)
    require_writable(path.parent)
    with _naming_os_errors(path):
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private; a saved result is not
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def write_directory(
    path: PathLike, write: Callable[[Path], object], *, replace: bool = False
) -> Path:
    """Write a temporary directory with the same parent, then move it to `path`.

    Args:
        path: The directory.
        write: Writes the content into the directory that it gets.
        replace: Replace an existing directory, once the new one is complete, instead of refusing.

    >>> made = write_directory("notes", lambda new: (new / "a.txt").write_text("Hi."))
    >>> [file.name for file in made.iterdir()]
    ['a.txt']
    """
    path = as_path(path).resolve()
    if path.exists() and not replace:
        raise SteerlensError(f"{str(path)!r} exists already; choose another name, or remove it")
    require_writable(path.parent)
    with _naming_os_errors(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        new, old = temporary / "new", temporary / "old"
        try:
            new.mkdir()
            write(new)
            if path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
        finally:
            shutil.rmtree(temporary)
    return path


def as_path(path: Any) -> Path:
    """A path; refuses what no file can be called.

    >>> as_path("a.txt").suffix
    '.txt'
    """
    if not isinstance(path, str | os.PathLike):
        raise SteerlensError(f"got {short_repr(path)} as a file name; expected a path")
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError:
        name = b"\0"  # of half a character
    if b"\0" in name or max(map(len, name.split(b"/"))) > LONGEST_NAME:
        raise SteerlensError(
            f"got {short_repr(str(path))} as a file name; expected Unicode text without zero "
            f"characters, of at most {LONGEST_NAME} bytes"
        )
    return Path(path)


LONGEST_NAME = 255
"""Bytes of a file's name, without its folder, on common file systems."""


@contextmanager
def _naming_os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError, such as a full disk, into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise SteerlensError(
            f"cannot write {str(path)!r} ({error.strerror or error}); what was there before is "
            "unchanged"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_writable(directory: PathLike) -> Path:
    """Create a directory if needed, and check before long work that files can be written there."""
    directory = as_path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise SteerlensError(
            f"cannot write to the directory {str(directory)!r} ({error.strerror}); "
            "choose another output directory or change its permissions"
        ) from error
    return directory


@contextmanager
def writing_alone(directory: PathLike) -> Iterator[None]:
    """Keep other runs from writing to a directory meanwhile.

    The lock is the system's: it leaves no file, and ends with the process, however that ends.

    >>> with writing_alone("."):
    ...     _ = write_text("note.txt", "Hi.")
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SteerlensError(
                f"another run is writing to {str(directory)!r}; wait until it has ended, or choose "
                "another directory"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def write_text(path: PathLike, text: str) -> Path:
    """Write `text` atomically, as UTF-8."""
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: PathLike, value: Any) -> Path:
    """Write `value` atomically as JSON; NaN and infinity, which JSON lacks, are refused.

    >>> read_json(write_json("a.json", {"a": [1, 2]}))
    {'a': [1, 2]}
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def made_once(path: PathLike | None, job: str, make: Callable[[], Any]) -> Any:
    """What `make` returns, or returned when it was last run for the same job.

    Args:
        path: A JSON file, which is written when `make` has returned; None: nothing is kept.
        job: The digest of all that the value depends on.
        make: Returns what JSON can hold.

    Raises:
        SteerlensError: The file is of another job.

    >>> made_once(None, "a", lambda: 1)
    1
    """
    if path is None:
        return make()
    file = as_path(path)
    if file.exists():
        kept = read_json(file)
        if not isinstance(kept, dict) or kept.get("job") != job:
            raise SteerlensError(
                f"{str(file)!r} is of another job (other data, model or settings); choose another "
                "out=, or remove it"
            )
        return kept["made"]
    made = make()
    write_json(file, {"job": job, "made": made})
    return made


def import_pyarrow(module: str = "pyarrow") -> Any:
    """A module of pyarrow, which reads and writes Parquet; if missing, how to install it."""
    return import_extra(module, "sweeps", "a table in Parquet")


def write_parquet(path: PathLike, table: Any) -> Path:
    """Write a pandas table atomically as Parquet."""
    import_pyarrow()
    return write_atomically(path, partial(table.to_parquet, engine="pyarrow"))


def read_parquet(path: PathLike) -> Any:
    """Read a pandas table from Parquet; errors name the file and the reason."""
    pa = import_pyarrow()
    import pandas as pd  # here, as most files are no tables

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise SteerlensError(
            f"{str(path)!r} is not a readable Parquet table: {str(error).split(chr(10))[0][:200]}; "
            "the file may be truncated or from another program"
        ) from error


def read_json(path: PathLike) -> Any:
    """Read JSON; errors name the file, and the line and column of a fault."""
    return parse_json(_read_text(path), path)


def parse_json(text: str, path: PathLike) -> Any:
    """Parse the JSON of a file, and refuse what other parsers accept silently.

    Refused are duplicate keys, NaN and infinity, lone surrogates (which cannot be written again),
    and nesting so deep that recursive code would fail.

    Args:
        text: The JSON.
        path: The file it is from, for messages.

    >>> parse_json('{"a": [1, 2]}', "a.json")
    {'a': [1, 2]}
    """
    try:
        value = json.loads(text, object_pairs_hook=_table, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise SteerlensError(
            f"{str(path)!r} is not valid JSON: {error.msg} at line {error.lineno}, "
            f"column {error.colno}; the file may be truncated"
        ) from error
    except ValueError as error:  # from the hooks, or for a number of thousands of digits
        raise SteerlensError(f"in {str(path)!r}: {error}") from error
    except RecursionError as error:
        raise SteerlensError(_too_deep(path)) from error
    for depth, node in _walk(value):
        if depth > DEEPEST:
            raise SteerlensError(_too_deep(path))
        if isinstance(node, str) and LONE_SURROGATE.search(node):
            raise SteerlensError(
                f"{str(path)!r} holds {short_repr(node)}, which is not Unicode text"
            )
    return value


DEEPEST = 50
"""Most nested lists and tables; steerlens's own files have five or six."""

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _too_deep(path: PathLike) -> str:
    return f"{str(path)!r} is nested too deeply to be a steerlens file"


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise SteerlensError(f"the key {short_repr(twice)} is given twice")
    return table


def _refuse_constant(word: str) -> float:
    raise SteerlensError(f"got {word}; expected a number, as JSON has no {word}")


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Put the name of a file before the messages of errors raised here, unless they have it."""
    try:
        yield
    except SteerlensError as error:
        if str(path) in str(error):
            raise
        raise SteerlensError(f"in {str(path)!r}: {error}") from error


def _walk(value: Any) -> Iterator[tuple[int, Any]]:
    """All values in a JSON tree, keys included, with their depth; without recursion."""
    waiting = [(0, value)]
    while waiting:
        depth, node = waiting.pop()
        yield depth, node
        if isinstance(node, dict):
            waiting += [(depth + 1, child) for pair in node.items() for child in pair]
        elif isinstance(node, list):
            waiting += [
                (depth + 1, child) for child in node if isinstance(child, str | list | dict)
            ]


def read_lines(path: PathLike) -> list[str]:
    """The non-empty lines of a text file, without their line ends."""
    return lines_of(_read_text(path))


def lines_of(text: str) -> list[str]:
    """The non-empty lines; only \\n, \\r\\n and \\r end a line.

    `str.splitlines` would also cut at characters that occur within texts, such as U+2028.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line for line in lines if line.strip()]


def read_bytes(path: PathLike) -> bytes:
    """The content of a file; errors name it."""
    try:
        return as_path(path).read_bytes()
    except FileNotFoundError as error:
        raise SteerlensError(f"there is no file {str(path)!r}") from error
    except OSError as error:
        raise SteerlensError(f"cannot read {str(path)!r}: {error.strerror}") from error


def _read_text(path: PathLike) -> str:
    return decode_text(read_bytes(path), path)


_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, with whose mark it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order mark → encoding."""


def decode_text(content: bytes, path: PathLike) -> str:
    """Decode UTF-8, or the encoding of the byte order mark; errors name file and byte."""
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise SteerlensError(
            f"{str(path)!r} is not {'UTF-8' if encoding == 'utf-8' else encoding} text (byte "
            f"{error.start} cannot be decoded); if it is text in Latin-1 or Windows-1252, convert "
            "it: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    if "\0" in text:
        raise SteerlensError(
            f"{str(path)!r} is not UTF-8 text (it holds zero bytes); if it is text in UTF-16 "
            "without a byte order mark, convert it: iconv -f UTF-16LE -t UTF-8"
        )
    return text


def digest(*content: bytes) -> str:
    """A short hash of some bytes: 16 hexadecimal digits.

    >>> len(digest(b"a", b"b"))
    16
    """
    return hashlib.sha256(b"\0".join(content)).hexdigest()[:16]


def demo_file(name: str) -> Path:
    """The path of a file or directory of `demo-data/`, in a checkout or an installed wheel.

    >>> demo_file("refusal.json").name
    'refusal.json'
    """
    package = Path(__file__).parent
    for root in (package / "demo-data", package.parent / "demo-data"):
        if (root / name).exists():
            return root / name
    raise SteerlensError(f"steerlens ships no demo data {name!r}; see demo-data/README.md")
