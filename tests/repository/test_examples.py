"""The examples in docstrings give what they say.

They may use the public names, and `model` (tiny-chat), `vector`, `steering`, `prompts`, `refusals`.
"""

import doctest
import importlib

import numpy as np
import pandas as pd
import pytest
import torch
from places import ROOT

import steerlens as sl

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "steerlens").rglob("*.py")
    if ">>> " in path.read_text()
)
SLOW = {"steerlens.models.ray"}
"""Starts a cluster."""


@pytest.fixture(scope="module")
def namespace(tiny_chat):
    refusals = sl.ContrastiveDataset.load(sl.demo_file("refusal.json"))
    vector = sl.extract(tiny_chat, refusals.train, tokens="suffix", layers=[2, 3], progress=False)
    return {
        **{name: getattr(sl, name) for name in sl.__all__},
        "load_model": lambda *_, **__: tiny_chat,
        "model": tiny_chat,
        "refusals": refusals,
        "vector": vector,
        "steering": sl.Steering(vector, strength=0.2, relative=True),
        "prompts": sl.load_prompts(sl.demo_file("questions.json"))["validation"][:4],
        "torch": torch,
        "np": np,
        "pd": pd,
    }


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODULES],
)
def test_the_examples_of_a_module_run(name, namespace, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures").symlink_to(ROOT / "figures")
    module = importlib.import_module(name)
    own = {key: value for key, value in namespace.items() if key not in vars(module)}
    own["load_model"] = namespace["load_model"]
    done = doctest.testmod(module, extraglobs=own)
    assert done.attempted
    assert not done.failed


def test_most_modules_have_examples():
    assert len(MODULES) > 40
