"""Vectors, conditions and plans from files: uploaded ones, and those of the command line."""

import tempfile
import threading
import warnings
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from steerlens.activations.provenance import check_provenance
from steerlens.errors import SteerlensError, short_repr
from steerlens.models.host import Model
from steerlens.playground.access import LARGEST_UPLOAD
from steerlens.playground.library import Cut, Entry, free_name
from steerlens.steering.condition_search import ConditionSearch
from steerlens.steering.conditions import Condition
from steerlens.steering.fitting import require_fit
from steerlens.steering.plan_files import load_plan
from steerlens.steering.predicates import Named
from steerlens.steering.rules import Rule
from steerlens.steering.soft_gates import SoftGate
from steerlens.vectors.vector import SteeringVector

UPLOADED = (".safetensors", ".svec", ".gguf")
LONGEST_NAME = 200
"""Characters of a file name."""
_filters = threading.Lock()
"""Python's warning filters are shared by all threads."""


def uploaded(
    model: Model, filename: str, content: bytes, taken: Collection[str]
) -> tuple[Entry, str]:
    """An uploaded vector file as an entry, and the warnings about it.

    Args:
        filename: as the browser sends it; its ending says the format.
        content: the file's bytes.
        taken: the names that other vectors have.

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
    name = free_name(path.stem, taken)
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
    entry = _entry(name, vector, path.name, f"uploaded: {path.name}")
    return entry, " ".join(str(warning.message) for warning in caught)


def entry_of_file(model: Model, path: Path, taken: Collection[str] = ()) -> Entry:
    """A vector file of this machine as an entry.

    Raises:
        SteerlensError: if the file cannot be read, or the vector does not fit the model.
    """
    vector = SteeringVector.load(path)
    check_provenance(model, vector)
    return _entry(free_name(path.stem, taken), vector, str(path), f"file {path.name}")


def entry_of_search(model: Model, search: Path, vector: Path, taken: Collection[str]) -> Entry:
    """A condition that a search found, and its vector, from files of this machine."""
    entry = entry_of_file(model, vector, taken)
    found = ConditionSearch.load(search, entry.vector)
    best = replace(found.best, name=entry.name)
    scored = f"F1 {found.scores.f1} on prompts kept for scoring; its threshold is fixed"
    code = f"sl.steering.ConditionSearch.load({str(search)!r}, vectors[{entry.name!r}]).best"
    return replace(entry, cut=None, searched=best, condition_code=code, scored=scored)


def entries_of_plan(model: Model, path: Path, taken: Collection[str]) -> tuple[list[Entry], str]:
    """The vectors and the conditions of a plan, and its rules; layers and strengths are the page's.

    Raises:
        SteerlensError: if the file cannot be read, or its vectors do not fit the model.
    """
    plan = load_plan(path)
    require_fit(model, plan)
    about, names, rules = f"plan {path.name}", set(taken), []
    pushed: list[Entry] = []
    asked: dict[Condition, Entry] = {}
    for number, step in enumerate(plan):
        code = f"sl.load_plan({str(path)!r})[{number}]"
        for index, condition in enumerate(step.conditions):
            if condition in asked:
                continue
            name = free_name(condition.name or f"{path.stem}_condition", names)
            one = f"{code}.conditions[{index}]"
            entry = Entry(name, condition.vector, f"{one}.vector", about, condition_code=one)
            fixed, told = replace(condition, name=name), "its threshold is the plan's"
            asked[condition] = replace(entry, searched=fixed, scored=told)
            names.add(name)
        name = free_name(step.name or path.stem, names)
        pushed.append(Entry(name, step.vector, f"{code}.vector", about))
        names.add(name)
        if isinstance(step.when, SoftGate) or step.when_token is not None or step.schedule:
            raise SteerlensError(
                f"got the plan {path.name!r}, part of which opens by degrees, by token or by time "
                f"({step}); expected conditions on the prompt: use it by sl.load_plan in Python"
            )
        if step.when is not None:
            rules.append(str(Rule(step.when.bound(lambda leaf: Named(asked[leaf].name)), name)))
    return [*pushed, *asked.values()], "\n".join(rules)


def _entry(name: str, vector: SteeringVector, file: str, about: str) -> Entry:
    """A vector of a file, offered as a condition too, with a threshold to be set by hand."""
    middle = Cut(vector.layers[len(vector) // 2 - 1], 0.0)
    return Entry(name, vector, f"sl.SteeringVector.load({file!r})", about, cut=middle)
