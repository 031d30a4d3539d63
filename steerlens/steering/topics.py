"""Several topics told apart at once: one condition for each, from one joint discriminant."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlens.activations.reading import read_rows
from steerlens.activations.selection import Tokens
from steerlens.errors import SteerlensError
from steerlens.intervals import Interval, score_decisions
from steerlens.layer_text import display_layers
from steerlens.models.engine import RunOptions
from steerlens.models.fingerprint import model_provenance
from steerlens.models.host import Model
from steerlens.models.sites import resolve_layers
from steerlens.models.tokenizing import Readable, TokenRow, tokenize
from steerlens.numerics import at_least_float32
from steerlens.shapes import PromptActivations
from steerlens.steering.conditions import Condition
from steerlens.steering.thresholds import Similarities, find_thresholds
from steerlens.vectors.discriminants import Discriminant, joint_discriminant
from steerlens.vectors.vector import SteeringVector

DEPTH = (1 / 6, 5 / 6)
"""The layers whose scores are averaged, as shares of the depth."""
RESAMPLES = 2000

Group = Float[Tensor, "_ layer d_model"]
"""Activations of the prompts of one topic; topics differ in how many there are."""


@dataclass(frozen=True, eq=False, repr=False)
class TopicCondition(Condition):
    """Fires on a prompt whose score for one topic leads those of all the others.

    `Topics.conditions` makes them; in rules and steerings they are conditions like any other.
    """

    topics: "Topics | None" = None
    index: int = 0
    """Of the topic."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = (
            self.layers_read == self._joint.layers
            and self.vector.width == self._joint.discriminant.weights.shape[-1]
            and 0 <= self.index < len(self._joint.names)
        )
        if not fits:
            raise SteerlensError(
                f"got the condition of topic {self.index} on {self.vector} at layers "
                f"{display_layers(self.layers_read)}; expected one of {self._joint!r}: take it "
                "from Topics.conditions"
            )

    def measure(
        self, pooled: Float[Tensor, "batch d_model"], layer: int
    ) -> Float[Tensor, "batch ..."]:
        """Every topic's score at one layer, [batch, topic]."""
        wide = at_least_float32(pooled)
        return self._joint.scores_at(wide, layer).to(wide)

    def compared(self, similarities: Float[Tensor, "batch layer ..."]) -> Float[Tensor, "batch 1"]:
        """By how much the topic's score, averaged over the layers, leads the best other one."""
        return leads(similarities.double().mean(dim=1))[:, [self.index]]

    def unseen(self, n_rows: int) -> Float[Tensor, "batch layer topic"]:
        """NaN in the shape of what a gate sees."""
        return torch.full((n_rows, len(self.layers_read), len(self._joint.names)), torch.nan)

    @property
    def _joint(self) -> "Topics":
        if self.topics is None:
            raise SteerlensError(
                "got a TopicCondition without topics; expected one that Topics.conditions made"
            )
        return self.topics

    @property
    def measure_told(self) -> str:
        """What is compared with the threshold, in words."""
        return f"lead over {len(self._joint.names) - 1} other topics"

    @property
    def _layers_told(self) -> str:
        return display_layers(self.layers_read)


@dataclass(frozen=True, eq=False)
class Topics:
    """Topics fitted together, and the lead from which on each one's condition fires.

    `extract_topics` makes it.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    discriminant: Discriminant
    thresholds: tuple[float, ...]
    """All 0: the highest score wins, and just one topic's condition fires."""
    site: str = "resid_post"
    tokens: Tokens = "user"
    sinks: bool = False
    norms: Float[Tensor, " layer"] | None = None
    provenance: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        shape = len(self.names), len(self.layers)
        weights, offsets = self.discriminant
        fits = weights.shape[:-1] == offsets.shape == shape and len(self.thresholds) == shape[0]
        is_finite = weights.isfinite().all() and offsets.isfinite().all()
        if len(self.names) < 2 or not fits or not is_finite:
            raise SteerlensError(
                f"got a discriminant of shapes {tuple(weights.shape)} and {tuple(offsets.shape)} "
                f"and {len(self.thresholds)} thresholds for {shape[0]} topics at {shape[1]} "
                "layers; expected finite weights [topic, layer, d_model] and offsets [topic, "
                "layer] of at least two topics, and a threshold for each: extract_topics makes them"
            )

    def vector(self, name: str) -> SteeringVector:
        """A topic's direction at each layer: away from the mean of all topics."""
        directions = self.discriminant.weights[self.index(name)]
        provenance = {**(self.provenance or {}), "name": name}
        return SteeringVector(
            directions, self.layers, self.site, norms=self.norms, provenance=provenance
        )

    def index(self, name: str) -> int:
        """The number of a topic."""
        if name not in self.names:
            raise SteerlensError(f"got the topic {name!r}; expected one of {', '.join(self.names)}")
        return self.names.index(name)

    @cached_property
    def conditions(self) -> dict[str, TopicCondition]:
        """A condition for each topic, for steerings and rules; always the same objects."""
        return {
            name: TopicCondition(
                self.vector(name),
                self.layers,
                above=self.thresholds[index],
                tokens=self.tokens,
                sinks=self.sinks,
                site=self.site,
                name=name,
                topics=self,
                index=index,
            )
            for index, name in enumerate(self.names)
        }

    def scores_at(
        self, pooled: Float[Tensor, "batch d_model"], layer: int
    ) -> Float[Tensor, "batch topic"]:
        """Every topic's score at one layer."""
        row = self.layers.index(layer)
        one = Discriminant(self.discriminant.weights[:, [row]], self.discriminant.offsets[:, [row]])
        return one.scores(pooled[:, None])[:, 0]

    def scores(self, activations: PromptActivations) -> Float[Tensor, "prompt topic"]:
        """Every topic's score, averaged over the layers, of activations at `layers`."""
        return self.discriminant.scores(activations).mean(dim=1)

    def __repr__(self) -> str:
        return f"Topics({', '.join(self.names)}; layers {display_layers(self.layers)})"


def leads(scores: Float[Tensor, "prompt topic"]) -> Float[Tensor, "prompt topic"]:
    """Each score minus the best of the others.

    >>> leads(torch.tensor([[1.0, 4.0, 2.0]]))
    tensor([[-3.,  2., -2.]])
    """
    first, second = scores.topk(2, dim=1).values.unbind(dim=1)
    is_first = scores == first[:, None]
    return scores - torch.where(is_first, second[:, None], first[:, None])


def extract_topics(
    model: Model,
    groups: Mapping[str, Sequence[Readable]],
    *,
    validation: Mapping[str, Sequence[Readable]] | None = None,
    layers: Iterable[int] | None = None,
    tokens: Tokens = "user",
    sinks: bool = False,
    site: str = "resid_post",
    **run: Unpack[RunOptions],
) -> Topics:
    """Fit several topics together, for one condition each.

    A joint linear discriminant at each layer, its scores averaged over the layers. Fitted one by
    one against the rest, topics are told apart much worse: the rest is several clusters.

    Args:
        model: The model that reads the prompts.
        groups: The prompts of each topic; "other" prompts may be a group of their own.
        validation: Other prompts of the same groups: each condition's threshold is the lead over
            the other topics of best F1 there. None: the highest score wins.
        layers: The layers to read; None: those from 1/6 to 5/6 of the depth. A gate is read before
            the stream is steered: to steer from layer 10 on, give `range(11)`.
        tokens: Which tokens of a prompt are averaged; as it is, the user's own words.
        sinks: Whether attention sinks are averaged too.
        site: Where in each block.
        **run: `batch_size`, `progress` and `engine`.

    Returns:
        The topics; `conditions` has a condition for each, usable in rules.

    Raises:
        SteerlensError: Fewer than two groups, an empty one, or a prompt that is in two.

    >>> groups = {"food": ["Bake bread.", "Boil rice."], "sea": ["Sail home.", "Catch a fish."]}
    >>> topics = extract_topics(load_model(), groups, progress=False)
    >>> sorted(topics.conditions)
    ['food', 'sea']
    """
    if layers is None:
        low, high = (round(share * model.cfg.n_layers) for share in DEPTH)
        layers = range(low, max(low + 1, high))
    numbers = resolve_layers(model, layers)
    rows = _rows_of(model, groups)
    pooled, norms = _read(model, rows, numbers, tokens, sinks, site, run)
    topics = Topics(
        tuple(groups),
        numbers,
        joint_discriminant(pooled),
        (0.0,) * len(groups),
        site,
        tokens,
        sinks,
        norms,
        {**model_provenance(model), "estimator": "joint_discriminant", "sinks": sinks},
    )
    if validation is None:
        return topics
    found = _leads_of(model, topics, validation, run)
    thresholds = tuple(
        _best_threshold(found[name][:, index], [found[other][:, index] for other in others])
        for index, name in enumerate(topics.names)
        for others in [[other for other in topics.names if other != name]]
    )
    return replace(topics, thresholds=thresholds)


class TopicScores(NamedTuple):
    """How well topics are told apart on prompts that they were not fitted to."""

    names: tuple[str, ...]
    confusion: Int[np.ndarray, "topic said"]
    """Prompts of each topic by the topic of the highest score."""
    f1: dict[str, Interval]
    """Of each topic's condition: fires on its own prompts, and not on the others'."""

    def __str__(self) -> str:
        lines = [f"{name}: F1 {f1}" for name, f1 in self.f1.items()]
        return "\n".join(lines)


def score_topics(
    model: Model,
    topics: Topics,
    groups: Mapping[str, Sequence[Readable]],
    *,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> TopicScores:
    """Score topics on other prompts: a confusion matrix, and each condition's F1.

    Args:
        model: The model that reads the prompts.
        topics: From `extract_topics`.
        groups: Prompts of the same topics.
        seed: For the intervals.
        **run: `batch_size`, `progress` and `engine`.

    >>> groups = {"food": ["Bake bread.", "Boil rice."], "sea": ["Sail home.", "Catch a fish."]}
    >>> topics = extract_topics(load_model(), groups, progress=False)
    >>> int(score_topics(load_model(), topics, groups, progress=False).confusion.sum())
    4
    """
    found = _leads_of(model, topics, groups, run)
    confusion = np.stack(
        [
            np.bincount(found[name].argmax(axis=1), minlength=len(topics.names))
            for name in topics.names
        ]
    )
    f1 = {}
    for index, (name, threshold) in enumerate(zip(topics.names, topics.thresholds, strict=True)):
        others = np.concatenate([found[other][:, index] for other in found if other != name])
        fired = found[name][:, index] > threshold, others > threshold
        f1[name] = score_decisions(*fired, seed=seed, resamples=RESAMPLES).f1
    return TopicScores(topics.names, confusion, f1)


def _rows_of(model: Model, groups: Mapping[str, Sequence[Readable]]) -> dict[str, list[TokenRow]]:
    """Token rows of each group, repeats once."""
    if len(groups) < 2 or not all(map(len, groups.values())):
        raise SteerlensError(
            f"got groups of {[*map(len, groups.values())]} prompts; expected at least two groups, "
            "none of them empty"
        )
    rows = {name: list(dict.fromkeys(tokenize(model, side))) for name, side in groups.items()}
    group_of: dict[TokenRow, str] = {}
    for name, mine in rows.items():
        for row in mine:
            if group_of.setdefault(row, name) != name:
                raise SteerlensError(
                    f"a prompt is both of {group_of[row]!r} and of {name!r}; expected each in one "
                    "group: take it out of the other"
                )
    return rows


def _read(
    model: Model,
    rows: Mapping[str, Sequence[TokenRow]],
    layers: Sequence[int],
    tokens: Tokens,
    sinks: bool,
    site: str,
    run: RunOptions,
) -> tuple[list[Group], Float[Tensor, " layer"]]:
    """Each group's activations, and their mean norms."""
    reading = read_rows(
        model, [*chain(*rows.values())], layers, tokens=tokens, sinks=sinks, site=site, **run
    )
    parts = reading.pooled.split([len(mine) for mine in rows.values()])
    return list(parts), reading.norms.mean(dim=0)


def _leads_of(
    model: Model, topics: Topics, groups: Mapping[str, Sequence[Readable]], run: RunOptions
) -> dict[str, Float[np.ndarray, "prompt topic"]]:
    """Each prompt's lead for each topic, by the group that the prompt is of."""
    if set(groups) != set(topics.names):
        raise SteerlensError(
            f"got the groups {', '.join(groups)}; expected those of the topics: "
            f"{', '.join(topics.names)}"
        )
    rows = _rows_of(model, {name: groups[name] for name in topics.names})
    pooled, _ = _read(model, rows, topics.layers, topics.tokens, topics.sinks, topics.site, run)
    return {
        name: leads(topics.scores(mine)).numpy()
        for name, mine in zip(topics.names, pooled, strict=True)
    }


def _best_threshold(own: np.ndarray, others: Sequence[np.ndarray]) -> float:
    sides = Similarities(own[:, None], np.concatenate(others)[:, None])
    above = next(one for one in find_thresholds(sides, [0]) if one.side == "above")
    return above.threshold
