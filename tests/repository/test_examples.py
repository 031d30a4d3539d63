"""The examples in docstrings give what they say."""

import doctest
import importlib

import numpy as np
import pandas as pd
import pytest
import torch
from places import ROOT


@pytest.mark.parametrize(
    "name",
    ["interpret.lens", "dashboards.effects", "studies.html", "studies.paper", "studies.reports"],
)
def test_the_examples_of_a_module_run(name, tiny_chat, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures").symlink_to(ROOT / "figures")
    module = importlib.import_module(f"steerlens.{name}")
    known = {"load_model": lambda: tiny_chat, "torch": torch, "np": np, "pd": pd}
    done = doctest.testmod(module, extraglobs=known)
    assert done.attempted
    assert not done.failed
