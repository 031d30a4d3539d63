"""The vectors that a playground offers: those from the demo data, and uploaded files."""

import inspect
import keyword
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count
from math import ceil, floor
from pathlib import Path
from typing import Any, NamedTuple

from steerlens.activations.provenance import check_provenance
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.errors import SteerlensError, short_repr
from steerlens.evaluation.default_strength import default_steering
from steerlens.models.host import Model
from steerlens.playground import recipes
from steerlens.steering.condition_search import search_conditions
from steerlens.steering.similarities import cosine
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

UPLOADED = (".safetensors", ".svec", ".gguf")
LARGEST_UPLOAD = 8 * 2**20
"""Bytes; 80 layers of width 8,192 take a third of it."""
MOST_UPLOADS = 8
STEP = {True: 0.01, False: 0.1}
"""Of the strength, by whether it is relative."""
LONGEST_NAME = 200
"""Characters of a file name."""
_filters = threading.Lock()
"""Python's warning filters are shared by all threads."""


class Cut(NamedTuple):
    """The layer that a condition reads, and the similarity above which it fires."""

    layer: int
    above: float


@dataclass(frozen=True, eq=False)
class Entry:
    """A vector, and the Python that makes it."""

    name: str
    """A Python identifier, used by rules and scripts."""
    vector: SteeringVector
    code: str
    """A Python expression over `sl` and `model`."""
    about: str
    source: str = ""
    """The functions that `code` calls."""
    cut: Cut | None = None
    """The initial threshold of a condition on it; None: it is offered for steering only."""
    reach: float = 1.0
    """Thresholds are offered from −reach to reach."""
    strength: float | None = None
    """What a page begins with, where it was calibrated before."""

    @property
    def relative(self) -> bool:
        """Whether strengths are fractions of the stream's norm; a learned vector has its own."""
        return self.vector.norms is not None and "objective" not in self.vector.provenance

    @property
    def first_layers(self) -> tuple[int, int]:
        """The first and last layer steered at first: below the middle, where it often works."""
        layers = self.vector.layers
        return layers[len(layers) * 2 // 6], layers[len(layers) // 2]

    def first_steering(self) -> Steering:
        """The steering that a page begins with, but for its strength."""
        first, last = self.first_layers
        layers = [layer for layer in self.vector.layers if first <= layer <= last]
        return Steering(self.vector, layers, relative=self.relative)


Library = Mapping[str, Entry]


class Recipe(NamedTuple):
    """How an entry is made: by a function that the page shows."""

    about: str
    make: Callable[[Model], SteeringVector]
    contrast: Callable[[str], ContrastiveDataset] | None = None
    """The labelled prompts of a part, for a condition; None: it is offered for steering only."""

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def source(self) -> str:
        """The source of its functions."""
        functions: list[Callable[..., Any]] = [self.make]
        functions = functions if self.contrast is None else [self.contrast, *functions]
        return "\n\n".join(inspect.getsource(function) for function in functions)


RECIPES = (
    Recipe("refusing against agreeing first sentences", recipes.refuse),
    Recipe("refusing, learned by gradient: a minute", recipes.refuse_learned),
    Recipe("happy against sad sentences", recipes.cheerful),
    Recipe("harmful against harmless prompts", recipes.harmful, recipes.harmful_and_harmless),
    Recipe(
        "prompts that ask for legal advice against others",
        recipes.legal,
        recipes.legal_and_other,
    ),
)


def first_strength(model: Model, entry: Entry, step: float, most: float) -> float:
    """A strength that leaves text whole, rounded down to a step; 0 if none can be found."""
    try:
        steering, _ = default_steering(model, entry.first_steering(), progress=False)
    except SteerlensError:
        return 0.0
    strength = sum(steering.strengths)  # of an addition: what its layers share
    return round(min(floor(strength / step + 1e-6) * step, most), 6)


def making(model: Model, recipe: Recipe) -> Generator[str, None, Entry]:
    """Make a vector, and find its condition's layer and threshold if it has one.

    Yields what is done next, in words; returns the entry.
    """
    yield f"Making {recipe.name}: {recipe.about}"
    vector = recipe.make(model)
    entry = Entry(recipe.name, vector, f"{recipe.name}(model)", recipe.about, recipe.source)
    if recipe.contrast is None:
        return entry
    yield f"Finding the threshold of {recipe.name}"
    search = search_conditions(
        model,
        vector,
        recipe.contrast("validation"),
        held_out=recipe.contrast("test"),
        combine=1,
        tokens="last",
        similarity=cosine,
        progress=False,
    )
    # The page offers "above" only: the best candidate of this side.
    best = next(candidate for candidate in search.candidates if candidate.side == "above")
    largest = max(abs(side).max() for side in search.chosen_on)
    reach = ceil(20 * largest) / 20
    return replace(entry, cut=Cut(best.layers[0], round(best.threshold, 4)), reach=reach)


def uploaded(model: Model, filename: str, content: bytes, library: Library) -> tuple[Entry, str]:
    """An uploaded vector file as an entry, and the warnings about it.

    Args:
        filename: as the browser sends it; its ending says the format.
        content: the file's bytes.
        library: the entries whose names are taken.

    Raises:
        SteerlensError: if the file cannot be read, or the vector does not fit the model.
    """
    path = Path(filename.replace("\\", "/"))
    ending = path.suffix.lower()
    if ending not in UPLOADED:
        raise SteerlensError(
            f"got the file {short_repr(path.name)}; expected one that ends in {', '.join(UPLOADED)}"
        )
    if len(path.name) > LONGEST_NAME:
        raise SteerlensError(
            f"got a file name of {len(path.name)} characters, {short_repr(path.name)}; expected at "
            f"most {LONGEST_NAME}; rename the file ({ending})"
        )
    if len(content) > LARGEST_UPLOAD:
        raise SteerlensError(
            f"got {path.name!r} of {len(content) / 2**20:.1f} MiB; expected at most "
            f"{LARGEST_UPLOAD // 2**20} MiB; save fewer layers with vector.at(layers)"
        )
    name = _free_name(path.stem, library)
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
    return entry, " ".join(str(warning.message) for warning in caught)


def _free_name(stem: str, taken: Library) -> str:
    """An identifier made of a file's name that no other entry has."""
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:30]
    if not name.isidentifier() or keyword.iskeyword(name):
        name = f"vector_{name}".strip("_")
    numbered = (f"{name}_{number}" for number in count(2))
    return next(free for free in chain([name], numbered) if free not in taken)
