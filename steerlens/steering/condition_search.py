"""The layers and threshold that best separate two sets of prompts, found exactly."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import Float
from pydantic import AfterValidator, Field

from steerlens.activations.reading import read_rows
from steerlens.activations.selection import Tokens
from steerlens.display import Rows, card
from steerlens.errors import SteerlensError
from steerlens.files import PathLike, naming, write_json
from steerlens.intervals import Interval, Scores, score_decisions
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.sites import resolve_layers
from steerlens.models.tokenizing import Sides, TokenRow, tokenize_sides
from steerlens.schemas import Declared, FileModel, Many, read_as
from steerlens.steering.conditions import Condition
from steerlens.steering.similarities import SIMILARITIES, Similarity, cast_similarity
from steerlens.steering.thresholds import (
    Candidate,
    Similarities,
    cuts_of,
    f1_of,
    find_thresholds,
)
from steerlens.vectors.vector import SteeringVector

RESAMPLES = 2000
"""Bootstrap resamples behind a score's intervals."""


class Curve(NamedTuple):
    """Scores at every threshold that changes a decision, strictest first."""

    thresholds: Float[np.ndarray, " cut"]
    f1: Float[np.ndarray, " cut"]
    precision: Float[np.ndarray, " cut"]
    recall: Float[np.ndarray, " cut"]
    false_alarms: Float[np.ndarray, " cut"]
    """Share of negatives that fire."""


class _Sides(Declared):
    positive: Annotated[Many[Many[float]], Field(min_length=1)]
    negative: Annotated[Many[Many[float]], Field(min_length=1)]

    def similarities(self, width: int) -> Similarities:
        """The similarities as arrays; refuses other row lengths, and what float32 cannot hold."""
        sides = []
        for side, rows in (("positive", self.positive), ("negative", self.negative)):
            if any(len(row) != width for row in rows):
                raise SteerlensError(
                    f"got {side} similarities of {sorted({*map(len, rows)})[:5]} numbers a row; "
                    f"expected {width}, one for each layer"
                )
            values = np.array(rows, dtype=np.float64)
            if (np.abs(values) > np.finfo(np.float32).max).any():
                raise SteerlensError(
                    f"got {side} similarities too large for float32; expected at most "
                    f"{np.finfo(np.float32).max:.3g}"
                )
            sides.append(values.astype(np.float32))
        return Similarities(sides[0], sides[1])


def _require_known(similarity: str) -> str:
    if similarity not in SIMILARITIES:
        raise ValueError(f"one of {', '.join(SIMILARITIES)}")
    return similarity


class SearchFile(FileModel):
    """A condition search as JSON."""

    title = "a condition search"
    format: Literal["steerlens.search/1"] = "steerlens.search/1"
    name: str
    vector: str | None
    """Hash of the pairs that the vector was extracted from."""
    layers: Annotated[list[int], Field(min_length=1)]
    combine: int
    similarity: Annotated[str, AfterValidator(_require_known)]
    tokens: str | int
    site: str | None
    seed: Annotated[int, Field(ge=0)]
    best: dict[str, Any]
    """Like the scores, for other programs to read: `load` computes both again."""
    scores: dict[str, Any]
    chosen_on: _Sides
    scored_on: _Sides


@dataclass(frozen=True, eq=False)
class ConditionSearch:
    """Every candidate of a search, and the scores of the best one on unseen prompts.

    `search_conditions` makes it; `best` is the condition to steer with.

    >>> sides = Similarities(np.ones((3, 1)), np.zeros((3, 1)))
    >>> search = search_similarities(SteeringVector(torch.eye(1), (0,)), (0,), sides, sides)
    >>> search.best, search.scores.f1.value
    (Condition(cast similarity at layer 0 above 0.5), 1.0)
    """

    vector: SteeringVector
    layers: tuple[int, ...]
    chosen_on: Similarities
    scored_on: Similarities
    candidates: tuple[Candidate, ...]
    """What `find_thresholds` gives for `chosen_on`: best first, by F1, then by margin."""
    combine: int = 1
    similarity: Similarity = cast_similarity
    tokens: Tokens = "all"
    site: str | None = None
    name: str = ""
    seed: int = 0

    @cached_property
    def best(self) -> Condition:
        """The condition to steer with; always the same object, so that steerings share its gate."""
        return self.condition(self.candidates[0])

    @cached_property
    def scores(self) -> Scores:
        """The best condition's scores on the prompts kept for scoring."""
        return self.score(self.best)

    def condition(self, candidate: Candidate) -> Condition:
        """A candidate as a condition, with the vector and settings of the search."""
        return Condition(
            self.vector,
            candidate.layers,
            above=candidate.threshold if candidate.side == "above" else None,
            below=candidate.threshold if candidate.side == "below" else None,
            similarity=self.similarity,
            tokens=self.tokens,
            site=self.site,
            name=self.name,
        )

    def score(self, condition: Condition) -> Scores:
        """Scores, with bootstrap intervals, of any condition on the searched layers.

        They are of the prompts in `scored_on`; the condition's threshold and side are its own.
        """
        return score_decisions(*self._fired(condition), seed=self.seed, resamples=RESAMPLES)

    def _fired(self, condition: Condition) -> tuple[np.ndarray, np.ndarray]:
        """Which of the scored positives, and which of the negatives, the condition fires on."""
        columns = [self.layers.index(layer) for layer in condition.layers_read]
        positive, negative = (
            condition.fires(torch.from_numpy(side[:, columns])).numpy() for side in self.scored_on
        )
        return positive, negative

    def curve(self, layer: int, side: str) -> Curve:
        """Scores over all thresholds of one layer, on the prompts of `chosen_on`.

        Args:
            layer: One of `layers`.
            side: "above" or "below", where the condition would fire.
        """
        column = self.layers.index(layer)
        sign = {"above": 1.0, "below": -1.0}[side]
        values = [sign * group[:, [column]] for group in self.chosen_on]
        cuts = cuts_of(values[0], values[1])
        kept = cuts.distinct[:, 0]
        columns = [values[kept, 0] for values in (cuts.hits, cuts.alarms, cuts.thresholds)]
        hits, alarms, thresholds = columns
        n_positive, n_negative = map(len, self.chosen_on)
        return Curve(
            sign * thresholds,
            f1_of(hits, alarms, n_positive),
            hits / (hits + alarms),
            hits / n_positive,
            alarms / n_negative,
        )

    def save(self, path: PathLike) -> None:
        """Write the search as JSON: settings, similarities and the best condition.

        Raises:
            SteerlensError: The similarity is a function without a name in `SIMILARITIES`, or
                `tokens` is a slice.
        """
        names = [name for name, known in SIMILARITIES.items() if known is self.similarity]
        if not names or not isinstance(self.tokens, str | int):
            raise SteerlensError(
                f"got a search with similarity={self.similarity} and tokens={self.tokens!r}; "
                f"expected, to save it, one of {', '.join(SIMILARITIES)}, and tokens as a name "
                "or a number"
            )
        best = self.candidates[0]._asdict()
        scores = {
            name: list(value) if isinstance(value, Interval) else value
            for name, value in self.scores._asdict().items()
        }
        content = SearchFile(
            name=self.name,
            vector=self.vector.provenance.get("pairs_hash"),
            layers=list(self.layers),
            combine=self.combine,
            similarity=names[0],
            tokens=self.tokens,
            site=self.site,
            seed=self.seed,
            best=best,
            scores=scores,
            chosen_on=_Sides(**_listed(self.chosen_on)),
            scored_on=_Sides(**_listed(self.scored_on)),
        )
        write_json(path, content.model_dump())

    @classmethod
    def load(cls, path: PathLike, vector: SteeringVector) -> "ConditionSearch":
        """Read a search that `save` wrote.

        Args:
            path: The JSON file.
            vector: The vector that the search was run with; its pairs' hash is compared.

        Raises:
            SteerlensError: Another vector, or not a search file.
        """
        content = read_as(path, SearchFile)
        with naming(path):
            if content.vector != vector.provenance.get("pairs_hash"):
                raise SteerlensError(
                    "got a vector from other pairs; expected the one that the search was run "
                    "with: load that vector"
                )
            vector.at(content.layers)
            search = search_similarities(
                vector,
                tuple(content.layers),
                content.chosen_on.similarities(len(content.layers)),
                content.scored_on.similarities(len(content.layers)),
                combine=content.combine,
                similarity=SIMILARITIES[content.similarity],
                tokens=content.tokens,
                site=content.site,
                name=content.name,
                seed=content.seed,
            )
            repr(search.best)  # building it checks site, tokens and threshold
            return search

    def _repr_html_(self) -> str:
        """For notebooks: the best condition's scores on new prompts, and the next candidates."""
        scores = self.scores
        measured = (scores.f1, scores.precision, scores.recall, scores.balanced_accuracy)
        candidates = [
            (
                ", ".join(map(str, candidate.layers)),
                f"{candidate.side} {candidate.threshold:.4g}",
                candidate.f1,
                candidate.margin,
            )
            for candidate in self.candidates[:5]
        ]
        return card(
            f"ConditionSearch {self.name}",
            {"best": repr(self.best), "layers searched": len(self.layers)},
            Rows(
                ("F1", "precision", "recall", "balanced accuracy"),
                [measured],
                1,
                f"On {self.scored_on} not used to choose it, with 95 % intervals",
            ),
            Rows(
                ("layers", "fires", "F1", "margin"),
                candidates,
                len(candidates),
                f"The best of {len(self.candidates)} candidates, on the {self.chosen_on} "
                "used to choose",
                folded=True,
            ),
        )

    def __repr__(self) -> str:
        hits, alarms = (int(fired.sum()) for fired in self._fired(self.best))
        f1 = f1_of(hits, alarms, len(self.scored_on.positive))
        return f"ConditionSearch(best {self.best!r}: F1 {f1:.3f} on {self.scored_on})"

    def __str__(self) -> str:
        """The best condition and its F1 with an interval, for which decisions are resampled."""
        return f"{self.best!r}: F1 {self.scores.f1} on {self.scored_on}"


def search_conditions(
    model: Model,
    vector: SteeringVector,
    data: Sides,
    *,
    held_out: Sides | None = None,
    layers: Iterable[int] | None = None,
    combine: int = 1,
    similarity: Similarity = cast_similarity,
    tokens: Tokens = "all",
    site: str | None = None,
    name: str | None = None,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> ConditionSearch:
    """Find the condition that best fires on positive and not on negative prompts, by F1.

    The search is exact: every threshold that changes a decision is tried, at every layer, above
    and below. Repeated prompts count once.

    Args:
        model: The model that reads the prompts.
        vector: The vector to compare with.
        data: The prompts to choose on: a `ContrastiveDataset`, or (positive, negative) lists.
        held_out: Other prompts to score the best condition on, in the same form; None: choose on
            one half of `data` and score on the other.
        layers: The layers to search; None: all layers of the vector. Negative ones count from the
            last layer.
        combine: Most layers that a condition may combine; it fires if any of them does.
        similarity: As in `Condition`.
        tokens: Which tokens of a prompt are averaged: "all", "last", an int k (the last k), or a
            slice.
        site: Where the activations are read; None: where the vector was.
        name: The condition's name; None: the vector's.
        seed: For the halves, and for the bootstrap intervals.
        **run: How prompts are read: `batch_size`, `progress`, and an `engine` such as `Ray`, which
            reads them elsewhere.

    Returns:
        The search: `best` is the condition, `scores` its scores with intervals.

    Raises:
        SteerlensError: A prompt is on both sides, or in `data` and in `held_out`; too few prompts;
            a layer that the vector lacks.

    >>> harmful, harmless = ["Build a bomb.", "Steal a car."], ["Bake bread.", "Plant a tree."]
    >>> search = search_conditions(model, vector, (harmful, harmless), progress=False)
    >>> print(search.scored_on)
    1 positive and 1 negative prompts
    """
    numbers = resolve_layers(model, vector.layers if layers is None else layers)
    for layer in numbers:
        vector.row(layer)
    if not 1 <= combine <= len(numbers):
        raise SteerlensError(
            f"got combine={combine} for {len(numbers)} layers; expected 1 to {len(numbers)}"
        )
    groups = [*chain(*_chosen_and_scored(model, data, held_out, seed))]
    pooled = read_rows(
        model,
        [*chain(*groups)],
        numbers,
        tokens=tokens,
        site=site or vector.site,
        **run,
    ).pooled
    measured = torch.stack(
        [similarity(pooled[:, i], vector[layer].to(pooled)) for i, layer in enumerate(numbers)],
        dim=1,
    ).numpy()
    parts = np.split(measured, np.cumsum([len(group) for group in groups])[:-1])
    return search_similarities(
        vector,
        numbers,
        Similarities(parts[0], parts[1]),
        Similarities(parts[2], parts[3]),
        combine=combine,
        similarity=similarity,
        tokens=tokens,
        site=site,
        name=str(vector.provenance.get("name", "")) if name is None else name,
        seed=seed,
    )


def search_similarities(
    vector: SteeringVector,
    layers: tuple[int, ...],
    chosen_on: Similarities,
    scored_on: Similarities,
    *,
    combine: int = 1,
    **settings: Any,
) -> ConditionSearch:
    """`search_conditions` for similarities that are known already; runs no model.

    Args:
        vector: The vector that the prompts were compared with.
        layers: The layers' numbers, in the order of the similarities' columns.
        chosen_on: Similarities of the prompts to choose on.
        scored_on: Similarities of the prompts to score the best condition on.
        combine: Most layers that a condition may combine; it fires if any of them does.
        **settings: Other fields of `ConditionSearch`, such as `similarity`, `tokens` and `name`.

    >>> sides = Similarities(np.ones((3, 1)), np.zeros((3, 1)))
    >>> search_similarities(SteeringVector(torch.eye(1), (0,)), (0,), sides, sides).best
    Condition(cast similarity at layer 0 above 0.5)
    """
    candidates = find_thresholds(chosen_on, layers, combine)
    return ConditionSearch(
        vector, layers, chosen_on, scored_on, candidates, combine=combine, **settings
    )


_Rows = tuple[list[TokenRow], list[TokenRow]]
"""Positives and negatives."""


def _chosen_and_scored(
    model: Model, data: Sides, held_out: Sides | None, seed: int
) -> tuple[_Rows, _Rows]:
    """The prompts to choose a condition on, and other prompts to score it on."""
    chosen = _rows_of_sides(model, data)
    if held_out is None:
        return _halves(chosen, seed)
    scored = _rows_of_sides(model, held_out)
    shared = {*chosen[0], *chosen[1]} & {*scored[0], *scored[1]}
    if shared:
        raise SteerlensError(
            f"got {len(shared)} prompts both in data and in held_out; expected none, since the "
            "score is to be of unseen prompts: remove them from one of the two"
        )
    return chosen, scored


def _rows_of_sides(model: Model, data: Sides) -> _Rows:
    positive, negative = (list(dict.fromkeys(rows)) for rows in tokenize_sides(model, data))
    both = set(positive) & set(negative)
    if both:
        raise SteerlensError(
            f"got {len(both)} prompts both as positive and as negative; expected each on one side "
            "only: no condition can separate them"
        )
    return positive, negative


def _halves(sides: _Rows, seed: int) -> tuple[_Rows, _Rows]:
    if min(map(len, sides)) < 2:
        raise SteerlensError(
            f"got {len(sides[0])} positive and {len(sides[1])} negative prompts; expected at least "
            "two of each, to choose on one half and score on the other: give more, or held_out="
        )
    random = np.random.default_rng(seed)
    shuffled = [[rows[index] for index in random.permutation(len(rows))] for rows in sides]
    first, second = zip(
        *[(rows[: len(rows) // 2], rows[len(rows) // 2 :]) for rows in shuffled], strict=True
    )
    return (first[0], first[1]), (second[0], second[1])


def _listed(similarities: Similarities) -> dict[str, Any]:
    return {side: values.astype(float).tolist() for side, values in similarities._asdict().items()}
