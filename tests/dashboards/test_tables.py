"""Tables are refused with the columns that they lack, and made small without losing rows."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import steerlens as sl
from steerlens.dashboards.tables import CONTRACTS, SWEEP, binned, checked, kind_of, merged, natural


def sweep(**columns):
    rows = {
        "vector": ["v", "v"],
        "layers": [[2, 3], (1, 4)],
        "strength": [0.1, 0.2],
        "judge": ["refusal"] * 2,
        "mean": [0.5, np.inf],
        "low": [0.4, 0.1],
        "high": [0.6, 0.3],
        "n": [10, 30],
    }
    return pd.DataFrame(rows | columns)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.name)
def test_missing_columns_are_named(contract):
    whole = pd.DataFrame({column: [1.0] for column in contract.columns})
    assert kind_of(whole) is not None
    for column in contract.columns:
        with pytest.raises(sl.SteerlensError, match=rf"got a table .*: add {column}$"):
            checked(whole.drop(columns=column), contract)
    with pytest.raises(sl.SteerlensError, match="nothing to draw"):
        checked(whole.iloc[:0], contract)
    with pytest.raises(sl.SteerlensError, match=f"none with a {contract.value}"):
        checked(whole.assign(**{contract.value: np.nan}), contract)
    with pytest.raises(sl.SteerlensError, match="expected numbers"):
        checked(whole.assign(**{contract.value: "many"}), contract)


def test_layers_are_told_as_text_and_infinity_is_a_gap():
    table = checked(sweep(), SWEEP)
    assert table["layers"].tolist() == ["2–3", "1, 4"]
    assert table["mean"].isna().tolist() == [False, True]
    assert kind_of(sweep()) is SWEEP
    assert kind_of(pd.DataFrame({"prompt": ["?"]})) is None


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(-1, 1), st.integers(1, 9)), min_size=1))
def test_merging_keeps_the_mean_over_all_samples(rows):
    table = pd.DataFrame(rows, columns=["arm", "polarity", "n"]).assign(low=-1.0, high=1.0)
    table["n"] = table["n"].astype(float)
    once = merged(table, ["arm"], "polarity")
    assert once["arm"].is_unique
    assert once["n"].sum() == table["n"].sum()
    before = (table["polarity"] * table["n"]).sum()
    assert (once["polarity"] * once["n"]).sum() == pytest.approx(before, abs=1e-9)


def test_a_gap_weighs_nothing_when_rows_are_merged():
    table = checked(sweep(layers=["2", "2"], strength=[0.1, 0.1]), SWEEP)
    [row] = merged(table, ["vector", "judge", "layers", "strength"], "mean").to_dict("records")
    assert (row["mean"], row["n"], row["low"], row["high"]) == (0.5, 10, 0.1, 0.6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 20))
def test_binning_moves_no_value_further_than_half_a_step(values, most):
    table = pd.DataFrame({"strength": values})
    after = binned(table, "strength", most)["strength"]
    assert after.nunique() <= most
    reach = (max(values) - min(values)) / most / 2
    if table["strength"].nunique() > most:
        assert (after - table["strength"]).abs().max() <= reach * (1 + 1e-6) + 1e-9


def test_layers_sort_by_number():
    assert sorted(["10–11", "2–3", "1"], key=natural) == ["1", "2–3", "10–11"]
