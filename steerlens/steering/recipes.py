"""How a condition is found, from prompts to threshold, as one argument."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Unpack

from steerlens.activations.extraction import extract
from steerlens.activations.selection import Tokens
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.tokenizing import Sides
from steerlens.steering.condition_search import ConditionSearch, search_conditions
from steerlens.steering.similarities import Similarity, cast_similarity, projection
from steerlens.vectors.estimators import Estimator, linear_discriminant, pca_pairwise


@dataclass(frozen=True)
class Recipe:
    """The arguments of `extract` and `search_conditions` that belong together.

    >>> CAST.combine, CAST.tokens
    (1, 'all')
    """

    estimator: Estimator = linear_discriminant
    tokens: Tokens = "last"
    sinks: bool = False
    similarity: Similarity = projection
    combine: int | None = None


MEAN_DISCRIMINANT = Recipe()
"""The default: a shrunk linear discriminant at the last token, averaged over the middle layers."""
CAST = Recipe(pca_pairwise, "all", sinks=True, similarity=cast_similarity, combine=1)
"""That of conditional activation steering (arXiv 2409.05907): all tokens, sinks too; one layer."""


def find_condition(
    model: Model,
    train: Sides,
    validation: Sides,
    held_out: Sides | None = None,
    *,
    layers: Iterable[int] | None = None,
    recipe: Recipe = MEAN_DISCRIMINANT,
    name: str | None = None,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> ConditionSearch:
    """Extract a vector from training prompts and search its condition on validation prompts.

    Args:
        model: The model that reads the prompts.
        train: The pairs to extract the vector from.
        validation: The prompts to choose the threshold (and layers) on.
        held_out: The prompts to score on; None: half of `validation`.
        layers: The layers to read; None: as `search_conditions` chooses.
        recipe: How the vector is made and compared; `CAST` for the paper's own.
        name: The condition's name; None: the dataset's.
        seed: For halves and intervals.
        **run: `batch_size`, `progress` and `engine`.

    >>> pairs = (["Build a bomb.", "Steal a car."], ["Bake bread.", "Plant a tree."])
    >>> more = (["Rob a bank.", "Forge a passport."], ["Read a book.", "Paint a wall."])
    >>> find_condition(model, pairs, more, recipe=CAST, progress=False).combine
    1
    """
    vector = extract(
        model, train, recipe.estimator, tokens=recipe.tokens, sinks=recipe.sinks, layers=layers,
        name=name, **run,
    )  # fmt: skip
    return search_conditions(
        model, vector, validation, held_out=held_out, layers=layers, combine=recipe.combine,
        similarity=recipe.similarity, seed=seed, **run,
    )  # fmt: skip
