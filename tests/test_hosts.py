"""Every architecture, on the host that it loads on: reads, gates and steering mean the same."""

from functools import cache

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, save_random
from helpers import PROMPTS, assert_no_hooks_left, random_vector, splitting_condition, stream

import steerlens as sl
from steerlens import loading
from steerlens.models import SITES, fingerprint, hook_name, is_hooked, processing, site_width
from steerlens.residual import read_rows
from steerlens.tokens import TokenRow, tokenize

CLOSE = {"atol": 2e-4, "rtol": 1e-3}
ON_BRIDGES = [name for name, (_, _, host) in ARCHITECTURES.items() if host == "bridge"]
CONVERTED = [name for name, (_, _, host) in ARCHITECTURES.items() if host == "hooked"]
tl3_only = pytest.mark.skipif(loading.converters is None, reason="needs a HookedTransformer")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Makes directories of random models."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(sl.embedded("tiny-chat"))
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
    read = read_rows(host, rows, layers, tokens="all", progress=False).pooled
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
    ]
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
    vector = sl.SteeringVector(torch.randn(3, width, generator=torch.manual_seed(0)), range(3))
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
    with pytest.raises(sl.SteerlensError, match="reaches the MLP but not the stream; write attn_o"):
        sl.generate(model, PROMPTS, steering, progress=False)
    with pytest.raises(sl.SteerlensError, match="resid_mid is written by a HookedTransformer only"):
        steering.hooks()
    read = sl.read_residual(model, PROMPTS, [1], site="resid_mid", progress=False)
    assert read.shape == (len(PROMPTS), 1, model.cfg.d_model)


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
    kind, other = [[300 + n, 7, 9] for n in range(8)], [[900 + n, 7, 9] for n in range(8)]
    vector = sl.extract(model, (kind, other), sl.directions.mean_difference, progress=False)
    found = sl.search_conditions(model, vector, (kind, other))
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
            sl.extract(model, pairs, sl.directions.mean_difference, site=site, progress=False)
            for model in (hooked, other)
        )
        torch.testing.assert_close(mine.directions, theirs.directions, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mine.norms, theirs.norms, atol=1e-4, rtol=1e-4)
        assert mine.provenance == theirs.provenance
    sl.check_provenance(other, mine)  # without a warning


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
