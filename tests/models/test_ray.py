"""Work on Ray is the work of one process, whatever happens to the workers."""

import os
import signal
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import PROMPTS, random_vector, splitting_condition
from hypothesis import given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from typer.testing import CliRunner

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.cli.options import app, engine_of
from steerlens.evaluation.controls import random_directions, shuffled_labels
from steerlens.evaluation.sweep_store import Sweep
from steerlens.judges.judging import Judge
from steerlens.models import ray as distributed
from steerlens.models.engine import LOCAL
from steerlens.models.ray import Ray, scheduled
from steerlens.steering.similarities import projection
from steerlens.vectors.estimators import mean_difference, pca_center, pca_pairwise

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'steerlens[ray]'")

pytestmark = pytest.mark.slow

SAMPLED = {"sampling": sl.Sampling(1.3, top_p=0.95, seed=3)}
LENGTH = Judge("length", lambda texts: [len(text) for text in texts])
PAIRS = ([f"{prompt} Yes." for prompt in PROMPTS], [f"{prompt} No." for prompt in PROMPTS])
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def cluster():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        ray.init(
            address="local",
            num_cpus=5,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=150 * 2**20,
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def engine(cluster, model_folder):
    with Ray(str(model_folder), workers=2) as engine:
        yield engine


@pytest.fixture
def fatal_once(tmp_path):
    """Kills the process that calls it first, and no other."""
    mark = tmp_path / "killed"

    def kill():
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    yield kill
    assert mark.exists(), "nothing was killed"


# The schedule, with workers that only write down what they hold


@given(
    n_shards=st.integers(0, 30),
    n_workers=st.integers(1, 4),
    each=st.integers(1, 3),
    data=st.data(),
)
def test_every_shard_is_done_once_and_no_worker_holds_more_than_its_share(
    n_shards, n_workers, each, data
):
    taken, held, most, worker_of = [], Counter(), Counter(), {}

    def shards():
        for shard in range(n_shards):
            taken.append(shard)
            yield f"key {shard}", shard

    def submit(worker, shard):
        held[worker] += 1
        most[worker] = max(most[worker], held[worker])
        worker_of[f"job {shard}"] = worker
        return f"job {shard}"

    def first_done(jobs):
        job = data.draw(st.sampled_from(jobs))
        held[worker_of[job]] -= 1
        return job

    done = []
    for key, job in scheduled(shards(), range(n_workers), submit, first_done, each):
        done.append(key)
        assert job == key.replace("key", "job")
        assert len(taken) - len(done) < n_workers * each
    assert sorted(done) == sorted(f"key {shard}" for shard in range(n_shards))
    assert max(most.values(), default=0) <= each
    if n_shards >= n_workers * each:
        assert set(most.values()) == {each}
        assert len(most) == n_workers


# Equal to one process


def same_vector(here, there):
    torch.testing.assert_close(there.directions, here.directions, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(there.norms, here.norms, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(there.explained, here.explained, atol=1e-5, rtol=1e-5)
    assert there.provenance == here.provenance


@pytest.mark.parametrize("estimator", [mean_difference, pca_pairwise, pca_center])
@pytest.mark.parametrize("pairs_at_once", [None, 2])
def test_extract(model, engine, estimator, pairs_at_once):
    run = partial(
        sl.extract, model, PAIRS, estimator, pairs_at_once=pairs_at_once, batch_tokens=60, **QUIET
    )
    same_vector(run(), run(engine=engine))


def test_search_conditions(model, engine):
    run = partial(sl.search_conditions, model, random_vector(model), PAIRS, combine=2, **QUIET)
    here, there = run(), run(engine=engine)
    for side in range(2):
        torch.testing.assert_close(
            torch.from_numpy(there.chosen_on[side]), torch.from_numpy(here.chosen_on[side])
        )
    assert [c.layers for c in there.candidates] == [c.layers for c in here.candidates]
    assert there.scores == here.scores


def odd(model, similarity=projection):
    return replace(splitting_condition(model, layer=0, name="odd"), similarity=similarity)


def swept(model, similarity=projection, **options):
    condition = odd(model, similarity)
    return sl.sweep(
        model,
        {
            name: sl.Steering(random_vector(model, seed), when=condition)
            for seed, name in enumerate(("one", "two"))
        },
        PROMPTS,
        **{
            "layers": [1, (2, 3)], "strengths": [-1, 0.5], "judges": [LENGTH],
            "max_new_tokens": 6, "batch_size": 6, **SAMPLED, **QUIET, **options,
        },
    )  # fmt: skip


def test_sweep(model, engine, tmp_path):
    here, there = swept(model), swept(model, engine=engine, out=tmp_path)
    assert len(list(tmp_path.glob("part-*.parquet"))) > 4
    assert_frame_equal(there.table, here.table, check_exact=True)
    assert there.plan == here.plan


def test_evaluate(model, engine):
    vector = sl.extract(model, PAIRS, mean_difference, **QUIET)
    steering = sl.Steering(vector, [2, 3], 2.0, when=splitting_condition(model))
    run = partial(
        sl.evaluate, model, steering, PROMPTS, judges=[LENGTH], strengths=[1.0, 2.0],
        controls=random_directions(vector, 2) + shuffled_labels(model, vector, PAIRS, 2, **QUIET),
        texts=PROMPTS, safety=PROMPTS[:4], max_new_tokens=5, sampling=sl.Sampling(1.0),
        batch_size=8, **QUIET,
    )  # fmt: skip
    here, there = run(), run(engine=engine)
    assert_frame_equal(there.table, here.table, check_exact=True)
    assert_frame_equal(there.side_effects, here.side_effects, rtol=1e-5)
    assert here.table["open"].nunique() == 2
    assert there.settings == here.settings


@pytest.mark.slow
def test_the_embedded_model(tiny_chat, cluster):
    refusals = sl.ContrastiveDataset.load(sl.demo_file("refusal.json")).train
    sides = refusals.positive[:40], refusals.negative[:40]
    with Ray(workers=2) as engine:
        run = partial(sl.extract, tiny_chat, sides, tokens="suffix", pairs_at_once=16, **QUIET)
        vector = run()
        same_vector(vector, run(engine=engine))
        ask = partial(
            sl.sweep, tiny_chat, sl.Steering(vector, relative=True), PROMPTS, layers=[2, 3],
            strengths=[0.3],
            max_new_tokens=12, batch_size=20, **SAMPLED, **QUIET,
        )  # fmt: skip
        assert_frame_equal(ask(engine=engine).table, ask().table, check_exact=True)


# What happens to workers


def pids(engine, model, n_shards=4):
    return {pid for _, pid in engine.run(model, lambda *_: os.getpid(), enumerate(range(n_shards)))}


@pytest.mark.slow
def test_a_worker_killed_midway_costs_an_extraction_nothing(model, engine, fatal_once):
    def last(str_tokens):
        fatal_once()
        return [len(str_tokens) - 1]

    options = {"estimator": sl.estimators.mean_difference, "pairs_at_once": 1, **QUIET}
    here = sl.extract(model, PAIRS, tokens="last", **options)
    there = sl.extract(model, PAIRS, tokens=last, engine=engine, **options)
    torch.testing.assert_close(there.directions, here.directions, atol=1e-5, rtol=1e-5)


def test_a_worker_killed_midway_costs_a_sweep_nothing(model, engine, fatal_once, tmp_path):
    def fatal(pooled, direction):
        fatal_once()
        return projection(pooled, direction)

    there = swept(model, engine=engine, similarity=fatal, out=tmp_path)
    assert_frame_equal(there.table, swept(model).table, check_exact=True)


def test_a_killed_worker_is_replaced(model, engine):
    before = pids(engine, model)
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    run = partial(read_residual, model, PROMPTS, batch_tokens=20, **QUIET)
    torch.testing.assert_close(run(engine=engine), run())
    after = pids(engine, model)
    assert len(after) == 2
    assert len(after & before) == 1


@pytest.mark.slow
def test_work_that_kills_every_worker_is_given_up(model, engine):
    def fatal(model, shard):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(sl.SteerlensError, match="a shard was lost 4 times with the worker"):
        list(engine.run(model, fatal, [("a", 1)]))
    assert len(pids(engine, model)) == 2  # the engine goes on


def test_a_stopped_sweep_goes_on_with_an_engine_or_without(model, engine, tmp_path):
    asked = []

    def stop(texts):
        asked.append(texts)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return [len(text) for text in texts]

    with pytest.raises(KeyboardInterrupt):
        swept(model, engine=engine, judges=[replace(LENGTH, score=stop)], out=tmp_path)
    kept = Sweep.load(tmp_path)
    assert 0 < len(kept.table) < kept.plan["rows"]
    resumed = swept(model, engine=engine, out=tmp_path, resume=True)
    assert_frame_equal(resumed.table, swept(model).table, check_exact=True)


# Errors


def test_errors_are_those_that_the_work_raised(model, engine):
    def refuse(model, shard):
        raise sl.SteerlensError("this came, that was needed")

    def fail(model, shard):
        raise KeyError(shard)

    def overflow(model, shard):
        raise torch.OutOfMemoryError("no memory left")

    for work, kind in ((refuse, sl.SteerlensError), (fail, KeyError), (overflow, torch.OutOfMemoryError)):  # fmt: skip # noqa: E501
        with pytest.raises(kind) as caught:
            list(engine.run(model, work, [("a", 7)]))
        assert type(caught.value) is kind
        assert caught.value.__suppress_context__
        notes = getattr(caught.value, "__notes__", [])
        assert len(notes) == (work is not refuse)  # of somebody's code, where it failed
    assert all("in fail" in note for note in notes) or "in overflow" in notes[0]


def test_a_batch_that_a_worker_cannot_hold_is_halved(model, engine):
    def small_memory(pooled, direction):
        if len(pooled) > 4:
            raise torch.OutOfMemoryError("no memory left")
        return projection(pooled, direction)

    with pytest.raises(torch.OutOfMemoryError):  # a batch of six is too much for it
        small_memory(torch.ones(6, 1), torch.ones(1))
    there = swept(model, engine=engine, similarity=small_memory)
    assert_frame_equal(there.table, swept(model).table, check_exact=True)


def test_another_model_is_refused(model, other_model, engine, random_llama, cluster):
    with pytest.raises(sl.SteerlensError, match=r"workers loaded .* but the driver's model has"):
        read_residual(other_model, ["Hi."], engine=engine, **QUIET)
    with (
        Ray("no-such-model", workers=1) as nowhere,
        pytest.raises(sl.SteerlensError, match="'no-such-model' is neither 'tiny-chat'"),
    ):
        read_residual(model, ["Hi."], engine=nowhere, **QUIET)
    with (
        model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda resid, hook: resid)]),
        pytest.raises(sl.SteerlensError, match=r"hooks at blocks.0.hook_resid_post; expected none"),
    ):
        read_residual(model, ["Hi."], engine=engine, **QUIET)


def test_other_libraries_are_refused(model, model_folder):
    worker = distributed._Worker(str(model_folder), "cpu", torch.float32)
    mine = distributed._Origin.of(model)
    worker.require(mine)
    other = mine._replace(versions={**mine.versions, "torch": "1.0"})
    with pytest.raises(sl.SteerlensError, match=r"other libraries than the driver \(torch .* 1.0"):
        worker.require(other)


def test_workers_that_the_cluster_cannot_hold_are_refused(model, cluster):
    for crowd, told in (
        (Ray(workers=50), r"50 workers need 50 CPUs \(there are 5\)"),
        (Ray(workers=2, gpus_per_worker=40), r"80 GPUs \(there are"),
    ):
        with pytest.raises(sl.SteerlensError, match=told):
            read_residual(model, ["Hi."], engine=crowd, **QUIET)
    with pytest.raises(sl.SteerlensError, match="workers=0 with"):
        Ray(workers=0)


def test_without_ray_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(sl.SteerlensError, match=r"pip install 'steerlens\[ray\]'"):
        Ray()


# Commands


@pytest.mark.slow
def test_commands_that_ask_for_workers_make_the_same(model, cluster, model_folder, tmp_path):
    sl.ContrastiveDataset.from_sides(*PAIRS).save(tmp_path / "pairs.json")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))

    def made(folder, *more):
        command = partial(CliRunner().invoke, app)
        common = ["--model", str(model_folder), *more]
        vector, out = str(folder / "v.safetensors"), str(folder / "swept")
        runs = [
            ["extract", str(tmp_path / "pairs.json"), "--out", vector],
            ["sweep", vector, "--prompts", str(tmp_path / "prompts.txt"), "--layers", "1,2",
             "--max-new-tokens", "4", "--out", out],
        ]  # fmt: skip
        for one in runs:
            done = command([*one, *common])
            assert done.exit_code == 0, done.output
        return sl.SteeringVector.load(vector), Sweep.load(out)

    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    here, there = made(tmp_path / "here"), made(tmp_path / "there", "--workers", "1")
    same_vector(here[0], there[0])
    assert_frame_equal(there[1].table, here[1].table, check_exact=True)


def test_options_of_workers_become_an_engine(model_folder):
    with engine_of("tiny-chat", 3, "auto", 0.5)() as asked:
        assert asked == Ray("tiny-chat", 3, "auto", gpus_per_worker=0.5)
    with engine_of("tiny-chat", 0, None, 0)() as here:
        assert here is LOCAL
    with pytest.raises(sl.SteerlensError, match="got --gpus-per-worker 1 without --workers"):
        engine_of("tiny-chat", 0, None, 1)


# Clusters


def test_a_cluster_that_was_there_is_left_running(model, cluster, model_folder):
    with Ray(str(model_folder), workers=1) as engine:
        own = pids(engine, model)
        assert len(own) == 1
    assert ray.is_initialized()
    engine.close()  # once more is no error


OWN = """
import sys
import ray, steerlens as sl, torch
from steerlens.activations.reading import read_residual
from steerlens.models.engine import LOCAL
from steerlens.models.ray import Ray

model = sl.load_model(sys.argv[1])
with Ray(sys.argv[1], workers=1) as engine:
    there = read_residual(model, ["Hi."], progress=False, engine=engine)
    edit = sl.hooks.steering_hook(lambda resid, direction, strength: resid + strength * direction)
    vector = sl.SteeringVector(3 * torch.ones(4, 32), range(4))
    replies = [
        list(sl.generate(model, ["Hi.", "Why?"], sl.Steering(vector, edit=edit), engine=where))
        for where in (engine, LOCAL)
    ]
    assert replies[0] == replies[1]
    assert ray.is_initialized()
assert not ray.is_initialized()
assert (there == read_residual(model, ["Hi."], progress=False)).all()
try:
    list(Ray(address="127.0.0.1:1").run(model, len, []))
except sl.SteerlensError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_cluster_of_ones_own_ends_with_the_engine(model_folder):
    done = subprocess.run(
        [sys.executable, "-c", OWN, str(model_folder)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "no Ray cluster answers at address='127.0.0.1:1'" in done.stdout
