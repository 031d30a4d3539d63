"""AxBench's protocol: which rows are whose, planted concepts, honest choice of layers."""

import json

import numpy as np
import pandas as pd
import pytest
from axbench_made import ABOUT, rows_of, texts_of, written
from sklearn.metrics import roc_auc_score

import steerlens as sl
from steerlens.data.axbench import read_axbench
from steerlens.intervals import auroc
from steerlens.studies.axbench_detection import (
    CHOSEN,
    JOINT,
    WORDS,
    _training,
    _validation,
    detect,
    spread,
    summarised,
)


def test_rows_belong_to_concepts_by_genre_id_and_category(tmp_path):
    evaluation = [
        *rows_of(ABOUT[0], 0, "positive", 6, 20),
        *rows_of("the weather", 0, "negative", 4, 11),  # number 11 is in training, too
        *rows_of("the sale", 0, "hard negative", 2, 20),
        *rows_of("stones", 7, "positive", 3),
    ]
    bench = read_axbench(written(tmp_path, evaluation=evaluation))
    (boats,) = bench.concepts
    assert boats.name == ABOUT[0]
    assert boats.train_negative == tuple(texts_of("the weather", 11, 0))
    assert len(boats.eval_negative) == 6
    assert bench.dropped[0].startswith("concept 7: 0 positive")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([{"output": "a", "concept_id": 0}], "lacks the columns category"),
        ([{"output": "", "concept_id": 0, "category": "positive"}], "no row with a text"),
        ([{"output": "a", "concept_id": "x", "category": "positive"}], "whole numbers"),
        (rows_of("a", 5, "positive", 9), "no concept that can be measured"),
    ],
)
def test_broken_directories_are_refused(tmp_path, train, message):
    with pytest.raises(sl.SteerlensError, match=message):
        read_axbench(written(tmp_path, train=train, names=False))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(sl.SteerlensError, match=r"train_data\.parquet"):
        read_axbench(tmp_path)


def test_auroc_is_scikit_learns():
    random = np.random.default_rng(0)
    positive, negative = random.integers(0, 9, 30) + 2.0, random.integers(0, 9, 50) + 0.0
    found = auroc(positive, negative, seed=0)
    labels = [1] * 30 + [0] * 50
    assert found.value == pytest.approx(roc_auc_score(labels, [*positive, *negative]))
    assert found.low < found.value < found.high


def test_no_text_of_validation_is_fitted_to(tmp_path):
    bench = read_axbench(written(tmp_path))
    texts, whole, half, held = _training(bench.concepts)
    rows, wanted, labels = _validation(bench.concepts, half, whole, held, 0)
    fitted = {row for side in (*half.positive, *half.negative) for row in side}
    assert fitted.isdisjoint(rows)
    assert set(rows) == held
    assert fitted | held == set(range(len(texts)))
    boats = [row for row, label in zip(rows, labels, strict=True) if label.get(0)]
    assert boats == sorted(held & set(whole.positive[0]))
    assert [list(label) for label in labels] == wanted


def test_planted_concepts_are_detected_and_random_directions_are_not_chosen_on_them(tmp_path):
    bench = read_axbench(written(tmp_path))
    found = detect(sl.load_model(), bench, layers=[1, 2], progress=False)
    overall = found.table[found.table["concept"] == "all"].set_index("arm")
    best = overall[overall["measure"].str.startswith(f"{CHOSEN} (")]["value"]
    assert best[[JOINT, "LDA", "difference of means", WORDS]].min() > 0.95
    one = found.table[(found.table["concept"] == ABOUT[0]) & (found.table["arm"] == "LDA")]
    assert set(one["layer"]) == {1, 2, "all"}
    assert set(one["n"][one["measure"] == "auroc (max)"]) == {14}
    found.save(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved["rows"][0].keys() == set(found.table.columns)
    assert len(saved["rows"]) == len(found.table)
    assert "Detection: leaderboard" in (tmp_path / "out" / "axbench.html").read_text()


def test_layers_are_chosen_on_validation_only():
    rows = [
        ("detection", arm, concept, layer, f"{kind} (mean)", value, 0.0, 1.0, 9)
        for arm, layer, kind, value in (
            ("LDA", 3, "auroc validation", 0.9), ("LDA", 7, "auroc validation", 0.8),
            ("LDA", 3, "auroc", 0.6), ("LDA", 7, "auroc", 1.0),
            (WORDS, None, "auroc validation", 0.9), (WORDS, None, "auroc", 0.7),
            ("words alone, joint", None, "auroc validation", 0.9),
            ("words alone, joint", None, "auroc", 0.7),
        )
        for concept in ("a", "b")
    ]  # fmt: skip
    columns = ["part", "arm", "concept", "layer", "measure", "value", "low", "high", "n"]
    table = summarised(pd.DataFrame(rows, columns=columns), 0)
    overall = table[(table["concept"] == "all") & (table["arm"] == "LDA")].set_index("measure")
    assert overall.loc[f"{CHOSEN} (mean)", "value"] == 0.6
    assert overall.loc[f"{CHOSEN} (mean)", "layer"] == 3
    assert overall.loc["auroc chosen minus words alone", "value"] == pytest.approx(-0.1)


def test_eight_layers_lie_within_the_depth():
    for n_layers in (1, 2, 4, 12, 80):
        layers = spread(n_layers)
        assert len(layers) == len(set(layers)) <= 8
        assert 0 <= layers[0] <= layers[-1] < n_layers
