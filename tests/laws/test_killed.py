"""A process that is killed while it saves leaves the file that was there, whole."""

import subprocess
import sys

SCRIPT = """
import os, pathlib, random, signal, sys, time
import numpy as np, torch
import steerlens as sl
from steerlens.steering.condition_search import ConditionSearch, search_similarities
from steerlens.steering.thresholds import Similarities

torch.set_num_threads(1)
vector = sl.SteeringVector(torch.randn(32, 4000), tuple(range(1, 33)))
small = vector.at([1, 2])
ones = np.ones((1000, 2))

def dataset(number):
    return sl.ContrastiveDataset([(f"{number} {i}", str(i)) for i in range(5000)], name=str(number))

def search(number):
    sides = Similarities(ones * number, 0 * ones)
    return search_similarities(small, (1, 2), sides, sides)

def direction(path):
    return (sl.SteeringVector.load(path)[32] / vector[32]).mean().item()

kinds = {
    "v.safetensors": (vector.__mul__, direction),
    "v.gguf": (vector.__mul__, direction),
    "data.json": (dataset, lambda path: float(sl.ContrastiveDataset.load(path).name)),
    "search.json": (search, lambda path: ConditionSearch.load(path, small).chosen_on[0].mean()),
}
draw = random.Random(0)
for name, (made, number_in) in kinds.items():
    folder = pathlib.Path(sys.argv[1], name)
    path, versions, caught = folder / name, [made(number) for number in (1, 2)], 0
    versions[0].save(path)
    for trial in range(50):
        child = os.fork()
        if not child:
            while True:
                for version in versions:
                    version.save(path)
        while len(os.listdir(folder)) < 2:  # until it has begun a new file
            pass
        time.sleep(draw.choice((0, 0, 1e-4, 1e-3)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert round(number_in(path), 4) in (1, 2), name
        left = [other for other in folder.iterdir() if other != path]
        caught += bool(left)
        for other in left:
            other.unlink()
        if caught >= 3:
            break
    print(name, caught)
"""


def test_what_was_saved_before_survives(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    caught = dict(line.split() for line in done.stdout.splitlines())
    # killed with a file half written, of every kind
    assert {name: int(times) >= 1 for name, times in caught.items()} == dict.fromkeys(
        ("v.safetensors", "v.gguf", "data.json", "search.json"), True
    )
