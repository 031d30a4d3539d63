"""Lean passes are the host's own, to the bit, and leave nothing behind."""

from contextlib import nullcontext

import pytest
import torch
from helpers import assert_no_hooks_left, random_vector
from small_models import HOSTS
from transformer_lens import HookedTransformer, HookedTransformerConfig

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.models import fast_forward
from steerlens.models.fast_forward import decoding_cache, forward_pass, select_rows
from steerlens.models.host import new_cache, next_logits

NEW = 5


@pytest.fixture(scope="module", params=HOSTS)
def host(request):
    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=32, d_head=4, n_heads=4, d_vocab=50, d_mlp=24,
        act_fn="gelu", device="cpu", init_weights=True, initializer_range=0.4,
        **HOSTS[request.param],
    )  # fmt: skip
    return HookedTransformer(cfg).eval()


def fast_cache(host, rows):
    return decoding_cache(host, rows, 7 + NEW, fast=True)


def decoded(host, cache, tokens, mask, more):
    """Logits of a prompt and of each token after it."""
    every = [next_logits(host, tokens, mask, cache)]
    for step in range(more.shape[1]):
        new = more[:, step : step + 1]
        every.append(next_logits(host, new, torch.ones_like(new), cache))
    return torch.stack(every)


def text(rows, padded):
    generator = torch.Generator().manual_seed(rows)
    tokens = torch.randint(50, (rows, 7), generator=generator)
    pads = torch.randint(5, (rows, 1), generator=generator) if padded else torch.zeros(rows, 1)
    mask = (torch.arange(7)[None] >= pads).int()
    return tokens, mask, torch.randint(50, (rows, NEW), generator=generator)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_decoding_is_the_hosts_to_the_bit(host, rows, padded):
    tokens, mask, more = text(rows, padded)
    decoded(host, new_cache(host, rows), tokens, mask, more)  # ALiBi's table grows on first use
    stock = decoded(host, new_cache(host, rows), tokens, mask, more)
    cache = fast_cache(host, rows)
    ours = forward_pass(host, lambda: decoded(host, cache, tokens, mask, more))
    assert torch.equal(ours, stock)
    assert torch.equal(decoded(host, new_cache(host, rows), tokens, mask, more), stock)


@torch.no_grad()
def test_a_pass_without_cache_is_the_hosts_to_the_bit(host):
    tokens = text(3, padded=False)[0]
    stock = host(tokens)
    assert torch.equal(forward_pass(host, lambda: host(tokens)), stock)


@torch.no_grad()
def test_rows_leave_and_are_given_out_repeatedly(host):
    if host.cfg.use_dynamic_ntk_rope:
        pytest.skip("the host itself decodes otherwise than it reads a whole text")
    tokens, mask, more = text(6, padded=True)
    rows = torch.tensor([4, 0, 4, 3])
    last = more[rows, 2:3]

    def shrinking():
        decoded(host, cache, tokens, mask, more[:, :2])
        select_rows(cache, rows)
        return next_logits(host, last, torch.ones_like(last), cache)

    cache = fast_cache(host, 6)
    found = forward_pass(host, shrinking)
    cache = new_cache(host, 6)  # the host's own
    torch.testing.assert_close(shrinking(), found, atol=1e-4, rtol=1e-4)
    whole = torch.cat([tokens, more[:, :3]], dim=1)[rows]
    longer = torch.cat([mask, torch.ones(6, 3).int()], dim=1)[rows]
    torch.testing.assert_close(found, next_logits(host, whole, longer), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_hooks_see_what_they_see_in_the_host(host):
    names = [
        name
        for name in host.hook_dict
        # here the host normalises three times, and twice for nothing
        if ".ln1." not in name
    ]
    tokens, mask, more = text(4, padded=True)

    def seen(cache):
        calls = []
        hooks = [(name, lambda act, hook: calls.append((hook.name, act.clone()))) for name in names]
        with host.hooks(fwd_hooks=hooks):
            decoded(host, cache, tokens, mask, more[:, :2])
        return calls

    stock = seen(new_cache(host, 4))
    cache = fast_cache(host, 4)
    ours = forward_pass(host, lambda: seen(cache))
    assert [name for name, _ in ours] == [name for name, _ in stock]
    for (name, mine), (_, its) in zip(ours, stock, strict=True):
        assert torch.equal(mine, its), name
    assert_no_hooks_left(host)


def test_nothing_is_left_on_the_model_not_even_after_an_error(host):
    before = {name: set(vars(module)) for name, module in host.named_modules()}
    mine = host.blocks[0].attn.apply_causal_mask
    host.blocks[0].attn.apply_causal_mask = mine  # as another library may have done
    try:
        assert forward_pass(host, lambda: host.blocks[0].attn.apply_causal_mask) is not mine
        with pytest.raises(RuntimeError, match="5"):
            forward_pass(host, lambda: host.blocks[0](torch.zeros(1, 3, 5)))
        assert host.blocks[0].attn.apply_causal_mask is mine
    finally:
        del host.blocks[0].attn.apply_causal_mask
    assert {name: set(vars(module)) for name, module in host.named_modules()} == before


def test_norms_keep_nothing_alive(host):
    import gc
    import weakref

    @torch.no_grad()
    def run():
        resid = torch.randn(1, 3, 16)
        kept = weakref.ref(resid)
        host.blocks[0](resid)
        del resid
        gc.collect()
        assert kept() is None

    forward_pass(host, run)


# Turned off


def methods(model):
    return [
        (name, key)
        for name, module in model.named_modules()
        for key in vars(module)
        if key in ("forward", "apply_rotary", "apply_causal_mask")
    ]


def test_nothing_is_replaced_where_it_is_disabled(host):
    assert forward_pass(host, lambda: methods(host))
    with fast_forward.disabled():
        assert not forward_pass(host, lambda: methods(host))
        assert not fast_forward.is_on(host)
    assert fast_forward.is_on(host)


def test_replies_and_reads_are_the_same_to_the_bit_when_it_is_off(model_folder):
    prompts = ["Hi.", "How do I bake bread?", "Why?"]
    seen = []
    for fast in (True, False):
        model = sl.load_model(str(model_folder), fast=fast)
        assert bool(forward_pass(model, lambda model=model: methods(model))) is fast
        plan = sl.Steering(random_vector(model), [1, 2], positions="last")
        replies = sl.generate(model, prompts, plan, max_new_tokens=8, progress=False)
        with fast_forward.disabled():
            again = sl.generate(model, prompts, plan, max_new_tokens=8, progress=False)
        assert again.tokens == replies.tokens
        read = read_residual(model, [*prompts, *prompts[:2]], progress=False)
        logits = forward_pass(model, lambda model=model: model(torch.tensor([[5, 6, 7]])))
        seen.append((replies.tokens, read, logits.detach()))
    assert seen[0][0] == seen[1][0]
    assert torch.equal(seen[0][1], seen[1][1])
    assert torch.equal(seen[0][2], seen[1][2])


def test_a_stream_that_began_without_it_goes_on_without_it(model):
    options = {"max_new_tokens": 6}
    right = list(sl.stream(model, ["Hi."], **options))[-1].tokens
    for first, then in ((True, False), (False, True)):
        steps = sl.stream(model, ["Hi."], **options)
        with fast_forward.disabled() if first else nullcontext():
            next(steps)
        with fast_forward.disabled() if then else nullcontext():
            *_, last = steps
        assert last.tokens == right
