"""The vectors that a playground offers: a library from the demo data, and uploaded files."""

import inspect
import keyword
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from steerlens.activations.provenance import check_provenance
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.errors import SteerlensError, short_repr
from steerlens.models.host import Model
from steerlens.playground import recipes
from steerlens.steering.condition_search import search_conditions
from steerlens.steering.similarities import cosine
from steerlens.vectors.vector import SteeringVector

UPLOADED = (".safetensors", ".svec", ".gguf")
LARGEST_UPLOAD = 8 * 2**20
"""Bytes; a vector of 80 layers, each 8,192 wide, has a third of it."""
MOST_UPLOADS = 8
LONGEST_NAME = 200
"""Characters of a file's name."""
_filters = threading.Lock()
"""Python's warning filters belong to the process, not to a thread."""


class Cut(NamedTuple):
    """Where a condition reads, and the similarity above which it fires."""

    layer: int
    above: float


@dataclass(frozen=True, eq=False)
class Entry:
    """One vector, and how a script gets it."""

    name: str
    """A Python identifier, by which rules and scripts know it."""
    vector: SteeringVector
    code: str
    """A Python expression over `sl` and `model`."""
    about: str
    source: str = ""
    """The functions that `code` calls."""
    cut: Cut | None = None
    """What a condition on it starts from; None: it is no condition."""
    reach: float = 1.0
    """Thresholds worth trying lie between −reach and reach."""


Shelf = Mapping[str, Entry]


class Recipe(NamedTuple):
    """How an entry of the library is made: by a function that the page shows."""

    about: str
    make: Callable[[Model], SteeringVector]
    contrast: Callable[[str], ContrastiveDataset] | None = None
    """The pairs of a part, of a recipe for a condition; None: it is no condition."""

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def source(self) -> str:
        """The functions, as a script has them."""
        shown: list[Callable[..., Any]] = [self.make]
        shown = shown if self.contrast is None else [self.contrast, *shown]
        return "\n\n".join(inspect.getsource(function) for function in shown)


LIBRARY = (
    Recipe("refusing against agreeing first sentences", recipes.refuse),
    Recipe("happy against sad sentences", recipes.cheerful),
    Recipe("harmful against harmless prompts", recipes.harmful, recipes.harmful_and_harmless),
    Recipe(
        "prompts that ask for legal advice against others",
        recipes.legal,
        recipes.legal_and_other,
    ),
)


def make_entry(model: Model, recipe: Recipe) -> Entry:
    """Extract an entry of the library; a condition's layer and threshold are searched for."""
    vector = recipe.make(model)
    entry = Entry(recipe.name, vector, f"{recipe.name}(model)", recipe.about, recipe.source)
    if recipe.contrast is None:
        return entry
    search = search_conditions(
        model,
        vector,
        recipe.contrast("validation"),
        held_out=recipe.contrast("test"),
        tokens="last",
        similarity=cosine,
        progress=False,
    )
    # A script fires where the similarity is above; of the cuts that do so, the best.
    best = next(one for one in search.candidates if one.side == "above")
    largest = max(abs(side).max() for side in search.chosen_on)
    reach = ceil(20 * largest) / 20
    return replace(entry, cut=Cut(best.layers[0], round(best.threshold, 4)), reach=reach)


def uploaded(model: Model, filename: str, content: bytes, shelf: Shelf) -> tuple[Entry, str]:
    """A file that somebody dropped, as an entry, and a warning if there is reason for one.

    Raises what `SteeringVector.load` does, and if the vector does not fit the model.
    """
    path = Path(filename.replace("\\", "/"))
    ending = path.suffix.lower()
    if ending not in UPLOADED:
        raise SteerlensError(
            f"{short_repr(path.name)} came; a vector file ends in {', '.join(UPLOADED)}"
        )
    if len(path.name) > LONGEST_NAME:
        raise SteerlensError(
            f"the name {short_repr(path.name)} has {len(path.name)} characters; expected at most "
            f"{LONGEST_NAME}: rename the file ({ending})"
        )
    if len(content) > LARGEST_UPLOAD:
        raise SteerlensError(
            f"{path.name!r} has {len(content) / 2**20:.1f} MiB; at most "
            f"{LARGEST_UPLOAD // 2**20} are taken, save fewer layers with vector.at(layers)"
        )
    name = _free_name(path.stem, shelf)
    with tempfile.TemporaryDirectory(prefix="upload-") as folder:
        stored = Path(folder) / f"{name}{ending}"
        stored.write_bytes(content)
        try:
            vector = SteeringVector.load(stored)
        except SteerlensError as error:
            raise SteerlensError(str(error).replace(str(stored), path.name)) from error
    with _filters, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_provenance(model, vector)
    middle = Cut(vector.layers[len(vector) // 2 - 1], 0.0)
    code = f"sl.SteeringVector.load({path.name!r})"
    entry = Entry(name, vector, code, f"uploaded: {path.name}", cut=middle)
    return entry, " ".join(str(one.message) for one in caught)


def _free_name(stem: str, taken: Shelf) -> str:
    """A name near a file's, that rules can hold and no other entry has."""
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:30]
    if not name.isidentifier() or keyword.iskeyword(name):
        name = f"vector_{name}".strip("_")
    numbered = (f"{name}_{number}" for number in count(2))
    return next(free for free in chain([name], numbered) if free not in taken)
