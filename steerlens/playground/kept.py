"""What the playground keeps on disk between two starts: vectors, and strengths found for them.

An item is one JSON file with a checksum, beside it the vector if it has one. It is named after
everything that it depends on. What is missing or damaged counts as absent, and is made again.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from steerlens.errors import SteerlensError
from steerlens.files import digest, read_json, write_json
from steerlens.models.weight_cache import cache_directory

if TYPE_CHECKING:
    from steerlens.vectors.vector import SteeringVector

FORMAT = 1
"""Increased whenever the content of an item changes."""


class Item(NamedTuple):
    """What is kept under a key."""

    facts: dict[str, Any]
    vector: "SteeringVector | None" = None


class KeptFile(NamedTuple):
    """An item as `steerlens cache` lists it."""

    what: str
    size: int
    """Bytes on disk."""


def key_of(*parts: Any) -> str:
    """A key made of everything that an item depends on.

    >>> key_of("weights", 3) == key_of("weights", 3) != key_of("weights", 4)
    True
    """
    return digest(str(FORMAT).encode(), *(json.dumps(part).encode() for part in parts))


def keep(name: str, key: str, item: Item, about: str) -> None:
    """Write an item; where that is impossible, say so in the log and go on."""
    place = _folder() / f"{name}-{key}.json"
    content: dict[str, Any] = {"key": key, "about": about, "facts": item.facts, "vector": None}
    try:
        if item.vector is not None:
            item.vector.save(_vector_of(place))
            content["vector"] = _sum(_vector_of(place).read_bytes())
        write_json(place, {"content": content, "sum": _sum_of(content)})
    except (SteerlensError, OSError) as error:
        logging.getLogger(__name__).warning("%s is not kept: %s", about, error)


def kept(name: str, key: str) -> Item | None:
    """The item of a key; None if there is none, or if it is damaged."""
    from steerlens.vectors.vector import SteeringVector

    place = _folder() / f"{name}-{key}.json"
    try:
        record = read_json(place)
        content = record["content"]
        if record["sum"] != _sum_of(content) or content["key"] != key:
            return None
        if content["vector"] is None:
            return Item(content["facts"])
        if content["vector"] != _sum(_vector_of(place).read_bytes()):
            return None
        return Item(content["facts"], SteeringVector.load(_vector_of(place)))
    except (SteerlensError, OSError, KeyError, TypeError):
        return None


def kept_files() -> list[KeptFile]:
    """All items, in the order of their names.

    >>> sum(file.size for file in kept_files()) >= 0
    True
    """
    listed = []
    for place in sorted(_folder().glob("*.json")):
        try:
            what = str(read_json(place)["content"]["about"])
        except (SteerlensError, KeyError, TypeError):
            what = f"damaged: {place.name}"
        files = [file for file in (place, _vector_of(place)) if file.is_file()]
        listed.append(KeptFile(what, sum(file.stat().st_size for file in files)))
    return listed


def clear_kept_files() -> int:
    """Remove all items; returns the bytes freed."""
    freed = 0
    for file in _folder().glob("*"):
        size = file.stat().st_size
        try:
            file.unlink()
        except OSError as error:
            raise SteerlensError(
                f"{str(file)!r} could not be removed ({error.strerror}); make it writable"
            ) from error
        freed += size
    return freed


def _folder() -> Path:
    return cache_directory() / "playground"


def _vector_of(place: Path) -> Path:
    return place.with_suffix(".safetensors")


def _sum_of(content: dict[str, Any]) -> str:
    return _sum(json.dumps(content, sort_keys=True).encode())


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
