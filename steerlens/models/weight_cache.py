"""Models converted from GGUF files, kept on disk as Hugging Face directories.

An entry is named after the file's hash and the versions of the libraries that convert it. It is
complete or absent; a damaged one is converted again.
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
"""Increased whenever the content of an entry changes."""

LIBRARIES = ("transformers", "tokenizers", "gguf", "safetensors")
"""The libraries that convert and write the weights."""

_RECORD = "steerlens-cache.json"


class CachedModel(NamedTuple):
    """One converted model in the cache."""

    directory: Path
    source: str
    """The path of the GGUF file at that time."""
    size: int
    """Bytes on disk."""


def cache_directory() -> Path:
    """The directory of converted models: `STEERLENS_CACHE`, or the user's cache directory."""
    chosen = os.environ.get("STEERLENS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        default = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        default = Path.home() / "Library" / "Caches"
    else:
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return default / "steerlens"


def cached_models() -> list[CachedModel]:
    """All converted models in the cache, the largest first.

    >>> sum(model.size for model in cached_models()) >= 0
    True
    """
    models = []
    for directory in _models().glob("*/"):
        record = _record(directory)
        if record is not None:
            size = sum(file.stat().st_size for file in directory.iterdir() if file.is_file())
            models.append(CachedModel(directory, str(record.get("source")), size))
    return sorted(models, key=lambda model: (-model.size, model.directory.name))


def clear_cached_models() -> int:
    """Remove converted models and remains of interrupted conversions; returns the bytes freed."""
    freed = sum(file.stat().st_size for file in _models().rglob("*") if file.is_file())
    shutil.rmtree(_models(), ignore_errors=True)
    if _models().exists():
        raise SteerlensError(
            f"not all of {str(_models())!r} could be removed; close what uses it, or make it "
            "writable"
        )
    return freed


@contextmanager
def cached_directory(path: Path, write: Callable[[Path, Path], None]) -> Iterator[Path]:
    """The directory converted from a file, from the cache if it is there.

    If the cache cannot be written, the directory is temporary.

    Args:
        path: The GGUF file.
        write: Converts a file into a directory.
    """
    entry = _models() / f"{path.stem}-{_key(path)}"
    if not _is_whole(entry):
        try:
            _replace(entry, path, write)
        except OSError as error:
            warnings.warn(
                f"the converted model cannot be kept in {str(_models())!r} "
                f"({error.strerror or error}), so it is converted at every start; set "
                "STEERLENS_CACHE to a directory with free space",
                stacklevel=4,
            )
            with tempfile.TemporaryDirectory(prefix="steerlens-") as temporary:
                write(path, Path(temporary))
                yield Path(temporary)
            return
    yield entry


def _models() -> Path:
    return cache_directory() / "models"


def _key(path: Path) -> str:
    """A hash of the whole content: a replaced file may have the same size, date and beginning."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    versions = [f"{name} {version(name)}" for name in LIBRARIES]
    return digest(*(part.encode() for part in (str(FORMAT), content, *versions)))


def _replace(entry: Path, path: Path, write: Callable[[Path, Path], None]) -> None:
    """Write an entry to a temporary directory, then move it; another process may do the same."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=entry.parent) as aside:
        new, old = Path(aside) / "new", Path(aside) / "old"
        new.mkdir()
        write(path, new)
        files = {file.name: _sum(file) for file in sorted(new.iterdir())}
        write_json(new / _RECORD, {"source": str(path.resolve()), "files": files})
        with suppress(FileNotFoundError):
            entry.rename(old)  # a damaged one
        try:
            new.rename(entry)
        except OSError:
            if not _is_whole(entry):  # otherwise another process was faster
                raise


def _is_whole(entry: Path) -> bool:
    record = _record(entry)
    if record is None:
        return False
    files = record.get("files")
    if not isinstance(files, dict) or "config.json" not in files:
        return False
    try:
        return all(_sum(entry / name) == noted for name, noted in files.items())
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
