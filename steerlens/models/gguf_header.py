"""The header of a GGUF file: metadata, and the names and shapes of its tensors."""

import mmap
import struct
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike

MAGIC = b"GGUF"
CONTROL_VECTOR = "controlvector"

_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_LONGEST_KEY = 1_000
_MOST_DIMENSIONS = 8


class GgufHeader(NamedTuple):
    """The metadata of a GGUF file by key, and its tensors' shapes by name."""

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.metadata["general.architecture"])

    @property
    def n_numbers(self) -> int:
        """How many numbers all tensors hold together."""
        return sum(map(prod, self.shapes.values()))


def is_gguf(path: PathLike) -> bool:
    """Whether a file begins like a GGUF file."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_header(path: PathLike, wanted: Iterable[str] = ()) -> GgufHeader:
    """Read the header of a GGUF file.

    Args:
        path: The file.
        wanted: Keys of the arrays of strings to keep in full; of others (a vocabulary has 100,000
            strings) only the length is kept.
    """
    try:
        with (
            Path(path).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m,
        ):
            return _Reader(m, frozenset(wanted)).header()
    except (struct.error, ValueError, OverflowError) as error:
        if isinstance(error, SteerlensError):
            raise
        raise SteerlensError(
            f"{str(path)!r} is not a whole GGUF file ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise SteerlensError(f"cannot read {str(path)!r}: {error.strerror}") from error


class _Reader:
    """Reads a header part by part, never past the end of the file."""

    def __init__(self, data: mmap.mmap, wanted: frozenset[str]) -> None:
        self._data, self._offset, self._wanted = data, 0, wanted

    def header(self) -> GgufHeader:
        if self._data[: len(MAGIC)] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._offset = len(MAGIC)
        version, n_tensors, n_keys = self._numbers("IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}; expected 2 or 3")
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._string(_LONGEST_KEY)
            metadata[key] = self._value(self._numbers("I")[0], key)
        if not isinstance(metadata.get("general.architecture"), str):
            raise ValueError("it names no architecture")
        return GgufHeader(metadata, dict(self._tensor() for _ in range(n_tensors)))

    def _tensor(self) -> tuple[str, tuple[int, ...]]:
        name = self._string(_LONGEST_KEY)
        (dimensions,) = self._numbers("I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"its tensor {short_repr(name)} has {dimensions} dimensions")
        shape = self._numbers(f"{dimensions}Q")
        self._numbers("IQ")  # its type and offset
        return name, tuple(reversed(shape))

    def _value(self, kind: int, key: str) -> Any:
        if kind in _NUMBERS:
            return self._numbers(_NUMBERS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise ValueError(f"{short_repr(key)} has a value of the unknown type {kind}")
        element, count = self._numbers("IQ")
        if element in _NUMBERS:
            return list(self._numbers(f"{count}{_NUMBERS[element]}"))
        if element != _STRING:
            raise ValueError(f"{short_repr(key)} is an array of the unknown type {element}")
        if key in self._wanted:
            return [self._string() for _ in range(count)]
        for _ in range(count):
            self._skip_string()
        return count

    def _numbers(self, kinds: str) -> tuple[Any, ...]:
        layout = f"<{kinds}"
        size = struct.calcsize(layout)
        if size > len(self._data) - self._offset:
            raise ValueError(f"it ends at byte {len(self._data)}, within its header")
        numbers = struct.unpack_from(layout, self._data, self._offset)
        self._offset += size
        return numbers

    def _string(self, longest: int | None = None) -> str:
        start = self._skip_string(longest)
        return self._data[start : self._offset].decode("utf-8", errors="strict")

    def _skip_string(self, longest: int | None = None) -> int:
        """Skip a string; returns the offset of its first byte."""
        (length,) = self._numbers("Q")
        if length > (len(self._data) - self._offset if longest is None else longest):
            raise ValueError(f"it declares a string of {length} bytes at byte {self._offset}")
        start = self._offset
        self._offset += length
        return start
