"""Every site is read and written as Hugging Face computes it, on two architectures."""

from functools import partial

import pytest
import torch
from helpers import PROMPTS, assert_no_hooks_left
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.models.sites import SITES, hook_name, site_frame, site_width
from steerlens.models.tokenizing import left_padded, pad_token, right_padded, tokenize
from steerlens.steering import hooks
from steerlens.steering.similarities import projection

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
"""Float32 on two hosts that sum in another order."""
N_LAYERS = 4
IDS = [1, 40, 7, 300, 22, 9, 150]
every_site = pytest.mark.parametrize("site", SITES)
every_layer = pytest.mark.parametrize("layer", [0, 1, N_LAYERS - 1])
normed = pytest.mark.parametrize("site", ["ln1_out", "ln2_out"])


def saved(network, folder):
    """With norms and biases that are not one and zero, as in any trained network."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim == 1:
                noise = 0.3 * torch.randn(weight.shape, generator=generator)
                weight.copy_(noise if name.endswith("bias") else noise.abs() + 0.5)
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(sl.demo_file("tiny-chat")).save_pretrained(folder)
    return folder


def sizes(tokenizer):
    return {"vocab_size": len(tokenizer), "initializer_range": 0.2} | {
        f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")
    }


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, model_folder, tmp_path_factory):
    """A random network with all of its norms and biases set."""
    target = tmp_path_factory.mktemp("random-network")
    if request.param == "llama":
        return saved(AutoModelForCausalLM.from_pretrained(model_folder), target)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    config = GPT2Config(
        n_embd=32, n_layer=N_LAYERS, n_head=4, n_positions=128, **sizes(tokenizer)
    )  # fmt: skip
    return saved(GPT2LMHeadModel(config), target)


@pytest.fixture(scope="module")
def model(folder):
    return sl.load_model(str(folder))


@pytest.fixture(scope="module")
def hugging_face(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def rows(model):
    return [row.ids for row in tokenize(model, PROMPTS)]


def vector_at(model, site, seed=0, scale=1.0, layers=range(N_LAYERS)):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(len(layers), site_width(model, site), generator=generator)
    return sl.SteeringVector(scale * directions, tuple(layers), site=site)


# Hugging Face's modules


def module_at(network, site, layer):
    """The module whose input (True) or output (False) a site is."""
    if hasattr(network, "transformer"):
        block = network.transformer.h[layer]
        return {
            "resid_pre": (block, True), "ln1_out": (block.ln_1, False),
            "z": (block.attn.c_proj, True), "attn_out": (block.attn, False),
            "resid_mid": (block.ln_2, True), "ln2_out": (block.ln_2, False),
            "mlp_out": (block.mlp, False), "resid_post": (block, False),
        }[site]  # fmt: skip
    block = network.model.layers[layer]
    return {
        "resid_pre": (block, True), "ln1_out": (block.input_layernorm, False),
        "z": (block.self_attn.o_proj, True), "attn_out": (block.self_attn, False),
        "resid_mid": (block.post_attention_layernorm, True),
        "ln2_out": (block.post_attention_layernorm, False),
        "mlp_out": (block.mlp, False), "resid_post": (block, False),
    }[site]  # fmt: skip


@torch.no_grad()
def hugging_face_run(network, ids, site, layer, edit=lambda x: x):
    """The activation at a site, before its edit; and the logits after it."""
    module, is_input = module_at(network, site, layer)
    seen = []

    def look(activation):
        seen.append(activation.clone())
        return edit(activation)

    def before(_, args, kwargs):
        return (look(args[0]), *args[1:]), kwargs

    def after(_, args, output):
        return (look(output[0]), *output[1:]) if isinstance(output, tuple) else look(output)

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if is_input
        else module.register_forward_hook(after)
    )
    try:
        logits = network(torch.tensor([ids])).logits[0]
    finally:
        handle.remove()
    return seen[0][0], logits


# Ours


def read_at(model, ids, site, layer):
    """Every token's activation at a site: the same prompt for each index."""
    return read_residual(
        model, [list(ids)] * len(ids), [layer], tokens=range(len(ids)), site=site, progress=False
    )[:, 0]


@torch.no_grad()
def ours(model, ids, steerings=(), site="resid_post", layer=N_LAYERS - 1):
    """The activation at a site after the edits, and the logits."""
    frame, seen = site_frame(model, site, layer), []
    look = (hook_name(model, site, layer), lambda shown, hook: seen.append(frame.into(shown)))
    plan = sl.steering_hooks(*steerings, model=model)
    with model.hooks(fwd_hooks=[*plan, look]):
        logits = model(torch.tensor([ids]))[0]
    assert all(torch.equal(again, seen[0]) for again in seen)  # some are passed three times
    return seen[0][0], logits


# Reading


@every_site
@every_layer
def test_reading_is_what_the_networks_own_modules_hold(model, hugging_face, site, layer):
    theirs, _ = hugging_face_run(hugging_face, IDS, site, layer)
    torch.testing.assert_close(read_at(model, IDS, site, layer), theirs, **CLOSE)


@torch.no_grad()
def cached(model, name):
    _, cache = model.run_with_cache(torch.tensor([IDS]), names_filter=name)
    return cache[name][0]


@every_layer
def test_ln1_out_is_what_the_heads_read(model, layer):
    attention = model.blocks[layer].attn
    read = read_at(model, IDS, "ln1_out", layer)
    query = torch.einsum("pd,hde->phe", read, attention.W_Q) + attention.b_Q
    torch.testing.assert_close(query, cached(model, f"blocks.{layer}.attn.hook_q"), **CLOSE)


@every_layer
def test_z_times_the_output_matrix_is_attn_out(model, layer):
    attention = model.blocks[layer].attn
    heads = read_at(model, IDS, "z", layer).reshape(len(IDS), model.cfg.n_heads, model.cfg.d_head)
    written = torch.einsum("phe,hed->pd", heads, attention.W_O) + attention.b_O
    torch.testing.assert_close(written, read_at(model, IDS, "attn_out", layer), **CLOSE)


@every_layer
def test_ln2_out_is_what_the_mlp_reads(model, layer):
    mlp = model.blocks[layer].mlp
    with torch.no_grad():
        written = mlp(read_at(model, IDS, "ln2_out", layer)[None])[0]
    torch.testing.assert_close(written, read_at(model, IDS, "mlp_out", layer), **CLOSE)


@every_layer
def test_the_stream_is_the_sum_of_what_is_written(model, layer):
    read = {site: read_at(model, IDS, site, layer) for site in SITES if not site.startswith("ln")}
    torch.testing.assert_close(read["resid_pre"] + read["attn_out"], read["resid_mid"], **CLOSE)
    torch.testing.assert_close(read["resid_mid"] + read["mlp_out"], read["resid_post"], **CLOSE)


@normed
def test_norms_are_read_with_their_weight_and_bias(model, site):
    """By hand, from the stream that the norm reads."""
    stream = read_at(model, IDS, {"ln1_out": "resid_pre", "ln2_out": "resid_mid"}[site], 1)
    norm = getattr(model.blocks[1], site.removesuffix("_out"))
    if model.cfg.normalization_type == "LN":
        stream = stream - stream.mean(dim=1, keepdim=True)
    scaled = stream / (stream.square().mean(dim=1, keepdim=True) + model.cfg.eps).sqrt()
    by_hand = scaled * norm.w + getattr(norm, "b", 0)
    torch.testing.assert_close(read_at(model, IDS, site, 1), by_hand, **CLOSE)


@every_site
def test_reading_a_batch_is_reading_one_by_one(model, site):
    options = {"tokens": "all", "site": site, "progress": False}
    together = read_residual(model, PROMPTS, **options)
    alone = torch.cat([read_residual(model, [prompt], **options) for prompt in PROMPTS])
    torch.testing.assert_close(together, alone, **CLOSE)


@every_site
def test_negative_layers_count_from_the_last(model, site):
    read = partial(read_residual, model, PROMPTS[:2], site=site, progress=False)
    assert torch.equal(read(layers=[-1, -3]), read(layers=[1, 3]))


@every_site
def test_a_vector_extracted_at_a_site_is_written_there(model, site):
    sides = PROMPTS, [f"{prompt} Please" for prompt in PROMPTS]
    vector = sl.extract(model, sides, site=site, layers=[1, 2], progress=False)
    steering = sl.Steering(vector, layers=[2])
    assert (vector.site, vector.width) == (site, site_width(model, site))
    assert steering.site_written == site
    after, _ = ours(model, IDS, [steering], site, 2)
    torch.testing.assert_close(after, read_at(model, IDS, site, 2) + vector[2], **CLOSE)


# Writing


@every_site
@every_layer
def test_writing_changes_the_logits_as_in_the_networks_own_modules(
    model, hugging_face, site, layer
):
    steering = sl.Steering(vector_at(model, site), [layer], strength=2)
    where = (site, layer) if site != "resid_mid" else ("attn_out", layer)  # it edits the stream
    _, theirs = hugging_face_run(
        hugging_face, IDS, *where, lambda x: x + 2 * steering.vector[layer]
    )  # fmt: skip
    _, found = ours(model, IDS, [steering])
    assert (found - ours(model, IDS)[1]).abs().max() > 0.05
    torch.testing.assert_close(found, theirs, atol=1e-3, rtol=1e-3)


@every_site
@pytest.mark.parametrize(
    "edit", [hooks.add_direction, hooks.ablate_direction, hooks.clamp_direction]
)
def test_what_was_written_is_there(model, site, edit):
    vector = vector_at(model, site)
    steering = sl.Steering(vector, [1], 3.0, edit=edit, positions=[2, 4])
    before = read_at(model, IDS, site, 1)
    after, _ = ours(model, IDS, [steering], site, 1)
    expected = before.clone()
    expected[[2, 4]] = edit.edit(before[None], vector[1], 3.0)[0, [2, 4]]
    torch.testing.assert_close(after, expected, **CLOSE)
    untouched = [0, 1, 3, 5, 6] if site != "z" else slice(0, 2)
    torch.testing.assert_close(after[untouched], before[untouched], **CLOSE)


@every_site
def test_kept_norms_are_those_of_the_site(model, site):
    steering = sl.Steering(vector_at(model, site), [1], 3.0, keep_norm=True)
    after, _ = ours(model, IDS, [steering], site, 1)
    before = read_at(model, IDS, site, 1)
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1), **CLOSE)
    assert (after - before).abs().max() > 0.1


@every_site
def test_a_site_is_not_another(model, site):
    """Each of them changes something else, or a name would stand for two places."""
    changed = {}
    for other in SITES:
        vector = vector_at(model, other) if other == "z" else vector_at(model, "resid_pre")
        steering = sl.Steering(vector, [1], strength=2, site=other)
        changed[other] = ours(model, IDS, [steering])[1]
    same = {other for other in SITES if torch.allclose(changed[other], changed[site], atol=1e-3)}
    sums = {"attn_out", "resid_mid"}, {"mlp_out", "resid_post"}  # a sum forgets its summands
    assert same == next((pair for pair in sums if site in pair), {site})


def test_several_sites_in_one_plan(model, hugging_face):
    """Written in the order of the forward pass, however the plan lists them."""
    plan = [
        sl.Steering(vector_at(model, site, seed), [layer], strength=0.7, edit=edit)
        for seed, (site, layer, edit) in enumerate(
            [
                ("mlp_out", 2, hooks.add_direction),
                ("ln1_out", 1, hooks.add_direction),
                ("z", 1, hooks.ablate_direction),
                ("resid_pre", 3, hooks.ablate_then_add),
                ("ln2_out", 1, hooks.add_direction),
            ]
        )
    ]
    _, found = ours(model, IDS, plan)
    _, reversed_ = ours(model, IDS, plan[::-1])
    assert torch.equal(found, reversed_)
    handles = []
    for steering in plan:
        layer = steering.layers_steered[0]
        module, is_input = module_at(hugging_face, steering.site_written, layer)
        edit = partial(steering.edit.edit, direction=steering.vector[layer], strength=0.7)
        handles.append(
            module.register_forward_pre_hook(lambda _, args, edit=edit: (edit(args[0]), *args[1:]))
            if is_input
            else module.register_forward_hook(lambda _, args, output, edit=edit: edit(output))
        )
    with torch.no_grad():
        theirs = hugging_face(torch.tensor([IDS])).logits[0]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found, theirs, atol=1e-3, rtol=1e-3)


# Conditions


def condition_at(model, site, layer=1, prompts=PROMPTS):
    """Half of the prompts pass, none of them near the threshold."""
    vector = vector_at(model, site, seed=7)
    pooled = read_residual(model, prompts, [layer], tokens="all", site=site, progress=False)
    ordered = projection(pooled[:, 0], vector[layer]).sort().values
    middle = len(ordered) // 2
    threshold = (ordered[middle - 1] + ordered[middle]).item() / 2
    return sl.Condition(vector, layer, above=threshold, similarity=projection)


@every_site
def test_a_condition_judges_what_a_read_measures(model, site):
    condition = condition_at(model, site)
    steering = sl.Steering(vector_at(model, "resid_post", scale=5), [2], when=condition)
    replies = sl.generate(model, PROMPTS, steering, max_new_tokens=2, progress=False)
    pooled = read_residual(model, PROMPTS, [1], tokens="all", site=site, progress=False)
    expected = condition.measure(pooled[:, 0], 1)
    torch.testing.assert_close(replies.gates[0].similarity[:, 0], expected, **CLOSE)
    assert replies.gates[0].open.sum() == len(PROMPTS) // 2


@normed
def test_a_norms_condition_reads_before_its_own_site_is_steered(model, rows, site):
    """The host passes that point three times: each of them reads, then edits."""
    condition = condition_at(model, site)
    steering = sl.Steering(vector_at(model, site, scale=50), [1, 2], when=condition)
    replies = sl.generate(model, PROMPTS, steering, max_new_tokens=2, progress=False)
    pooled = read_residual(model, PROMPTS, [1], tokens="all", site=site, progress=False)
    fires = condition.fires(condition.measure(pooled[:, 0], 1)[:, None])
    assert replies.gates[0].open.tolist() == fires.tolist()
    for ids, fired in zip(rows, fires.tolist(), strict=True):
        _, found = ours(model, ids, [steering])
        _, always = ours(model, ids, [sl.Steering(steering.vector, [1, 2])])
        _, never = ours(model, ids)
        assert torch.equal(found, always if fired else never)


# Batches and caches


@pytest.mark.parametrize("pad_side", [left_padded, right_padded])
@every_site
def test_a_padded_batch_is_steered_as_its_rows(model, rows, site, pad_side):
    steering = sl.Steering(vector_at(model, site), [1, 2], strength=2, positions=slice(-4, None))
    tokens, mask = pad_side(rows, pad_token(model))
    with torch.no_grad(), model.hooks(fwd_hooks=steering.hooks(prompt_mask=mask, model=model)):
        together = model(tokens, attention_mask=mask.int())
    for row, ids in enumerate(rows):
        torch.testing.assert_close(
            together[row, mask[row]], ours(model, ids, [steering])[1], **CLOSE
        )


@every_site
def test_caching_and_batching_change_no_reply(model, site):
    steering = sl.Steering(vector_at(model, site), [1, 2], strength=3, positions=slice(3, None))
    reply = partial(sl.generate, model, max_new_tokens=6, progress=False)
    batch = reply(PROMPTS, steering).tokens
    assert batch == reply(PROMPTS, steering, use_cache=False).tokens
    assert batch == tuple(reply([prompt], steering).tokens[0] for prompt in PROMPTS)
    assert batch != reply(PROMPTS).tokens
    assert_no_hooks_left(model)


# What a model lacks


@pytest.fixture(scope="module")
def parallel_model(model_folder, tmp_path_factory):
    """Attention and MLP read the same stream: there is nothing between the two."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    config = GPTNeoXConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, use_parallel_residual=True, **sizes(tokenizer),
    )  # fmt: skip
    return sl.load_model(
        str(saved(GPTNeoXForCausalLM(config), tmp_path_factory.mktemp("parallel-network")))
    )


def test_parallel_attention_has_no_resid_mid(parallel_model):
    told = r"has no resid_mid \(it would be 'blocks.1.hook_resid_mid'\); choose another site"
    with pytest.raises(sl.SteerlensError, match=told):
        read_residual(parallel_model, PROMPTS, [1], site="resid_mid", progress=False)
    vector = vector_at(parallel_model, "resid_mid", layers=range(2))
    with pytest.raises(sl.SteerlensError, match=told):
        sl.generate(
            parallel_model, PROMPTS, sl.Steering(vector, [1]), max_new_tokens=2, progress=False
        )
    with pytest.raises(sl.SteerlensError, match=told):
        sl.Steering(vector, [1]).attach(parallel_model)
    assert_no_hooks_left(parallel_model)


@pytest.mark.parametrize("site", [site for site in SITES if site != "resid_mid"])
def test_parallel_attention_has_all_other_sites(parallel_model, site):
    steering = sl.Steering(vector_at(parallel_model, site, layers=range(2)), [1], 3.0)
    before = read_at(parallel_model, IDS, site, 1)
    after, _ = ours(parallel_model, IDS, [steering], site, 1)
    torch.testing.assert_close(after, before + 3 * steering.vector[1], **CLOSE)


@normed
def test_a_norm_of_weight_zero_cannot_be_written(model, site):
    weight = getattr(model.blocks[2], site.removesuffix("_out")).w
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[3] = 0
    try:
        with pytest.raises(sl.SteerlensError, match=f"{site} of layer 2 has weights of zero"):
            sl.Steering(vector_at(model, site), [2]).hooks(model=model)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


@pytest.mark.parametrize("site", ["ln1_out", "ln2_out", "z"])
def test_sites_of_another_form_need_the_model(model, site):
    steering = sl.Steering(vector_at(model, site), [1])
    told = rf"hooks at {site} need to know the model: use hooks\(model=model\), attach\(model\)"
    with pytest.raises(sl.SteerlensError, match=told):
        steering.hooks()


@pytest.mark.parametrize("site", ["z", "attn_out"])
def test_a_vector_of_another_width_is_refused(model, site):
    wide = sl.SteeringVector(torch.ones(1, 24), (1,), site=site)
    with pytest.raises(sl.SteerlensError, match=rf"is 24 wide, but .*'s {site} 32"):
        sl.generate(model, PROMPTS, sl.Steering(wide), progress=False)
