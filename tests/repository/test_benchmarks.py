"""The benchmarks run, their results agree, and what they write can be read. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

RUN = Path(__file__).parents[1] / "benchmarks" / "run.py"
CHEAP = ("decoding", "suffixes", "directions", "learning")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    command = [sys.executable, RUN, "--quick", "--repeats", "1", "--threads", "1", "--out", out]
    done = subprocess.run(
        [*map(str, command), "--gpu-jobs", "--only", *CHEAP], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def results(written):
    return json.loads((written / "results.json").read_text())


def test_all_that_ran_agrees(results):
    outcomes = results["outcomes"]
    assert {one["rival"] for one in outcomes} >= {
        "CAST",
        "HookedTransformer generate",
        "the plain loop",
    }
    assert [one for one in outcomes if not one["agrees"]] == []


def test_decoding_is_the_hosts_to_the_bit(results):
    against_host = [o for o in results["outcomes"] if o["rival"] == "HookedTransformer generate"]
    assert {o["agreement"] for o in against_host} == {
        "100.00% of tokens equal; logits max |diff| 0"
    }


def test_a_missing_peer_is_noted_not_timed(results):
    for one in results["outcomes"]:
        assert (one["agreement"] == "not installed") == (one["ratio"] is None)


def test_shares_of_time_add_up_and_work_is_counted(results):
    for account in results["accounts"]:
        assert sum(account["shares"].values()) == pytest.approx(1)
        assert account["flops"] > 0 or account["job"].startswith("top direction")
    assert {row["utilisation"] > 0 for row in results["gpu"]} == {True}


def test_the_page_needs_nothing_else(written):
    page = (written / "benchmarks.html").read_text()
    assert "Plotly.newPlot" in page
    assert "<script src=" not in page
    assert "How many times as long the other one takes" in page


def test_arithmetic_is_counted_as_it_is(model, monkeypatch):
    import torch

    monkeypatch.syspath_prepend(RUN.parent)
    from limits import counted

    with counted(model) as passes:
        model(torch.tensor([[5, 6, 7]]))
    cfg = model.cfg
    heads = cfg.d_model * cfg.d_head * (2 * cfg.n_heads + 2 * cfg.n_key_value_heads)
    block = heads + 3 * cfg.d_model * cfg.d_mlp
    attention = 4 * cfg.d_model * (1 + 2 + 3)
    assert len(passes) == cfg.n_layers + 1
    assert passes[0].flops == 2 * block * 3 + attention
    assert passes[-1].flops == 2 * cfg.d_model * cfg.d_vocab * 3
