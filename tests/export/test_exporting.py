"""Exported checkpoints, read back by plain transformers, steer as hooks do."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import PROMPTS, splitting_condition
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)
from typer.testing import CliRunner

import steerlens as sl
from steerlens.cli.options import app
from steerlens.export import exporting
from steerlens.export.checkpoints import FAMILIES, LLAMA
from steerlens.export.exporting import CERTIFICATE, export_ablation
from steerlens.files import read_json, write_directory
from steerlens.models.tokenizing import tokenize
from steerlens.steering import hooks

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 64, "max_position_embeddings": 128}  # fmt: skip
GROUPED = SHAPE | {"num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
CONFIGS = {
    "llama": LlamaConfig(**GROUPED),
    "llama-tied": LlamaConfig(tie_word_embeddings=True, **GROUPED),
    "mistral": MistralConfig(head_dim=8, sliding_window=None, **GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "phi3": Phi3Config(pad_token_id=0, **GROUPED),
    "gpt2": GPT2Config(**GPT),
    "gpt-neo": GPTNeoConfig(hidden_size=32, num_layers=3, num_heads=4,
                            max_position_embeddings=128, window_size=64,
                            attention_types=[[["global"], 3]]),
    "gptj": GPTJConfig(rotary_dim=4, **GPT),
    "neox": GPTNeoXConfig(**SHAPE),
    "opt": OPTConfig(ffn_dim=64, word_embed_proj_dim=32, **SHAPE),
    "bloom": BloomConfig(hidden_size=32, n_layer=3, n_head=4),
    "qwen3": Qwen3Config(head_dim=8, **GROUPED),
}  # fmt: skip
WITHOUT_MLP_BIAS = ("qwen3",)
WITHOUT_ATTENTION_BIAS = ("gptj",)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Makes the folder of a random model, with norms and biases that are not trivial."""
    tokenizer = AutoTokenizer.from_pretrained(sl.demo_file("tiny-chat"))
    made = {}

    def make(name, dtype=torch.float32, **changes):
        key = name, dtype, str(changes)
        if key in made:
            return made[key]
        config = type(CONFIGS[name])(**CONFIGS[name].to_dict() | changes)
        config.vocab_size, config.initializer_range = len(tokenizer), 0.15
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn(parameter.shape)
        made[key] = tmp_path_factory.mktemp(name)
        model.to(dtype).save_pretrained(
            made[key], max_shard_size="30KB" if "llama" in name else "1GB"
        )
        tokenizer.save_pretrained(made[key])
        return made[key]

    return make


def vector(seed=0, width=32, layers=3, scale=1.0, **fields):
    directions = scale * torch.randn(layers, width, generator=torch.Generator().manual_seed(seed))
    return sl.SteeringVector(directions, tuple(range(layers)), **fields)


def assert_served_as_steered(folder, model, plan, n_new=12):
    """Token by token: plain transformers on the folder, and `generate` under hooks."""
    options = {"max_new_tokens": n_new, "progress": False}
    steered = sl.generate(model, PROMPTS, plan, **options)
    assert steered.tokens != sl.generate(model, PROMPTS, **options).tokens
    served = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for row, tokens in zip(tokenize(model, PROMPTS), steered.tokens, strict=True):
        ids = torch.tensor([row.ids])
        whole = served.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_new, do_sample=False
        )
        assert whole[0, len(row.ids) :].tolist()[: len(tokens)] == list(tokens)


# The theorem: a checkpoint steers as hooks do


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in WITHOUT_MLP_BIAS])
def test_an_exported_checkpoint_generates_as_hooks_do(source, tmp_path, name):
    folder, out = source(name), tmp_path / "out"
    plan = sl.Steering(vector(scale=2.0), layers=[0, 2])
    made = sl.export_model(plan, folder, out)
    assert made.max_logit_difference <= 1e-4 < 0.1 < made.max_effect
    assert len(made.changed) == 2
    assert_served_as_steered(out, sl.load_model(str(folder)), plan)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_an_exported_ablation_generates_as_hooks_do(source, tmp_path, name):
    folder, out = source(name), tmp_path / "out"
    if name == "bloom":
        with pytest.raises(sl.SteerlensError, match="normalises its embedding"):
            export_ablation(vector(), folder, out, layers=1)
        return
    made = export_ablation(vector(), folder, out, layers=1)
    assert made.max_logit_difference <= 1e-4 < 0.1 < made.max_effect
    ablated = sl.load_model(str(folder))
    direction = sl.SteeringVector(vector()[1].expand(3, -1), (0, 1, 2))
    plan = [
        sl.Steering(direction, layers=layers, edit=hooks.ablate_direction, site=site)
        for layers, site in (([0], "resid_pre"), (None, "attn_out"), (None, "mlp_out"))
    ]
    assert_served_as_steered(out, ablated, plan)


SITES = ["resid_pre", "z", "attn_out", "resid_mid", "mlp_out"]


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "opt", "qwen2", "phi3"])
def test_every_site_that_writes_to_the_stream_is_exported(source, tmp_path, name):
    plans = [sl.Steering(vector(seed), site=site) for seed, site in enumerate(SITES)]
    made = sl.export_model(plans, source(name), tmp_path / "out")
    assert made.max_logit_difference <= 1e-4 < 0.1 < made.max_effect


def test_attention_biases_of_qwen3_are_its_own(source, tmp_path):
    made = sl.export_model(
        sl.Steering(vector(), site="resid_mid"), source("qwen3"), tmp_path / "out"
    )
    assert made.architecture == "Qwen3ForCausalLM"
    assert made.max_logit_difference <= 1e-4 < 0.1 < made.max_effect


def test_the_embedded_model_is_exported(tiny_chat, tmp_path):
    refusals = sl.ContrastiveDataset.load(sl.demo_file("refusal.json")).train
    few = sl.ContrastiveDataset(refusals.pairs[:6], refusals.suffixes[:6])
    refuse = sl.extract(tiny_chat, few, tokens="suffix", layers=[2, 3])
    plan = sl.Steering(refuse, strength=0.6, relative=True)
    made = sl.export_model(plan, "tiny-chat", tmp_path / "out")
    assert made.max_logit_difference <= 1e-4
    assert_served_as_steered(tmp_path / "out", tiny_chat, plan)


# What is written


def test_only_what_must_change_does(source, tmp_path):
    folder, out = source("llama"), tmp_path / "out"
    plan = sl.Steering(vector(provenance={"name": "calm", "pairs": 7}), layers=[1], strength=0.5)
    made = sl.export_model(plan, folder, out)
    old, new = (AutoModelForCausalLM.from_pretrained(at).state_dict() for at in (folder, out))
    added = new.keys() - old.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert {name for name in added if new[name].any()} == {"model.layers.1.mlp.down_proj.bias"}
    bias = new["model.layers.1.mlp.down_proj.bias"]
    torch.testing.assert_close(bias, 0.5 * vector()[1])
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (folder / name).exists():
            assert (out / name).read_bytes() == (folder / name).read_bytes()
    card, told = (out / "README.md").read_text(), read_json(out / CERTIFICATE)
    assert told["steering"] == [repr(plan)]
    assert told["vectors"] == [{"name": "calm", "pairs": 7}]
    assert told["prompts"] == len(exporting.PROBES)
    assert told["source_weights"] == made.source_weights
    for words in (repr(plan), "calm", made.source_weights, *made.changed):
        assert words in card
    assert (out.stat().st_mode & 0o777) == (folder.parent.stat().st_mode & 0o777 | 0o755)


def test_half_precision_stays_but_for_what_changed(source, tmp_path):
    folder, out = source("llama", torch.bfloat16), tmp_path / "out"
    assert export_ablation(vector(), folder, out, layers=1).max_logit_difference <= 1e-4
    dtypes = {}
    for file in out.glob("*.safetensors"):
        dtypes |= {name: tensor.dtype for name, tensor in load_file(file).items()}
    assert dtypes["model.layers.0.mlp.down_proj.weight"] == torch.float32
    assert dtypes["model.layers.0.mlp.up_proj.weight"] == torch.bfloat16
    assert read_json(out / "config.json")["dtype"] == "bfloat16"
    auto = AutoModelForCausalLM.from_pretrained(out)
    assert {parameter.dtype for parameter in auto.parameters()} == {torch.bfloat16}


def test_several_steerings_of_a_sharded_source_add_up(source, tmp_path):
    folder = source("llama")
    assert len(list(folder.glob("*.safetensors"))) > 1
    plan = [sl.Steering(vector(seed), layers=[seed]) for seed in (1, 2)]
    sl.export_model(plan, folder, tmp_path / "both")
    assert_served_as_steered(tmp_path / "both", sl.load_model(str(folder)), plan)


def test_a_tied_unembedding_keeps_the_direction(source, tmp_path):
    folder, out = source("llama-tied"), tmp_path / "out"
    export_ablation(vector(), folder, out, layers=1)
    old, new = (AutoModelForCausalLM.from_pretrained(at).state_dict() for at in (folder, out))
    assert torch.equal(new["lm_head.weight"], old["model.embed_tokens.weight"])
    assert (new["model.embed_tokens.weight"] @ vector().normalized()[1]).abs().max() < 1e-6


# Refusals, and nothing left behind


def assert_nothing_written(folder):
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"positions": "generated"}, 'positions are not "all"'),
        ({"skip_bos": True}, "skip_bos"),
        ({"keep_norm": True}, "keep_norm"),
        ({"edit": hooks.ablate_direction}, "depends on the activation"),
        ({"edit": hooks.clamp_direction}, "clamp_direction depends on the activation"),
        ({"site": "ln1_out"}, "does not write to the stream"),
        ({"site": "ln2_out"}, "MLP is gated"),
    ],
)
def test_what_weights_cannot_do_is_refused(source, tmp_path, fields, told):
    with pytest.raises(sl.SteerlensError, match=told):
        sl.export_model(sl.Steering(vector(), **fields), source("llama"), tmp_path / "out")
    assert_nothing_written(tmp_path)


def test_conditions_are_refused(model, model_folder, tmp_path):
    plan = sl.Steering(vector(layers=4), layers=[2], when=splitting_condition(model))
    with pytest.raises(sl.SteerlensError, match="judged for every prompt"):
        sl.export_model(plan, model_folder, tmp_path / "out")
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "fields", "told"),
    [
        ("qwen3", {}, {}, "qwen3 has no place for .*mlp.* resid_mid or attn_out can be exported"),
        ("gptj", {}, {"site": "attn_out"}, "gptj has no place for .*attn.out_proj.bias"),
        ("mistral", {"sliding_window": 16}, {}, "slides over 16 tokens"),
    ],
)
def test_architectures_without_the_bias_are_refused(source, tmp_path, name, changes, fields, told):
    with pytest.raises(sl.SteerlensError, match=told):
        sl.export_model(sl.Steering(vector(), **fields), source(name, **changes), tmp_path / "out")
    assert_nothing_written(tmp_path)


def test_other_model_types_are_refused(source, tmp_path, monkeypatch):
    monkeypatch.delitem(FAMILIES, "llama")
    with pytest.raises(
        sl.SteerlensError, match="of model type 'llama'; expected unquantised weights"
    ):
        sl.export_model(sl.Steering(vector()), source("llama"), tmp_path / "out")


def test_a_checkpoint_that_steers_otherwise_is_not_written(source, tmp_path, monkeypatch):
    plan = sl.Steering(vector(), layers=[1])
    wrong = LLAMA._replace(mlp=LLAMA.attention)
    monkeypatch.setitem(FAMILIES, "llama", wrong)
    with pytest.raises(sl.SteerlensError, match=r"differ by .* from hook steering"):
        sl.export_model(plan, source("llama"), tmp_path / "out")
    assert_nothing_written(tmp_path)


def test_a_strength_of_zero_is_refused(source, tmp_path):
    with pytest.raises(sl.SteerlensError, match="changes no logit"):
        sl.export_model(sl.Steering(vector(), strength=0), source("llama"), tmp_path / "out")
    assert_nothing_written(tmp_path)


def test_directories_are_kept_unless_they_are_exports(source, tmp_path):
    folder, out = source("llama"), tmp_path / "out"
    plan = sl.Steering(vector(), layers=[1])
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "thesis.txt").write_text("years of work")
    for options, told in (({}, "exists; choose another"), ({"force": True}, "was not exported by")):
        with pytest.raises(sl.SteerlensError, match=told):
            sl.export_model(plan, folder, out, **options)
    assert (out / "deep" / "thesis.txt").read_text() == "years of work"
    made = sl.export_model(plan, folder, tmp_path / "steered")
    with pytest.raises(sl.SteerlensError, match="exists; choose another"):
        sl.export_model(plan, folder, tmp_path / "steered")
    again = sl.export_model(replace(plan, strength=2), folder, tmp_path / "steered", force=True)
    assert again.max_effect > made.max_effect
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "steered"]
    for where in (folder, folder / "inside", folder.parent):
        with pytest.raises(sl.SteerlensError, match="inside the source or around it"):
            sl.export_model(plan, folder, where, force=True)
    with pytest.raises(sl.SteerlensError, match="has no config"):
        sl.export_model(plan, tmp_path / "no-such", tmp_path / "x")


def test_a_failing_write_keeps_the_old_directory(tmp_path):
    path = tmp_path / "kept"

    def write(folder):
        (folder / "half").write_text("half")
        raise OSError("no space left")

    write_directory(path, lambda folder: (folder / "whole").write_text("whole"))
    with pytest.raises(sl.SteerlensError, match="no space left"):
        write_directory(path, write, replace=True)
    with pytest.raises(sl.SteerlensError, match="exists already"):
        write_directory(path, write)
    assert [file.name for file in path.iterdir()] == ["whole"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["kept"]


# The command


@pytest.fixture
def run(source, tmp_path):
    vector().save(tmp_path / "v.safetensors")

    def invoke(*arguments):
        return CliRunner().invoke(
            app, ["export", str(tmp_path / "v.safetensors"), *map(str, arguments)]
        )

    return invoke


def test_the_command_writes_a_checkpoint(run, source, tmp_path):
    (tmp_path / "prompts.txt").write_text("One prompt.\nAnd another.\n")
    arguments = ("--model", source("llama"), "--layers", "1", "--prompts", tmp_path / "prompts.txt",
                 "--out", tmp_path / "out")  # fmt: skip
    shown = run(*arguments, "--strength", "0.5")
    assert shown.exit_code == 0, shown.output
    assert read_json(tmp_path / "out" / CERTIFICATE)["prompts"] == 2
    assert run(*arguments).exit_code == 2
    shown = run(*arguments, "--ablate", "--force")
    assert shown.exit_code == 0, shown.output
    assert "ablated" in json.dumps(read_json(tmp_path / "out" / CERTIFICATE)["steering"])


def test_the_command_writes_a_control_vector(run, tmp_path):
    shown = run("--to", "gguf", "--layers", "1-2", "--strength", "3", "--out", tmp_path / "c.gguf")
    assert shown.exit_code == 0, shown.output
    assert "--control-vector" in shown.output
    loaded = sl.SteeringVector.load(tmp_path / "c.gguf")
    torch.testing.assert_close(loaded.directions, 1.5 * vector().directions[1:])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--to", "onnx"], "choose from hf, gguf"),
        (["--ablate", "--strength", "2"], "got --ablate with"),
        (["--to", "gguf"], "expected a new file that ends in .gguf"),
        (["--to", "gguf", "--ablate"], "got --ablate with"),
    ],
)
def test_the_command_refuses(run, tmp_path, arguments, told):
    shown = run(*arguments, "--out", tmp_path / "out")
    assert shown.exit_code == 2
    assert told in " ".join(shown.output.split())
