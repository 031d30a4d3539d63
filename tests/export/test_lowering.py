"""Plans for other programs do there what they do here, or are refused.

Each program is played by a few lines of PyTorch on the Hugging Face model, which do with the file
what the program's own source does with it.
"""

import base64
import json
import random
import warnings
from collections import Counter
from contextlib import contextmanager
from functools import partial

import gguf
import numpy as np
import pytest
import torch
from helpers import PROMPTS, at_each_layer, random_vector
from typer.testing import CliRunner

import steerlens as sl
from steerlens.cli import app
from steerlens.export import LmEvalWarning, edited_biases, lm_eval_file, lower, read_lm_eval
from steerlens.export.block_outputs import block_additions, control_vector
from steerlens.export.checkpoints import FAMILIES
from steerlens.export.lowering import TARGETS
from steerlens.steering import hooks

EXACT = {"atol": 1e-4, "rtol": 0}
IDS = torch.tensor([[1, 17, 250, 9, 3, 77, 1024, 5]])
EDITS = [value for value in vars(hooks).values() if hasattr(value, "edit")]


@contextmanager
def hooked(modules):
    """Changes of modules' outputs, as `{module: function}`."""

    def changed(module, given, output, change):
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handles = [
        module.register_forward_hook(partial(changed, change=change))
        for module, change in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def added(vector):
    return lambda acts: acts + vector


def llama_cpp(hf_model, path):
    """`direction.N` is added to the output of block N, for N of 1 and more; 0 is rejected."""
    reader = gguf.GGUFReader(path)
    directions = {tensor.name: torch.tensor(np.array(tensor.data)) for tensor in reader.tensors}
    assert "direction.0" not in directions
    blocks = hf_model.model.layers
    return {blocks[int(name[10:])]: added(vector) for name, vector in directions.items()}


def lm_eval(hf_model, path, mended=False):
    """Hooks by module name; those that add share the loop's variables, unless that is mended."""
    modules = dict(hf_model.base_model.named_modules())
    actions = torch.load(path, weights_only=True)
    changes, shared = {}, {}
    for name, action in actions.items():
        vector, value = action["steering_vector"], action["steering_coefficient"]
        bias = action["bias"]
        own = {"vector": vector, "value": value}
        shared |= own
        if action["action"] == "add":
            changes[modules[name]] = partial(shifted, told=own if mended else shared)
        else:
            changes[modules[name]] = partial(clamped, vector=vector, value=value, bias=bias)
    return changes


def shifted(acts, told):
    return acts + told["value"] * told["vector"]


def clamped(acts, vector, value, bias):
    acts = acts if bias is None else acts - bias
    unit = vector / vector.norm()
    acts = acts - (acts * unit).sum(dim=-1, keepdim=True) * unit + value * unit
    return acts if bias is None else acts + bias


def vllm_lens(hf_model, path):
    """One vector for each layer, scaled, added to the outputs of all tokens."""
    changes = {}
    for vector in json.loads(path.read_text())["apply_steering_vectors"]:
        assert (vector["norm_match"], vector["position_indices"]) == (False, None)
        stored = vector["activations"]
        data = np.frombuffer(base64.b64decode(stored["data"]), stored["dtype"])
        rows = torch.tensor(data.reshape(stored["shape"]))
        for layer, row in zip(vector["layer_indices"], rows, strict=True):
            changes[hf_model.model.layers[layer]] = added(vector["scale"] * row)
    return changes


ENDINGS = {"gguf": ".gguf", "lm-eval": ".pt", "vllm": ".json"}
PROGRAMS = {"gguf": llama_cpp, "lm-eval": lm_eval, "vllm": vllm_lens}


def here(model, plan):
    with torch.no_grad(), model.hooks(fwd_hooks=sl.steering_hooks(*plan, model=model)):
        return model(IDS)


def there(hf_model, changes):
    with torch.no_grad(), hooked(changes):
        return hf_model(IDS).logits


def drawn_plan(model, draw):
    """Mostly what some program can do, and sometimes anything."""
    steps = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        layers = draw.sample(range(4), draw.randint(1, 3))
        edit = hooks.add_direction if draw.random() < 0.6 else draw.choice(EDITS)
        more = {"reference": random_vector(model, draw.randrange(99), 1.0)} if edit in (
            hooks.affine_direction, hooks.rotate_to_direction) else {}  # fmt: skip
        strength = 1.0 if edit is hooks.ablate_direction and draw.random() < 0.7 else (
            draw.choice((-1, 1)) * draw.uniform(0.2, 1))  # fmt: skip
        if draw.random() < 0.3:
            strength = [strength] * len(layers)
        more["site"] = draw.choice(["resid_post"] * 6 + ["resid_pre", "attn_out", "mlp_out"])
        if draw.random() < 0.15:
            more |= draw.choice([
                {"positions": "last"}, {"skip_bos": True}, {"keep_norm": True},
                {"when": sl.Condition(random_vector(model), 0, above=0.0)},
            ])  # fmt: skip
        vector = random_vector(model, draw.randrange(99), 1.0, norms=torch.ones(4))
        relative = draw.random() < 0.3
        try:
            steps.append(
                sl.Steering(vector, layers, strength, edit=edit, relative=relative, **more)
            )
            sl.steering_hooks(*steps)
        except sl.SteerlensError:  # a condition after the first steered layer
            steps = steps[:-1] if len(steps) > 1 else [sl.Steering(vector, [1])]
    return steps


def outcome(model, hf_model, plan, to, folder):
    """exact, refused, or warned of; whatever is written must be exact."""
    path = folder / f"plan{ENDINGS[to]}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LmEvalWarning)
        try:
            lower(plan, to).save(path)
        except sl.SteerlensError:
            return "refused"
    expected = here(model, plan)
    if any(issubclass(one.category, LmEvalWarning) for one in caught):
        torch.testing.assert_close(
            there(hf_model, lm_eval(hf_model, path, True)), expected, **EXACT
        )
        assert (there(hf_model, lm_eval(hf_model, path)) - expected).abs().max() > 1e-4
        return "warned"
    torch.testing.assert_close(there(hf_model, PROGRAMS[to](hf_model, path)), expected, **EXACT)
    return "exact"


def tried(model, hf_model, folder, seeds):
    """How often each outcome came, by the program."""
    counts = Counter()
    for seed in seeds:
        plan = drawn_plan(model, random.Random(seed))
        for to in PROGRAMS:
            counts[to, outcome(model, hf_model, plan, to, folder)] += 1
        try:
            with edited_biases(model, *plan), torch.no_grad():
                found = model(IDS)
            torch.testing.assert_close(found, here(model, plan), **EXACT)
            counts["hf", "exact"] += 1
        except sl.SteerlensError:
            counts["hf", "refused"] += 1
    return counts


def test_random_plans_are_exact_there_or_refused(model, hf_model, tmp_path):
    counts = tried(model, hf_model, tmp_path, range(50))
    for to in TARGETS:
        assert min(counts[to, "exact"], counts[to, "refused"]) > 5
    assert counts["lm-eval", "warned"] > 2


@pytest.mark.slow
def test_a_thousand_random_plans_are_exact_there_or_refused(model, hf_model, tmp_path):
    counts = tried(model, hf_model, tmp_path, range(1000, 2000))
    assert counts.total() == 4000
    for to in TARGETS:
        assert min(counts[to, "exact"], counts[to, "refused"]) > 100


def test_a_checkpoint_is_a_target_like_any_other(model, model_folder, tmp_path):
    plan = sl.Steering(random_vector(model, scale=1.0), [1, 2], 0.5)
    lowered = lower(plan, "hf", source=model_folder)
    assert lowered.save(tmp_path / "steered").max_logit_difference < 1e-4
    with pytest.raises(sl.SteerlensError, match="cannot be folded into biases"):
        lower(sl.Steering(random_vector(model), positions="last"), "hf", source=model_folder)


# What each cannot do is refused with the reason


def vector(layers=range(4), **fields):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(len(layers), 8, generator=generator)
    return sl.SteeringVector(rows, tuple(layers), **fields)


def own_edit(resid, direction, strength):
    return resid


SOMEWHERE = {
    "its positions are not": {"positions": "prompt"},
    "skip_bos leaves the first token out": {"skip_bos": True},
    "keep_norm scales each token": {"keep_norm": True},
    "condition (when=) is judged for every prompt": {"when": sl.Condition(vector(), 0, above=0.0)},
}


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize(
    ("why", "fields"),
    [
        *SOMEWHERE.items(),
        ("own_edit depends on the activation", {"edit": own_edit}),
        ("rotate_to_direction depends on", {
            "edit": hooks.rotate_to_direction, "reference": vector()}),
    ],
)  # fmt: skip
def test_what_no_program_can_do_is_refused(to, why, fields):
    with pytest.raises(sl.SteerlensError) as refused:
        lower(sl.Steering(vector(), [2], **fields), to)
    assert why in str(refused.value)


def test_a_field_that_this_module_does_not_know_is_refused(monkeypatch):
    """A field that is added to `Steering` is not lowered in silence before somebody wrote how."""
    from steerlens.export import weight_edits

    monkeypatch.setattr(weight_edits, "EVERYWHERE_ALIKE", weight_edits.EVERYWHERE_ALIKE - {"name"})
    lower(sl.Steering(vector(), [2]), "vllm")
    with pytest.raises(sl.SteerlensError, match="its name may differ between tokens"):
        lower(sl.Steering(vector(), [2], name="refuse"), "vllm")


@pytest.mark.parametrize("to", ["gguf", "lm-eval", "vllm"])
@pytest.mark.parametrize(("site", "layer"), [("attn_out", 2), ("resid_mid", 2), ("resid_pre", 0)])
def test_other_sites_than_outputs_of_blocks_are_refused(to, site, layer):
    with pytest.raises(sl.SteerlensError, match="expected the output of a block"):
        lower(sl.Steering(vector(), [layer], site=site), to)


def test_targets_and_plans_that_do_not_exist_are_told():
    with pytest.raises(sl.SteerlensError, match="expected one of hf, gguf, lm-eval, vllm"):
        lower(sl.Steering(vector()), "onnx")
    with pytest.raises(sl.SteerlensError, match="without a steering"):
        lower([], "vllm")
    wide = sl.SteeringVector(torch.ones(1, 9), (2,))
    with pytest.raises(sl.SteerlensError, match=r"widths \[8, 9\]"):
        lower([sl.Steering(vector(), [1]), sl.Steering(wide)], "vllm")


def test_additions_of_one_block_are_summed_whatever_its_output_is_called():
    plan = [sl.Steering(vector(), [1, 2]), sl.Steering(vector(), [3], 2.0, site="resid_pre")]
    found = block_additions(plan, "a test")
    assert [*found] == [1, 2]
    torch.testing.assert_close(found[2], 0.5 * vector()[2] + 2 * vector()[3])


# llama.cpp


def test_a_control_vector_holds_what_hooks_add(model, tmp_path):
    norms = torch.tensor([1.0, 2.0, 3.0, 4.0])
    plan = sl.Steering(random_vector(model, norms=norms), [1, 3], strength=0.25, relative=True)
    control_vector(plan).save(tmp_path / "v.gguf")
    loaded = sl.SteeringVector.load(tmp_path / "v.gguf")
    assert loaded.layers == (1, 3)
    torch.testing.assert_close(loaded.directions.norm(dim=1), 0.125 * norms[[1, 3]])
    options = {"max_new_tokens": 8, "progress": False}
    expected = sl.generate(model, PROMPTS, plan, **options).tokens
    again = at_each_layer(sl.Steering(loaded))
    assert sl.generate(model, PROMPTS, again, **options).tokens == expected


@pytest.mark.parametrize(
    ("provenance", "hint"),
    [
        ({"model": "out/my-model", "model_type": "llama"}, "llama"),
        ({"model_type": "mistral"}, "llama"),
        ({"model_type": "gpt_neox"}, "gptneox"),
        ({"sum": [{"model": "m", "model_type": "qwen2"}, {}]}, "qwen2"),
        ({"model": "out/my-model"}, "unknown"),
    ],
)
def test_the_hint_is_the_architecture_and_not_the_models_name(tmp_path, provenance, hint):
    vector([1], provenance=provenance).save(tmp_path / "v.gguf")
    field = gguf.GGUFReader(tmp_path / "v.gguf").get_field("controlvector.model_hint")
    assert bytes(field.parts[field.data[0]]).decode() == hint


def test_extracted_vectors_know_the_architecture(model):
    found = sl.extract(model, (["I love it."], ["I hate it."]), layers=[1], progress=False)
    assert found.provenance["model_type"] == "llama"


def test_layer_0_is_refused_in_words_for_both_python_and_the_command():
    with pytest.raises(sl.SteerlensError) as refused:
        control_vector(sl.Steering(vector()))
    assert "steers layers 0–3" in str(refused.value)
    assert "steer layers 1-3 (--layers 1-3)" in str(refused.value)
    with pytest.raises(sl.SteerlensError, match=r"save layers 1–3 of it with vector\.at"):
        vector().save("v.gguf")


# lm-eval


def test_lm_eval_mixes_up_layers_that_add_and_this_is_told():
    with pytest.warns(LmEvalWarning, match="of the last layer, 2, at all of the 2 layers"):
        lm_eval_file(sl.Steering(vector(), [1, 2]))
    clamping = sl.Steering(vector(), [1], edit=hooks.clamp_direction)
    found = lm_eval_file([sl.Steering(vector(), [0]), clamping])  # one adds, and is the last
    assert [*found.actions] == ["layers.1", "layers.0"]


def test_plans_come_back_from_files_for_lm_eval(model, tmp_path):
    clamps = sl.Steering(random_vector(model, 1), [3], -0.5, edit=hooks.clamp_direction)
    plan = [sl.Steering(random_vector(model, 2), [1], 0.3, relative=False), clamps]
    lower(plan, "lm-eval").save(tmp_path / "p.pt")
    again = read_lm_eval(tmp_path / "p.pt")
    assert [step.edit.__name__ for step in again] == ["add_direction", "clamp_direction"]
    torch.testing.assert_close(here(model, again), here(model, plan), **EXACT)


def test_a_bias_of_lm_eval_moves_the_length_that_is_clamped(model, hf_model, tmp_path):
    generator = torch.Generator().manual_seed(0)
    direction, bias = torch.randn(2, model.cfg.d_model, generator=generator)
    action = {"action": "clamp", "steering_vector": direction, "steering_coefficient": 2.0}
    torch.save({"layers.2": action | {"bias": bias}}, tmp_path / "p.pt")
    expected = there(hf_model, lm_eval(hf_model, tmp_path / "p.pt"))
    found = here(model, read_lm_eval(tmp_path / "p.pt"))
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize(
    ("why", "plan"),
    [
        ("removes a part of the projection", {"edit": hooks.ablate_direction, "strength": 0.5}),
        ("removes a part of the projection", {
            "edit": hooks.ablate_direction, "strength": [1, 0.5], "layers": [1, 2]}),
        ("its positions are not", {"edit": hooks.clamp_direction, "positions": "last"}),
    ],
)  # fmt: skip
def test_what_lm_eval_cannot_clamp_is_refused(why, plan):
    with pytest.raises(sl.SteerlensError, match=why):
        lm_eval_file(sl.Steering(**{"vector": vector(), "layers": [1]} | plan))


def test_lm_eval_has_one_action_for_each_module_and_divides_by_lengths():
    clamping = sl.Steering(vector(), [1], edit=hooks.clamp_direction)
    for other in (clamping, sl.Steering(vector(), [2], site="resid_pre")):
        with pytest.raises(sl.SteerlensError, match="two edits of the output of block 1"):
            lm_eval_file([clamping, other])
    zero = sl.SteeringVector(torch.zeros(1, 4), (1,))
    with pytest.raises(sl.SteerlensError, match="direction is zero"):
        lm_eval_file(sl.Steering(zero, edit=hooks.clamp_direction))


@pytest.mark.parametrize(
    ("kind", "module"),
    [("llama", "layers.1"), ("gpt2", "h.1"), ("gpt_neox", "layers.1"), ("bloom", "h.1"),
     ("opt", "decoder.layers.1"), ("gptj", "h.1")],
)  # fmt: skip
def test_modules_are_called_as_the_architecture_calls_them(kind, module):
    steering = sl.Steering(vector(provenance={"model_type": kind}), [1])
    assert [*lm_eval_file(steering).actions] == [module]
    assert [*lm_eval_file(sl.Steering(vector(), [1]), model_type=kind).actions] == [module]
    assert kind in FAMILIES


def test_modules_of_unknown_architectures_are_refused():
    with pytest.raises(sl.SteerlensError, match="the model type 'mamba'"):
        lm_eval_file(sl.Steering(vector(), [1]), model_type="mamba")


@pytest.mark.parametrize(
    ("why", "content"),
    [
        ("no actions", {}),
        ("no actions", torch.ones(3)),
        ("got the module 'layers.1.mlp'", {"layers.1.mlp": {}}),
        ("got no 'steering_vector'", {"layers.1": {"action": "add", "steering_coefficient": 1.0}}),
        ("expected 'add' or 'clamp'", {"layers.1": {
            "action": "turn", "steering_vector": torch.ones(3), "steering_coefficient": 1.0}}),
        ("NaN or infinite", {"layers.1": {
            "action": "add", "steering_vector": torch.tensor([torch.nan]),
            "steering_coefficient": 1.0}}),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, why, content):
    torch.save(content, tmp_path / "p.pt")
    with pytest.raises(sl.SteerlensError, match=why) as refused:
        read_lm_eval(tmp_path / "p.pt")
    assert "p.pt" in str(refused.value)


def test_files_are_saved_under_the_ending_that_lm_eval_reads(tmp_path):
    with pytest.raises(sl.SteerlensError, match=r"ends in \.pt"):
        lm_eval_file(sl.Steering(vector(), [1])).save(tmp_path / "p.safetensors")


# vLLM


def test_a_request_is_text_within_the_arguments_that_vllm_passes_on():
    body = lower(sl.Steering(vector(), [0, 2]), "vllm").extra_body
    [one] = json.loads(body["vllm_xargs"]["apply_steering_vectors"])
    assert (one["layer_indices"], one["activations"]["shape"]) == ([0, 2], [2, 8])


# The command


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vector().save("v.safetensors")
    sl.save_plan([sl.Steering(vector(), [1], 2.0), sl.Steering(vector(), [1])], "two.steer")
    sl.Steering(vector(), [1], positions="last").save("last.steer")
    return tmp_path


def run(*arguments):
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, ["export", *map(str, arguments)])


@pytest.mark.parametrize("to", ENDINGS)
def test_the_command_writes_plans_for_every_program(files, to):
    shown = run("two.steer", "--to", to, "--out", f"p{ENDINGS[to]}")
    assert shown.exit_code == 0, shown.output
    assert "To steer with it" in shown.output
    assert (files / f"p{ENDINGS[to]}").exists()
    assert run("two.steer", "--to", to, "--out", f"p{ENDINGS[to]}").exit_code == 2
    assert run("two.steer", "--to", to, "--out", f"p{ENDINGS[to]}", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["last.steer", "--to", "vllm", "--out", "p.json"], "its positions are not"),
        (["v.safetensors", "--to", "gguf", "--out", "p.gguf"], "--layers 1-3"),
        (["two.steer", "--to", "gguf", "--layers", "1", "--out", "p.gguf"], "beside the plan"),
        (["two.steer", "--ablate", "--out", "p"], "got --ablate beside the plan"),
        (["v.safetensors", "--to", "lm-eval", "--out", "p.gguf"], "ends in .pt"),
    ],
)
def test_the_command_says_what_cannot_be(files, arguments, told):
    shown = run(*arguments)
    assert shown.exit_code == 2
    assert told in " ".join(shown.output.split())


def test_the_command_tells_of_lm_evals_fault(files):
    shown = run("v.safetensors", "--to", "lm-eval", "--layers", "1-2", "--out", "p.pt")
    assert shown.exit_code == 0, shown.output
    assert "until that is mended steer one layer" in shown.output
