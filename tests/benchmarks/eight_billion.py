"""CAST's published experiment sizes on an 8B-shaped model of random weights, on a GPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from contest import seconds
from hosts import mixed_pairs, suffix_data
from limits import counted, measure
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoTokenizer

import steerlens as sl
from steerlens.models.weight_layout import fast_layout

LLAMA_8B = {
    "n_layers": 32, "d_model": 4096, "n_heads": 32, "n_key_value_heads": 8, "d_head": 128,
    "d_mlp": 14336, "d_vocab": 128_256, "n_ctx": 2048, "rotary_dim": 128, "rotary_base": 500_000,
}  # fmt: skip
TINY = {
    "n_layers": 4, "d_model": 64, "n_heads": 4, "n_key_value_heads": 2, "d_head": 16,
    "d_mlp": 128, "d_vocab": 3072, "n_ctx": 2048, "rotary_dim": 16, "rotary_base": 500_000,
}  # fmt: skip
PUBLISHED = {"behaviour vector": 240.0, "condition vector": 90.0, "condition search": 600.0}
"""Seconds that arXiv 2409.05907 reports, for an A100 and another 8B model."""


def random_model(shape: dict[str, int], device: str) -> HookedTransformer:
    """In bfloat16, made on the device; norms of 1, weights small enough for a stable stream."""
    tokenizer = AutoTokenizer.from_pretrained(sl.demo_file("tiny-chat"))
    cfg = HookedTransformerConfig(
        **shape,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        dtype=torch.bfloat16,
        device=device,
        init_weights=False,
        model_name="random-8b",
    )
    generator = torch.Generator(device).manual_seed(0)
    with torch.device(device):
        model = HookedTransformer(cfg, tokenizer, default_padding_side="right").eval()
    for name, weight in model.named_parameters():
        if name.endswith(".w"):
            weight.data.fill_(1)
        elif ".b" in name:
            weight.data.zero_()
        else:
            weight.data.normal_(std=0.02, generator=generator)
    return fast_layout(model)


def run(device: str, quick: bool) -> list[dict[str, Any]]:
    """One row for each job: time, arithmetic, and its share of what matrix products reach here."""
    model = random_model(TINY if quick else LLAMA_8B, device)
    name = f"A random Llama of {'a tiny' if quick else 'an 8B model’s'} shape, bfloat16"
    across, n_pairs = (8, 20) if quick else (100, 4050)
    suffixed = suffix_data(across, across)
    sides = tuple(zip(*mixed_pairs(n_pairs), strict=True))
    layers = range(1, min(10, model.cfg.n_layers))
    sl.extract(model, suffix_data(4, 4), progress=False)  # warm up
    peak_rate = measure(model).flops

    def timed(job: str, what: str, act: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
        found = []
        with counted(model) as passes:
            took = seconds(lambda: found.append(act()))
        rate = sum(one.flops for one in passes) / took
        return {
            "job": f"{job}: {what}",
            "model": name,
            "seconds": took,
            "peak_tflops": peak_rate / 1e12,
            "published": PUBLISHED[job],
            "tflops": rate / 1e12,
            "utilisation": rate / peak_rate,
        }, found[0]

    extract = partial(sl.extract, model, progress=False)
    behaviour, _ = timed(
        "behaviour vector",
        f"{len(suffixed):,} pairs, suffix tokens, all layers",
        partial(extract, suffixed, tokens="suffix"),
    )
    condition, vector = timed(
        "condition vector",
        f"{n_pairs:,} pairs, all tokens, all layers",
        partial(extract, sides, tokens="all"),
    )
    searched, _ = timed(
        "condition search",
        f"{2 * n_pairs:,} prompts, layers {layers[0]}–{layers[-1]}",
        partial(sl.search_conditions, model, vector, sides, layers=layers, progress=False),
    )
    return [behaviour, condition, searched]
