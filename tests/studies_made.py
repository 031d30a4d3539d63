"""A study's directory with one of everything, sound and broken, and scripts in its texts."""

import json

import numpy as np
import pandas as pd
import torch

import steerlens as sl
from steerlens.steering.condition_search import search_similarities
from steerlens.steering.thresholds import Similarities

ATTACK = "</script><script>window.hurt=1</script><img src=x onerror='window.hurt=1'>"
"""Text that must stay text."""


def made_search(name="planted", layers=(1, 2, 3)):
    random = np.random.default_rng(0)

    def spread(shift, n):
        return random.normal(shift, 1, (n, len(layers))).astype(np.float32)

    vector = sl.SteeringVector(
        torch.eye(len(layers)),
        layers,
        explained=torch.linspace(0.1, 0.4, len(layers)),
        provenance={"name": name, "pairs_hash": name, "pairs": 12, "model": ATTACK},
    )
    shifts = np.arange(len(layers))
    return search_similarities(
        vector,
        layers,
        Similarities(spread(shifts, 30), spread(0, 40)),
        Similarities(spread(shifts, 20), spread(0, 25)),
        name=name,
    )


def sweep_table(strengths=(0.2, 0.4), vectors=("refuse", "cheer")):
    cells = [
        (vector, layers, strength, judge)
        for vector in vectors
        for layers in ("2–3", "10–11")
        for strength in strengths
        for judge in ("refusal", ATTACK)
    ]
    table = pd.DataFrame(cells, columns=["vector", "layers", "strength", "judge"])
    table["mean"] = np.linspace(0, 0.9, len(table))
    return table.assign(low=table["mean"] - 0.05, high=table["mean"] + 0.05, n=60)


def make_study(folder):
    search = made_search()
    search.vector.save(folder / "planted.safetensors")
    (search.vector * 2).save(folder / "doubled.safetensors")
    search.save(folder / "planted.json")
    rates = [
        {"part": part, "group": "all", "measure": "refused", "value": 0.25, "low": 0.1,
         "high": 0.4, "n": 20}
        for part in ("unsteered", ATTACK)
    ]  # fmt: skip
    run = {"model": "tiny-chat", "seed": 3, "quick": True, "versions": {"torch": "2.13.0"}}
    write(folder / "results.json", {"format": "steerlens.demo/1", "rows": rates, "run": run})
    replies = [
        {"prompt": f"Question {n}?", "unsteered": "Sure.", "steered": ATTACK, "fired": [n % 2 == 0]}
        for n in range(20)
    ]
    write(
        folder / "replies.json",
        {"format": "steerlens.replies/1", "steering": f"Steering({ATTACK})", "rows": replies},
    )
    sweep = folder / "sweep"
    sweep.mkdir()
    whole = sweep_table()
    whole.iloc[:8].to_parquet(sweep / "part-0.parquet")
    whole.iloc[8:].to_parquet(sweep / "part-1.parquet")
    write(sweep / "manifest.json", {"command": "steerlens sweep plan.json", "seed": 5})
    pd.DataFrame({"prompt": [ATTACK], "score": [0.5]}).to_parquet(folder / "scores.parquet")
    write(folder / "old.json", {"format": "steerlens.search/0", "best": {}})
    write(folder / "nameless.json", {"rows": 3})
    write(folder / "shapeless.json", {"format": "steerlens.replies/1", "rows": [1, 2]})
    (folder / "cut.json").write_text('{"format": "steerl')
    (folder / "cut.parquet").write_bytes(b"PAR1")
    (folder / "cut.safetensors").write_bytes(b"\x08")
    (folder / "notes.txt").write_text("mine")
    return folder


def write(path, content):
    path.write_text(json.dumps(content))
