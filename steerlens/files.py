"""Reading and writing files so that nothing is ever half written."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steerlens.errors import SteerlensError

PathLike = str | os.PathLike[str]


def write_atomically(path: PathLike, write: Callable[[Path], object]) -> Path:
    """Call `write` on a temporary neighbour of `path`, then move it into place.

    Whatever stood at `path` before stays whole until the new file is complete.
    """
    path = Path(path)
    require_writable(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
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
    """Call `write` on a temporary directory beside `path`, then move it into place.

    What stands at `path` is refused, or with `replace` moved away once the new one is complete.
    """
    path = Path(path).resolve()
    if path.exists() and not replace:
        raise SteerlensError(f"{str(path)!r} exists already; choose another name, or remove it")
    require_writable(path.parent)
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_writable(directory: PathLike) -> Path:
    """Create `directory` if needed and prove that a file can be written there.

    Call it before long work, so that an unwritable place is found first.
    """
    directory = Path(directory)
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


def write_text(path: PathLike, text: str) -> Path:
    """Write `text` atomically, as UTF-8."""
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: PathLike, value: Any) -> Path:
    """Write `value` atomically as JSON; NaN and infinity are refused, for JSON has neither."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def read_json(path: PathLike) -> Any:
    """Read JSON; a missing, truncated or malformed file is named with the place of the fault."""
    text = _read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SteerlensError(
            f"{str(path)!r} is not valid JSON: {error.msg} at line {error.lineno}, "
            f"column {error.colno}; the file may be truncated"
        ) from error
    except RecursionError as error:
        raise SteerlensError(
            f"{str(path)!r} is nested too deeply to be a steerlens file"
        ) from error


def read_lines(path: PathLike) -> list[str]:
    """The non-empty lines of a text file, without their line ends."""
    return [line for line in _read_text(path).splitlines() if line.strip()]


def _read_text(path: PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SteerlensError(f"there is no file {str(path)!r}") from error
    except UnicodeDecodeError as error:
        raise SteerlensError(
            f"{str(path)!r} is not UTF-8 text (byte {error.start} cannot be decoded)"
        ) from error
    except OSError as error:
        raise SteerlensError(f"cannot read {str(path)!r}: {error.strerror}") from error


def embedded(name: str) -> Path:
    """The path of a file or directory of `demo-data/`, in a checkout as in an installed wheel."""
    package = Path(__file__).parent
    for root in (package / "demo-data", package.parent / "demo-data"):
        if (root / name).exists():
            return root / name
    raise SteerlensError(f"steerlens ships no demo data {name!r}; see demo-data/README.md")
