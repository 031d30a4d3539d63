"""How the demo goes about it: on tiny-chat, which knows a few words, and on real models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

import plotly.graph_objects as go

from steerlens.activations.extraction import extract
from steerlens.dashboards.conditions import similarities_by_layer, topic_confusion
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.prompts import Prompt
from steerlens.files import demo_file
from steerlens.learning.learning import learn
from steerlens.models.host import Model
from steerlens.models.loading import TINY_CHAT
from steerlens.steering.condition_search import ConditionSearch
from steerlens.steering.predicates import Predicate
from steerlens.steering.recipes import Recipe, find_condition
from steerlens.steering.steering import Steering
from steerlens.steering.topics import extract_topics, score_topics
from steerlens.studies.cast import ONE_LAYER, Refusing, best_steering, choose_steering
from steerlens.vectors.estimators import mean_difference
from steerlens.vectors.vector import SteeringVector

REFUSALS = "refusal.json"
"""Demo file of the pairs of replies."""
N_TRIAL = 12
"""Validation pairs that layers and strength are chosen on."""
N_CONTRASTED = 8
"""Requests that each pair of replies is read behind: their mean hardly changes with more."""
DIFFERENCE_STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.6)
"""Fractions of the residual norm at one layer, for a real model's difference of means."""

Row = dict[str, Any]
"""One row of results.json: part, group, measure, value, low, high, n."""
TopicPrompts = Mapping[str, Mapping[str, Sequence[str]]]
"""Prompts by part ("train", "validation", "test") and topic."""
Refuse = Callable[[Model, ContrastiveDataset, Sequence[Prompt]], Steering]
"""From pairs of replies and validation prompts to a steering that refuses."""


@dataclass(frozen=True, eq=False)
class FoundTopics:
    """A condition for each topic, and how well it does on test prompts."""

    conditions: Mapping[str, Predicate]
    rows: list[Row]
    vectors: Mapping[str, SteeringVector]
    figure: go.Figure
    searches: Mapping[str, ConditionSearch] = field(default_factory=dict)


FindTopics = Callable[[Model, TopicPrompts, range, int], FoundTopics]
"""From prompts, the layers that may be read, and a seed to conditions."""


@dataclass(frozen=True)
class Way:
    """The demo's data and methods for one kind of model."""

    requests: str
    """Demo file of the harmful and harmless prompts."""
    refuse: Refuse
    recipe: Recipe
    """Of the condition "harmful"."""
    read: Callable[[range], range]
    """Which of the layers up to the steered one that condition reads."""
    find_topics: FindTopics
    rivals: Mapping[str, Refuse] = field(default_factory=dict)
    """Other refusing steerings behind the same condition, by part."""
    n_validation: int = 2 * N_TRIAL
    """Prompts that the steering's layers and strength are chosen on."""
    most: int | None = None
    """Test prompts of each kind; None: all."""
    most_of_a_topic: int | None = None


def way_of(model_name: str) -> Way:
    """tiny-chat's own way, and every other model's.

    >>> way_of("tiny-chat").requests, way_of("smollm2").requests
    ('harmful.json', 'requests.json')
    """
    return SMALL if model_name == TINY_CHAT else REAL


def prepare_refusing(model: Model, way: Way, limit: int | None) -> Refusing:
    """A steering that refuses, chosen on validation prompts, and the prompts to measure it on.

    Args:
        limit: Number of test prompts of each kind; None: as many as the way says.
    """
    most = way.most if limit is None else limit
    refusals, harms = (
        ContrastiveDataset.load(demo_file(name)) for name in (REFUSALS, way.requests)
    )
    steering = way.refuse(model, refusals, trial_prompts(harms))
    alike = ContrastiveDataset.load(demo_file("lookalikes.json")).test
    harmful, harmless = (side[:most] for side in zip(*harms.test.pairs, strict=True))
    return Refusing(
        steering.vector, steering, way.n_validation, harmful, harmless,
        tuple(safe for _, safe in alike.pairs[:most]),
    )  # fmt: skip


def trial_prompts(harms: ContrastiveDataset) -> list[Prompt]:
    """The validation prompts that strengths are chosen on, harmful and harmless by turns."""
    return list(chain.from_iterable(harms.validation.pairs[:N_TRIAL]))


def by_contrast(model: Model, refusals: ContrastiveDataset, prompts: Sequence[Prompt]) -> Steering:
    """CAST's own vector, over two layers."""
    vector = extract(model, refusals.train, tokens="suffix", name="refuse")
    return choose_steering(model, vector, prompts)


def by_learning(model: Model, refusals: ContrastiveDataset, prompts: Sequence[Prompt]) -> Steering:
    """A learned vector, at the strength that was learned: `prompts` choose nothing."""
    vector = learn(model, refusals.train, layers=middle(model), name="refuse")
    return Steering(vector, name="refuse")


def middle(model: Model) -> int:
    """The layer that a real model is steered at: just below the middle, to leave conditions room.

    >>> middle(load_model())
    2
    """
    return max(model.cfg.n_layers // 2 - 1, 0)


def upper_third(layers: range) -> range:
    """The layers below the steered one at which it is clearest what a request wants.

    >>> upper_third(range(15))
    range(9, 15)
    """
    return layers[-1 - len(layers) // 3 :]


def by_difference(
    model: Model, refusals: ContrastiveDataset, prompts: Sequence[Prompt]
) -> Steering:
    """The classical difference of means, at the layer at which vectors are learned."""
    layer = middle(model)
    few = replace(refusals.train, pairs=refusals.train.pairs[:N_CONTRASTED])
    vector = extract(
        model, few, mean_difference, tokens="suffix", layers=[layer], name="difference"
    )
    trials = [
        Steering(vector, [layer], strength, relative=True, skip_bos=True, name="refuse")
        for strength in DIFFERENCE_STRENGTHS
    ]
    return best_steering(model, [trials], prompts)


def topics_one_by_one(model: Model, topics: TopicPrompts, layers: range, seed: int) -> FoundTopics:
    """Each topic against all others, at one layer each."""
    searches = {}
    for topic in topics["train"]:
        train, validation, test = (
            ContrastiveDataset.one_against_rest(topics[part], topic)
            for part in ("train", "validation", "test")
        )
        searches[topic] = find_condition(
            model, train, validation, test, layers=layers, recipe=ONE_LAYER, name=topic, seed=seed
        )
    return FoundTopics(
        {topic: search.best for topic, search in searches.items()},
        [row for topic, search in searches.items() for row in scores_of("III", topic, search)],
        {topic: search.vector for topic, search in searches.items()},
        similarities_by_layer(*searches.values()),
        searches,
    )


def topics_together(model: Model, topics: TopicPrompts, layers: range, seed: int) -> FoundTopics:
    """All topics by one joint discriminant: the highest score wins."""
    found = extract_topics(model, topics["train"], layers=layers[len(layers) // 2 :])
    scores = score_topics(model, found, topics["test"], seed=seed)
    n = int(scores.confusion.sum())
    rows = [
        {"part": "III", "group": topic, "measure": "f1", **asdict(f1), "n": n}
        for topic, f1 in scores.f1.items()
    ]
    vectors = {topic: found.vector(topic) for topic in found.names}
    return FoundTopics(found.conditions, rows, vectors, topic_confusion(scores))


def scores_of(part: str, group: str, search: ConditionSearch) -> list[Row]:
    """F1, precision and recall of a condition on test prompts."""
    scores = search.scores
    n = scores.n_positive + scores.n_negative
    return [
        {"part": part, "group": group, "measure": name, **asdict(getattr(scores, name)), "n": n}
        for name in ("f1", "precision", "recall")
    ]


SMALL = Way("harmful.json", by_contrast, ONE_LAYER, lambda layers: layers, topics_one_by_one)
REAL = Way(
    "requests.json",
    by_learning,
    Recipe(tokens="user"),
    upper_third,
    topics_together,
    {"II-difference": by_difference},
    n_validation=0,
    most=80,
    most_of_a_topic=20,
)
