"""The examples in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["explaining", "effect_figures", "pages", "paper", "report"])
def test_the_examples_of_a_module_run(name, tiny_chat, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures").symlink_to(ROOT / "figures")
    module = importlib.import_module(f"steerlens.{name}")
    known = {"load_model": lambda: tiny_chat, "torch": torch, "np": np, "pd": pd}
    done = doctest.testmod(module, extraglobs=known)
    assert done.attempted
    assert not done.failed
