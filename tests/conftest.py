"""Shared fixtures; the package is imported inside them, after the shape-checking import hook."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from places import ORACLES, ROOT

# Every machine draws the same examples, so that a failure can be had again.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

CORE = (
    "tests/activations",
    "tests/dashboards",
    "tests/data",
    "tests/evaluation",
    "tests/judges",
    "tests/learning",
    "tests/steering",
    "tests/test_files.py",
    "tests/vectors",
)
"""Laws and values, on random models: what runs with every annotation checked."""
LONG = (
    "tests/dashboards/test_effects.py",
    "tests/evaluation/test_sweeps.py",
    "tests/learning/test_learning.py",
    "tests/learning/test_shuffled_lessons.py",
    "tests/steering/test_generation.py",
    "tests/steering/test_own_functions.py",
    "tests/steering/test_selections.py",
    "tests/vectors/test_streaming.py",
)
"""Half of the core's time if they were checked, and therefore not in it."""
LARGER = {"tiny_chat", "cast_model"}
"""Fixtures of models that take longer."""


def pytest_collection_modifyitems(items):
    for item in items:
        path = item.path.relative_to(ROOT).as_posix()
        small = LARGER.isdisjoint(item.fixturenames) and not item.get_closest_marker("slow")
        if path.startswith(CORE) and path not in LONG and small:
            item.add_marker(pytest.mark.core)


def pytest_terminal_summary(terminalreporter):
    """Says what was skipped, and why: a test that never runs must not look like one that passed."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    if reasons:
        terminalreporter.section(f"{reasons.total()} tests skipped")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:5d}  {reason}")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What the tests keep is not the user's, and not of an earlier run; a cache given is used."""
    if "STEERLENS_CACHE" in os.environ:
        yield
        return
    os.environ["STEERLENS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["STEERLENS_CACHE"]


@pytest.fixture(scope="session")
def oracles() -> Path:
    """The folder of other libraries' reference numbers."""
    return ORACLES


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
def random_llama(tmp_path_factory):
    """Makes folders of random Llamas with tiny-chat's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    import steerlens as sl

    tokenizer = AutoTokenizer.from_pretrained(sl.demo_file("tiny-chat"))

    def make(seed=0, width=32, layers=4) -> Path:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
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
        return folder

    return make


@pytest.fixture(scope="session")
def model_folder(random_llama):
    return random_llama()


@pytest.fixture(scope="session")
def model(model_folder):
    """A random Llama: read-only, made in a second."""
    import steerlens as sl

    return sl.load_model(str(model_folder))


@pytest.fixture(scope="session")
def hf_model(model_folder):
    """The same random Llama, as Hugging Face runs it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_folder).eval()


@pytest.fixture(scope="session")
def other_model(random_llama):
    """Of another width and depth than `model`."""
    import steerlens as sl

    return sl.load_model(str(random_llama(seed=1, width=16, layers=3)))


@pytest.fixture
def unchecked():
    """Annotations are not checked, as in use: the package itself must refuse wrong types."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
