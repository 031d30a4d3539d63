from copy import deepcopy
from functools import partial

import pytest
import torch
from helpers import PROMPTS, host_reply, plain_generate, random_vector, splitting_condition
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import steerlens as sl
from steerlens.export import weight_edits
from steerlens.export.weight_edits import ablated_weights, edited_biases
from steerlens.models import weights
from steerlens.models.sites import SITES, hook_name, site_width
from steerlens.models.tokenizing import tokenize
from steerlens.models.weights import stream_writers
from steerlens.numerics import at_least_float32
from steerlens.steering import hooks

TOKENS = torch.tensor([[5, 9, 300, 41, 7, 260, 33, 8], [1, 2, 3, 4, 50, 60, 70, 80]])
WITHOUT_GATED_LN2 = [site for site in SITES if site != "ln2_out"]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 64, "max_position_embeddings": 128}  # fmt: skip
PARALLEL = [site for site in SITES if site != "resid_mid"]


@pytest.fixture(scope="module")
def random_host(tmp_path_factory):
    """Makes random models of other families, with tiny-chat's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(sl.demo_file("tiny-chat"))

    def make(config_class, model_class, **fields):
        torch.manual_seed(0)
        ids = {
            f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos")
        }
        folder = tmp_path_factory.mktemp("random-host")
        config = config_class(vocab_size=len(tokenizer), initializer_range=0.15, **ids, **fields)
        model_class(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return with_random_biases(sl.load_model(str(folder)))

    return make


@pytest.fixture(scope="module")
def gpt2(random_host):
    fields = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
    return random_host(GPT2Config, GPT2LMHeadModel, **fields)


@pytest.fixture(scope="module")
def neox(random_host):
    return random_host(GPTNeoXConfig, GPTNeoXForCausalLM, **SHAPE)


@pytest.fixture(scope="module")
def llama(random_host):
    return random_host(LlamaConfig, LlamaForCausalLM, num_key_value_heads=2, **SHAPE)


@pytest.fixture(scope="module")
def hosts(gpt2, neox, llama):
    return {"gpt2": gpt2, "neox": neox, "llama": llama}


def with_random_biases(model):
    """Norms that are not the identity and biases that are not zero, where the family has them."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if name.endswith((".w", ".b")) or ".b_" in name or "._b_" in name:
            noise = 0.3 * torch.randn(weight.shape, generator=generator)
            weight.data += noise.to(weight)
    return model


def built(**fields):
    """A host's model without a tokenizer, for architectures that no local config loads."""
    torch.manual_seed(0)
    settings = {"n_layers": 3, "d_model": 32, "n_ctx": 32, "d_head": 8, "n_heads": 4,
                "d_vocab": 400, "act_fn": "gelu", "device": "cpu", "init_weights": True,
                "initializer_range": 0.2, "model_name": "built"}  # fmt: skip
    return with_random_biases(
        HookedTransformer(HookedTransformerConfig(**(settings | fields))).eval()
    )


def vector_at(model, site="resid_post", seed=0, scale=1.0, n_layers=None):
    shape = n_layers or model.cfg.n_layers, site_width(model, site)
    directions = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return sl.SteeringVector(directions, tuple(range(shape[0])), site=site)


def logits(model, steerings=()):
    plan = sl.steering_hooks(*steerings, model=model) if steerings else []
    with torch.no_grad(), model.hooks(fwd_hooks=plan):
        return model(TOKENS)


def edited_logits(model, *steerings):
    with edited_biases(model, *steerings):
        return logits(model)


def assert_equals_hooks(model, *steerings, atol=1e-5):
    plain, hooked = logits(model), logits(model, steerings)
    assert (hooked - plain).abs().max() > 0.05, "the steering must do something"
    torch.testing.assert_close(edited_logits(model, *steerings), hooked, atol=atol, rtol=0)


def snapshot(model):
    """Every parameter's tensor: where it lies, how it is laid out, and a copy of it."""
    return {
        name: (weight.data_ptr(), weight.stride(), weight.detach().clone())
        for name, weight in model.named_parameters()
    }


def assert_untouched(model, before):
    for name, (place, strides, values) in snapshot(model).items():
        assert (place, strides) == before[name][:2], name
        assert torch.equal(values, before[name][2]), name


# The theorem: biases do what hooks do


@pytest.mark.parametrize(
    ("family", "site"),
    [
        *(("llama", site) for site in WITHOUT_GATED_LN2),
        *(("gpt2", site) for site in SITES),
        *(("neox", site) for site in PARALLEL),
    ],
)
def test_edited_biases_equal_hooks(hosts, family, site):
    model = hosts[family]
    vector = vector_at(model, site)
    for layers in (None, [0], [1], [2]):
        assert_equals_hooks(model, sl.Steering(vector, layers=layers, strength=0.5))


def test_the_seeds_equation_is_what_happens(gpt2):
    """b' = W v + b, for every reader of the norm's output."""
    vector = vector_at(gpt2, "ln1_out")
    attn = gpt2.blocks[1].attn
    before = attn.b_K.detach().clone()
    with edited_biases(gpt2, sl.Steering(vector, layers=[1], strength=2)):
        expected = before + 2 * torch.einsum("d,hde->he", vector[1], attn.W_K)
        torch.testing.assert_close(attn.b_K.detach(), expected)


def test_a_relative_strength_and_a_site_of_ones_own_are_followed(llama):
    vector = sl.SteeringVector(
        vector_at(llama).directions, (0, 1, 2), norms=torch.tensor([1.0, 2.0, 3.0])
    )
    assert_equals_hooks(llama, sl.Steering(vector, site="mlp_out", strength=0.3, relative=True))


def test_several_steerings_and_nested_uses_add_up(gpt2):
    plan = [
        sl.Steering(vector_at(gpt2, site, seed), strength=0.4)
        for seed, site in enumerate(["resid_post", "resid_pre", "mlp_out", "attn_out", "ln2_out"])
    ]
    assert_equals_hooks(gpt2, *plan)
    before = snapshot(gpt2)
    with edited_biases(gpt2, *plan[:2]):
        outer = snapshot(gpt2)
        with edited_biases(gpt2, plan[2]), edited_biases(gpt2, *plan[3:]):
            found = logits(gpt2)
        assert_untouched(gpt2, outer)
    assert_untouched(gpt2, before)
    torch.testing.assert_close(found, logits(gpt2, plan), atol=1e-5, rtol=0)


def test_biases_and_hooks_add_up(llama):
    one, two = (sl.Steering(vector_at(llama, seed=seed), strength=0.4) for seed in (0, 1))
    with edited_biases(llama, one):
        found = logits(llama, [two])
    torch.testing.assert_close(found, logits(llama, [one, two]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("fields", "sites"),
    [
        pytest.param({"attn_only": True}, ["resid_pre", "ln1_out", "z", "attn_out", "resid_post"],
                     id="attention-only"),
        pytest.param({"gated_mlp": True, "normalization_type": "LN"}, list(SITES), id="gated-LN"),
        pytest.param({"normalization_type": "LNPre"}, list(SITES), id="folded-norms"),
        pytest.param({"n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
                     ["ln1_out", "z"], id="ungrouped"),
        pytest.param({"post_embedding_ln": True, "positional_embedding_type": "alibi"},
                     ["resid_pre"], id="normalised-embedding"),
        pytest.param({"positional_embedding_type": "shortformer"}, ["resid_pre", "ln1_out"],
                     id="shortformer"),
        pytest.param({"normalization_type": "RMS", "use_normalization_before_and_after": True},
                     ["ln1_out", "z", "ln2_out"], id="normalised-writers"),
        pytest.param({"normalization_type": "RMS", "use_qk_norm": True,
                      "positional_embedding_type": "rotary", "rotary_dim": 8},
                     ["ln1_out"], id="normalised-queries"),
    ],
)  # fmt: skip
def test_other_architectures_of_the_host(fields, sites):
    model = built(**fields)
    for site in sites:
        steering = sl.Steering(vector_at(model, site), strength=0.5)
        layers = [0] if fields.get("post_embedding_ln") else None
        assert_equals_hooks(model, sl.Steering(steering.vector, layers=layers, strength=0.5))


def test_in_double_precision_they_are_equal_to_rounding(model_folder):
    model = sl.load_model(str(model_folder), dtype=torch.float64)
    for site in WITHOUT_GATED_LN2:
        steering = sl.Steering(vector_at(model, site), strength=0.75)  # exact in float32, too
        hooked = logits(model, [steering])
        torch.testing.assert_close(edited_logits(model, steering), hooked, atol=1e-11, rtol=0)


def test_half_precision_keeps_its_dtype(model_folder):
    model = sl.load_model(str(model_folder), dtype=torch.bfloat16)
    before = snapshot(model)
    with edited_biases(model, sl.Steering(vector_at(model))):
        assert model.blocks[0].mlp.b_out.dtype == torch.bfloat16
        assert logits(model).isfinite().all()
    with ablated_weights(model, vector_at(model), layers=1):
        assert model.W_E.dtype == torch.bfloat16
    assert_untouched(model, before)


def test_the_embedded_model_is_steered_alike(tiny_chat):
    before = snapshot(tiny_chat)
    for site in WITHOUT_GATED_LN2:
        steering = sl.Steering(vector_at(tiny_chat, site), layers=[2, 3])
        assert_equals_hooks(tiny_chat, steering, atol=5e-5)  # its logits reach 14
    assert_untouched(tiny_chat, before)


# Generation


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("site", ["resid_post", "attn_out", "ln1_out", "z"])
def test_generating_under_edited_biases_is_generating_with_hooks(hosts, family, site):
    model = hosts[family]
    steering = sl.Steering(vector_at(model, site, scale=2.0))
    options = {"max_new_tokens": 8, "progress": False}
    hooked = sl.generate(model, PROMPTS, steering, **options)
    with edited_biases(model, steering):
        edited = sl.generate(model, PROMPTS, **options)
    assert edited.tokens == hooked.tokens
    assert edited.tokens != sl.generate(model, PROMPTS, **options).tokens


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
def test_the_hosts_own_generate_follows(llama, use_cache):
    steering = sl.Steering(vector_at(llama, scale=2.0), layers=[1, 2])
    ids = tokenize(llama, PROMPTS[:2])[1].ids
    expected = plain_generate(llama, ids, [steering], use_cache=use_cache)
    with edited_biases(llama, steering):
        assert host_reply(llama, ids, use_cache=use_cache) == expected


# Afterwards the model is what it was


def test_the_very_tensors_come_back(llama, gpt2):
    for model in (llama, gpt2):
        before, plain = snapshot(model), logits(model)
        plan = [sl.Steering(vector_at(model, site)) for site in WITHOUT_GATED_LN2]
        with edited_biases(model, *plan):
            assert not torch.equal(logits(model), plain)
        with ablated_weights(model, vector_at(model), layers=1):
            assert not torch.equal(logits(model), plain)
        assert_untouched(model, before)
        assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_very_tensors_come_back_after_an_exception(llama, error):
    before = snapshot(llama)

    def interrupted(context):
        with context:
            raise error("stop")

    vector = vector_at(llama)
    for context in (
        edited_biases(llama, sl.Steering(vector)),
        ablated_weights(llama, vector, layers=0),
    ):
        with pytest.raises(error, match="stop"):
            interrupted(context)
        assert_untouched(llama, before)


def test_the_very_tensors_come_back_if_memory_runs_out_half_way(llama, monkeypatch):
    before, widen, calls = snapshot(llama), at_least_float32, []

    def failing(values):
        calls.append(values)
        if len(calls) == 3:
            raise MemoryError("no more")
        return widen(values)

    monkeypatch.setattr(weight_edits, "at_least_float32", failing)
    with (
        pytest.raises(MemoryError, match="no more"),
        edited_biases(llama, sl.Steering(vector_at(llama))),
    ):
        pytest.fail("the block must not run")
    assert_untouched(llama, before)


def test_a_refused_plan_changes_nothing(llama):
    before = snapshot(llama)
    good = sl.Steering(vector_at(llama))
    bad = sl.Steering(vector_at(llama), edit=hooks.ablate_direction)
    with pytest.raises(sl.SteerlensError), edited_biases(llama, good, bad):
        pytest.fail("the block must not run")
    assert_untouched(llama, before)


def test_the_weight_layout_stays(llama):
    strides = {name: weight.stride() for name, weight in llama.named_parameters()}
    plan = [sl.Steering(vector_at(llama, site)) for site in WITHOUT_GATED_LN2]
    with ablated_weights(llama, vector_at(llama), layers=0), edited_biases(llama, *plan):
        assert {name: weight.stride() for name, weight in llama.named_parameters()} == strides
    assert llama.blocks[0].mlp.W_out.T.is_contiguous()


def test_a_state_dict_taken_inside_keeps_the_edit(llama):
    steering = sl.Steering(vector_at(llama, "ln1_out"))
    with edited_biases(llama, steering), ablated_weights(llama, vector_at(llama), layers=0):
        expected, exported = logits(llama), llama.state_dict()
    copy = deepcopy(llama)
    copy.load_state_dict(exported)
    assert torch.equal(logits(copy), expected)


def test_inference_mode_does_no_harm(llama):
    before, steering = snapshot(llama), sl.Steering(vector_at(llama))
    with torch.inference_mode(), edited_biases(llama, steering):
        found = llama(TOKENS)
    torch.testing.assert_close(found, logits(llama, [steering]), atol=1e-5, rtol=0)
    assert_untouched(llama, before)
    assert not any(weight.is_inference() for weight in llama.parameters())


def test_gradients_flow_through_edited_biases(gpt2):
    with edited_biases(gpt2, sl.Steering(vector_at(gpt2))):
        gpt2(TOKENS).sum().backward()
    assert gpt2.blocks[0].mlp.b_out.grad is not None
    gpt2.zero_grad(set_to_none=True)


def test_a_model_that_moved_meanwhile_gets_its_tensors_where_it_is(model_folder):
    model = sl.load_model(str(model_folder))
    old = model.blocks[0].mlp.b_out.detach().clone()
    with edited_biases(model, sl.Steering(vector_at(model))):
        model.double()
    assert torch.equal(model.blocks[0].mlp.b_out.detach(), old.double())


# Ablation


def writer_hooks(model, direction):
    """Ablate at the embedding and at everything that is added to the stream."""
    ablate = partial(hooks.ablate_direction, direction=direction, strength=1.0, where=lambda: None)
    names = [name for name in ("hook_embed", "hook_pos_embed") if name in model.hook_dict]
    if model.cfg.positional_embedding_type != "standard":
        names = ["hook_embed"]
    names += [
        hook_name(model, site, layer)
        for layer in range(model.cfg.n_layers)
        for site in ("attn_out", "mlp_out")
        if not (model.cfg.attn_only and site == "mlp_out")
    ]
    return [(name, ablate) for name in names]


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_ablated_weights_equal_ablation_at_every_writer(hosts, family):
    model = hosts[family]
    vector = vector_at(model, scale=3.0)
    with torch.no_grad(), model.hooks(fwd_hooks=writer_hooks(model, vector[1])):
        hooked = model(TOKENS)
    assert (hooked - logits(model)).abs().max() > 0.05
    with ablated_weights(model, vector, layers=1):
        torch.testing.assert_close(logits(model), hooked, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "fields",
    [{"attn_only": True}, {"positional_embedding_type": "shortformer"}, {"gated_mlp": True}],
    ids=["attention-only", "shortformer", "gated"],
)
def test_ablation_in_other_architectures_of_the_host(fields):
    model = built(**fields, dtype=torch.float64)  # in float32 they amplify rounding to 3e-5
    vector = vector_at(model)
    with torch.no_grad(), model.hooks(fwd_hooks=writer_hooks(model, vector[2])):
        hooked = model(TOKENS)
    with ablated_weights(model, vector, layers=[2]):
        torch.testing.assert_close(logits(model), hooked, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_no_writer_and_no_stream_has_a_projection_left(hosts, family):
    model = hosts[family]
    vector = vector_at(model, scale=3.0)
    unit = vector[0] / vector[0].norm()
    sites = [s for s in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
             if s in (PARALLEL if family == "neox" else SITES)]  # fmt: skip
    names = [hook_name(model, s, layer) for s in sites for layer in range(model.cfg.n_layers)]
    seen = {}
    look = [(name, lambda out, hook: seen.update({hook.name: out})) for name in names]
    with ablated_weights(model, vector, layers=0):
        with torch.no_grad(), model.hooks(fwd_hooks=look):
            model(TOKENS)
        for writer in stream_writers(model):
            assert (writer.detach() @ unit).abs().max() < 1e-6
    assert set(seen) == set(names)
    for name, out in seen.items():
        assert (out @ unit).abs().max() <= 1e-5 * out.norm(dim=-1).max(), name


def test_generating_with_ablated_weights_is_generating_with_hooks(llama):
    direction = vector_at(llama)[2].expand(3, -1)
    vector = sl.SteeringVector(direction, (0, 1, 2))
    plan = [
        sl.Steering(vector, layers=layers, edit=hooks.ablate_direction, site=site)
        for layers, site in (([0], "resid_pre"), (None, "attn_out"), (None, "mlp_out"))
    ]
    hooked = sl.generate(llama, PROMPTS, plan, max_new_tokens=8, progress=False)
    with ablated_weights(llama, vector):
        ablated = sl.generate(llama, PROMPTS, max_new_tokens=8, progress=False)
    assert ablated.tokens == hooked.tokens


def test_sign_and_length_of_an_ablated_direction_do_not_matter(llama):
    direction = vector_at(llama)[0]
    scaled = torch.stack([direction, -2 * direction, 1e-3 * direction])
    with ablated_weights(llama, sl.SteeringVector(scaled, (0, 1, 2))):
        found = logits(llama)
    with ablated_weights(llama, vector_at(llama), layers=0):
        torch.testing.assert_close(logits(llama), found, atol=1e-5, rtol=0)


def test_what_is_ablated_last_loses_what_was_added_before(llama):
    vector = vector_at(llama)
    steering = sl.Steering(vector, layers=[1])
    with ablated_weights(llama, vector, layers=1):
        ablated = logits(llama)
        with edited_biases(llama, steering):
            added_after = logits(llama)
    with edited_biases(llama, steering), ablated_weights(llama, vector, layers=1):
        added_before = logits(llama)
    torch.testing.assert_close(added_before, ablated, atol=1e-5, rtol=0)
    assert (added_after - ablated).abs().max() > 0.05


# Refusals


def user_edit(resid, direction, strength):
    return resid + strength * direction


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"positions": "prompt"}, 'its positions are not "all"'),
        ({"positions": torch.ones(8, dtype=torch.bool)}, 'its positions are not "all"'),
        ({"skip_bos": True}, "skip_bos leaves the first token out"),
        ({"keep_norm": True}, "keep_norm scales each token by its own length"),
        ({"keep_norm": hooks.restore_grown_norm}, "keep_norm scales each token"),
        ({"edit": hooks.ablate_direction}, "ablate_direction depends on .* see ablated_weights"),
        ({"edit": user_edit}, "user_edit depends on the activation"),
        ({"site": "ln2_out"}, "MLP is gated: W_gate and W_in both read ln2_out"),
    ],
)
def test_what_a_bias_cannot_do_is_refused(llama, fields, told):
    steering = sl.Steering(vector_at(llama), **fields)
    with pytest.raises(sl.SteerlensError, match=told), edited_biases(llama, steering):
        pytest.fail("the block must not run")


def test_a_condition_is_refused(model):
    condition = splitting_condition(model)
    steering = sl.Steering(random_vector(model), layers=[2], when=condition)
    with (
        pytest.raises(sl.SteerlensError, match=r"condition \(when=\) is judged for every prompt"),
        edited_biases(model, steering),
    ):
        pytest.fail("the block must not run")


def refused(model, site, told, layers=None):
    steering = sl.Steering(vector_at(model, site), layers=layers)
    with pytest.raises(sl.SteerlensError, match=told), edited_biases(model, steering):
        pytest.fail("the block must not run")


def test_sites_that_a_model_lacks_are_refused(neox):
    refused(neox, "resid_mid", "has no resid_mid")
    refused(built(attn_only=True), "mlp_out", "built has no mlp.b_out at layer 0")
    steering = sl.Steering(vector_at(neox, n_layers=5))
    with (
        pytest.raises(sl.SteerlensError, match=r"got layer\(s\) \[3, 4\]; expected"),
        edited_biases(neox, steering),
    ):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"])
def test_norms_after_the_writers_are_refused(site):
    gemma = built(normalization_type="RMS", use_normalization_before_and_after=True)
    told = "a bias for .* was asked for, but built normalises what its attention and MLP write"
    refused(gemma, site, told, layers=[1])
    olmo = built(normalization_type="RMS", original_architecture="Olmo2ForCausalLM",
                 positional_embedding_type="rotary", rotary_dim=8)  # fmt: skip
    refused(olmo, site, told, layers=[1])
    refused(olmo, "ln1_out", "puts its norms after attention and MLP")
    refused(olmo, "ln2_out", "puts its norms after attention and MLP")


def test_a_mixture_of_experts_has_no_bias(model):
    experts = built(num_experts=4, experts_per_token=2, gated_mlp=True)
    refused(experts, "resid_post", "built has no mlp.b_out at layer 0 .a mixture of experts")
    assert_equals_hooks(experts, sl.Steering(vector_at(experts), site="resid_mid", strength=0.5))
    with (
        pytest.raises(
            sl.SteerlensError, match=r"built has no mlp.W_out .* mlp_out could be changed"
        ),
        ablated_weights(experts, vector_at(experts), layers=0),
    ):
        pytest.fail("the block must not run")


def test_other_hosts_and_quantised_weights_are_refused(unchecked, hf_model, monkeypatch, llama):
    with pytest.raises(sl.SteerlensError, match="got a LlamaForCausalLM; expected a Hooked"):
        weights.require_own_weights(hf_model)
    monkeypatch.setattr(llama.cfg, "load_in_4bit", True)
    refused(llama, "resid_post", "weights are quantised to 4 bits")


def test_vectors_of_another_width_are_refused(unchecked, llama, other_model):
    vector = random_vector(other_model)
    with (
        pytest.raises(
            sl.SteerlensError, match=r"of width 16; expected 32, .*'s resid_post: it belongs"
        ),
        edited_biases(llama, sl.Steering(vector)),
    ):
        pytest.fail("the block must not run")
    with (
        pytest.raises(
            sl.SteerlensError, match=r"of width 16; expected 32, the stream of .*: it belongs"
        ),
        ablated_weights(llama, vector, layers=0),
    ):
        pytest.fail("the block must not run")


@pytest.mark.parametrize(
    ("change", "layers", "told"),
    [
        (lambda v: v, None, "with different directions; .* choose it with layers="),
        (lambda v: v, [0, 2], "with different directions"),
        (lambda v: v - v, 2, "with a direction of zero"),
        (lambda v: v, 7, "no direction for layer 7"),
        (lambda v: v, [], "no layer was asked for"),
    ],
)
def test_an_ablation_of_no_one_direction_is_refused(llama, change, layers, told):
    with (
        pytest.raises(sl.SteerlensError, match=told),
        ablated_weights(llama, change(vector_at(llama)), layers),
    ):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("site", ["z", "ln1_out", "ln2_out"])
def test_an_ablation_of_no_direction_of_the_stream_is_refused(llama, site):
    with (
        pytest.raises(sl.SteerlensError, match=f"read at {site}, which is not the residual"),
        ablated_weights(llama, vector_at(llama, site), layers=0),
    ):
        pytest.fail("the block must not run")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"normalization_type": "RMS", "use_normalization_before_and_after": True},
         "a change of all writers was asked for, but built normalises"),
        ({"post_embedding_ln": True}, "built normalises its embedding"),
    ],
)  # fmt: skip
def test_an_ablation_that_weights_cannot_do_is_refused(fields, told):
    model = built(**fields)
    with (
        pytest.raises(sl.SteerlensError, match=told),
        ablated_weights(model, vector_at(model), layers=0),
    ):
        pytest.fail("the block must not run")
