"""Entries of the playground on disk, so that they are made once for a model."""

import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from steerlens.errors import SteerlensError
from steerlens.files import demo_file, digest, read_json, write_directory, write_json
from steerlens.models.fingerprint import LIBRARIES, fingerprint
from steerlens.models.host import Model
from steerlens.models.weight_cache import cache_directory
from steerlens.playground.library import Cut, Entry, Recipe
from steerlens.schemas import Declared, check
from steerlens.vectors.vector import SteeringVector

_VECTOR, _RECORD = "vector.safetensors", "entry.json"


class _Kept(Declared):
    """The content of an entry's record."""

    layer: int | None
    above: float | None
    reach: float
    strength: float | None


def entries_directory() -> Path:
    """Where entries are kept, beside the converted models."""
    return cache_directory() / "playground"


def kept_entry(model: Model, recipe: Recipe) -> Entry | None:
    """What `keep` wrote for this model and recipe; None if nothing, or if it is damaged."""
    directory = _place(model, recipe)
    try:
        record = check(_Kept, read_json(directory / _RECORD), directory / _RECORD)
        vector = SteeringVector.load(directory / _VECTOR)
    except SteerlensError:
        return None
    known = record.layer is not None and record.above is not None
    cut = Cut(record.layer, record.above) if known else None  # type: ignore[arg-type]
    return Entry(
        recipe.name, vector, f"{recipe.name}(model)", recipe.about, recipe.source,
        cut=cut, reach=record.reach, strength=record.strength,
    )  # fmt: skip


def keep(model: Model, recipe: Recipe, entry: Entry) -> None:
    """Write an entry, in place of an earlier one.

    Raises:
        SteerlensError: If the directory cannot be written.
    """

    def write(new: Path) -> None:
        entry.vector.save(new / _VECTOR)
        layer, above = entry.cut or (None, None)
        record = _Kept(layer=layer, above=above, reach=entry.reach, strength=entry.strength)
        write_json(new / _RECORD, record.model_dump())

    write_directory(_place(model, recipe), write, replace=True)


def kept_size() -> int:
    """The bytes of all entries on disk."""
    return sum(file.stat().st_size for file in _files())


def clear_entries() -> int:
    """Remove all entries; returns the bytes freed."""
    freed = kept_size()
    shutil.rmtree(entries_directory(), ignore_errors=True)
    return freed


def _files() -> Iterator[Path]:
    return (file for file in entries_directory().rglob("*") if file.is_file())


def _place(model: Model, recipe: Recipe) -> Path:
    """Named after all that the entry depends on: model, recipe, demo data, libraries."""
    data = sorted(demo_file("refusal.json").parent.glob("*.json"))
    versions = [f"{name} {version(name)}" for name in (*LIBRARIES, "steerlens")]
    key = digest(
        fingerprint(model).encode(),
        recipe.source.encode(),
        *(file.read_bytes() for file in data),
        *(text.encode() for text in versions),
    )
    return entries_directory() / f"{recipe.name}-{key}"
