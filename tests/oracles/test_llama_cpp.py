"""A control vector does in llama.cpp itself what its plan does here.

Needs the package xllamacpp (`pip install xllamacpp`), which carries llama.cpp.
"""

import pytest
import torch
from gguf_models import write_gguf
from helpers import random_vector
from llama_cpp import library, loaded, logits
from transformers import AutoTokenizer

import steerlens as sl
from steerlens.export import lower
from steerlens.models.loading import installed_smollm2

pytestmark = pytest.mark.slow
CLOSE = 1e-4
"""Of log-probabilities in float32, whose rounding differs; measured: 5e-5 of an effect of 6."""
TEXT = "How do I bake bread? First, take 500 g of flour, some water and a little salt; then wait."


@pytest.fixture(scope="module")
def functions():
    return library(pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: xllamacpp"))


def log_probabilities(of):
    return torch.as_tensor(of).float().log_softmax(dim=-1)


def differences(functions, model, path, ids, plan, folder):
    """Largest differences of log-probabilities: between the programs, and made by steering."""
    lower(plan, "gguf").save(folder / "v.gguf")
    tokens = torch.tensor([ids])
    with torch.no_grad():
        plain = log_probabilities(model(tokens)[0])
        with model.hooks(fwd_hooks=sl.steering_hooks(plan)):
            steered = log_probabilities(model(tokens)[0])
    n_vocab, n_layers = plain.shape[1], model.cfg.n_layers
    with loaded(functions, path) as there:
        plain_there = log_probabilities(logits(functions, there, ids, n_vocab))
        steered_there = log_probabilities(
            logits(functions, there, ids, n_vocab, folder / "v.gguf", n_layers)
        )
    return {
        "unsteered": (plain_there - plain).abs().max().item(),
        "steered": (steered_there - steered).abs().max().item(),
        "effect": (steered - plain).abs().max().item(),
    }


def test_a_random_llama_is_steered_alike(functions, model, hf_model, model_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    path = write_gguf(tmp_path / "m.gguf", "llama", hf_model, tokenizer)
    plan = sl.Steering(random_vector(model, scale=1.0), [1, 2, 3], [0.5, -1.0, 2.0])
    found = differences(functions, model, path, [1, 17, 250, 9, 3, 77, 5], plan, tmp_path)
    assert found["steered"] < CLOSE < 1 < found["effect"]


@pytest.mark.real
def test_smollm2_is_steered_alike(functions, tmp_path, monkeypatch):
    if installed_smollm2() is None:
        pytest.skip("SmolLM2 is not installed")
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "cache"))
    model = sl.load_model("smollm2")
    [folder] = {path.parent for path in (tmp_path / "cache").rglob("config.json")}
    from transformers import AutoModelForCausalLM

    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    path = write_gguf(tmp_path / "m.gguf", "llama", hf_model, model.tokenizer, pre="smollm")
    data = ([TEXT, "I love it."], ["I hate it.", "No."])
    vector = sl.extract(model, data, sl.estimators.mean_difference, progress=False)
    plan = sl.Steering(vector, range(10, 16), 0.3, relative=True)
    ids = model.tokenizer.encode(TEXT)
    found = differences(functions, model, path, ids, plan, tmp_path)
    assert found["steered"] < CLOSE < 1 < found["effect"]
