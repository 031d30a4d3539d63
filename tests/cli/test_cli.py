"""The commands a newcomer types, on files a newcomer has."""

import json
import re
from functools import partial

import pandas as pd
import pytest
from typer.testing import CliRunner

import steerlens as sl
from steerlens.cli import app
from steerlens.cli.options import parse_sizes, parse_strengths, parse_tokens, parse_windows
from steerlens.evaluation import sweep_store, sweeps
from steerlens.evaluation.evaluation import Evaluation
from steerlens.evaluation.sweep_store import Sweep
from steerlens.layer_text import parse_layers

SWEPT = ["v.safetensors", "--prompts", "prompts.txt", "--out", "x"]


@pytest.fixture(scope="module")
def run():
    runner = CliRunner(env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})

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


def test_lint_says_what_is_found_and_that_nothing_is(run, files, tmp_path):
    found = run("lint", files / "data.json")
    assert found.exit_code == 0
    assert "leaked words: " in found.output
    assert "length skew: positive prompts have 5 words, negative ones 5" not in found.output
    sl.ContrastiveDataset([("Hi.", "Hi.")], [("No", "Yes")], name="fair").save(tmp_path / "d.json")
    assert (
        "found nothing amiss in ContrastiveDataset('fair'"
        in run("lint", tmp_path / "d.json").output
    )


def test_a_search_is_printed_beside_its_baselines(run, files, tmp_path):
    found = run(
        "search", files / "v.safetensors", files / "data.json", "--part", "validation",
        "--held-out", "test", "--out", tmp_path / "s.json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    for baseline in ("length", "words", "majority"):
        assert f"beside {baseline}: F1 " in found.output
    shown = run("inspect", tmp_path / "s.json").output
    assert "mean of layers" in shown


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


def test_generate_reads_a_condition_at_each_token(run, files):
    shown = run(
        "generate", files / "v.safetensors", "I love the number 42.", "--layers", "3",
        "--strength", "0.5", "--relative", "--condition", files / "s.json", "--each-token",
        "--condition-vector", files / "v.safetensors", "--max-new-tokens", "5",
        "--positions", "generated[:3] or prompt",
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert "where " in shown.output
    assert "generated[:3] or prompt" in " ".join(shown.output.split())
    assert "prompt: " in shown.output


def questions(subjects):
    return [
        {
            "question": f"Do you like {subject}?\n({a}) Yes.\n({b}) No.",
            "answer_matching_behavior": f"({a})",
            "answer_not_matching_behavior": f"({b})",
        }
        for subject, a, b in zip(subjects, "ABAB", "BABA", strict=True)
    ]


def test_choices_writes_every_question_and_shows_every_cell(run, files):
    (files / "train.json").write_text(json.dumps(questions(["tea", "rain", "bread", "ships"])))
    (files / "held.json").write_text(json.dumps(questions(["cake", "snow", "soup", "trains"])))
    asked = (
        "choices", files / "held.json", "--train", files / "train.json", "--layers", "2,3",
        "--strengths=-1,0,1", "--out",
    )  # fmt: skip
    shown = run(*asked, files / "choices.csv")
    assert shown.exit_code == 0, shown.output
    table = pd.read_csv(files / "choices.csv")
    assert len(table) == 2 * 3 * 4
    assert table["p_match"].between(0, 1).all()
    assert run(*asked, files / "choices.json").exit_code == 0
    content = json.loads((files / "choices.json").read_text())
    assert [row["p_match"] for row in content["questions"]] == pytest.approx(table["p_match"])
    mean = table.groupby(["layer", "strength"])["p_match"].mean()
    assert [row["p_match"] for row in content["summary"]] == pytest.approx(mean)
    assert content["run"]["vector"]["estimator"] == "mean_difference"


def test_choices_takes_a_vector_that_was_made_before(run, files):
    (files / "held.json").write_text(json.dumps(questions(["cake", "snow", "soup", "trains"])))
    shown = run("choices", files / "held.json", "--vector", files / "v.safetensors")
    assert shown.exit_code == 0, shown.output
    vector = files / "v.safetensors"
    both = run("choices", files / "held.json", "--vector", vector, "--train", files / "held.json")
    assert "got both of --vector and --train" in " ".join(both.output.split())
    same = run("choices", files / "held.json", "--train", files / "held.json")
    assert "that the vector is extracted from" in " ".join(same.output.split())


def test_suggest_prints_the_best_layers_and_keeps_all_candidates(run, files):
    (files / "few.txt").write_text("I love the number 7.\nWe hate the colour 8.\n")
    shown = run(
        "suggest", files / "v.safetensors", files / "few.txt", "--layers", "1-2",
        "--judge", "distinct", "--max-new-tokens", "6", "--out", files / "candidates.csv",
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    candidates = pd.read_csv(files / "candidates.csv")
    assert set(candidates.layers) == {"(1,)", "(2,)", "(1, 2)"}
    assert f"Steering(add_direction {candidates.strength[0]:g} relative" in shown.output
    assert candidates.kl_p95.max() <= 6
    assert "the best of 3" in " ".join(shown.output.split())


def test_without_a_strength_it_is_calibrated_and_said_how(run, files):
    options = ("--layers", "2-3", "--relative", "--max-new-tokens", "4")
    shown = run("generate", files / "v.safetensors", "Hi.", *options)
    assert shown.exit_code == 0, shown.output
    said = " ".join(shown.output.split())
    assert re.search(r"strength [\d.]+, calibrated: KL p95 [\d.]+ of 6 nats on 24 neutral", said)
    strength = float(re.search(r"strength ([\d.]+), calibrated", said)[1])
    assert f"({strength / 2:.2g}" in said  # each of two layers


def test_evaluate_prints_the_verdict_and_keeps_the_tables(run, files):
    (files / "prompts.txt").write_text("I love the number 7.\nWe hate the colour 8.\n")
    shown = run(
        "evaluate", files / "v.safetensors", files / "prompts.txt", "--layers", "2-3",
        "--strength", "0.2", "--strength", "0.4", "--relative", "--judges", "degeneration",
        "--lowers", "--data", files / "data.json", "--part", "train", "--controls", "1",
        "--ask", "Sing.", "--ask-system", "You sing.",
        "--max-new-tokens", "4", "--out", files / "evaluation",
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert "Not shown:" in shown.output
    found = Evaluation.load(files / "evaluation")
    assert found.replies.arm.unique().tolist() == [
        "unsteered", "steered", "negative", "random 1", "shuffled 1",
        "asked: instruction", "asked: instruction, and steered",
        "asked: system message", "asked: system message, and steered",
    ]  # fmt: skip
    assert found.settings["strengths"] == [0.2, 0.4]
    assert "neutral text: KL" in " ".join(shown.output.split())


def test_a_stopped_sweep_says_how_to_continue_and_continues(run, files, monkeypatch):
    monkeypatch.chdir(files)
    command = ["sweep", *SWEPT[:-1], "swept", "--layers", "2,1-3", "--strengths", "-1,1",
               "--max-new-tokens", "4", "--judges", "degeneration"]  # fmt: skip
    written = []

    def stop_after_two(out, plan, rows, *found):
        sweep_store.write_part(out, plan, rows, *found)
        written.append(rows)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sweeps, "write_part", stop_after_two)
        patched.setattr(sweeps, "sweep", partial(sl.sweep, batch_size=1))
        stopped = run(*command)
    assert stopped.exit_code == 130
    assert "holds Sweep(2 of 10 rows" in " ".join(stopped.output.split())
    assert "--resume" in stopped.output
    assert "which is not empty; continue" in " ".join(run(*command).output.split())
    resumed = run(*command, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert len(Sweep.load("swept").table) == 10
    assert (files / "swept" / "summary.csv").read_text().startswith("vector,layers,strength")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "nowhere.json", "--out", "v.safetensors"], "there is no file"),
        (["generate", "nowhere.safetensors", "Hi."], "there is no file 'nowhere.safetensors'"),
        (["generate", "data.json", "Hi."], "expected a name that ends in one of .safetensors"),
        (["generate", "v.safetensors"], "got no prompt; write one after the vector"),
        (["generate", "v.safetensors", "Hi.", "--unless"], "without --condition"),
        (["generate", "v.safetensors", "Hi.", "--each-token"], "without --condition"),
        (["generate", "v.safetensors", "Hi.", "--positions", "generated["], "cannot be read"),
        (["generate", "v.safetensors", "Hi.", "--model", "no/where/at-all"], "no directory"),
        (["generate", "v.safetensors", "Hi.", "--model", "gtp2"], "did you mean gpt2"),
        (["generate", "v.safetensors", "Hi.", "--model", "."], "without config.json"),
        (["generate", "v.safetensors", "Hi.", "--model", "data.json"], "which is no GGUF"),
        (["generate", "v.safetensors", "Hi.", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["generate", "v.safetensors", "--file", "p.csv"], "--prompt-column NAME"),
        (["generate", "v.safetensors", "--file", "."], "got the directory '.'; expected a file"),
        (["extract", "data.json", "--out", "v.svec", "--site", "stream"], "unknown site"),
        (["extract", "data.json", "--out", "v.svec", "--tokens", "first"], "unknown tokens"),
        (["extract", "data.json", "--out", "v.svec", "--gpus-per-worker", "1"], "--workers"),
        (["extract", "prompts.txt", "--out", "v.svec"], "holds single texts"),
        (
            ["extract", "p.csv", "--out", "v.svec", "--pair-columns", "a"],
            "expected two: POSITIVE,NEGATIVE",
        ),
        (["extract", "p.csv", "--out", "v.svec", "--pair-columns", "a,c"], "no column 'c'"),
        (["report", "nowhere"], "there is no directory 'nowhere'"),
        (["report", ".", "--out", "x"], "or a name that ends in .html"),
        (["figures", "nowhere"], "there is no directory 'nowhere'"),
        (["figures", ".", "--scripts", ".", "--format", "gif"], "unknown picture formats"),
        (["export", "v.safetensors", "--out", "x", "--to", "onnx"], "unknown form"),
        (
            ["export", "v.safetensors", "--out", "x", "--to", "gguf"],
            "expected a new file that ends in .gguf",
        ),
        (["playground", "--model", "gtp2"], "did you mean gpt2"),
        (["inspect", "nowhere"], "there is no file 'nowhere'"),
        (
            ["generate", "v.safetensors", "Hi.", "--condition", "s.json"],
            "got only one of --condition",
        ),
        (["search", "v.safetensors", "data.json", "--out", "."], "expected the name of a file"),
        (["extract", "data.json", "--out", "/proc/no/v.safetensors"], "cannot write"),
        (["extract", "data.json", "--out", "v.docx"], "v.docx"),
        (["search", "v.safetensors", "data.json", "--out", "s.json", "--similarity", "x"], "'x'"),
        (["extract", "data.json", "--out", "x.svec", "--estimator", "magic"], "unknown estimator"),
        (["extract", "data.json", "--out", "x.svec", "--layers", "five"], "cannot be read"),
        (["extract", "data.json", "--out", "x.svec", "--layers", "99"], "layers 0 to"),
        (["extract", "data.json", "--out", "x.svec", "--part", "dev"], "no part 'dev'"),
        (["demo", "--out", "/proc/no"], "cannot write"),
        (["choices", "nowhere.json", "--vector", "v.safetensors"], "there is no file"),
        (["choices", "data.json", "--vector", "v.safetensors"], "question 0 of 'data.json'"),
        (
            ["choices", "data.json", "--train", "data.json", "--estimator", "magic"],
            "unknown estimator",
        ),
        (
            ["choices", "data.json", "--train", "data.json", "--out", "x.txt"],
            "expected a name that ends in .csv",
        ),
        (["evaluate", "v.safetensors", "prompts.txt", "--out", "/proc/no"], "cannot write"),
        (["evaluate", "v.safetensors", "prompts.txt", "--out", "e", "--judges", "mood"], "unknown"),
        (["evaluate", "v.safetensors", "no.txt", "--out", "e"], "there is no file"),
        (["cast-table", "--out", "/proc/no"], "cannot write"),
        (["cast-table", "--sizes", "many", "--out", "x"], "expected whole numbers"),
        (["sentiment", "--judge", "taste", "--out", "x"], "unknown judges: 'taste'"),
        (["sentiment", "--beginnings", "prompts.txt", "--out", "x"], "has no part 'validation'"),
        (["sweep", "v.safetensors", "--prompts", "no.txt", "--out", "x"], "there is no file"),
        (["sweep", *SWEPT, "--judges", "taste"], "unknown judges: 'taste'"),
        (["sweep", *SWEPT, "--positions", "here"], "unknown positions: 'here'"),
        (["sweep", *SWEPT, "--strengths", "1;2"], "expected numbers such as"),
        (["sweep", *SWEPT, "--layers", "0"], "no direction for layer 0"),
        (["sweep", "v.safetensors", *SWEPT], "the same name"),
    ],
)
def test_errors_are_messages_without_traceback(run, files, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    (files / "p.csv").write_text("a,b\nHi.,Ho.\n")
    failed = run(*arguments)
    assert failed.exit_code == 2, failed.output
    assert message in " ".join(failed.output.replace("│", " ").split())
    assert "Traceback" not in failed.output


def test_every_command_explains_itself(run):
    for command in (
        "demo", "extract", "learn", "search", "generate", "choices", "suggest", "axbench",
        "compare", "evaluate", "sweep", "sentiment", "cast-table", "export", "playground",
    ):  # fmt: skip
        shown = run(command, "--help")
        assert shown.exit_code == 0
        assert "--model" in shown.output


def test_layers_are_read_as_people_write_them():
    assert parse_layers(None) is None
    assert parse_layers("3") == [3]
    assert parse_layers("1,4-6") == [1, 4, 5, 6]
    for wrong in ("", "6-4", "a-b", "0-99999999999"):
        with pytest.raises(sl.SteerlensError, match="layers"):
            parse_layers(wrong)


def test_strengths_are_read_as_people_write_them():
    assert parse_strengths("-1,0,0.5") == [-1, 0, 0.5]
    with pytest.raises(sl.SteerlensError, match="strengths"):
        parse_strengths("1,much")


def test_other_texts_are_read_as_people_write_them():
    assert parse_windows("1,2-4") == [[1], [2, 3, 4]]
    assert (parse_tokens("suffix"), parse_tokens("3")) == ("suffix", 3)
    assert (parse_sizes("8,64"), parse_sizes("")) == ([8, 64], [])
    for wrong in ("0", "-1", "some"):
        with pytest.raises(sl.SteerlensError, match="unknown tokens"):
            parse_tokens(wrong)
    for wrong in ("nan", "1,inf"):
        with pytest.raises(sl.SteerlensError, match="expected finite numbers"):
            parse_strengths(wrong)


def test_a_dry_run_estimates_the_cost_and_writes_nothing(run, files):
    shown = run("extract", files / "data.json", "--dry-run", "--out", files / "not.safetensors")
    assert shown.exit_code == 0, shown.output
    assert "tokens in 1 passes" in shown.output
    assert not (files / "not.safetensors").exists()


def test_models_are_listed(run):
    listed = run("models", "--like", "gemma2")
    assert "Gemma2ForCausalLM" in listed.output
    assert "TransformerBridge" in listed.output
    assert "Llama" not in listed.output
    assert "MambaForCausalLM" not in run("models").output
    assert "gpt2" in run("models", "--names", "--like", "GPT2").output.split()
    assert "no name contains 'zzz'" in run("models", "--names", "--like", "zzz").output
