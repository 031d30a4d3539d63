"""Scores of AxBench's texts: by directions at each layer and token, and by words alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.pooling import norms_of, times_median, without_sinks
from steerlens.activations.reading import every_token
from steerlens.models.host import Model
from steerlens.models.progress import progress_bar
from steerlens.models.tokenizing import TokenRow, tokenize
from steerlens.shapes import Directions, Side
from steerlens.vectors.discriminants import joint_discriminant
from steerlens.vectors.estimators import (
    linear_discriminant,
    mean_difference,
    pca_center,
    probe,
)

Made = TypeVar("Made")
ROOM = 8
POOLS = ("mean", "max")
"""How a text's score is made of those of its tokens, attention sinks left out."""
Tokens = Float[Tensor, "layer pos d_model"]
Weights = Float[Tensor, "arm concept layer d_model"]


@dataclass(frozen=True)
class Fold:
    """Rows of activations, by concept, that directions are fitted to: row numbers."""

    positive: tuple[tuple[int, ...], ...]
    negative: tuple[tuple[int, ...], ...]


def _shuffled(positive: Side, negative: Side) -> Directions:
    """The mean difference of randomly chosen halves."""
    both = torch.cat([positive, negative])
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(len(both)))
    return mean_difference(*both[order].split([len(positive), len(negative)]))


def _random(positive: Side, negative: Side) -> Directions:
    return torch.randn(positive.shape[1:], generator=torch.Generator().manual_seed(len(positive)))


def _logistic(positive: Side, negative: Side) -> Directions:
    from sklearn.linear_model import LogisticRegression  # slow to import, needed only here

    size = torch.cat([positive, negative]).std()
    classifier = LogisticRegression(max_iter=3000)
    return probe(classifier, paired=False)(positive / size, negative / size)


ARMS: Mapping[str, Callable[[Side, Side], Directions]] = {
    "difference of means": mean_difference,
    "PCA": pca_center,
    "LDA": linear_discriminant,
    "logistic probe": _logistic,
    "random": _random,
    "shuffled labels": _shuffled,
}
"""Each fitted to one concept's rows, as many of one side as of the other."""
JOINT = "joint discriminant"
"""Fitted to all concepts at once, and to the negatives as a class of their own."""
WORDS, JOINT_WORDS = "words alone", "words alone, joint"
"""TF-IDF and logistic regression: of a concept's rows, or of all concepts at once."""


def rows_of(model: Model, texts: Sequence[str]) -> list[TokenRow]:
    """The texts' tokens without a chat template, cut at the model's context."""
    return tokenize(model, [_cut(model, text) for text in texts], chat=False)


def _cut(model: Model, text: str) -> str:
    """As much of a text as fits the context, with some room for tokens put before it."""
    most = model.cfg.n_ctx - ROOM
    if len(text) <= most:  # a token has at least one character
        return text
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return text if len(ids) <= most else model.tokenizer.decode(ids[:most])


def read_each(
    model: Model,
    texts: Sequence[str],
    layers: Sequence[int],
    use: Callable[[int, Tokens], Made],
    *,
    progress: bool,
    what: str,
) -> list[Made]:
    """What `use` makes of each text's activations, without sinks; one pass over each text."""
    rows = rows_of(model, texts)
    places = [("resid_post", layer) for layer in layers]
    made = []
    with progress_bar(sum(len(row.ids) for row in rows), "tok", progress, what=what) as bar:
        for number, row in enumerate(rows):
            read = every_token(model, row.ids, places)
            made.append(use(number, _without_sinks(torch.stack([read[place] for place in places]))))
            bar.update(len(row.ids))
    return made


def _without_sinks(tokens: Tokens) -> Float[Tensor, "layer kept d_model"]:
    """Tokens that are a sink at no layer: one is in all layers or in none."""
    real = torch.ones(tokens.shape[:2], dtype=torch.bool)
    kept = without_sinks(real, times_median(norms_of(tokens), real), real).all(dim=0)
    return tokens[:, kept] if kept.any() else tokens


def pooled_mean(_: int, tokens: Tokens) -> Float[Tensor, "layer d_model"]:
    """The mean over tokens."""
    return tokens.mean(dim=1)


def fit(activations: Float[Tensor, "row layer d_model"], fold: Fold) -> Weights:
    """Directions of all arms for every concept; the joint discriminant's last."""
    separate = [
        torch.stack(
            [
                arm(*balanced(activations[list(positive)], activations[list(negative)])).float()
                for positive, negative in zip(fold.positive, fold.negative, strict=True)
            ]
        )
        for arm in ARMS.values()
    ]
    rest = sorted({row for rows in fold.negative for row in rows})
    groups = [activations[list(rows)] for rows in (*fold.positive, rest)]
    return torch.stack([*separate, joint_discriminant(groups).weights[:-1]])


def balanced(
    positive: Float[Tensor, "positive layer d_model"],
    negative: Float[Tensor, "negative layer d_model"],
) -> tuple[Side, Side]:
    """As many rows of one side as of the other, evenly spaced among those there are."""
    n = min(len(positive), len(negative))
    first, second = (
        side[torch.linspace(0, len(side) - 1, n).round().long()] for side in (positive, negative)
    )
    return first, second


def score(
    number: int, tokens: Tokens, *, weights: Weights, wanted: Sequence[Sequence[int]]
) -> Float[Tensor, "pool layer arm wanted"]:
    """A text's scores for the concepts that it is an example or counterexample of."""
    along = einsum(
        tokens,
        weights[:, list(wanted[number])],
        "layer pos d_model, arm wanted layer d_model -> layer arm wanted pos",
    )
    return torch.stack([along.mean(dim=-1), along.amax(dim=-1)])


def score_each(
    model: Model,
    texts: Sequence[str],
    layers: Sequence[int],
    weights: Weights,
    wanted: Sequence[Sequence[int]],
    *,
    progress: bool,
    what: str,
) -> tuple[list[dict[int, np.ndarray]], list[Tensor]]:
    """For each text, its scores [pool, layer, arm] by concept, and its mean activations."""

    def use(number: int, tokens: Tokens) -> tuple[Tensor, Tensor]:
        along = score(number, tokens, weights=weights, wanted=wanted)
        return along, pooled_mean(number, tokens)

    made = read_each(model, texts, layers, use, progress=progress, what=what)
    scores = [
        {concept: along[..., at].numpy() for at, concept in enumerate(concepts)}
        for (along, _), concepts in zip(made, wanted, strict=True)
    ]
    return scores, [pooled for _, pooled in made]


def word_scores(
    texts: Sequence[str], fold: Fold, judged: Sequence[str], wanted: Sequence[Sequence[int]]
) -> list[dict[int, tuple[float, float]]]:
    """For each judged text and concept: scores by the concept's own words, and by a joint fit."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    def fitted(rows: Sequence[int], labels: Sequence[int]) -> np.ndarray:
        classifier = LogisticRegression(max_iter=3000, class_weight="balanced")
        # single letters and operators count too: concepts of code and mathematics need them
        vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
        model = make_pipeline(vectorizer, classifier).fit([texts[row] for row in rows], labels)
        return np.asarray(model.predict_log_proba(list(judged)))

    rest = sorted({row for rows in fold.negative for row in rows})
    groups = [*fold.positive, rest]
    together = fitted(
        [row for rows in groups for row in rows],
        [label for label, rows in enumerate(groups) for _ in rows],
    )
    together = together - np.log(-np.expm1(np.minimum(together, -1e-12)))  # log odds
    separate = [
        fitted([*negative, *positive], [0] * len(negative) + [1] * len(positive))
        for positive, negative in zip(fold.positive, fold.negative, strict=True)
    ]
    return [
        {
            concept: (
                float(separate[concept][at, 1] - separate[concept][at, 0]),
                float(together[at, concept]),
            )
            for concept in concepts
        }
        for at, concepts in enumerate(wanted)
    ]
