"""AxBench (arXiv 2501.17148) on its own files: is a concept in a text?

Detection: every arm gives each text a score for a concept, and is measured by the AUROC on rows of
evaluation. The layer and the way of pooling of an arm's "chosen" row are chosen on training rows
that nothing was fitted to; then directions are fitted anew, to all training rows.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int

from steerlens.data.axbench import AxBench, ConceptRows
from steerlens.errors import SteerlensError
from steerlens.intervals import auroc, mean
from steerlens.models.host import Model
from steerlens.models.sites import resolve_layers
from steerlens.studies.axbench_results import (
    ALL,
    COLUMNS,
    DETECTION,
    AxBenchResults,
    cell,
    digest_of_bench,
)
from steerlens.studies.axbench_scores import (
    ARMS,
    JOINT,
    JOINT_WORDS,
    POOLS,
    WORDS,
    Fold,
    fit,
    pooled_mean,
    read_each,
    score_each,
    word_scores,
)

HELD_OUT = 4
"""One in so many training rows is held out, to choose layers."""
OTHERS = 60
"""Most rows of other concepts that a concept is validated on, with its negatives."""
DEPTHS = 8
CHOSEN, VALIDATION, MINUS = "auroc chosen", "auroc validation", "auroc chosen minus "

Scores = Sequence[dict[int, Any]]
"""For each text, what it scores for the concepts that it is an example or counterexample of."""


def detect(
    model: Model,
    bench: AxBench,
    *,
    layers: Iterable[int] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AxBenchResults:
    """AxBench's detection: AUROC of each arm, concept, layer and way of pooling.

    Every text is read once. Intervals: bootstrap over a concept's rows, positives and negatives
    apart; of means and differences, over concepts.

    Args:
        model: The model that reads.
        bench: From `read_axbench`.
        layers: The layers; None: eight, spread over the depth.
        seed: Of the bootstrap, and of the choice of rows to validate on.
        progress: Whether to show progress.
    """
    numbers = resolve_layers(model, spread(model.cfg.n_layers) if layers is None else layers)
    concepts = bench.concepts
    texts, whole, half, held = _training(concepts)
    fitted_rows = sorted({row for rows in (*half.positive, *half.negative) for row in rows})
    validation, wanted, labels = _validation(concepts, half, whole, held, seed)
    read = read_each(model, [texts[row] for row in fitted_rows], numbers, pooled_mean,
                     progress=progress, what="training rows")  # fmt: skip
    activations = torch.zeros(len(texts), *read[0].shape)
    activations[fitted_rows] = torch.stack(read)
    judged = [texts[row] for row in validation]
    chosen_by, read = score_each(model, judged, numbers, fit(activations, half), wanted,
                                 progress=progress, what="validation rows")  # fmt: skip
    activations[validation] = torch.stack(read)
    tested, test_wanted, test_labels = _evaluation(concepts)
    scored, _ = score_each(model, tested, numbers, fit(activations, whole), test_wanted,
                           progress=progress, what="evaluation rows")  # fmt: skip
    words = [
        word_scores(texts, half, judged, wanted),
        word_scores(texts, whole, tested, test_wanted),
    ]
    names = [concept.name for concept in concepts]
    known = _by_concept(chosen_by, labels), _by_concept(scored, test_labels)
    known_words = _by_concept(words[0], labels), _by_concept(words[1], test_labels)
    rows = _measured(names, numbers, *known, seed) + _measured_words(names, *known_words, seed)
    table = summarised(pd.DataFrame(rows, columns=COLUMNS), seed)
    return AxBenchResults(table, bench.dropped, digest_of_bench(model, bench))


def spread(n_layers: int) -> list[int]:
    """Eight layers over the depth, the last but one the deepest.

    >>> spread(30)
    [3, 7, 10, 14, 17, 21, 24, 28]
    """
    inner = np.linspace(n_layers / 10, n_layers - 2, min(DEPTHS, n_layers)).round().astype(int)
    return sorted(set(inner.clip(0, n_layers - 1).tolist()))


def _training(concepts: Sequence[ConceptRows]) -> tuple[list[str], Fold, Fold, set[int]]:
    """All training texts, each once; those to fit to, with and without the ones held out."""
    number_of: dict[str, int] = {}
    for concept in concepts:
        for text in (*concept.train_positive, *concept.train_negative):
            number_of.setdefault(text, len(number_of))
    sides = [
        tuple(tuple(number_of[text] for text in getattr(concept, side)) for concept in concepts)
        for side in ("train_positive", "train_negative")
    ]
    # every fourth of its side; what one concept holds out, none is fitted to
    held = {row for side in sides for rows in side for row in rows[HELD_OUT - 1 :: HELD_OUT]}
    half = [tuple(tuple(row for row in rows if row not in held) for rows in side) for side in sides]
    for concept, *rows in zip(concepts, *half, strict=True):
        if not all(rows):
            raise SteerlensError(
                f"no training row of {concept.name!r} is left after rows are held out for the "
                "choice of layers; give it texts of its own"
            )
    return list(number_of), Fold(*sides), Fold(*half), held


def _validation(
    concepts: Sequence[ConceptRows], half: Fold, whole: Fold, held: set[int], seed: int
) -> tuple[list[int], list[list[int]], list[dict[int, bool]]]:
    """Rows held out, the concepts each is scored for, and whether it is an example of them."""
    random = np.random.default_rng(seed)
    labels: dict[int, dict[int, bool]] = {row: {} for row in sorted(held)}
    for index in range(len(concepts)):
        own = set(whole.positive[index])
        others = [row for row in labels if row not in own]
        drawn = random.permutation(others)[:OTHERS].tolist()
        for row in [*sorted(own & held), *drawn]:
            labels[row][index] = row in own
    return list(labels), [list(one) for one in labels.values()], list(labels.values())


def _evaluation(
    concepts: Sequence[ConceptRows],
) -> tuple[list[str], list[list[int]], list[dict[int, bool]]]:
    """Texts of evaluation, each once, as in `_validation`."""
    labels: dict[str, dict[int, bool]] = {}
    for index, concept in enumerate(concepts):
        for side in (concept.eval_negative, concept.eval_positive):
            for text in side:
                labels.setdefault(text, {})[index] = side is concept.eval_positive
    return list(labels), [list(one) for one in labels.values()], list(labels.values())


def _by_concept(
    scored: Scores, labels: Sequence[dict[int, bool]]
) -> dict[int, tuple[np.ndarray, Int[np.ndarray, " row"]]]:
    """Each concept's scores [row, …], with 1 for its examples and 0 for the others."""
    concepts = sorted({concept for one in labels for concept in one})
    return {
        concept: (
            np.array([np.asarray(one[concept]) for one in scored if concept in one]),
            np.array([int(one[concept]) for one in labels if concept in one]),
        )
        for concept in concepts
    }


_row = partial(cell, DETECTION)


def _measured(
    names: Sequence[str],
    layers: Sequence[int],
    validation: dict[int, tuple[np.ndarray, np.ndarray]],
    tested: dict[int, tuple[np.ndarray, np.ndarray]],
    seed: int,
) -> list[tuple]:
    """AUROC of every arm of directions, concept, layer and pooling; on both kinds of rows."""
    rows = []
    for index, name in enumerate(names):
        (seen, seen_labels), (new, labels) = validation[index], tested[index]
        centre, scale = seen.mean(axis=0), seen.std(axis=0) + 1e-9  # of validation, for both
        for kind, given, truth in ((VALIDATION, seen, seen_labels), ("auroc", new, labels)):
            together = ((given - centre) / scale).sum(axis=2, keepdims=True)
            scores = np.concatenate([given, together], axis=2)
            for pool, pooled in enumerate(POOLS):
                for at, layer in enumerate([*layers, ALL]):
                    for arm, told in enumerate([*ARMS, JOINT]):
                        one = scores[:, pool, at, arm]
                        value = auroc(one[truth == 1], one[truth == 0], seed=seed)
                        rows.append(_row(told, name, layer, f"{kind} ({pooled})", value, len(one)))
    return rows


def _measured_words(
    names: Sequence[str],
    validation: dict[int, tuple[np.ndarray, np.ndarray]],
    tested: dict[int, tuple[np.ndarray, np.ndarray]],
    seed: int,
) -> list[tuple]:
    rows = []
    for kind, given in ((VALIDATION, validation), ("auroc", tested)):
        for index, name in enumerate(names):
            scores, truth = given[index]
            for at, arm in enumerate((WORDS, JOINT_WORDS)):
                one = scores[:, at]
                value = auroc(one[truth == 1], one[truth == 0], seed=seed)
                rows.append(_row(arm, name, None, f"{kind} (text)", value, len(one)))
    return rows


def summarised(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The table with means over concepts, each arm's chosen setting, and differences to words.

    Args:
        table: A row for each arm, concept, layer and measure.
        seed: Of the intervals over concepts.
    """
    concepts = list(dict.fromkeys(table["concept"]))
    cells = {
        key: part.set_index("concept")["value"].reindex(concepts).to_numpy(float)
        for key, part in table.groupby(["arm", "layer", "measure"], sort=False, dropna=False)
    }
    extra = [
        _row(arm, ALL, _whole(layer), measure, mean(values, seed=seed), len(concepts))
        for (arm, layer, measure), values in cells.items()
    ]
    chosen: dict[str, np.ndarray] = {}
    for arm in dict.fromkeys(table["arm"]):
        candidates = [key for key in cells if key[0] == arm and key[2].startswith(VALIDATION)]
        best = max(candidates, key=lambda key: cells[key].mean())
        pooled = best[2].removeprefix(VALIDATION)
        measured = next(
            values for key, values in cells.items()
            if key[0] == arm and key[2] == "auroc" + pooled and _whole(key[1]) == _whole(best[1])
        )  # fmt: skip
        chosen[arm] = measured
        layer = _whole(best[1])
        extra.append(
            _row(arm, ALL, layer, CHOSEN + pooled, mean(measured, seed=seed), len(concepts))
        )
    for words in (WORDS, JOINT_WORDS):
        for arm, values in chosen.items():
            if arm != words:
                apart = mean(values - chosen[words], seed=seed)
                extra.append(_row(arm, ALL, None, MINUS + words, apart, len(concepts)))
    whole = pd.concat([table.astype(object), pd.DataFrame(extra, columns=COLUMNS).astype(object)])
    return whole.reset_index(drop=True)


def _whole(layer: Any) -> Any:
    """A layer as it was: pandas makes None into NaN in keys of groups."""
    return None if layer is None or layer != layer else layer
