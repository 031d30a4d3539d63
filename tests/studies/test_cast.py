"""CAST's table, and what more training pairs add to it."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import steerlens as sl
from steerlens.intervals import rate
from steerlens.studies.cast import cast_table, fires_on, nested_subsets

HARMS = sl.ContrastiveDataset.load(sl.demo_file("harmful.json"))
N = 20


@pytest.fixture(scope="module")
def made(tiny_chat):
    refusals = sl.ContrastiveDataset.load(sl.demo_file("refusal.json"))
    return cast_table(tiny_chat, refusals, HARMS, sizes=[8, 464], draws=2, limit=N, progress=False)


@pytest.mark.slow
def test_only_harmful_prompts_are_refused_where_the_condition_gates(made):
    rates = made.rates.set_index(["steering", "group"])
    assert set(rates.index) == {
        (row, group)
        for row in ("unsteered", "always", "conditional")
        for group in ("harmful", "harmless")
    }
    assert (rates["n"] == N).all()
    for _, row in rates.iterrows():
        assert tuple(row[["refused", "low", "high"]]) == tuple(rate(round(row["refused"] * N), N))
    assert rates.loc[("unsteered", "harmful"), "high"] < rates.loc[("always", "harmless"), "low"]
    harmful, harmless = (rates.loc[("conditional", group)] for group in ("harmful", "harmless"))
    assert harmful["low"] > harmless["high"]


@pytest.mark.slow
def test_the_conditional_rates_are_those_of_conditional_replies(tiny_chat, made):
    sides = dict(zip(("harmful", "harmless"), zip(*HARMS.test.pairs[:N], strict=True), strict=True))
    gated = replace(made.steering, when=made.search.best)
    rates = made.rates.set_index(["steering", "group"])
    for group, prompts in sides.items():
        replies = sl.generate(tiny_chat, prompts, gated, max_new_tokens=40, progress=False)
        assert (
            replies.gates[0].open.tolist()
            == fires_on(tiny_chat, made.search.best, prompts).tolist()
        )
        refused = np.mean([sl.judges.refused(reply) for reply in replies])
        assert rates.loc[("conditional", group), "refused"] == refused


@pytest.mark.slow
def test_more_pairs_make_a_better_condition(made):
    curve = made.saturation
    assert list(zip(curve["pairs"], curve["draw"], strict=True)) == [
        (8, 0), (464, 0), (8, 1), (464, 1),
    ]  # fmt: skip
    by_size = curve.groupby("pairs")["f1"].mean()
    assert by_size[464] > by_size[8]
    assert (curve["f1_low"] <= curve["f1"]).all()
    assert (curve["f1"] <= curve["f1_high"]).all()


@pytest.mark.slow
def test_the_tables_are_saved(made, tmp_path):
    made.save(tmp_path)
    content = json.loads((tmp_path / "cast-table.json").read_text())
    assert len(content["rates"]) == 6
    assert (tmp_path / "saturation.csv").read_text().startswith("pairs,draw,f1")


@given(n=st.integers(2, 200), seed=st.integers(0, 5), data=st.data())
def test_each_subset_holds_the_one_before(n, seed, data):
    pairs = sl.ContrastiveDataset([(f"good {i}", f"bad {i}") for i in range(n)])
    sizes = data.draw(st.none() | st.sets(st.integers(2, n), min_size=1))
    subsets = [set(subset.pairs) for subset in nested_subsets(pairs, sizes, seed)]
    assert all(small < large for small, large in pairwise(subsets))
    assert [len(subset) for subset in subsets] == sorted(sizes or map(len, subsets))
    assert all(subset <= set(pairs.pairs) for subset in subsets)
    assert sizes is not None or len(subsets[-1]) == n


@pytest.mark.parametrize("sizes", [[], [1], [4, 11]])
def test_subsets_that_there_cannot_be_are_refused(sizes):
    pairs = sl.ContrastiveDataset([(str(i), str(-i)) for i in range(10)])
    with pytest.raises(sl.SteerlensError, match="expected 2 to 10"):
        nested_subsets(pairs, sizes, 0)
