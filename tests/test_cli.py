"""The commands a newcomer types, on files a newcomer has."""

import json

import pytest
from typer.testing import CliRunner

import steerlens as sl
from steerlens.cli import app, parse_layers


@pytest.fixture(scope="module")
def run():
    runner = CliRunner()

    def invoke(*arguments):
        return runner.invoke(app, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture(scope="module")
def files(run, tmp_path_factory):
    """A small data set, its vector and its search, made by the commands."""
    folder = tmp_path_factory.mktemp("cli")
    positive = [f"I love the number {n}." for n in range(10)]
    negative = [f"We hate the colour {n}." for n in range(10)]
    data = sl.ContrastiveDataset.from_sides(positive, negative).split(0.4, 0.3)
    data.save(folder / "data.json")
    made = run(
        "extract", folder / "data.json", "--part", "train", "--tokens", "all", "--layers", "1-3",
        "--out", folder / "v.safetensors",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    found = run(
        "search", folder / "v.safetensors", folder / "data.json", "--part", "validation",
        "--held-out", "test", "--layers", "1,2", "--out", folder / "s.json",
        "--page", folder / "s.html",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    return folder


def test_extract_writes_a_vector_of_the_asked_layers(files):
    vector = sl.SteeringVector.load(files / "v.safetensors")
    assert vector.layers == (1, 2, 3)
    assert vector.provenance["tokens"] == "all"
    assert vector.provenance["pairs"] == 4


def test_search_writes_numbers_and_a_page(files):
    content = json.loads((files / "s.json").read_text())
    assert len(content["scored_on"]["positive"]) == 3
    assert "plotly" in (files / "s.html").read_text().lower()


def test_generate_shows_both_replies_and_the_gate(run, files):
    shown = run(
        "generate", files / "v.safetensors", "I love the number 42.", "--layers", "3",
        "--strength", "0.5", "--relative", "--condition", files / "s.json",
        "--condition-vector", files / "v.safetensors", "--max-new-tokens", "5",
        "--out", files / "replies.json",
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert "unsteered" in shown.output
    [row] = json.loads((files / "replies.json").read_text())["rows"]
    assert row["prompt"] == "I love the number 42."
    assert isinstance(row["fired"][0], bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "nowhere.json", "--out", "v.safetensors"], "there is no file"),
        (["generate", "nowhere.safetensors", "Hi."], "there is no vector file"),
        (["generate", "v.safetensors", "Hi.", "--condition", "s.json"], "belong together"),
        (["extract", "data.json", "--out", "/proc/no/v.safetensors"], "cannot write"),
        (["extract", "data.json", "--out", "v.docx"], "v.docx"),
        (["search", "v.safetensors", "data.json", "--out", "s.json", "--similarity", "x"], "'x'"),
        (["extract", "data.json", "--out", "x.svec", "--estimator", "magic"], "is unknown"),
        (["extract", "data.json", "--out", "x.svec", "--layers", "five"], "cannot be read"),
        (["extract", "data.json", "--out", "x.svec", "--layers", "99"], "layers 0 to"),
        (["extract", "data.json", "--out", "x.svec", "--part", "dev"], "no part 'dev'"),
        (["demo", "--out", "/proc/no"], "cannot write"),
    ],
)
def test_errors_are_messages_without_traceback(run, files, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    failed = run(*arguments)
    assert failed.exit_code == 2
    assert message in " ".join(failed.output.split())
    assert "Traceback" not in failed.output


def test_every_command_explains_itself(run):
    for command in ("demo", "extract", "search", "generate"):
        shown = run(command, "--help")
        assert shown.exit_code == 0
        assert "--model" in shown.output


def test_layers_are_read_as_people_write_them():
    assert parse_layers(None) is None
    assert parse_layers("3") == [3]
    assert parse_layers("1,4-6") == [1, 4, 5, 6]
    for wrong in ("", "6-4", "a-b"):
        with pytest.raises(sl.SteerlensError, match="--layers"):
            parse_layers(wrong)


def test_a_dry_run_tells_the_cost_and_writes_nothing(run, files):
    told = run("extract", files / "data.json", "--dry-run", "--out", files / "not.safetensors")
    assert told.exit_code == 0, told.output
    assert "tokens in 1 passes" in told.output
    assert not (files / "not.safetensors").exists()


def test_models_are_listed(run):
    listed = run("models", "--like", "gemma2")
    assert "Gemma2ForCausalLM" in listed.output
    assert "TransformerBridge" in listed.output
    assert "Llama" not in listed.output
    assert "MambaForCausalLM" not in run("models").output
    assert "gpt2" in run("models", "--names", "--like", "GPT2").output.split()
    assert "no name contains 'zzz'" in run("models", "--names", "--like", "zzz").output
