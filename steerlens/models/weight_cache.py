"""Models converted from GGUF files, kept on disk as Hugging Face directories.

An entry is named by what decides its content: the whole file's hash, and the versions of the
libraries that convert it. It is complete or not there, and what was damaged since is made anew.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from steerlens.errors import SteerlensError
from steerlens.files import digest, read_json, write_json

FORMAT = 1
"""Counted up whenever what is written into an entry changes."""

LIBRARIES = ("transformers", "tokenizers", "gguf", "safetensors")
"""What converts and writes the weights."""

_RECORD = "steerlens-cache.json"


class CachedModel(NamedTuple):
    """One converted model in the cache."""

    directory: Path
    source: str
    """The file that it was made from, as it was called then."""
    size: int
    """In bytes."""


def cache_directory() -> Path:
    """Where converted models are kept: `STEERLENS_CACHE`, or the user's cache directory."""
    chosen = os.environ.get("STEERLENS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        usual = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        usual = Path.home() / "Library" / "Caches"
    else:
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return usual / "steerlens"


def cached_models() -> list[CachedModel]:
    """All converted models in the cache, the largest first.

    >>> sum(model.size for model in cached_models()) >= 0
    True
    """
    found = []
    for directory in _models().glob("*/"):
        record = _record(directory)
        if record is not None:
            size = sum(file.stat().st_size for file in directory.iterdir() if file.is_file())
            found.append(CachedModel(directory, str(record.get("source")), size))
    return sorted(found, key=lambda model: (-model.size, model.directory.name))


def clear_cached_models() -> int:
    """Remove all converted models, and what broken-off conversions have left; the bytes freed."""
    freed = sum(file.stat().st_size for file in _models().rglob("*") if file.is_file())
    shutil.rmtree(_models(), ignore_errors=True)
    if _models().exists():
        raise SteerlensError(
            f"not all of {str(_models())!r} could be removed; is it in use, or write-protected?"
        )
    return freed


@contextmanager
def cached_directory(path: Path, write: Callable[[Path, Path], None]) -> Iterator[Path]:
    """The directory that `write(path, directory)` makes of a file, from the cache if it is there.

    Where the cache cannot be written, it is made for this once.
    """
    entry = _models() / f"{path.stem}-{_key(path)}"
    if not _is_whole(entry):
        try:
            _replace(entry, path, write)
        except OSError as error:
            warnings.warn(
                f"the converted model cannot be kept in {str(_models())!r} "
                f"({error.strerror or error}), so every start converts it anew; set "
                "STEERLENS_CACHE to a directory with room",
                stacklevel=4,
            )
            with tempfile.TemporaryDirectory(prefix="steerlens-") as once:
                write(path, Path(once))
                yield Path(once)
            return
    yield entry


def _models() -> Path:
    return cache_directory() / "models"


def _key(path: Path) -> str:
    """The whole content counts: size, date and first bytes can outlast a replaced file."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    versions = [f"{name} {version(name)}" for name in LIBRARIES]
    return digest(*(part.encode() for part in (str(FORMAT), content, *versions)))


def _replace(entry: Path, path: Path, write: Callable[[Path, Path], None]) -> None:
    """Make an entry beside its place, then move it there; another process may do the same."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=entry.parent) as aside:
        new, old = Path(aside) / "new", Path(aside) / "old"
        new.mkdir()
        write(path, new)
        files = {file.name: _sum(file) for file in sorted(new.iterdir())}
        write_json(new / _RECORD, {"source": str(path.resolve()), "files": files})
        with suppress(FileNotFoundError):
            entry.rename(old)  # it is damaged
        try:
            new.rename(entry)
        except OSError:
            if not _is_whole(entry):  # else another process was faster
                raise


def _is_whole(entry: Path) -> bool:
    record = _record(entry)
    if record is None:
        return False
    files = record.get("files")
    if not isinstance(files, dict) or "config.json" not in files:
        return False
    try:
        return all(_sum(entry / name) == found for name, found in files.items())
    except OSError:
        return False


def _record(entry: Path) -> dict[str, Any] | None:
    try:
        record = read_json(entry / _RECORD)
    except SteerlensError:
        return None
    return record if isinstance(record, dict) else None


def _sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
