"""`steerlens inspect` on one of each kind that steerlens writes, and on what it does not know."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import steerlens as sl
from steerlens.cli import app
from steerlens.cli.describing import describe

PAIR = (["How do I steal a car?", "How do I rob a bank?"], ["How do I bake bread?", "Why?"])


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_chat):
    """A directory with one of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    vector = sl.extract(tiny_chat, PAIR, layers=[1, 2, 4], name="harm", progress=False)
    vector.save(folder / "v.safetensors")
    named = {f"layer_{layer}": vector[layer].clone() for layer in vector.layers}
    torch.save(named, folder / "v.pt")
    np.savez(folder / "v.npz", **{name: row.numpy() for name, row in named.items()})
    steering = sl.Steering(vector, [2], 0.5)
    with pytest.warns(UserWarning, match="leaves out"):
        vector.save(folder / "v.svec")
    other = (
        [f"How do I steal {n} cars?" for n in range(4)],
        [f"Bake {n} cakes." for n in range(4)],
    )
    sl.search_conditions(tiny_chat, vector, other, layers=[1, 2], progress=False).save(
        folder / "s.json"
    )
    short = {"max_new_tokens": 3, "progress": False}
    sl.sweep(tiny_chat, {"harm": vector}, PAIR[0], layers=[2], out=folder / "sweep", **short)
    sl.evaluate(
        tiny_chat, steering, PAIR[0], controls=1, texts=PAIR[1], safety=PAIR[1], **short
    ).save(folder / "evaluation")
    sl.export_model(steering, "tiny-chat", folder / "export")
    return folder


def test_a_vector_tells_its_model_layers_site_and_estimator(made):
    found = describe(made / "v.safetensors")
    assert found.kind == "a steering vector"
    expected = {"name": "harm", "model": "tiny-chat", "layers": "1-2,4", "site": "resid_post",
            "width": "192", "estimator": "linear_discriminant", "pairs": "2"}  # fmt: skip
    assert expected.items() <= found.facts.items()
    assert found.warnings == ()


@pytest.mark.parametrize("name", ["v.svec", "v.pt", "v.npz"])
def test_other_programs_vectors_say_what_they_lack(made, name):
    found = describe(made / name)
    assert found.facts["layers"] == "1-2,4"
    assert found.facts["source"] == f"format .{name.partition('.')[2]}, file {name}"
    assert "norms are not known" in found.warnings[0]


def test_a_zero_direction_is_warned_of(tmp_path):
    sl.SteeringVector(torch.tensor([[0.0, 0], [1, 0]]), (3, 4)).save(tmp_path / "v.safetensors")
    assert "the direction of layer 3 is zero" in describe(tmp_path / "v.safetensors").warnings


def test_a_search_shows_its_condition_and_scores(made):
    found = describe(made / "s.json")
    assert found.kind == "a condition search"
    content = json.loads((made / "s.json").read_text())
    assert f"{content['best']['threshold']:.4f}" in found.facts["best"]
    assert f"{content['scores']['f1'][0]:.3f}" in found.facts["F1"]
    assert found.warnings == ("scored on only 4 prompts: its scores are uncertain",)


def test_a_sweep_tells_how_far_it_is(made, tmp_path):
    found = describe(made / "sweep")
    assert (found.kind, found.facts["rows"], found.warnings) == ("a sweep", "4 of 4", ())
    assert found.facts["vectors"] == "harm"
    (tmp_path / "plan.json").write_bytes((made / "sweep" / "plan.json").read_bytes())
    [warning] = describe(tmp_path).warnings
    assert warning.startswith("4 of 4 rows are missing")


def test_an_evaluation_tells_its_verdict_and_what_is_gone(made, tmp_path):
    found = describe(made / "evaluation")
    assert found.kind == "an evaluation"
    assert "refusal" in found.facts["verdict"]
    assert any("no shuffled labels" in warning for warning in found.warnings)
    copy = tmp_path / "evaluation.json"
    copy.write_bytes((made / "evaluation" / "evaluation.json").read_bytes())
    assert "scores.parquet is missing" in describe(tmp_path).warnings


def test_an_exported_model_tells_its_certificate(made):
    found = describe(made / "export")
    assert found.kind == "a steered model, exported"
    assert found.facts["changed"] == "model.layers.2.mlp.down_proj.bias"
    assert "of hook steering on 4 prompts" in found.facts["verified"]


@pytest.mark.parametrize(
    ("name", "kind", "fact"),
    [
        ("harmful.json", "a contrastive dataset", ("parts", "train 464, validation 120, test 180")),
        ("questions.json", "prompts (JSON)", ("rows", "518")),
        ("topics.json", "prompts by topic (JSON)", ("topics", "base, legal")),
        ("tiny-chat", "a Hugging Face model", ("architecture", "LlamaForCausalLM")),
    ],
)
def test_shipped_data_are_known(name, kind, fact):
    found = describe(sl.demo_file(name))
    assert found.kind == kind
    assert found.facts[fact[0]].startswith(fact[1])


def test_a_pair_of_equal_sides_is_warned_of(tmp_path):
    sl.ContrastiveDataset([("Hi.", "Hi."), ("Up.", "Down.")]).save(tmp_path / "d.json")
    assert describe(tmp_path / "d.json").warnings == (
        "1 pairs have two equal sides: they show no contrast",
    )


@pytest.mark.parametrize(
    ("name", "content", "because"),
    [
        ("x.safetensors", b"no vector", "not a readable steerlens vector"),
        ("x.json", b"{", "not valid JSON"),
        ("x.json", b'{"format": "steerlens.search/1"}', "it lacks a part of its format"),
        ("x.json", b'{"format": "steerlens.search/1", "best": 3, "scores": []}', "it lacks a part"),
        ("x.json", b'{"format": "steerlens.sweep/1", "plan": null}', "it lacks a part"),
        ("x.toml", b"a = 1", "no files that end in '.toml'"),
        ("x.txt", b"\xff", "not UTF-8"),
    ],
)
def test_what_is_not_known_is_answered_plainly(tmp_path, name, content, because):
    (tmp_path / name).write_bytes(content)
    found = describe(tmp_path / name)
    assert (found.known, found.kind) == (False, "not understood")
    assert because in found.facts["because"]


def test_a_directory_of_many_files_says_what_each_is(made):
    kinds = describe(made).facts
    assert kinds["a steering vector"] == "v.npz, v.pt, v.safetensors, v.svec"
    assert kinds["a condition search"] == "s.json"
    with pytest.raises(AssertionError):
        assert describe(made / "empty").known


def test_text_of_users_is_never_markup(tmp_path):
    name = "[bold red]x[/] [/oops] :smile:"
    sl.ContrastiveDataset([("Up.", "Down.")], name=name).save(tmp_path / "d.json")
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["inspect", str(tmp_path / "d.json")])
    assert shown.exit_code == 0, shown.output
    assert name in shown.output
