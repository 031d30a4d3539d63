"""Shared fixtures; the package is imported inside them, after the shape-checking import hook."""

import json
import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("STEERLENS_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def oracles() -> Path:
    """The folder of other libraries' reference numbers."""
    folder = SHARED / "oracles"
    if not folder.is_dir():
        pytest.skip(f"no reference numbers at {folder}; point STEERLENS_SHARED at their parent")
    return folder


@pytest.fixture(scope="session")
def cast_oracle(oracles):
    import numpy as np

    folder = oracles / "cast"
    return {
        "folder": folder,
        "json": json.loads((folder / "oracle.json").read_text()),
        "arrays": np.load(folder / "oracle.npz"),
        "pooled": np.load(folder / "pooled_hiddens_nopad.npz"),
    }


@pytest.fixture(scope="session")
def cast_model(oracles):
    import steerlens as sl

    return sl.load_model(str(oracles / "cast" / "tiny-llama"))


@pytest.fixture(scope="session")
def tiny_chat():
    """The embedded model; tests must leave it as it is."""
    import steerlens as sl

    return sl.load_model()


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A random Llama with tiny-chat's tokenizer: read-only, made in a second."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    import steerlens as sl

    tokenizer = AutoTokenizer.from_pretrained(sl.embedded("tiny-chat"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("random-model")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sl.load_model(str(folder))
