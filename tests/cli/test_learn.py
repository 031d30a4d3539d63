"""`steerlens learn`, on the data that ships."""

import pytest
from typer.testing import CliRunner

import steerlens as sl
from steerlens.cli import app
from steerlens.data.prompt_files import read_prompts
from steerlens.evaluation.default_strength import default_budget
from steerlens.learning import descent
from steerlens.learning.comparing import METHODS, compare


@pytest.fixture(scope="module")
def run():
    runner = CliRunner(env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("learn") / "data.json"
    pairs = [(f"What is {n}?", f"What is {n}?") for n in range(20)]
    sl.ContrastiveDataset(pairs, [("I will not.", "It is so.")]).split().save(path)
    return path


def test_learn_writes_the_librarys_vector(run, dataset, tiny_chat, tmp_path):
    out = tmp_path / "v.safetensors"
    done = run(
        "learn", dataset, "--part", "train", "--validation", "validation", "--steps", 4,
        "--batch-size", 3, "--layers", "1,2", "--seed", 5, "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = sl.SteeringVector.load(out)
    data = sl.ContrastiveDataset.load(dataset)
    expected = sl.learn(
        tiny_chat, data.train, layers=[1, 2], validation=data.validation, progress=False,
        training=sl.Training(steps=4, batch_size=3, seed=5),
    )  # fmt: skip
    assert found.layers == (1, 2)
    assert sl.SteeringVector.cosine(found, expected).min() > 0.999
    assert "held-out loss" in done.output


def test_a_dry_run_says_what_it_would_cost(run, dataset, tmp_path):
    out = tmp_path / "v.safetensors"
    told = run("learn", dataset, "--part", "train", "--steps", 7, "--dry-run", "--out", out)
    assert told.exit_code == 0, told.output
    assert "11 prompts to learn from, 1 held out" in told.output
    assert "7 steps" in told.output
    assert not out.exists()


def test_stopped_by_ctrl_c_it_goes_on_when_run_again(run, dataset, tmp_path, monkeypatch):
    out = tmp_path / "v.safetensors"
    command = ("learn", dataset, "--steps", 12, "--batch-size", 2, "--out", out)
    real, calls = descent.loss_and_gradient, iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 11:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(descent, "loss_and_gradient", interrupted)
    stopped = run(*command)
    assert stopped.exit_code == 130, stopped.output
    assert "run it again" in stopped.output
    done = run(*command)
    assert done.exit_code == 0, done.output
    assert sl.SteeringVector.load(out).provenance["steps"] == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "luck"], "unknown objective"),
        (["--positions", "here"], "unknown positions"),
        (["--part", "dev"], "no part 'dev'"),
        (["--learning-rate", "-1"], "learning_rate=-1"),
    ],
)
def test_mistakes_are_answered(run, dataset, tmp_path, arguments, message):
    failed = run("learn", dataset, "--out", tmp_path / "v.safetensors", *arguments)
    assert failed.exit_code == 2
    assert message in " ".join(failed.output.replace("│", " ").split())


def test_compare_writes_the_librarys_comparison(run, dataset, tiny_chat, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Do you sing?\nWhere are the ships?\n")
    out = tmp_path / "comparison"
    command = (
        "compare", dataset, prompts, "--part", "train", "--steps", 2, "--layer", 1,
        "--methods", "mean_difference,bipo", "--max-new-tokens", 5, "--out", out,
    )  # fmt: skip
    done = run(*command)
    assert done.exit_code == 0, done.output
    found = compare(
        tiny_chat, sl.ContrastiveDataset.load(dataset).train, read_prompts(prompts), layer=1,
        methods={name: METHODS[name] for name in ("mean_difference", "bipo")},
        kl_budget=default_budget(tiny_chat), training=sl.Training(steps=2), max_new_tokens=5,
    )  # fmt: skip
    for line in str(found).splitlines():
        assert " ".join(line.split()) in " ".join(done.output.split())
    again = run(*command)
    assert again.output == done.output
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "comparison.csv",
        "comparison.html",
        "bipo.json",
        "bipo.safetensors",
        "unsteered.json",
    }
    failed = run(*command[:-4], "--methods", "luck", "--out", out)
    assert failed.exit_code == 2
    assert "luck" in failed.output
