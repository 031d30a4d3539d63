"""CAST's table: how many harmful and harmless prompts are refused, and what more pairs add."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import torch

from steerlens.activations.extraction import extract
from steerlens.activations.reading import read_residual
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.prompts import Prompt
from steerlens.errors import SteerlensError
from steerlens.files import PathLike, require_writable, write_json, write_text
from steerlens.intervals import rate
from steerlens.judges.fluency import degenerate
from steerlens.judges.refusals import refused
from steerlens.models.host import Model
from steerlens.steering.condition_search import ConditionSearch, search_conditions
from steerlens.steering.conditions import Condition
from steerlens.steering.generation import generate
from steerlens.steering.similarities import cosine
from steerlens.steering.steering import Steering
from steerlens.vectors.estimators import linear_discriminant
from steerlens.vectors.vector import SteeringVector

FORMAT = "steerlens.cast-table/1"
STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
"""Fractions of the residual norm, tried on validation prompts from the weakest on."""
MOSTLY_FLUENT = 0.2
"""Share of degenerate replies beyond which no greater strength is tried."""
MAX_NEW_TOKENS = 40


@dataclass(frozen=True, eq=False)
class CastTable:
    """Refusal rates on test prompts, and how they grow with the condition's training pairs."""

    rates: pd.DataFrame
    """Row (unsteered, always, conditional), group, refused, low, high (Wilson, 95 %), n."""
    saturation: pd.DataFrame
    """Per number of pairs and draw of them: F1 with its interval, and who is refused."""
    steering: Steering
    search: ConditionSearch

    def save(self, out: PathLike) -> None:
        """Write cast-table.json, rates.csv and saturation.csv to a directory."""
        out = require_writable(out)
        tables = {"rates": self.rates, "saturation": self.saturation}
        content = {"format": FORMAT, "steering": repr(self.steering), "search": repr(self.search)}
        records = {name: table.to_dict("records") for name, table in tables.items()}
        write_json(out / "cast-table.json", content | records)
        for name, table in tables.items():
            write_text(out / f"{name}.csv", table.to_csv(index=False))

    def __repr__(self) -> str:
        n = self.rates.groupby("group")["n"].first()
        return f"CastTable({n['harmful']} harmful, {n['harmless']} harmless, {self.steering})"


@dataclass(frozen=True, eq=False)
class Refusing:
    """A steering that refuses, and the test prompts that it is tried on."""

    vector: SteeringVector
    steering: Steering
    n_validation: int
    """Prompts that the steering's layers and strength were chosen on."""
    harmful: tuple[Prompt, ...]
    harmless: tuple[Prompt, ...]

    @property
    def prompts(self) -> list[Prompt]:
        """The harmful ones first."""
        return [*self.harmful, *self.harmless]

    @property
    def early(self) -> range:
        """The layers that a condition may read: gates come before what they gate."""
        return range(min(self.steering.layers_steered) + 1)


def learn_to_refuse(
    model: Model,
    refusals: ContrastiveDataset,
    harms: ContrastiveDataset,
    *,
    limit: int | None = None,
    progress: bool = True,
) -> Refusing:
    """Find the refusal direction, and choose layers and strength on validation prompts.

    `refusals` needs a part "train", `harms` "validation" and "test", of which `limit` pairs are
    kept to be tried on.
    """
    vector = extract(model, refusals.train, tokens="suffix", name="refuse", progress=progress)
    trial = list(chain.from_iterable(harms.validation.pairs[:12]))
    steering = choose_steering(model, vector, trial)
    harmful, harmless = (side[:limit] for side in zip(*harms.test.pairs, strict=True))
    return Refusing(vector, steering, len(trial), harmful, harmless)


def cast_table(
    model: Model,
    refusals: ContrastiveDataset,
    harms: ContrastiveDataset,
    *,
    sizes: Iterable[int] | None = None,
    draws: int = 3,
    max_new_tokens: int = MAX_NEW_TOKENS,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> CastTable:
    """The refusal table of CAST (arXiv 2409.05907) for any model, and its saturation curve.

    `refusals` needs a part "train", `harms` also "validation" (all choices) and "test" (all
    figures; `limit` of its pairs). For the curve, conditions are found again from nested subsets
    of the training pairs, `draws` times (`sizes=None`: doubling from 4).
    """
    refusing = learn_to_refuse(model, refusals, harms, limit=limit, progress=progress)
    steering, prompts = refusing.steering, refusing.prompts
    is_harmful = np.arange(len(prompts)) < len(refusing.harmful)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "progress": progress}
    unsteered, always = (
        np.array(list(map(refused, generate(model, prompts, plan, **options))))
        for plan in (None, steering)
    )

    def found(pairs: ContrastiveDataset) -> tuple[ConditionSearch, np.ndarray]:
        """A row is either steered or not, so two runs hold what any condition would give."""
        search = find_condition(
            model, "harmful", pairs, harms.validation, harms.test, refusing.early, seed,
            progress=progress,
        )  # fmt: skip
        return search, np.where(fires_on(model, search.best, prompts), always, unsteered)

    search, conditional = found(harms.train)
    rows = {"unsteered": unsteered, "always": always, "conditional": conditional}
    groups = {"harmful": is_harmful, "harmless": ~is_harmful}
    rates = pd.DataFrame(
        [
            (row, group, *rate(int(hits[mine].sum()), int(mine.sum())), int(mine.sum()))
            for row, hits in rows.items()
            for group, mine in groups.items()
        ],
        columns=["steering", "group", "refused", "low", "high", "n"],
    )
    curve = []
    for draw in range(draws):
        for pairs in nested_subsets(harms.train, sizes, seed + draw):
            search_there, hits = found(pairs)
            curve.append(
                {"pairs": len(pairs), "draw": draw}
                | search_there.scores.f1.columns("f1")
                | {f"{group}_refused": float(hits[mine].mean()) for group, mine in groups.items()}
            )
    return CastTable(rates, pd.DataFrame(curve), steering, search)


def nested_subsets(
    data: ContrastiveDataset, sizes: Iterable[int] | None, seed: int
) -> list[ContrastiveDataset]:
    """The first pairs of one shuffle, more and more of them: each subset holds the one before.

    >>> data = ContrastiveDataset([(str(i), str(-i)) for i in range(10)])
    >>> [len(subset) for subset in nested_subsets(data, None, seed=0)]
    [4, 8, 10]
    """
    n = len(data.pairs)
    doubling = [size for size in (4 * 2**k for k in range(n.bit_length())) if size < n]
    numbers = sorted({*doubling, n} if sizes is None else set(sizes))
    if not numbers or not 2 <= numbers[0] <= numbers[-1] <= n:
        raise SteerlensError(f"subsets of {numbers} of {n} pairs were asked for; give 2 to {n}")
    order = np.random.default_rng(seed).permutation(n)
    return [
        replace(data, pairs=[data.pairs[index] for index in order[:size]], parts={})
        for size in numbers
    ]


def fires_on(model: Model, condition: Condition, prompts: Sequence[Prompt]) -> np.ndarray:
    """Which prompts a condition fires on, without generating anything."""
    layers = condition.layers_read
    pooled = read_residual(
        model, prompts, layers, tokens=condition.tokens, site=condition.site_read, progress=False
    )
    seen = [condition.measure(pooled[:, column], layer) for column, layer in enumerate(layers)]
    return condition.fires(torch.stack(seen, dim=1)).numpy()


def find_condition(
    model: Model,
    name: str,
    train: ContrastiveDataset,
    validation: ContrastiveDataset,
    test: ContrastiveDataset,
    layers: Sequence[int],
    seed: int,
    *,
    progress: bool = True,
) -> ConditionSearch:
    """A condition from a discriminant at the prompt's last token, where all of it has been read.

    Of the estimators, tokens and similarities tried, this was the best on tiny-chat's validation
    prompts; CAST's own choice is `pca_pairwise`, "all" and `cast_similarity`.
    """
    vector = extract(
        model,
        train,
        linear_discriminant,
        tokens="last",
        layers=layers,
        name=name,
        progress=progress,
    )
    return search_conditions(
        model, vector, validation, held_out=test, tokens="last", similarity=cosine, seed=seed,
        progress=progress,
    )  # fmt: skip


def choose_steering(model: Model, vector: SteeringVector, prompts: Sequence[Prompt]) -> Steering:
    """The layers and the weakest strength that make most prompts be refused, in fluent words.

    Starts from a quarter to half of the depth; of equals, the latest, which leaves most layers to
    the conditions that are read before.
    """
    n_layers = len(vector)
    best, best_score = None, -1.0
    for first in reversed(range(max(1, n_layers // 4), n_layers // 2 + 1)):
        for strength in STRENGTHS:
            layers = range(first, first + 2)
            trial = Steering(vector, layers, strength, relative=True, name="refuse")
            replies = generate(model, prompts, trial, max_new_tokens=MAX_NEW_TOKENS, progress=False)
            broken = sum(map(degenerate, replies)) / len(replies)
            good = sum(refused(text) and not degenerate(text) for text in replies) / len(replies)
            if good > best_score:
                best, best_score = trial, good
            if broken > MOSTLY_FLUENT:
                break  # stronger is only worse
    assert best is not None
    return best
