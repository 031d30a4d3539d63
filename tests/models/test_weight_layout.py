"""Weights that lie as the host wants them: the same numbers, the same memory, no copies."""

import copy

import pytest
import torch
from small_models import HOSTS
from torch.profiler import ProfilerActivity, profile
from transformer_lens import HookedTransformer, HookedTransformerConfig

from steerlens.models.weight_layout import fast_layout, stock_layout

TOKENS = torch.arange(18).reshape(2, 9)


@pytest.fixture(params=[*HOSTS, "gated grouped", "attention only"])
def host(request):
    torch.manual_seed(0)
    settings = {
        "gated grouped": {"gated_mlp": True, "n_key_value_heads": 2},
        "attention only": {"attn_only": True},
    } | HOSTS
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=32, d_head=4, n_heads=4, d_vocab=50, d_mlp=24,
        act_fn="gelu", device="cpu", init_weights=True, **settings[request.param],
    )  # fmt: skip
    return HookedTransformer(cfg).eval()


@torch.no_grad()
def logits(model):
    return model(TOKENS)


def memory(model):
    storages = {
        weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes()
        for weight in model.state_dict().values()
    }
    return sum(storages.values())


def strides(model):
    return {name: weight.stride() for name, weight in model.named_parameters()}


def test_logits_stay_to_the_bit_and_memory_as_it_was(host):
    before, size, weights = logits(host), memory(host), copy.deepcopy(host.state_dict())
    assert fast_layout(host) is host
    assert torch.equal(logits(host), before)
    assert memory(host) == size
    assert all(torch.equal(weight, weights[name]) for name, weight in host.state_dict().items())
    once = strides(host)
    fast_layout(host)
    assert strides(host) == once


def test_it_is_undone(host):
    made = strides(host)
    assert strides(fast_layout(host)) != made
    assert strides(stock_layout(host)) == made


def test_moving_and_saving_keep_it(host, tmp_path):
    before = logits(host)
    laid = strides(fast_layout(host))
    host.to(torch.float64).to(torch.float32)
    assert strides(host) == laid
    other = copy.deepcopy(host)
    assert strides(other) == laid
    torch.save(host.state_dict(), tmp_path / "weights.pt")
    saved = torch.load(tmp_path / "weights.pt", weights_only=True)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    other.load_state_dict(saved)
    assert strides(other) == laid
    assert torch.equal(logits(other), before)
    stock = stock_layout(copy.deepcopy(host))
    stock.load_state_dict(host.state_dict())
    assert torch.equal(logits(stock), before)


def copied(model):
    """Bytes of weights that a forward pass copies."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        logits(model)
    shapes = {tuple(weight.shape) for weight in model.parameters() if weight.dim() > 1}
    turned = {shape[::-1] for shape in shapes}
    return sum(
        event.count
        for event in seen.key_averages(group_by_input_shape=True)
        if event.key == "aten::clone" and tuple(event.input_shapes[0]) in shapes | turned
    )


def test_a_loaded_model_copies_no_weight(model):
    assert copied(model) == 0
    assert copied(stock_layout(copy.deepcopy(model))) > 0


def test_another_kind_of_model_is_left_alone():
    linear = torch.nn.Linear(2, 2)
    assert fast_layout(linear) is linear
