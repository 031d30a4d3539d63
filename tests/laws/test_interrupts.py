"""Ctrl-C at any instant leaves no hook, no replaced method, no changed weight and no held lock."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import steerlens as sl
from steerlens.export.weight_edits import ablated_weights, edited_biases

TRIES = 100


def test_whatever_is_interrupted_the_model_is_as_it_was(model_folder, tmp_path):
    script = Path(__file__).parent / "interrupted.py"
    package = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script), str(model_folder), str(tmp_path), str(TRIES)],
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert not {job: of["left"] for job, of in told.items() if of["left"]}
    assert len(told) == 9
    assert sum(of["interrupts"] for of in told.values()) >= 500
    assert min(of["interrupts"] for of in told.values()) >= 10


TRACED = ("weight_edits.py", "ownership.py", "contextlib.py")
"""Where a signal at any line must leave the weights as they were."""


def interrupted_at(work, line):
    """Run `work`, with a Ctrl-C at its `line`-th traced line; returns how many lines it has."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        if not frame.f_code.co_filename.endswith(TRACED):
            return None
        seen += event == "line"
        if event == "line" and seen == line:
            signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        assert line
    finally:
        sys.settrace(before)
    return seen


@pytest.mark.parametrize("kind", ["one", "nested", "left by an error"])
def test_a_signal_at_any_line_of_an_edit_leaves_the_weights_as_they_were(model, kind):
    vector = sl.SteeringVector(torch.ones(2, model.cfg.d_model), layers=(0, 1))
    steering = sl.Steering(vector)
    old = {name: weight.clone() for name, weight in model.state_dict().items()}

    def work():
        with suppress(ZeroDivisionError), edited_biases(model, steering):
            if kind == "nested":
                with ablated_weights(model, vector, layers=1):
                    pass
            if kind == "left by an error":
                raise ZeroDivisionError

    lines = interrupted_at(work, 0)
    assert lines > 50
    for line in range(1, lines + 1):
        interrupted_at(work, line)
        changed = [n for n, weight in model.state_dict().items() if not torch.equal(weight, old[n])]
        assert not changed, line
    with edited_biases(model, steering):  # and it can be edited again
        pass
