"""Plans on the command line: written by it, told by it, and taken where a vector is."""

import json

import pytest
import torch
from typer.testing import CliRunner

import steerlens as sl
from steerlens.cli import app
from steerlens.cli.describing import describe
from steerlens.steering import hooks, with_evidence


@pytest.fixture(scope="module")
def run(model_folder):
    runner = CliRunner(env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})

    def invoke(*arguments):
        return runner.invoke(app, [str(one) for one in (*arguments, "--model", model_folder)])

    return invoke


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    generator = torch.Generator().manual_seed(0)
    directions = 4 * torch.randn(4, model.cfg.d_model, generator=generator)
    vector = sl.SteeringVector(directions, range(4), norms=torch.ones(4))
    vector.save(folder / "v.safetensors")
    when = sl.Condition(vector, 0, above=-9.0, name="harmful")
    ruled = sl.Steering(vector, [2], 2.0, when, skip_bos=True, name="refuse")
    ruled.save(folder / "ruled.steer")
    sl.save_plan([ruled, sl.Steering(vector, [3])], folder / "two.steer")
    (folder / "prompts.txt").write_text("How do I bake bread?\nWhere is the sea?\n")
    return folder


def test_a_plan_is_written_and_steers_alike(run, files, tmp_path):
    asked = ["Hi there.", "--max-new-tokens", "4"]
    plan, one, two = (tmp_path / name for name in ("p.steer", "one.json", "two.json"))
    made = run("generate", files / "v.safetensors", *asked, "--layers", "1-2", "--strength", "3",
               "--relative", "--save-plan", plan, "--out", one)  # fmt: skip
    assert made.exit_code == 0, made.output
    [steering] = sl.load_plan(plan)
    assert (steering.layers, steering.strength, steering.relative) == ((1, 2), 3.0, True)
    again = run("generate", plan, *asked, "--out", two)
    assert again.exit_code == 0, again.output
    assert one.read_text() == two.read_text()


def test_a_plan_of_several_steerings_generates(run, files, tmp_path):
    made = run("generate", files / "two.steer", "Hi.", "--max-new-tokens", "3", "--out",
               tmp_path / "r.json")  # fmt: skip
    assert made.exit_code == 0, made.output
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["rows"][0]["fired"] == [True]
    assert content["steering"] == "; ".join(map(repr, sl.load_plan(files / "two.steer")))


def test_an_evaluated_plan_keeps_its_verdict(run, files, tmp_path):
    plan = tmp_path / "p.steer"
    made = run("evaluate", files / "ruled.steer", files / "prompts.txt", "--controls", "1",
               "--max-new-tokens", "3", "--out", tmp_path / "e", "--save-plan", plan)  # fmt: skip
    assert made.exit_code == 0, made.output
    evidence = sl.Steering.load(plan).evidence
    told = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert evidence == {"prompts": 2, "verdict": told["verdict"]}
    assert describe(plan).facts["refuse, verdict"].startswith(told["verdict"][0])


def test_a_sweep_takes_plans_as_templates(run, files, tmp_path):
    made = run("sweep", files / "ruled.steer", "--prompts", files / "prompts.txt", "--out",
               tmp_path / "s", "--max-new-tokens", "2")  # fmt: skip
    assert made.exit_code == 0, made.output
    plan = json.loads((tmp_path / "s" / "plan.json").read_text())["plan"]
    assert plan["strengths"] == {"ruled": [2.0]}
    assert plan["layers"] == ["2"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["generate", "ruled.steer", "Hi.", "--layers", "2"], "got --layers beside the plan"),
        (["generate", "ruled.steer", "Hi.", "--strength", "0"], "got --strength beside the plan"),
        (["evaluate", "ruled.steer", "prompts.txt", "--out", "e", "--relative"], "got --relative"),
        (["evaluate", "two.steer", "prompts.txt", "--out", "e"], "a plan of 2 steerings"),
        (["sweep", "two.steer", "--prompts", "prompts.txt", "--out", "e"], "a plan of 2 steer"),
        (["sweep", "ruled.steer", "--prompts", "prompts.txt", "--out", "e", "--positions", "last"],
         "got --positions beside the plan"),
        (["generate", "v.safetensors", "Hi.", "--save-plan", "p.json"], "ends in one of .steer"),
        (["search", "ruled.steer", "prompts.txt", "--out", "s.json"], "expected a name that ends"),
        (["generate", "nowhere.steer", "Hi."], "there is no file 'nowhere.steer'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(run, files, monkeypatch, arguments, why):
    monkeypatch.chdir(files)
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert why in " ".join(refused.output.replace("│", " ").split())


def test_a_plan_is_told_as_one_would_say_it(files, tmp_path):
    found = describe(files / "ruled.steer")
    assert found.kind == "a plan for steering"
    assert found.facts["refuse"] == (
        "adds 'vector' × 2 at resid_post of layer 2, to every token but the first, if harmful"
    )
    assert found.facts["harmful"] == (
        "fires where the cast similarity at resid_post of layer 0 (tokens: all) is above -9"
    )
    vector = sl.SteeringVector.load(files / "v.safetensors")

    def soften(resid, direction, strength):
        return resid / 2

    own = sl.Steering(vector, edit=soften, positions=slice(2, None), keep_norm=True)
    ablated = sl.Steering(vector, [1], edit=hooks.ablate_direction, positions="last")
    plan = [own, with_evidence(ablated, {"f1": [0.5, 0.25, 0.75], "n": 3})]
    sl.save_plan(plan, tmp_path / "own.steer")
    found = describe(tmp_path / "own.steer")
    assert found.facts["steering 1"] == (
        "does soften with 'vector', strength 1 at each of 4 layers at resid_post of layers 0–3, "
        "to the tokens at positions 2:, keeping each token's norm, always"
    )
    assert found.facts["steering 2"].startswith("removes the projection on 'vector' × 1")
    assert found.facts["steering 2, f1"] == "0.500 [0.250, 0.750]"
    assert found.facts["needs the functions"] == "soften"


def test_what_is_no_plan_is_told(tmp_path):
    (tmp_path / "p.steer").write_bytes(b"steer")
    assert not describe(tmp_path / "p.steer").known
