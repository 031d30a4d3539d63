"""The vectors that a playground offers: a library from the demo data, and uploaded files."""

import keyword
import re
import tempfile
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count
from math import ceil
from pathlib import Path
from typing import NamedTuple

import steerlens as sl
from steerlens.activations.provenance import check_provenance
from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.steering.condition_search import search_conditions
from steerlens.steering.similarities import cosine
from steerlens.vectors.vector import SteeringVector

UPLOADED = (".safetensors", ".svec", ".gguf")
LARGEST_UPLOAD = 8 * 2**20
"""Bytes; a vector of 80 layers, each 8,192 wide, has a third of it."""
MOST_UPLOADS = 8
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
    cut: Cut | None = None
    """What a condition on it starts from; None: it is no condition."""
    reach: float = 1.0
    """Thresholds worth trying lie between −reach and reach."""


Shelf = Mapping[str, Entry]


class Recipe(NamedTuple):
    """How an entry of the library is made: by running the very code that the page shows."""

    name: str
    about: str
    data: str
    """A Python expression for the contrast, with `{part}` open."""
    code: str
    """A Python expression for the vector, with `{data}` and `{layers}` open."""
    is_condition: bool = False


_DISCRIMINANT = """sl.extract(
        model,
        {data},
        sl.estimators.linear_discriminant,
        tokens="last",
        layers={layers},
    )"""
LIBRARY = (
    Recipe(
        "refuse",
        "refusing against agreeing first sentences",
        'sl.ContrastiveDataset.load(sl.demo_file("refusal.json")).part({part!r})',
        """sl.extract(
        model,
        {data},
        tokens="suffix",
    )""",
    ),
    Recipe(
        "cheerful",
        "happy against sad sentences",
        'sl.ContrastiveDataset.load(sl.demo_file("moods.json")).part({part!r})',
        """sl.extract(
        model,
        {data},
        sl.estimators.mean_difference,
        tokens="all",
    )""",
    ),
    Recipe(
        "harmful",
        "harmful against harmless prompts",
        'sl.ContrastiveDataset.load(sl.demo_file("harmful.json")).part({part!r})',
        _DISCRIMINANT,
        is_condition=True,
    ),
    Recipe(
        "legal",
        "prompts that ask for legal advice against others",
        """sl.ContrastiveDataset.one_against_rest(
            sl.load_prompts(sl.demo_file("topics.json"))[{part!r}], "legal"
        )""",
        _DISCRIMINANT,
        is_condition=True,
    ),
)


def make_entry(model: Model, recipe: Recipe) -> Entry:
    """Extract an entry of the library; a condition's layer and threshold are searched for.

    Conditions are read in the first half of the model, before what they gate.
    """

    def data(part: str) -> str:
        return recipe.data.format(part=part)

    early = range(max(1, model.cfg.n_layers // 2))
    # The refusals' smaller part is enough for a start.
    part = "validation" if recipe.name == "refuse" else "train"
    code = recipe.code.format(data=data(part), layers=early)
    names = {"sl": sl, "model": model}
    vector = eval(code, names)
    if not recipe.is_condition:
        return Entry(recipe.name, vector, code, recipe.about)
    search = search_conditions(
        model,
        vector,
        eval(data("validation"), names),
        held_out=eval(data("test"), names),
        tokens="last",
        similarity=cosine,
        progress=False,
    )
    # A script fires where the similarity is above; of the cuts that do so, the best.
    best = next(one for one in search.candidates if one.side == "above")
    largest = max(abs(side).max() for side in search.chosen_on)
    reach = ceil(20 * largest) / 20
    cut = Cut(best.layers[0], round(best.threshold, 4))
    return Entry(recipe.name, vector, code, recipe.about, cut, reach)


def uploaded(model: Model, filename: str, content: bytes, shelf: Shelf) -> tuple[Entry, str]:
    """A file that somebody dropped, as an entry, and a warning if there is reason for one.

    Raises what `SteeringVector.load` does, and if the vector does not fit the model.
    """
    path = Path(filename.replace("\\", "/"))
    ending = path.suffix.lower()
    if ending not in UPLOADED:
        raise SteerlensError(f"{path.name!r} came; a vector file ends in {', '.join(UPLOADED)}")
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
    entry = Entry(name, vector, code, f"uploaded: {path.name}", middle)
    return entry, " ".join(str(one.message) for one in caught)


def _free_name(stem: str, taken: Shelf) -> str:
    """A name near a file's, that rules can hold and no other entry has."""
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:30]
    if not name.isidentifier() or keyword.iskeyword(name):
        name = f"vector_{name}".strip("_")
    numbered = (f"{name}_{number}" for number in count(2))
    return next(free for free in chain([name], numbered) if free not in taken)
