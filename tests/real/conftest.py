"""SmolLM2, converted once into a cache of the tests' own."""

import os

import pytest


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    import steerlens as sl
    from steerlens.models.loading import SMOLLM2_INSTALL, installed_smollm2

    if installed_smollm2() is None:
        pytest.skip(f"SmolLM2 is not installed: {SMOLLM2_INSTALL}")
    before = os.environ.get("STEERLENS_CACHE")
    if before is None:
        os.environ["STEERLENS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    try:
        yield sl.load_model("smollm2")
    finally:
        if before is None:
            del os.environ["STEERLENS_CACHE"]


@pytest.fixture(scope="session")
def theirs(smollm2):
    """The same file, as transformers reads it, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    from steerlens.models.loading import installed_smollm2

    path = installed_smollm2()
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
