"""CAST's table: refusal rates of harmful and harmless prompts, and the gain from more pairs."""

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
from steerlens.steering.batch_plans import stacked
from steerlens.steering.condition_search import ConditionSearch
from steerlens.steering.conditions import Condition
from steerlens.steering.generation import generate
from steerlens.steering.recipes import Recipe, find_condition
from steerlens.steering.similarities import cosine
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

FORMAT = "steerlens.cast-table/1"
STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.3, 1.6)
"""Fractions of the residual norm, shared by two layers; tried on validation prompts in order."""
MOSTLY_FLUENT = 0.2
"""Share of degenerate replies beyond which no greater strength is tried."""
MAX_NEW_TOKENS = 40
"""Length of all replies, unless another is given."""
ONE_LAYER = Recipe(similarity=cosine, combine=1)
"""The best of the early layers, which are few: gates come before what they gate."""


@dataclass(frozen=True, eq=False)
class CastTable:
    """Refusal rates on test prompts, and their dependence on the condition's training pairs."""

    rates: pd.DataFrame
    """Columns steering (unsteered, always, conditional), group (harmful, harmless), refused, low,
    high (Wilson, 95 %), n."""
    saturation: pd.DataFrame
    """Columns pairs, draw, f1 with its interval, harmful_refused, harmless_refused."""
    steering: Steering
    """Layers and strength as chosen on validation prompts."""
    search: ConditionSearch
    """Of the condition from all training pairs."""

    def save(self, out: PathLike) -> None:
        """Write cast-table.json, rates.csv and saturation.csv.

        Args:
            out: The directory; is made if missing.
        """
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
    """A steering that refuses, and the test prompts it is measured on."""

    vector: SteeringVector
    steering: Steering
    n_validation: int
    """Number of prompts that the steering's layers and strength were chosen on."""
    harmful: tuple[Prompt, ...]
    harmless: tuple[Prompt, ...]
    lookalikes: tuple[Prompt, ...] = ()
    """Harmless prompts in much the same words as the harmful ones."""

    @property
    def prompts(self) -> list[Prompt]:
        """All test prompts, harmful ones first, then harmless ones, then look-alikes."""
        return [*self.harmful, *self.harmless, *self.lookalikes]

    @property
    def early(self) -> range:
        """The layers that a condition may read: those up to the first steered layer."""
        return range(min(self.steering.layers_steered) + 1)


def learn_to_refuse(
    model: Model,
    refusals: ContrastiveDataset,
    harms: ContrastiveDataset,
    *,
    limit: int | None = None,
    progress: bool = True,
) -> Refusing:
    """Extract the refusal direction, and choose layers and strength on validation prompts.

    Args:
        refusals: Pairs with a part "train".
        harms: Pairs of harmful and harmless prompts with the parts "validation" and "test".
        limit: Number of test pairs to keep; None is all.
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

    Every choice is made on validation prompts, every number measured on test prompts. For the
    curve, conditions are searched again from nested subsets of the training pairs.

    Args:
        refusals: Pairs with a part "train", from which the steering is extracted.
        harms: Pairs of harmful and harmless prompts with parts "train", "validation", "test".
        sizes: Numbers of training pairs in the curve; default: 4, 8, 16 … and all.
        draws: Shuffles of the training pairs.
        limit: Number of test pairs; None is all.
        seed: Of the shuffles and bootstrap intervals.

    Raises:
        SteerlensError: If a part is missing, or `sizes` exceed the training pairs.

    >>> harms = ContrastiveDataset.load(demo_file("harmful.json"))
    >>> cast_table(model, refusals, harms, draws=1, limit=2, progress=False)  # doctest: +SKIP
    CastTable(2 harmful, 2 harmless, Steering(...))
    """
    refusing = learn_to_refuse(model, refusals, harms, limit=limit, progress=progress)
    steering, prompts = refusing.steering, refusing.prompts
    is_harmful = np.arange(len(prompts)) < len(refusing.harmful)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "progress": progress}
    unsteered, always = (
        np.array(list(map(refused, generate(model, prompts, plan, **options))))
        for plan in (None, steering)
    )

    def gated(pairs: ContrastiveDataset) -> tuple[ConditionSearch, np.ndarray]:
        """Each reply is steered or not, so the two runs contain those of any condition."""
        search = find_condition(
            model, pairs, harms.validation, harms.test, layers=refusing.early, recipe=ONE_LAYER,
            name="harmful", seed=seed, progress=progress,
        )  # fmt: skip
        return search, np.where(fires_on(model, search.best, prompts), always, unsteered)

    search, conditional = gated(harms.train)
    refusals_of = {"unsteered": unsteered, "always": always, "conditional": conditional}
    groups = {"harmful": is_harmful, "harmless": ~is_harmful}
    rates = pd.DataFrame(
        [
            (name, group, *rate(int(hits[rows].sum()), int(rows.sum())), int(rows.sum()))
            for name, hits in refusals_of.items()
            for group, rows in groups.items()
        ],
        columns=["steering", "group", "refused", "low", "high", "n"],
    )
    curve = []
    for draw in range(draws):
        for pairs in nested_subsets(harms.train, sizes, seed + draw):
            subset_search, hits = gated(pairs)
            shares = {f"{name}_refused": float(hits[rows].mean()) for name, rows in groups.items()}
            f1 = subset_search.scores.f1.columns("f1")
            curve.append({"pairs": len(pairs), "draw": draw} | f1 | shares)
    return CastTable(rates, pd.DataFrame(curve), steering, search)


def nested_subsets(
    data: ContrastiveDataset, sizes: Iterable[int] | None, seed: int
) -> list[ContrastiveDataset]:
    """Growing subsets of one shuffle of the pairs: each contains the previous one.

    Args:
        sizes: Numbers of pairs; None is 4, 8, 16 … and all.
        seed: Of the shuffle.

    >>> data = ContrastiveDataset([(str(i), str(-i)) for i in range(10)])
    >>> [len(subset) for subset in nested_subsets(data, None, seed=0)]
    [4, 8, 10]
    """
    n = len(data.pairs)
    doubling = [size for size in (4 * 2**k for k in range(n.bit_length())) if size < n]
    numbers = sorted({*doubling, n} if sizes is None else set(sizes))
    if not numbers or not 2 <= numbers[0] <= numbers[-1] <= n:
        raise SteerlensError(f"got the subset sizes {numbers}; expected 2 to {n}, all pairs")
    order = np.random.default_rng(seed).permutation(n)
    return [
        replace(data, pairs=[data.pairs[index] for index in order[:size]], parts={})
        for size in numbers
    ]


def fires_on(model: Model, condition: Condition, prompts: Sequence[Prompt]) -> np.ndarray:
    """Whether a condition fires on each prompt, without generating.

    Args:
        condition: Its tokens, site and layers are read.

    >>> fires_on(model, Condition(vector, 2, above=-1.0), prompts[:2])
    array([ True,  True])
    """
    layers = condition.layers_read
    pooled = read_residual(
        model, prompts, layers, tokens=condition.tokens, sinks=condition.sinks,
        site=condition.site_read, progress=False,
    )  # fmt: skip
    columns = [condition.measure(pooled[:, index], layer) for index, layer in enumerate(layers)]
    return condition.fires(torch.stack(columns, dim=1)).numpy()


def choose_steering(model: Model, vector: SteeringVector, prompts: Sequence[Prompt]) -> Steering:
    """The pair of layers and the least strength at which most prompts are refused fluently.

    The first layer lies between a quarter and half of the depth. Ties go to the latest, which
    leaves most layers to conditions. Each layer of the pair gets half of the strength, as
    `Steering` shares it.

    Args:
        prompts: Validation prompts; the model replies to them under each trial.
    """
    n_layers = len(vector)
    firsts = reversed(range(max(1, n_layers // 4), n_layers // 2 + 1))
    trials = [
        [
            Steering(vector, range(first, first + 2), strength, relative=True, name="refuse")
            for strength in STRENGTHS
        ]
        for first in firsts
    ]
    return best_steering(model, trials, prompts)


def best_steering(
    model: Model, ladders: Iterable[Iterable[Steering]], prompts: Sequence[Prompt]
) -> Steering:
    """The first of the steerings that refuse most prompts in whole sentences.

    Args:
        ladders: Steerings, each ladder in order of strength: where replies break, it is left.
        prompts: Validation prompts; the model replies to them under each steering.
    """
    best, best_score = None, -1.0
    for ladder in ladders:
        for trial in ladder:
            replies = generate(
                model, prompts, stacked([trial], len(prompts)),
                max_new_tokens=MAX_NEW_TOKENS, progress=False,
            )  # fmt: skip
            broken = sum(map(degenerate, replies)) / len(replies)
            good = sum(refused(text) and not degenerate(text) for text in replies) / len(replies)
            if good > best_score:
                best, best_score = trial, good
            if broken > MOSTLY_FLUENT:
                break  # greater strengths break more replies
    assert best is not None
    return best
