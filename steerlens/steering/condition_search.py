"""The layers and threshold that best separate two sets of prompts, found exactly."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Unpack

import numpy as np
import torch

from steerlens.activations.reading import read_rows
from steerlens.activations.selection import Tokens
from steerlens.display import Rows, card
from steerlens.errors import SteerlensError
from steerlens.files import PathLike, naming, write_json
from steerlens.intervals import Interval, Scores, score_decisions
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.sites import resolve_layers
from steerlens.models.tokenizing import Sides
from steerlens.schemas import read_as
from steerlens.steering.conditions import Condition
from steerlens.steering.confounds import Comparison, Confounds, compare, verdict
from steerlens.steering.evidence import with_evidence
from steerlens.steering.search_files import ConfoundsFile, SearchFile, SidesFile, listed
from steerlens.steering.search_prompts import chosen_and_scored
from steerlens.steering.similarities import (
    SIMILARITIES,
    Similarity,
    Standard,
    projection,
    similarity_of,
)
from steerlens.steering.thresholds import (
    Candidate,
    Curve,
    Similarities,
    curve_of,
    f1_of,
    find_thresholds,
    threshold_of_mean,
)
from steerlens.vectors.vector import SteeringVector

RESAMPLES = 2000
"""Bootstrap resamples behind a score's intervals."""
MIDDLE = (0.3, 0.7)
"""Of the depth: the layers that decide together."""


@dataclass(frozen=True, eq=False)
class ConditionSearch:
    """Every candidate of a search, and the scores of the best one on unseen prompts.

    `search_conditions` makes it; `best` is the condition to steer with.

    >>> sides = Similarities(np.ones((3, 1)), np.zeros((3, 1)))
    >>> search = search_similarities(SteeringVector(torch.eye(1), (0,)), (0,), sides, sides)
    >>> search.best, search.scores.f1.value
    (Condition(projection similarity at layer 0 above 0.5), 1.0)
    """

    vector: SteeringVector
    layers: tuple[int, ...]
    chosen_on: Similarities
    scored_on: Similarities
    candidates: tuple[Candidate, ...]
    """What `find_thresholds` gives for `chosen_on`: best first, by F1, then by margin."""
    combine: int | None = 1
    """None: the layers' mean; a number: any of up to so many layers."""
    similarity: Similarity = projection
    tokens: Tokens = "last"
    sinks: bool = False
    site: str | None = None
    name: str = ""
    seed: int = 0
    confounds: Confounds | None = None
    """Lengths and words of the prompts; None for searches from similarities alone."""

    @cached_property
    def best(self) -> Condition:
        """The condition to steer with; always the same object, so that steerings share its gate."""
        return with_evidence(self._found, self.evidence)

    @property
    def _found(self) -> Condition:
        """The best condition, before anything was measured of it."""
        return self.condition(self.candidates[0])

    @property
    def evidence(self) -> dict[str, Any]:
        """How the best condition did on the prompts kept for scoring, beside the baselines."""
        found = {name: [*getattr(self.scores, name)] for name in ("f1", "precision", "recall")}
        beside = {one.baseline: [*one.f1] for one in self.comparisons}
        told = {"beside": beside, "verdict": self.verdict} if beside else {}
        return {**found, "prompts": [*map(len, self.scored_on)], **told}

    @cached_property
    def standard(self) -> Standard | None:
        """What makes layers comparable where their mean decides; from the prompts chosen on."""
        return self.chosen_on.standard if self.combine is None else None

    @cached_property
    def scores(self) -> Scores:
        """The best condition's scores on the prompts kept for scoring."""
        return self.score(self._found)

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The best condition beside what length, words and the majority decide."""
        if self.confounds is None:
            return ()
        return compare(self._fired(self._found), self.confounds, seed=self.seed)

    @property
    def verdict(self) -> str:
        """Whether the best condition sees more than length and words; "" if that is not known."""
        return verdict(self.comparisons) if self.comparisons else ""

    def condition(self, candidate: Candidate) -> Condition:
        """A candidate as a condition, with the vector and settings of the search."""
        return Condition(
            self.vector,
            candidate.layers,
            above=candidate.threshold if candidate.side == "above" else None,
            below=candidate.threshold if candidate.side == "below" else None,
            similarity=self.similarity,
            tokens=self.tokens,
            sinks=self.sinks,
            site=self.site,
            name=self.name,
            standard=self.standard,
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

    def curve(self, layer: int | None, side: str) -> Curve:
        """Scores over all thresholds of one layer, on the prompts of `chosen_on`.

        Args:
            layer: One of `layers`; None: the mean of all, where it decides.
            side: "above" or "below", where the condition would fire.
        """
        sign = {"above": 1.0, "below": -1.0}[side]
        if layer is None:
            assert self.standard is not None
            mean_of = self.standard.mean_of
            values = [sign * mean_of(torch.from_numpy(group)).numpy() for group in self.chosen_on]
        else:
            values = [sign * group[:, [self.layers.index(layer)]] for group in self.chosen_on]
        return curve_of(values[0], values[1], sign)

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
            sinks=self.sinks,
            site=self.site,
            seed=self.seed,
            best=best,
            scores=scores,
            chosen_on=SidesFile(**listed(self.chosen_on)),
            scored_on=SidesFile(**listed(self.scored_on)),
            confounds=None if self.confounds is None else ConfoundsFile.of(self.confounds),
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
            n_layers = len(content.layers)
            search = search_similarities(
                vector,
                tuple(content.layers),
                content.chosen_on.similarities(n_layers),
                content.scored_on.similarities(n_layers),
                combine=content.combine,
                similarity=SIMILARITIES[content.similarity],
                tokens=content.tokens,
                sinks=content.sinks,
                site=content.site,
                name=content.name,
                seed=content.seed,
                confounds=None
                if content.confounds is None
                else content.confounds.confounds(content.scored_on.similarities(n_layers)),
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
            *self._beside_baselines(),
            Rows(
                ("layers", "fires", "F1", "margin"),
                candidates,
                len(candidates),
                f"The best of {len(self.candidates)} candidates, on the {self.chosen_on} "
                "used to choose",
                folded=True,
            ),
        )

    def _beside_baselines(self) -> list[Rows]:
        if not self.comparisons:
            return []
        rows = [(one.baseline, one.f1, one.difference, one.n) for one in self.comparisons]
        columns = ("baseline", "its F1", "condition minus baseline", "prompts")
        return [Rows(columns, rows, len(rows), f"Beside baselines: {self.verdict}")]

    def __repr__(self) -> str:
        hits, alarms = (int(fired.sum()) for fired in self._fired(self.best))
        f1 = f1_of(hits, alarms, len(self.scored_on.positive))
        return f"ConditionSearch(best {self.best!r}: F1 {f1:.3f} on {self.scored_on})"

    def __str__(self) -> str:
        """The best condition and its F1 with an interval, for which decisions are resampled."""
        told = f" ({self.verdict})" if self.verdict else ""
        return f"{self.best!r}: F1 {self.scores.f1} on {self.scored_on}{told}"


def middle_layers(layers: Sequence[int], n_layers: int) -> tuple[int, ...]:
    """Those from 30 to 70 % of the depth of a model of `n_layers`; all, where none are there.

    >>> middle_layers(range(30), 30)
    (9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)
    """
    low, high = (round(share * n_layers) for share in MIDDLE)
    return tuple(layer for layer in layers if low <= layer < high) or tuple(layers)


def _tokens_of(vector: SteeringVector) -> Tokens:
    """How a vector was read, where a gate can read so."""
    tokens: Any = vector.provenance.get("tokens")
    readable: Tokens = tokens if type(tokens) is int or tokens in ("all", "user") else "last"
    return readable


def search_conditions(
    model: Model,
    vector: SteeringVector,
    data: Sides,
    *,
    held_out: Sides | None = None,
    layers: Iterable[int] | None = None,
    combine: int | None = None,
    similarity: Similarity = projection,
    tokens: Tokens | None = None,
    sinks: bool | None = None,
    site: str | None = None,
    name: str | None = None,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> ConditionSearch:
    """Find the condition that best fires on positive and not on negative prompts, by F1.

    The search is exact: every threshold that changes a decision is tried, at every layer, above
    and below. Repeated prompts count once. As it is, the layers of the middle of the model decide
    together; CAST's own recipe (arXiv 2409.05907) is `recipes.CAST`.

    Args:
        model: The model that reads the prompts.
        vector: The vector to compare with.
        data: The prompts to choose on: a `ContrastiveDataset`, or (positive, negative) lists.
        held_out: Other prompts to score the best condition on, in the same form; None: choose on
            one half of `data` and score on the other.
        layers: The layers to search; negative ones count from the last layer. None: where the
            mean decides, the vector's layers from 30 to 70 % of the model's depth, else all of
            the vector's. A gate is read before the stream is steered: to steer from layer 10
            on, give `range(11)`.
        combine: None: all layers decide together, by the mean of their standardised similarities.
            A number: a condition combines up to so many layers and fires if any of them does.
        similarity: As in `Condition`.
        tokens: Which tokens of a prompt are averaged: "all", "last", "user", an int k (the last
            k), or a slice. None: as the vector was read, or the last.
        sinks: Whether attention sinks are averaged too; see `Condition`. None: as the vector was
            read.
        site: Where the activations are read; None: where the vector was.
        name: The condition's name; None: the vector's.
        seed: For the halves, and for the bootstrap intervals.
        **run: How prompts are read: `batch_size`, `progress`, and an `engine` such as `Ray`, which
            reads them elsewhere.

    Returns:
        The search: `best` is the condition, `scores` its scores with intervals, `comparisons` the
        same beside baselines (the prompts' length, their words, the majority), and `verdict` what
        that comes to.

    Raises:
        SteerlensError: A prompt is on both sides, or in `data` and in `held_out`; too few prompts;
            a layer that the vector lacks.

    >>> harmful, harmless = ["Build a bomb.", "Steal a car."], ["Bake bread.", "Plant a tree."]
    >>> search = search_conditions(model, vector, (harmful, harmless), progress=False)
    >>> print(search.scored_on)
    1 positive and 1 negative prompts
    """
    if layers is None:
        layers = vector.layers if combine else middle_layers(vector.layers, model.cfg.n_layers)
    numbers = resolve_layers(model, layers)
    for layer in numbers:
        vector.row(layer)
    tokens = _tokens_of(vector) if tokens is None else tokens
    sinks = bool(vector.provenance.get("sinks", False)) if sinks is None else sinks
    if combine is not None and not 1 <= combine <= len(numbers):
        raise SteerlensError(
            f"got combine={combine} for {len(numbers)} layers; expected 1 to {len(numbers)}"
        )
    chosen, scored = chosen_and_scored(model, data, held_out, seed)
    groups = [*chosen, *scored]
    pooled = read_rows(
        model,
        [*chain(*groups)],
        numbers,
        tokens=tokens,
        sinks=sinks,
        site=site or vector.site,
        **run,
    ).pooled
    measured = torch.stack(
        [similarity_of(similarity, pooled[:, i], vector[layer]) for i, layer in enumerate(numbers)],
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
        sinks=sinks,
        site=site,
        name=str(vector.provenance.get("name", "")) if name is None else name,
        seed=seed,
        confounds=Confounds.of(model, chosen, scored),
    )


def search_similarities(
    vector: SteeringVector,
    layers: tuple[int, ...],
    chosen_on: Similarities,
    scored_on: Similarities,
    *,
    combine: int | None = 1,
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
    Condition(projection similarity at layer 0 above 0.5)
    """
    if combine is None:
        candidates = threshold_of_mean(chosen_on, layers, chosen_on.standard)
    else:
        candidates = find_thresholds(chosen_on, layers, combine)
    return ConditionSearch(
        vector, layers, chosen_on, scored_on, candidates, combine=combine, **settings
    )
