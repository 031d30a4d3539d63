"""A sweep is the loop that it stands for, whatever stops it."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from helpers import PROMPTS, assert_no_hooks_left, random_vector, splitting_condition
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

import steerlens as sl
from steerlens.activations import provenance
from steerlens.evaluation import sweep_plan, sweeps
from steerlens.evaluation.sweep_store import UNSTEERED, Cell, Sweep
from steerlens.intervals import adjusted, mean, paired_p
from steerlens.judges.judging import Judge
from steerlens.models.fingerprint import fingerprint
from steerlens.steering.sampling import Sampling

SAMPLED = {"sampling": Sampling(1.3, top_p=0.95, seed=3)}
LENGTH = Judge("length", lambda texts: [len(text) for text in texts])
WINDOWS = {"1": [1], "2-3": [2, 3], "1,3": [1, 3]}
POSITIONS = {"all": "all", "generated": "generated", "1:": slice(1, None)}


@pytest.fixture(scope="module")
def vectors(model):
    return {"one": random_vector(model, 0), "two": random_vector(model, 1)}


def templates_of(vectors, positions=POSITIONS, **settings):
    """A steering for each vector and place, by both names."""
    return {
        f"{name} {where}": sl.Steering(vector, positions=place, **settings)
        for name, vector in vectors.items()
        for where, place in positions.items()
    }


@pytest.fixture
def swept(model, vectors):
    """A sweep of a few cells; options change it."""

    def run(**options):
        settings = {
            "steering": templates_of(vectors),
            "prompts": PROMPTS,
            "layers": WINDOWS.values(),
            "strengths": [-1, 0, 0.5],
            "judges": [LENGTH],
            "max_new_tokens": 6,
            "batch_size": 40,
            "progress": False,
        }
        return sl.sweep(model, **settings | options)

    return run


def loop(model, vectors, cell, options, **plan):
    """What `generate` alone makes of a cell."""
    steering = None
    if cell.layers:
        vector, where = cell.vector.split(" ")
        assert where == cell.positions
        steering = sl.Steering(
            vectors[vector],
            WINDOWS[cell.layers],
            cell.strength,
            positions=POSITIONS[where],
            **plan,
        )
    return sl.generate(model, PROMPTS, steering, progress=False, **options)


def cells_of(table):
    return {
        Cell(*cell): rows.sort_values("prompt_index")
        for cell, rows in table.groupby([*Cell._fields], sort=False)
    }


# Batch == loop


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_every_cell_is_a_run_of_generate(model, vectors, swept, options):
    cells = cells_of(swept(**options).table)
    assert len(cells) == 1 + 2 * 3 * 2 * 3
    for cell, rows in cells.items():
        alone = loop(model, vectors, cell, {"max_new_tokens": 6, **options})
        assert rows["reply"].tolist() == list(alone)
        assert rows["tokens"].tolist() == [len(tokens) for tokens in alone.tokens]
        assert rows["finished"].tolist() == list(alone.finished)
        assert rows["prompt"].tolist() == list(PROMPTS)
        assert rows["length"].tolist() == [len(text) for text in alone]
    assert_no_hooks_left(model)


@settings(max_examples=4, deadline=None)
@given(batch_size=st.integers(1, 20), seed=st.integers(0, 9))
def test_no_row_depends_on_its_batch(model, batch_size, seed):
    options = {
        "layers": [1, (2, 3)], "strengths": [0.5], "max_new_tokens": 4,
        "sampling": Sampling(1.0, seed=seed), "progress": False,
    }  # fmt: skip
    vector = random_vector(model)
    whole = sl.sweep(model, vector, PROMPTS, **options)
    parts = sl.sweep(model, vector, PROMPTS, batch_size=batch_size, **options)
    assert_frame_equal(whole.table, parts.table)


def test_gates_are_read_of_every_row_and_decide_as_in_generate(model, vectors, swept):
    condition = splitting_condition(model, layer=0, name="odd")
    templates = templates_of(vectors, {"all": "all"}, when=condition)
    cells = cells_of(swept(steering=templates, batch_size=4).table)
    alone = {
        cell: loop(model, vectors, cell, {"max_new_tokens": 6}, when=condition) for cell in cells
    }
    [opened] = {tuple(one.gates[0].open.tolist()) for cell, one in alone.items() if cell.layers}
    assert 0 < sum(opened) < len(opened)
    for cell, rows in cells.items():
        assert rows["reply"].tolist() == list(alone[cell])
        assert tuple(rows["gate: odd"]) == opened


def test_an_edit_and_a_relative_strength_reach_every_cell(model, vectors, swept):
    plan = {"edit": sl.hooks.clamp_direction, "keep_norm": True, "skip_bos": True}
    templates = templates_of(vectors, **plan)
    for cell, rows in cells_of(swept(layers=[1], steering=templates).table).items():
        alone = loop(model, vectors, cell, {"max_new_tokens": 6}, **plan)
        assert rows["reply"].tolist() == list(alone)
    norms = torch.arange(1.0, 5.0)
    scaled = replace(vectors["one"], norms=norms)
    by_norm = sl.Steering(scaled, relative=True)
    relative = swept(steering=by_norm, layers=[2], strengths=[0.5]).table
    unit = vectors["one"].directions.norm(dim=1)[2].item()
    same = swept(steering=vectors["one"], layers=[2], strengths=[0.5 * 3 / unit]).table
    assert relative["reply"].tolist() == same["reply"].tolist()


def test_equal_cells_run_once_and_unsteered_rows_once_per_prompt(swept, vectors):
    table = swept(
        layers=[1, [1], -3, (2, 3), range(2, 4)], strengths=[1, 1.0, 0, -0.0], steering=vectors
    ).table
    assert set(map(Cell._make, table[[*Cell._fields]].itertuples(index=False))) == {
        UNSTEERED,
        *(Cell(name, layers, 1.0, "all") for name in ("one", "two") for layers in ("1", "2-3")),
    }
    assert not table.duplicated(["vector", "layers", "strength", "prompt_index"]).any()
    assert (table["vector"] == "unsteered").sum() == len(PROMPTS)


def test_layers_left_out_are_all_layers_of_the_templates_one_by_one(swept, model, vectors):
    table = swept(layers=None, strengths=[1.0], steering=vectors).table
    assert sorted(set(table["layers"])) == ["", *map(str, range(model.cfg.n_layers))]
    two = {"few": sl.Steering(vectors["one"], [1, 3]), "more": sl.Steering(vectors["two"], [1, 2])}
    assert set(swept(layers=None, steering=two).table["layers"]) == {"", "1"}


def test_strengths_left_out_are_the_templates_own(swept, model, vectors):
    two = {
        "weak": sl.Steering(vectors["one"], strength=0.5),
        "strong": sl.Steering(vectors["two"], strength=-2),
    }
    table = swept(layers=[2], strengths=None, steering=two).table
    strengths = table.groupby("vector")["strength"].unique().map(list).to_dict()
    assert strengths == {"unsteered": [0.0], "weak": [0.5], "strong": [-2.0]}
    alone = sl.generate(
        model, PROMPTS, replace(two["strong"], layers=[2]), max_new_tokens=6, progress=False
    )
    assert table[table["vector"] == "strong"]["reply"].tolist() == list(alone)


def test_templates_with_conditions_of_their_own_gate_their_own_rows(model, swept, vectors):
    odd, even = (
        splitting_condition(model, layer=0, seed=seed, name=name)
        for seed, name in ((7, "odd"), (8, "even"))
    )
    two = {
        "one": sl.Steering(vectors["one"], when=odd),
        "two": sl.Steering(vectors["two"], when=~even),
    }
    found = swept(steering=two, layers=[2], strengths=[1.0], batch_size=5)
    for name, template in two.items():
        plan = replace(template, layers=[2])
        alone = sl.generate(model, PROMPTS, plan, max_new_tokens=6, progress=False)
        rows = found.table[found.table["vector"] == name]
        assert rows["reply"].tolist() == list(alone)
        assert rows[f"gate: {alone.gates[0].condition}"].tolist() == alone.gates[0].open.tolist()
    assert found.plan["gates"] == ["gate: odd", "gate: even"]


def test_chats_and_token_ids_are_prompts_too(model, swept, vectors):
    chat = [{"role": "user", "content": "Hi."}]
    table = swept(prompts=[chat, [5, 6, 7]], strengths=[1.0], steering=vectors).table
    assert table["prompt"].tolist()[1] == model.tokenizer.decode([5, 6, 7])
    assert "Hi." in table["prompt"].tolist()[0]


# What stops a sweep


def test_a_resumed_sweep_is_the_uninterrupted_one(swept, tmp_path, monkeypatch):
    whole = swept(out=tmp_path / "whole", **SAMPLED)
    calls, steerings = [], sweep_plan.SweepPlan.steerings

    def stop_at_the_third(plan, rows):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return steerings(plan, rows)

    monkeypatch.setattr(sweep_plan.SweepPlan, "steerings", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        swept(out=tmp_path / "cut", **SAMPLED)
    partial = Sweep.load(tmp_path / "cut")
    assert 0 < len(partial.table) < len(whole.table)
    assert not partial.complete
    assert whole.complete
    done = set(partial.table["row"])
    calls[:] = [0, 0, 0]
    resumed = swept(out=tmp_path / "cut", resume=True, **SAMPLED)
    assert not done & {row for rows in calls[3:] for row in rows}
    assert_frame_equal(resumed.table, whole.table, check_exact=True)
    assert (tmp_path / "cut/plan.json").read_bytes() == (tmp_path / "whole/plan.json").read_bytes()


KILLED = """
import sys, time
import steerlens as sl
from steerlens.judges import Judge
from helpers import PROMPTS, random_vector

model = sl.load_model(sys.argv[1])
slow = Judge("length", lambda texts: time.sleep(float(sys.argv[3])) or [len(t) for t in texts])
sl.sweep(
    model, random_vector(model), PROMPTS, strengths=[-1, 0.5, 1], judges=[slow], max_new_tokens=5,
    sampling=sl.Sampling(1.0), batch_size=2, progress=False, out=sys.argv[2], resume=True,
)
"""


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(model_folder, tmp_path):
    def command(out, pause):
        return [sys.executable, "-c", KILLED, str(model_folder), str(tmp_path / out), str(pause)]

    options = {"env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}}
    killed = subprocess.Popen(command("cut", 0.2), **options)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("cut/part-*"))) < 3:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    before = Sweep.load(tmp_path / "cut")
    assert len(before.table) >= 3
    assert not before.complete
    for out in ("cut", "whole"):
        subprocess.run(command(out, 0), check=True, **options)
    resumed, whole = (Sweep.load(tmp_path / out) for out in ("cut", "whole"))
    assert resumed.complete
    files = {}
    for name, one in (("resumed", resumed), ("whole", whole)):
        one.table.to_parquet(tmp_path / f"{name}.parquet")
        files[name] = (tmp_path / f"{name}.parquet").read_bytes()
    assert files["resumed"] == files["whole"]


def test_a_full_disk_keeps_what_is_finished(swept, tmp_path, monkeypatch):
    whole = swept().table
    written, write = [], pq.write_table

    def fill(table, path):
        write(table, path)
        written.append(path)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq, "write_table", fill)
    with pytest.raises(
        sl.SteerlensError, match=r"No space left on device.*are saved: free some space"
    ):
        swept(out=tmp_path / "full")
    kept = Sweep.load(tmp_path / "full").table
    assert_frame_equal(kept, whole[: len(kept)])
    assert 0 < len(kept) < len(whole)
    assert sorted(path.suffix for path in (tmp_path / "full").iterdir()) == [".json", ".parquet"]
    assert_frame_equal(swept(out=tmp_path / "full", resume=True).table, whole)


def test_a_judge_that_fails_midway_costs_no_reply(swept, tmp_path):
    whole = swept().table

    def fail_later(texts, seen=[]):  # noqa: B006
        seen.append(texts)
        if len(seen) == 2:
            raise RuntimeError("the server is gone")
        return [len(text) for text in texts]

    found = swept(judges=[LENGTH, Judge("shaky", fail_later)], out=tmp_path / "x")
    [failure] = found.failures
    assert (failure.judge, failure.error) == ("shaky", "RuntimeError: the server is gone")
    lost = found.table["row"].between(failure.first_row, failure.last_row)
    assert 0 < lost.sum() < len(lost)
    assert found.table["shaky"].isna().equals(lost)
    assert_frame_equal(found.table.drop(columns="shaky"), whole)
    assert Sweep.load(tmp_path / "x").failures == (failure,)
    summary = found.summary()
    assert summary[summary["judge"] == "shaky"]["n"].sum() == len(lost) - lost.sum()
    assert "1 failures" in repr(found)


# Results


def test_the_summary_is_the_mean_of_each_cell_with_its_interval(swept):
    found = swept(judges=[LENGTH, sl.judges.refusal])
    summary = found.summary()
    assert len(summary) == 2 * found.plan["cells"]
    for cell, rows in cells_of(found.table).items():
        here = summary[(summary[[*Cell._fields]] == list(cell)).all(axis=1)].set_index("judge")
        expected = mean(rows["length"].to_numpy())
        assert here.loc["length", ["mean", "low", "high", "n"]].tolist() == [
            *expected,
            len(PROMPTS),
        ]


def test_the_summary_compares_each_cell_with_unsteered_prompt_by_prompt(swept):
    found = swept()
    summary, table = found.summary(), found.table
    cells = cells_of(table)
    before = cells.pop(UNSTEERED).set_index("prompt_index")["length"]
    changes = {
        cell: (rows.set_index("prompt_index")["length"] - before).to_numpy(dtype=float)
        for cell, rows in cells.items()
    }
    assert summary.loc[0, ["effect", "q"]].isna().all()
    steered = summary.iloc[1:]
    assert steered["effect"].tolist() == [one.mean() for one in changes.values()]
    expected = adjusted(np.array([paired_p(one) for one in changes.values()]))
    assert steered["q"].tolist() == expected.tolist()
    assert (steered["effect_low"] <= steered["effect"]).all()


def test_the_manifest_says_what_was_swept(model, swept, tmp_path):
    swept(out=tmp_path / "x", **SAMPLED)
    content = json.loads((tmp_path / "x" / "plan.json").read_text())
    plan = content["plan"]
    assert content["format"] == "steerlens.sweep/1"
    assert plan["layers"] == list(WINDOWS)
    assert set(plan["positions"].values()) == set(POSITIONS)
    assert plan["reply"]["temperature"] == SAMPLED["sampling"].temperature
    assert plan["weights"] == fingerprint(model)
    assert plan["judges"] == {"length": "1"}


# What is refused, before anything is lost


def test_other_templates_are_another_plan(swept, vectors, tmp_path):
    swept(out=tmp_path / "x")
    for message, change in {
        "vectors": {"positions": {"last": "last"}},
        "steering": {"skip_bos": True},
        "conditions": {"when": sl.Condition(vectors["one"], 0, above=0.5)},
    }.items():
        with pytest.raises(
            sl.SteerlensError, match=f"another sweep, which differs in .*{message} "
        ):
            swept(out=tmp_path / "x", resume=True, steering=templates_of(vectors, **change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strengths": [2.0]}, r"cells \(.* strengths \(\{'one all': \[-1.0, 0.0, 0.5\].* saved"),
        ({"layers": [1]}, "layers"),
        ({"prompts": PROMPTS[:3]}, "prompts"),
        ({"sampling": Sampling(seed=5)}, "reply"),
        ({"judges": [Judge("length", LENGTH.score, "2")]}, "judges .*'1'.* saved, .*'2'.* asked"),
        ({"max_new_tokens": 3}, "reply"),
    ],
)
def test_another_plan_is_not_resumed(swept, tmp_path, options, message):
    kept = swept(out=tmp_path / "x").table
    with pytest.raises(sl.SteerlensError, match=f"another sweep, which differs in .*{message}"):
        swept(out=tmp_path / "x", resume=True, **options)
    assert_frame_equal(Sweep.load(tmp_path / "x").table, kept)


def test_another_vector_of_the_same_name_is_another_plan(swept, vectors, tmp_path):
    swept(out=tmp_path / "x")
    swapped = templates_of({"one": vectors["one"], "two": vectors["one"]})
    with pytest.raises(sl.SteerlensError, match="differs in vectors"):
        swept(out=tmp_path / "x", resume=True, steering=swapped)


def test_a_directory_that_holds_something_is_left_alone(swept, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(sl.SteerlensError, match="which is not empty"):
        swept(out=tmp_path)
    with pytest.raises(sl.SteerlensError, match="there is no file"):
        swept(out=tmp_path, resume=True)
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_sweep_killed_before_its_plan_was_written_begins_anew(swept, tmp_path, resume):
    (tmp_path / ".plan.json.abc123.json").write_text('{"form')
    found = swept(out=tmp_path, resume=resume, layers=[1], strengths=[0.5])
    assert found.complete
    assert not list(tmp_path.glob(".*"))


def test_a_half_written_part_is_taken_away_where_a_killed_sweep_goes_on(swept, tmp_path):
    whole = swept(out=tmp_path / "x").table
    [first, *_] = sorted((tmp_path / "x").glob("part-*"))
    first.rename(tmp_path / "x" / f".{first.name}.abc123.parquet")
    assert_frame_equal(swept(out=tmp_path / "x", resume=True).table, whole)
    assert not list((tmp_path / "x").glob(".*"))


def test_a_damaged_part_is_named_and_made_again(swept, tmp_path):
    whole = swept(out=tmp_path / "x").table
    part = sorted((tmp_path / "x").glob("part-*"))[1]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(sl.SteerlensError, match=rf"{part.name}.*delete it"):
        Sweep.load(tmp_path / "x")
    part.unlink()
    assert_frame_equal(swept(out=tmp_path / "x", resume=True).table, whole)
    plan = tmp_path / "x" / "plan.json"
    plan.write_text(plan.read_text().replace('"length": "1"', '"length": "7"'))
    with pytest.raises(sl.SteerlensError, match="changed after it was written"):
        Sweep.load(tmp_path / "x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strengths": []}, "0 strengths"),
        ({"strengths": [float("nan")]}, "expected finite numbers"),
        ({"layers": []}, "0 layers"),
        ({"layers": [[]]}, "got no layers; expected at least one"),
        ({"layers": [99]}, "expected layers 0 to 3"),
        ({"steering": {}}, "0 steerings"),
        ({"judges": [LENGTH, LENGTH]}, "a name of its own for each"),
        ({"judges": [Judge("reply", len)]}, r"\['reply'\] more than once"),
        ({"max_new_tokens": 500}, "context holds 128"),
        ({"max_new_tokens": 0}, "expected at least 1"),
        ({"prompts": []}, "at least one prompt"),
        ({"batch_size": 0}, "got batch_size=0; expected at least 1"),
    ],
)
def test_an_impossible_sweep_is_refused_before_it_starts(swept, tmp_path, options, message):
    with pytest.raises(sl.SteerlensError, match=message):
        swept(out=tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": torch.ones(3, dtype=torch.bool)}, "got a mask of positions"),
        (
            {"positions": slice(40, 50)},
            "positions 40:50, which select no token of prompt 0|touch no token",
        ),
        ({"strength": (0.5, 0.5, 0.5, 0.5)}, "expected one number"),
    ],
)
def test_a_template_that_cannot_be_swept_is_refused(swept, vectors, tmp_path, settings, message):
    template = sl.Steering(vectors["one"], **settings)
    with pytest.raises(sl.SteerlensError, match=message):
        swept(steering=template, strengths=None, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_vector_cannot_pose_as_no_vector(swept, vectors):
    with pytest.raises(sl.SteerlensError, match="'unsteered'"):
        swept(steering={"unsteered": vectors["one"]})


def test_a_vector_of_another_model_is_refused(swept, other_model):
    with pytest.raises(sl.SteerlensError, match="16 wide"):
        swept(steering=random_vector(other_model), layers=[1])


def test_what_no_run_knows_is_refused_before_any_work(swept):
    with pytest.raises(TypeError, match="batch_tokens"):
        swept(batch_tokens=100)


def test_a_sweep_checks_its_vectors_once_and_tokenizes_its_prompts_once(swept, monkeypatch):
    calls = []
    for module, name in ((provenance, "fingerprint"), (sweeps, "tokenize")):
        whole = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, _whole=whole, _name=name, **more: (
                calls.append(_name) or _whole(*given, **more)
            )
        )  # fmt: skip
    swept(batch_size=5)
    assert calls.count("tokenize") == 1
    assert calls.count("fingerprint") <= 6  # of each template, never of a batch


# The real model


def test_tiny_chat_says_in_a_sweep_what_it_says_alone(tiny_chat):
    pairs = (["I love you.", "What a happy day!"], ["I hate you.", "What a sad day!"])
    vector = sl.extract(tiny_chat, pairs, progress=False)
    prompts = ["How do I bake bread?", "Tell me a story.", "Where is the sea?"]
    options = {"max_new_tokens": 15, "progress": False}
    found = sl.sweep(
        tiny_chat,
        {
            place: sl.Steering(vector, positions=place, relative=True)
            for place in ("all", "generated")
        },
        prompts, layers=[1, (2, 3)], strengths=[-0.3, 0.3], **options,
    )  # fmt: skip
    windows = {"1": [1], "2-3": [2, 3]}
    assert isinstance(found.table, pd.DataFrame)
    for cell, rows in cells_of(found.table).items():
        steering = cell.layers and sl.Steering(
            vector, windows[cell.layers], cell.strength, relative=True, positions=cell.positions
        )
        assert rows["reply"].tolist() == list(
            sl.generate(tiny_chat, prompts, steering or None, **options)
        )
    assert len(set(found.table["reply"])) > len(prompts)
    assert found.table["row"].tolist() == list(range(len(found.table)))


def test_two_sweeps_do_not_write_to_one_directory(swept, tmp_path):
    """The second is refused by name while the first runs, and the first loses nothing."""
    refused = []

    def meddle(texts):
        if not refused:
            with pytest.raises(sl.SteerlensError, match="another run is writing to") as caught:
                swept(out=tmp_path / "one", resume=True, **few)
            refused.append(caught)
        return [0.0] * len(texts)

    few = {"layers": [1], "prompts": PROMPTS[:2], "batch_size": 2}
    judge = Judge("meddles", meddle)
    first = swept(out=tmp_path / "one", judges=[judge], **few)
    assert refused
    assert first.complete
    again = swept(out=tmp_path / "one", judges=[judge], resume=True, **few)
    assert_frame_equal(again.table, first.table, check_exact=True)
    assert all(not path.name.startswith(".") for path in (tmp_path / "one").iterdir())
