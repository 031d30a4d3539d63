"""The safety panel: small sets of prompts, unsteered replies kept, and the refusal direction."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import pandas as pd

from steerlens.activations.extraction import extract
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.prompt_files import load_prompts
from steerlens.errors import SteerlensError
from steerlens.files import demo_file, digest, made_once, require_writable
from steerlens.models.engine import RunOptions
from steerlens.models.fingerprint import model_provenance
from steerlens.models.host import Model
from steerlens.models.tokenizing import Readable, as_prompts, tokenize
from steerlens.models.weight_cache import cache_directory
from steerlens.steering.generation import generate
from steerlens.steering.steering import Steering
from steerlens.vectors.estimators import mean_difference
from steerlens.vectors.vector import SteeringVector

HARMLESS, LOOKALIKES, HARMFUL = "harmless", "look-alike", "harmful"
"""Names of the sets: everyday requests; harmless ones in the words of harmful ones; harmful."""
REFUSAL_DIRECTION = "refusal direction"
N_PROMPTS = 24
"""Prompts of each set."""
N_PAIRS = 48
"""Pairs that the refusal direction is read from."""

PromptSets = Mapping[str, Sequence[Readable]]
Safety = Sequence[Readable] | PromptSets | None
"""Sets of prompts by name, or one of harmless ones; None: `safety_prompts()`."""


def safety_prompts() -> dict[str, list[str]]:
    """The panel's sets of prompts, from the test parts of the data that ship with steerlens.

    >>> {name: len(prompts) for name, prompts in safety_prompts().items()}
    {'harmless': 24, 'look-alike': 24, 'harmful': 24}
    """
    everyday = load_prompts(demo_file("questions.json"))["test"][:N_PROMPTS]
    pairs = ContrastiveDataset.load(demo_file("lookalikes.json")).test.pairs
    some = pairs[:: len(pairs) // N_PROMPTS][:N_PROMPTS]
    harmful, harmless = (list(map(str, side)) for side in zip(*some, strict=True))
    return {HARMLESS: list(everyday), LOOKALIKES: harmless, HARMFUL: harmful}


def prompt_sets(safety: Safety) -> dict[str, list[Any]]:
    """The sets of prompts that were asked for, by name.

    >>> prompt_sets(["Hi."])
    {'harmless': ['Hi.']}
    """
    if safety is None:
        return dict(safety_prompts())
    sets = safety if isinstance(safety, Mapping) else {HARMLESS: safety}
    return {name: as_prompts(prompts) for name, prompts in sets.items() if len(prompts)}


def unsteered_replies(
    model: Model, prompts: Sequence[Readable], max_new_tokens: int, **run: Unpack[RunOptions]
) -> tuple[list[str], list[int]]:
    """Greedy replies of the model alone, and their lengths in tokens.

    They are kept in steerlens's cache directory, under all that they depend on, so that the next
    steering of the same model does not wait for them; where it cannot be written, nothing is kept.

    >>> unsteered_replies(load_model(), ["How do I bake bread?"], 5)
    (['Here is what I know'], [5])
    """
    rows, place = tokenize(model, prompts), (str(model.cfg.dtype), str(model.cfg.device))
    job = digest(repr([model_provenance(model), *place, rows, max_new_tokens]).encode())

    def make() -> list[Any]:
        replies = generate(model, prompts, max_new_tokens=max_new_tokens, **run)
        return [list(replies), list(map(len, replies.tokens))]

    folder = cache_directory() / "unsteered"
    try:
        require_writable(folder)
    except SteerlensError:
        texts, lengths = make()
    else:
        texts, lengths = made_once(folder / f"{job}.json", job, make)
    return texts, lengths


def refusal_direction(
    model: Model, site: str, layers: Sequence[int], **run: Unpack[RunOptions]
) -> SteeringVector:
    """From harmless to harmful requests: the mean difference at the last token (arXiv 2406.11717).

    Read from requests of equal length that ship with steerlens (`requests.json`), so that it is no
    direction of length.

    >>> refusal_direction(load_model(), "resid_post", [2, 3])
    SteeringVector('refusal direction', resid_post, layers 2–3, d 192)
    """
    requests = ContrastiveDataset.load(demo_file("requests.json")).train
    sides = [list(side) for side in zip(*requests.pairs[:N_PAIRS], strict=True)]
    return extract(
        model, (sides[0], sides[1]), mean_difference, layers=layers, site=site,
        name=REFUSAL_DIRECTION, **run,
    )  # fmt: skip


def refusal_overlaps(
    model: Model, steerings: Mapping[str, Steering], **run: Unpack[RunOptions]
) -> pd.DataFrame:
    """How far each steering pushes along the refusal direction: a cosine for each layer.

    A negative strength turns the vector, and so the sign of the cosine.

    Args:
        steerings: By name.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    >>> refusal_overlaps(model, {"half": steering}).measure.tolist()
    ['cosine, layer 2', 'cosine, layer 3']
    """
    read: dict[str, SteeringVector] = {}
    rows = []
    for site in dict.fromkeys(one.vector.site for one in steerings.values()):
        here = [one for one in steerings.values() if one.vector.site == site]
        layers = sorted({layer for one in here for layer in one.layers_steered})
        read[site] = refusal_direction(model, site, layers, **run)
    for name, one in steerings.items():
        refusal = read[one.vector.site].at(one.layers_steered)
        cosines = one.vector.at(one.layers_steered).cosine(refusal).numpy()
        for layer, value in zip(one.layers_steered, np.sign(one.strengths) * cosines, strict=True):
            row = {"steering": name, "measure": f"cosine, layer {layer}", "value": float(value)}
            ends = {"low": np.nan, "high": np.nan, "n": N_PAIRS, "of": REFUSAL_DIRECTION}
            rows.append(row | ends)
    return pd.DataFrame(rows)
