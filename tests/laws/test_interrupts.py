"""Ctrl-C at any instant leaves no hook, no replaced method, no changed weight and no held lock."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
