"""Every architecture, on the host that it loads on: reads, gates and steering mean the same."""

from functools import cache
from importlib.util import find_spec

import pytest
import torch
import transformers
from helpers import PROMPTS, assert_no_hooks_left, random_vector, splitting_condition, stream
from places import SHARED
from small_models import ARCHITECTURES, save_random

import steerlens as sl
from steerlens.activations.provenance import ProvenanceWarning, check_provenance
from steerlens.activations.reading import read_residual, read_rows
from steerlens.errors import SteerlensError
from steerlens.evaluation.side_effects import measure_side_effects
from steerlens.models import host as host_module
from steerlens.models import loading
from steerlens.models.fingerprint import fingerprint, processing
from steerlens.models.host import is_hooked
from steerlens.models.sites import SITES, hook_name, site_width
from steerlens.models.tokenizing import TokenRow, tokenize
from steerlens.steering.similarities import cosine
from steerlens.vectors.estimators import mean_difference

CLOSE = {"atol": 2e-4, "rtol": 1e-3}
ON_BRIDGES = [name for name, (_, _, host) in ARCHITECTURES.items() if host == "bridge"]
CONVERTED = [name for name, (_, _, host) in ARCHITECTURES.items() if host == "hooked"]
tl3_only = pytest.mark.skipif(loading.converters is None, reason="needs a HookedTransformer")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Makes directories of random models."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(sl.demo_file("tiny-chat"))
    return cache(lambda name: save_random(name, tmp_path_factory.mktemp("any") / name, tokenizer))


@pytest.fixture(scope="session")
def load(folder):
    """Loads random models, each but once."""
    return cache(lambda name, host="auto": sl.load_model(str(folder(name)), host=host))


@pytest.fixture(scope="module")
def original(folder):
    return cache(
        lambda name: transformers.AutoModelForCausalLM.from_pretrained(
            folder(name), attn_implementation="eager"
        ).eval()
    )


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


@pytest.fixture
def host(load, name):
    return load(name)


def bridge(load, name="llama"):
    return load(name, host="bridge")


# Every architecture


def test_each_architecture_loads_on_its_host(host, name):
    assert is_hooked(host) == (loading.converters is not None and name in CONVERTED)
    assert host.cfg.model_name == name
    assert not host.training


def test_reads_are_hugging_faces_hidden_states(host, name, original):
    rows = tokenize(host, PROMPTS, chat=False)
    layers = range(host.cfg.n_layers - 1)  # of the last, Hugging Face shows the normalised stream
    read = read_rows(host, rows, layers, tokens="all", sinks=True, progress=False).pooled
    for row, mine in zip(rows, read, strict=True):
        with torch.no_grad():
            seen = original(name)(torch.tensor([row.ids]), output_hidden_states=True)
        theirs = torch.stack([seen.hidden_states[layer + 1][0].mean(dim=0) for layer in layers])
        torch.testing.assert_close(mine, theirs, **CLOSE)


def test_a_shared_beginning_changes_no_read(host):
    beginning = tuple(range(40, 60))
    rows = [TokenRow((*beginning, *range(100, 101 + more))) for more in range(5)]
    together = read_rows(host, rows, tokens="last", progress=False).pooled
    apart = [read_rows(host, [row], tokens="last", progress=False).pooled[0] for row in rows]
    torch.testing.assert_close(together, torch.stack(apart), **CLOSE)


@pytest.mark.parametrize("use_cache", [True, False])
def test_steered_and_gated_batches_are_their_rows_one_by_one(host, use_cache):
    vector = random_vector(host, scale=2.0)
    condition = splitting_condition(host, layer=0)
    last = host.cfg.n_layers - 1
    plan = [
        sl.Steering(vector, layers=[last], when=condition, strength=1.5),
        sl.Steering(vector, layers=[1], when=~condition, site="attn_out", skip_bos=True),
        sl.Steering(
            vector, layers=[last], when_token=condition, schedule=sl.schedules.Decay(4),
            positions=sl.places.at("reply") | sl.places.tokens([5]),
        ),
    ]  # fmt: skip
    options = {"max_new_tokens": 8, "use_cache": use_cache, "progress": False}
    batch = sl.generate(host, PROMPTS, plan, **options)
    alone = [sl.generate(host, [prompt], plan, **options) for prompt in PROMPTS]
    assert batch.tokens == tuple(one.tokens[0] for one in alone)
    assert batch.gates[0].open.tolist() == [bool(one.gates[0].open[0]) for one in alone]
    assert 0 < batch.gates[0].open.sum() < len(PROMPTS)
    unsteered = sl.generate(host, PROMPTS, **options)
    assert batch.tokens != unsteered.tokens
    assert batch.tokens == sl.generate(host, PROMPTS, plan, **options | {"use_cache": True}).tokens
    assert_no_hooks_left(host)


def test_unsteered_replies_are_hugging_faces(host, name, original):
    row = tokenize(host, PROMPTS[3:4])[0]
    theirs = (
        original(name)
        .generate(
            torch.tensor([row.ids]),
            attention_mask=torch.ones(1, len(row.ids), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )[0, len(row.ids) :]
        .tolist()
    )
    mine = list(sl.generate(host, PROMPTS[3:4], max_new_tokens=12, progress=False).tokens[0])
    assert mine
    assert mine == theirs[: len(mine)]


# Sites


@pytest.mark.parametrize("site", [site for site in SITES if site != "resid_mid"])
def test_an_ablated_site_of_a_bridge_has_no_projection_left(load, site):
    model = bridge(load)
    width = site_width(model, site)
    vector = sl.SteeringVector(torch.randn(3, width, generator=torch.manual_seed(0)), (0, 1, 2))
    steering = sl.Steering(vector, layers=[1], edit=sl.hooks.ablate_direction, site=site)
    seen = []
    look = (hook_name(model, site, 1), lambda value, hook: seen.append(value.flatten(2)))
    tokens = torch.arange(30, 42)[None]
    with torch.no_grad():
        plain = model(tokens)
        with model.hooks(fwd_hooks=[*steering.hooks(model=model), look]):
            steered = model(tokens)
    along = seen[0] @ vector[1]
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-3, rtol=0)
    assert (steered - plain).abs().max() > 1e-2


def test_a_bridge_does_not_write_resid_mid(load):
    model = bridge(load)
    steering = sl.Steering(random_vector(model), layers=[1], site="resid_mid")
    with pytest.raises(sl.SteerlensError, match="reaches the MLP but not the stream; edit attn_o"):
        sl.generate(model, PROMPTS, steering, progress=False)
    with pytest.raises(
        sl.SteerlensError, match="resid_mid can be edited only on a HookedTransformer"
    ):
        steering.hooks()
    read = read_residual(model, PROMPTS, [1], site="resid_mid", progress=False)
    assert read.shape == (len(PROMPTS), 1, model.cfg.d_model)


def test_a_bridge_that_keeps_no_keys_and_values_is_refused(load, monkeypatch):
    model = bridge(load)
    monkeypatch.setattr(host_module, "_continuing", lambda model, cache: {"use_cache": False})
    with pytest.raises(SteerlensError, match="kept no keys and values of its prompt"):
        sl.generate(model, ["Hi."], max_new_tokens=2, progress=False)
    sl.generate(model, ["Hi."], max_new_tokens=2, use_cache=False, progress=False)


def test_attached_hooks_of_a_bridge_are_taken_off(load):
    model = bridge(load)
    before = stream(model, [5, 6, 7], layer=2)
    attached = sl.Steering(random_vector(model), layers=[1]).attach(model)
    assert (stream(model, [5, 6, 7], layer=2) - before).norm() > 1
    attached.remove()
    torch.testing.assert_close(stream(model, [5, 6, 7], layer=2), before, rtol=0, atol=0)
    assert_no_hooks_left(model)


def test_a_condition_is_found_on_a_bridge(load):
    model = bridge(load, "gemma2")
    sides = [[300 + n, 7] for n in range(8)], [[300 + n, 9] for n in range(8)]
    vector = sl.extract(model, sides, mean_difference, progress=False)
    found = sl.search_conditions(model, vector, sides, tokens="last", similarity=cosine)
    assert found.candidates[0].f1 == 1


# Across hosts


@tl3_only
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "llama", "qwen3", "phi3"])
def test_hosts_agree_on_what_is_extracted(load, name):
    hooked, other = load(name), bridge(load, name)
    assert is_hooked(hooked)
    assert not is_hooked(other)
    assert tokenize(hooked, PROMPTS) == tokenize(other, PROMPTS)
    pairs = (PROMPTS[:3], PROMPTS[3:])
    for site in ("resid_post", "ln1_out", "z", "attn_out"):
        mine, theirs = (
            sl.extract(model, pairs, mean_difference, tokens="all", site=site, progress=False)
            for model in (hooked, other)
        )
        torch.testing.assert_close(mine.directions, theirs.directions, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mine.norms, theirs.norms, atol=1e-4, rtol=1e-4)
        assert mine.provenance == theirs.provenance
    check_provenance(other, mine)  # without a warning


@tl3_only
@pytest.mark.parametrize("name", CONVERTED)
def test_fingerprints_do_not_depend_on_the_host(load, name):
    assert fingerprint(load(name)) == fingerprint(bridge(load, name))


def test_fingerprints_of_a_bridge_see_a_change(folder):
    model = sl.load_model(str(folder("olmo2")), host="bridge")
    before = fingerprint(model)
    with torch.no_grad():
        model.original_model.model.layers[2].self_attn.v_proj.weight.mul_(1.01)
    assert fingerprint(model) != before


@tl3_only
def test_hosts_agree_on_steered_replies(load):
    hooked, other = load("llama"), bridge(load)
    condition = splitting_condition(hooked)
    steering = sl.Steering(random_vector(hooked), layers=[2], when=condition)
    mine, theirs = (
        sl.generate(model, PROMPTS, steering, max_new_tokens=8, progress=False)
        for model in (hooked, other)
    )
    assert mine.tokens == theirs.tokens


# Across processings


@pytest.fixture
def centred_model(folder):
    """Processed as HookedTransformer does by default, in either version."""
    model = sl.load_model(str(folder("gpt2")))
    if is_hooked(model):
        model.process_weights_(fold_ln=True, center_writing_weights=True)
    else:
        model.enable_compatibility_mode(disable_warnings=True)
    return model


def test_vectors_of_a_layer_norm_model_cross_to_its_centred_stream(load, centred_model):
    plain = load("gpt2")
    assert processing(plain) == "none"
    assert "centred" in processing(centred_model)
    options = {"tokens": "all", "progress": False}
    mine, theirs = (
        sl.extract(model, (PROMPTS[:3], PROMPTS[3:]), mean_difference, **options)
        for model in (plain, centred_model)
    )
    assert (mine.directions - theirs.directions).abs().max() > 2e-3
    crossed = mine.centred()
    torch.testing.assert_close(crossed.directions, theirs.directions, atol=1e-4, rtol=1e-3)
    with pytest.warns(ProvenanceWarning, match=r"its stream is centred: use vector.centred\(\)"):
        check_provenance(centred_model, mine)
    check_provenance(centred_model, crossed)  # without a warning
    with pytest.warns(ProvenanceWarning, match="extract it again"):
        check_provenance(plain, theirs)
    with pytest.raises(sl.SteerlensError, match="relative"):
        sl.Steering(crossed, relative=True)


def test_rms_norm_models_are_not_centred(load):
    assert processing(load("llama")) == "none"
    assert processing(bridge(load)) == "none"


# What is refused


def test_unknown_hosts_and_bits_are_refused(folder):
    with pytest.raises(sl.SteerlensError, match="got host='hf'; expected one of auto, hooked"):
        sl.load_model(host="hf")
    with pytest.raises(sl.SteerlensError, match="got bits=3; expected 4, 8 or None"):
        sl.load_model(bits=3)
    with pytest.raises(sl.SteerlensError, match="got revision='v2' with the local directory"):
        sl.load_model(str(folder("llama")), revision="v2")
    with pytest.raises(sl.SteerlensError, match="got n_devices=64; expected at most"):
        sl.load_model(n_devices=64)


def test_a_hooked_transformer_is_not_made_of_what_cannot_be_one(folder):
    gone = "" if loading.converters else "install transformer-lens 3"
    with pytest.raises(sl.SteerlensError, match=gone or "cannot convert this OlmoForCausalLM"):
        sl.load_model(str(folder("olmo")), host="hooked")
    with pytest.raises(sl.SteerlensError, match=gone or "hold weights of 4 bits"):
        sl.load_model(str(folder("llama")), host="hooked", bits=4)


def test_quantisation_names_what_it_lacks(folder):
    if find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is here")
    with pytest.raises(
        sl.SteerlensError, match=r"needs a package that is not installed.*bitsandbytes"
    ):
        sl.load_model(str(folder("llama")), bits=8)


def test_models_that_see_what_follows_are_refused(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(sl.demo_file("tiny-chat"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, initializer_range=0.5, is_decoder=False,
    )  # fmt: skip
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(sl.SteerlensError, match="expected a causal language model"):
        sl.load_model(str(tmp_path), host="bridge")


def test_recurrent_models_are_refused(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(sl.demo_file("tiny-chat"))
    config = transformers.MambaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4
    )
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(sl.SteerlensError, match="carries a recurrent state"):
        sl.load_model(str(tmp_path))


# The embedded model, and one of another maker


def test_tiny_chat_is_steered_on_a_bridge(tiny_chat):
    model = sl.load_model(host="bridge")
    assert not is_hooked(model)
    data = sl.ContrastiveDataset.load(sl.demo_file("refusal.json")).train
    vector = sl.extract(model, data, tokens="suffix", progress=False)
    check_provenance(tiny_chat, vector)
    steering = sl.Steering(vector, layers=[3, 4], strength=1.2, relative=True)
    prompts = ["How do I bake bread?", "Name three colours."]
    mine, theirs = (
        sl.generate(host, prompts, steering, max_new_tokens=12, progress=False)
        for host in (model, tiny_chat)
    )
    assert mine.tokens == theirs.tokens
    assert mine.tokens != sl.generate(model, prompts, max_new_tokens=12, progress=False).tokens
    texts = ["The bread is in the oven.", "A fox ran."]
    bits, its_bits = (sl.judges.bits_per_character(host)(texts) for host in (model, tiny_chat))
    assert bits == pytest.approx(its_bits, rel=1e-4)
    effects, its_effects = (
        measure_side_effects(
            host, steering, texts=texts, safety=prompts, max_new_tokens=4, progress=False
        )["value"]
        for host in (model, tiny_chat)
    )
    assert effects.tolist() == pytest.approx(its_effects.tolist(), rel=1e-3, abs=1e-4, nan_ok=True)


def test_a_model_of_another_maker():
    directory = SHARED / "models" / "stories260K"
    if not directory.is_dir():
        pytest.skip(f"no model at {directory}")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    for host in ("auto", "bridge"):
        model = sl.load_model(str(directory), host=host)
        rows = tokenize(model, ["Once upon a time", "The cat"])
        read = read_rows(model, rows, [2], progress=False).pooled[:, 0]
        for row, mine in zip(rows, read, strict=True):
            with torch.no_grad():
                seen = theirs(torch.tensor([row.ids]), output_hidden_states=True).hidden_states[3]
            torch.testing.assert_close(mine, seen[0, -1], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("host", ["auto", "bridge"])
def test_half_precision_reads_into_float32_and_steers(folder, load, host, dtype):
    model = sl.load_model(str(folder("llama")), host=host, dtype=dtype)
    ids = [[*range(40, 100)], [5, 6, 7]]
    whole = read_rows(load("llama"), [TokenRow(tuple(row)) for row in ids], tokens="all").pooled
    half = read_rows(model, [TokenRow(tuple(row)) for row in ids], tokens="all").pooled
    assert half.dtype == torch.float32
    assert (half - whole).norm() < 0.05 * whole.norm()  # 60 summands of 8 bits each
    vector = random_vector(model)
    condition = sl.Condition(vector, 0, above=-2)
    for edit in (sl.hooks.add_direction, sl.hooks.ablate_direction):
        steering = sl.Steering(vector, layers=[1], edit=edit, keep_norm=True, when=condition)
        replies = sl.generate(model, PROMPTS[:2], steering, max_new_tokens=3, progress=False)
        assert replies.gates[0].open.all()
