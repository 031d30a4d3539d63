"""The commands a newcomer types, on files a newcomer has."""

import json
from functools import partial

import pytest
from typer.testing import CliRunner

import steerlens as sl
from steerlens import ledger, sweeps
from steerlens.cli import app, parse_layers

SWEPT = ["v.safetensors", "--prompts", "prompts.txt", "--out", "x"]


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
    (folder / "prompts.txt").write_text("How do I bake bread?\nWhere is the sea?\n")
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


def test_a_stopped_sweep_says_how_to_go_on_and_goes_on(run, files, monkeypatch):
    monkeypatch.chdir(files)
    command = ["sweep", *SWEPT[:-1], "swept", "--layers", "2,1-3", "--strengths", "-1,1",
               "--max-new-tokens", "4", "--judges", "degeneration"]  # fmt: skip
    written = []

    def stop_after_two(out, rows, table):
        ledger.write_part(out, rows, table)
        written.append(rows)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sweeps, "write_part", stop_after_two)
        patched.setattr("steerlens.cli.sweep", partial(sl.sweep, batch_tokens=0))
        stopped = run(*command)
    assert stopped.exit_code == 130
    assert "keeps Sweep(2 of 10 rows" in " ".join(stopped.output.split())
    assert "--resume" in stopped.output
    assert "holds something already" in " ".join(run(*command).output.split())
    resumed = run(*command, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert len(sl.Sweep.load("swept").table) == 10
    assert (files / "swept" / "summary.csv").read_text().startswith("vector,layers,strength")


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
        (["cast-table", "--out", "/proc/no"], "cannot write"),
        (["cast-table", "--sizes", "many", "--out", "x"], "no list of numbers"),
        (["sentiment", "--judge", "taste", "--out", "x"], "there is no judge 'taste'"),
        (["sentiment", "--beginnings", "prompts.txt", "--out", "x"], "has no part 'validation'"),
        (["sweep", "v.safetensors", "--prompts", "no.txt", "--out", "x"], "there is no file"),
        (["sweep", *SWEPT, "--judges", "taste"], "['taste'] are unknown"),
        (["sweep", *SWEPT, "--strengths", "1;2"], "no list of numbers"),
        (["sweep", *SWEPT, "--layers", "0"], "no direction for layer 0"),
        (["sweep", "v.safetensors", *SWEPT], "the same name"),
    ],
)
def test_errors_are_messages_without_traceback(run, files, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    failed = run(*arguments)
    assert failed.exit_code == 2
    assert message in " ".join(failed.output.split())
    assert "Traceback" not in failed.output


def test_every_command_explains_itself(run):
    for command in ("demo", "extract", "search", "generate", "sweep", "sentiment", "cast-table"):
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
