"""Broken, wrong and hostile files and rules end in a `SteerlensError`: quickly, and nothing else.

Every case comes from a seed, so that a failure can be had again by its number.
"""

import json
import os
import pickle
import random
import shutil
import struct
import time
import tracemalloc
import zipfile
from contextlib import suppress
from typing import NamedTuple

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.cli.describing import describe
from steerlens.cli.options import (
    existing_directory,
    existing_file,
    parse_judges,
    parse_pair_columns,
    parse_pictures,
    parse_positions,
    parse_sizes,
    parse_strengths,
    parse_tokens,
    parse_windows,
    vector_file,
    written_vector,
)
from steerlens.data.prompt_files import load_prompts, read_pairs, read_prompts
from steerlens.data.questions import load_questions
from steerlens.evaluation.evaluation import Evaluation
from steerlens.evaluation.sweep_store import Sweep, open_directory
from steerlens.files import naming
from steerlens.layer_text import parse_layers
from steerlens.learning.descent import Check, Descent, Keeper
from steerlens.steering import with_evidence
from steerlens.steering.condition_search import ConditionSearch, search_similarities
from steerlens.steering.rules import parse_rules
from steerlens.steering.similarities import Standard
from steerlens.steering.thresholds import Similarities
from steerlens.steering.topics import Topics
from steerlens.studies.study import read_study
from steerlens.vectors.discriminants import Discriminant
from steerlens.vectors.tensor_files import read_tensors, write_tensors
from steerlens.vectors.vector import SteeringVector

SLOW = 1.0
"""Seconds that no input may take; where it matters, hostile ones would take minutes."""
LONG = 2000
"""Characters that no message may have."""


@pytest.fixture(scope="module", autouse=True)
def unchecked_types():
    """Annotations are not checked, as in use: the package itself must refuse wrong types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def vector():
    directions = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    return sl.SteeringVector(
        directions, (1, 2, 5), norms=torch.ones(3), explained=torch.ones(3) / 3,
        provenance={"name": "kind", "model": "m", "pairs": 4, "pairs_hash": "abc"},
    )  # fmt: skip


def plan(vector, path):
    """Two steerings with conditions, one of a topic, and a mask."""
    weights = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(1))
    discriminant = Discriminant(weights, torch.zeros(3, 2))
    sea = Topics(("sea", "sky", "soil"), (1, 2), discriminant, (0.0, 0.5, 0.0)).conditions["sea"]
    near = sl.Condition(vector, [1, 2], above=0.5, standard=Standard((0.0, 1.0), (1.0, 2.0)))
    masked = sl.Steering(vector, [5], when=near & ~sea, positions=torch.tensor([True, False]))
    cut = sl.Steering(vector, [2, 5], [1, 0.5], near, relative=True, positions=slice(1, None))
    sl.save_plan([with_evidence(masked, {"verdict": ["so"]}), cut], path)


PLAN = {"rows": 4, "cells": 2, "judges": {"refusal": "1"}, "gates": [], "model": "m"}


def evaluation():
    """A small one, of two prompts and two arms."""
    rows = [
        (prompt, "Hi.", arm, strength, "No.", 2, True, True, "refusal", float(strength > 0))
        for prompt in (0, 1)
        for arm, strength in (("unsteered", 0.0), ("steered", 1.0), ("negative", -1.0))
    ]
    columns = ["prompt", "text", "arm", "strength", "reply", "reply_tokens", "finished", "open",
               "judge", "score"]  # fmt: skip
    effects = [
        ("steered", 1.0, measure, 0.1, 0.0, 0.2, 2, "texts")
        for measure in ("kl_mean", "kl_p95", "perplexity_ratio")
    ]
    names = ["arm", "strength", "measure", "value", "low", "high", "n", "of"]
    settings = {"strength": 1.0, "raises": True, "seed": 0, "judges": {"refusal": "1"},
                "failures": {}, "notes": []}  # fmt: skip
    return Evaluation(
        pd.DataFrame(rows, columns=columns), pd.DataFrame(effects, columns=names), settings
    )


def as_evaluation(folder):
    """Reads a file as the JSON of the evaluation in a folder."""

    def read(path):
        place = path.parent / "as evaluation"
        shutil.copytree(folder / "evaluation", place, dirs_exist_ok=True)
        shutil.copyfile(path, place / "evaluation.json")
        with naming(path):
            return Evaluation.load(place)

    return read


def as_sweep(path):
    place = path.parent / "as sweep"
    place.mkdir(exist_ok=True)
    shutil.copyfile(path, place / "plan.json")
    with naming(path):
        return Sweep.load(place)


def as_study(path):
    """What cannot be shown is kept with the reason; here, that is a refusal."""
    place = path.parent / "as study"
    place.mkdir(exist_ok=True)
    shutil.copyfile(path, place / path.name)
    study = read_study(place)
    for why in study.left_out.values():
        raise sl.SteerlensError(f"{path.name}: {why}")
    return study


class Begun(NamedTuple):
    """A descent of one step, and where it is kept."""

    descent: Descent

    def save_to(self, path):
        Keeper(path, "a job").save(self.descent)

    def resume_from(self, path):
        with naming(path):
            Keeper(path, "a job").resume(self.descent)
        return self.descent.directions.tolist()


def begun():
    start = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    descent = Descent.begin(start, torch.ones(2), 0.1)
    descent.step(torch.ones(2, 4), 0.0, None)
    descent.losses.append(1.0)
    descent.checks.append(Check(1, 1.0, 0.5))
    descent.best = descent.directions
    return Begun(descent)


@pytest.fixture(scope="module")
def valid(vector, tmp_path_factory):
    """A small valid file of every kind that is read, and what reads it: (path, reader)."""
    folder = tmp_path_factory.mktemp("valid")
    files = {}
    for ending in (".safetensors", ".gguf"):
        vector.save(folder / f"v{ending}")
        files[ending] = folder / f"v{ending}", SteeringVector.load
    plan(vector, folder / "v.steer")
    files[".steer"] = folder / "v.steer", sl.load_plan
    bare = sl.SteeringVector(
        vector.directions, vector.layers, explained=vector.explained,
        provenance={"name": "v", "model": "m"},
    )  # fmt: skip
    bare.save(folder / "v.svec")
    files[".svec"] = folder / "v.svec", SteeringVector.load
    named = {f"layer_{layer}": vector[layer].clone() for layer in vector.layers}
    torch.save(named, folder / "v.pt")
    files[".pt"] = folder / "v.pt", SteeringVector.load
    np.savez_compressed(folder / "v.npz", **{name: row.numpy() for name, row in named.items()})
    files[".npz"] = folder / "v.npz", SteeringVector.load
    chat = [{"role": "user", "content": "Hi."}]
    data = sl.ContrastiveDataset(
        [("Be kind.", "Be cruel."), (chat, "No."), ("One.", "Two."), ("Up.", "Down.")],
        [("Yes", "No")], system=("You are kind.", None),
    )  # fmt: skip
    data.split(0.5, 0.25).save(folder / "data.json")
    files["dataset"] = folder / "data.json", sl.ContrastiveDataset.load
    sides = Similarities(np.array([[0.5, 0.1], [0.75, 0.2]]), np.array([[0.25, 0.3], [0.1, 0.1]]))
    search = search_similarities(vector, (1, 2), sides, sides, combine=2)
    search.save(folder / "search.json")
    files["search"] = folder / "search.json", lambda path: ConditionSearch.load(path, vector)
    lists = {"format": "steerlens.prompts/1", "parts": {"train": ["Hi.", "Ho."], "test": ["Hum."]}}
    (folder / "prompts.json").write_text(json.dumps(lists))
    files["prompts"] = folder / "prompts.json", load_prompts
    topics = {"format": "steerlens.topics/1", "parts": {"train": {"sea": ["Hi."], "sky": ["Ho."]}}}
    (folder / "topics.json").write_text(json.dumps(topics))
    files["topics"] = folder / "topics.json", load_prompts
    asked = {"question": "Is tea nice?", "answer_matching_behavior": "(A)",
             "answer_not_matching_behavior": "(B)"}  # fmt: skip
    (folder / "questions.json").write_text(json.dumps([asked, asked]))
    files["questions"] = folder / "questions.json", load_questions
    (folder / "questions.jsonl").write_text(json.dumps(asked) + "\n" + json.dumps(asked))
    files["question lines"] = folder / "questions.jsonl", load_questions
    found = evaluation()
    found.save(folder / "evaluation")
    files["evaluation"] = folder / "evaluation" / "evaluation.json", as_evaluation(folder)
    open_directory(folder / "sweep", PLAN, resume=False)
    files["plan"] = folder / "sweep" / "plan.json", as_sweep
    (folder / "results").mkdir()
    replies = {"prompt": "Hi.", "unsteered": "Ho.", "steered": "No.", "fired": [True]}
    content = {"format": "steerlens.replies/1", "steering": "strong", "rows": [replies]}
    (folder / "results" / "replies.json").write_text(json.dumps(content))
    files["replies"] = folder / "results" / "replies.json", as_study
    rows = pd.DataFrame({"prompt": ["Hi, you.", 'Ho "ho"'], "label": [0, 1]})
    rows.to_csv(folder / "rows.csv", index=False)
    rows.to_csv(folder / "rows.tsv", index=False, sep="\t")
    rows.to_parquet(folder / "rows.parquet")
    rows.to_json(folder / "rows.jsonl", orient="records", lines=True)
    for ending in ("csv", "tsv", "parquet", "jsonl"):
        files[ending] = folder / f"rows.{ending}", read_prompts
    sides = [{"positive": "Be kind.", "negative": chat}, {"positive": "Up.", "negative": "Down."}]
    (folder / "pairs.json").write_text(json.dumps(sides))
    files["pairs"] = folder / "pairs.json", read_pairs
    begun().save_to(folder / "kept.safetensors")
    files["kept"] = folder / "kept.safetensors", lambda path: begun().resume_from(path)
    (folder / "lines.txt").write_text("One prompt.\nAnd another.\n")
    files["lines"] = folder / "lines.txt", read_prompts
    return files


JSON_KINDS = (".svec", "pairs", "dataset", "search", "prompts", "topics", "questions", "evaluation",
              "plan", "replies")  # fmt: skip
KINDS = (".safetensors", ".steer", ".gguf", ".pt", ".npz", *JSON_KINDS, "question lines", "lines",
         "csv", "tsv", "parquet", "jsonl", "kept")  # fmt: skip
N_DAMAGED, N_DISTORTED = (int(os.environ.get("FUZZ", 1)) * n for n in (300, 300))
"""Inputs a parser is given here; FUZZ=10 in the environment gives it ten times as many."""


def attempt(read, path, content=None):
    """Whether it is refused; refused in any other way than it should, it fails."""
    if content is not None:
        path.write_bytes(content)
    start, told = time.process_time(), None
    try:
        repr(read(path))
    except sl.SteerlensError as error:
        told = str(error)
    assert time.process_time() - start < SLOW
    assert told is None or (path.name in told and len(told) < LONG)
    return told is not None


# Bytes


def damaged(content, draw):
    """A file after one to three accidents."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(content) + 1)
        far = min(len(content), place + draw.randrange(1, 40))
        match draw.randrange(8):
            case 0:
                del content[place:]
            case 1:
                content[place:far] = draw.randbytes(far - place)
            case 2:
                del content[place:far]
            case 3:
                content[place:place] = content[place:far] * draw.choice((1, 2, 100))
            case 4:
                content[place:place] = draw.randbytes(draw.randrange(1, 20))
            case 5:
                numbers = (0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
                content[place : place + 8] = struct.pack("<Q", draw.choice(numbers))
            case 6:
                words = b'"', b"[", b"{", b"-", b"9" * 30, b"1e999", b"NaN", b"\\ud800", b"\0"
                content[place:place] = draw.choice(words)
            case 7 if content:
                content[place % len(content)] ^= 1 << draw.randrange(8)
    return bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(valid, tmp_path, kind):
    original, read = valid[kind]
    content, refused = original.read_bytes(), 0
    for seed in range(N_DAMAGED):
        noise = damaged(content, random.Random(seed))
        refused += attempt(read, tmp_path / f"broken{original.suffix}", noise)
    assert refused or kind == "lines"  # nearly any bytes are lines of text


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_described(valid, tmp_path, kind):
    """`steerlens inspect` says of any file what it is, or why it cannot."""
    original, _ = valid[kind]
    content = original.read_bytes()
    for seed in range(N_DAMAGED // 6):
        path = tmp_path / f"broken{original.suffix}"
        path.write_bytes(damaged(content, random.Random(seed)))
        assert describe(path).kind


@pytest.mark.parametrize("kind", KINDS)
def test_random_bytes(valid, tmp_path, kind):
    original, read = valid[kind]
    head = original.read_bytes()[:16]
    for seed in range(100):
        draw = random.Random(seed)
        noise = head[: draw.choice((0, 4, 8, 16))] + draw.randbytes(draw.randrange(200))
        attempt(read, tmp_path / f"broken{original.suffix}", noise)


# JSON that is well formed, and wrong


def places(tree, path=()):
    """The paths of all values in a JSON tree."""
    yield path
    if isinstance(tree, dict | list) and len(path) < 6:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree[:9])
        for key, value in items:
            yield from places(value, (*path, key))


def nested(depth, value=0):
    for _ in range(depth):
        value = [value]
    return value


STRANGE = [json.dumps(value) for value in (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**64, 10**400, -(10**30), 0.5, 1e308, 1e-320,
    float("nan"), float("inf"), -float("inf"), "", " ", "x", "3", "1e5", "\ud800", "\0", "ß" * 5000,
    [], [[]], [None], ["x"], [1, 2], [0.5, 0.5], ["x", "y"], {}, {"": ""}, {"x": [1]}, {"0": 0},
    {"role": "user"}, [{"role": "user", "content": "x"}], nested(40), nested(600),
    {"a": nested(99)}, list(range(2000)), "all", "train", "cosine", "resid_post",
)]  # fmt: skip


def distorted(tree, draw):
    """One to three values replaced, removed, renamed or doubled."""
    for _ in range(draw.randint(1, 3)):
        path = draw.choice(list(places(tree)))
        strange = json.loads(draw.choice(STRANGE))
        if not path:
            return strange if draw.random() < 0.2 else tree
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        match draw.randrange(5):
            case 0:
                del parent[path[-1]]
            case 1 if isinstance(parent, dict):
                parent[draw.choice(("", "x", "7", "007", "99999", "٣"))] = parent.pop(path[-1])
            case 2 if isinstance(parent, list):
                parent.append(parent[path[-1]])
            case _:
                parent[path[-1]] = strange
    return tree


@pytest.mark.parametrize("kind", JSON_KINDS)
def test_distorted_json(valid, tmp_path, kind):
    original, read = valid[kind]
    refused = 0
    for seed in range(N_DISTORTED):
        tree = distorted(json.loads(original.read_text()), random.Random(seed))
        content = json.dumps(tree).encode()
        refused += attempt(read, tmp_path / f"wrong{original.suffix}", content)
    assert refused > N_DISTORTED // 5


def test_distorted_metadata(valid, tmp_path):
    """The JSON inside .safetensors and .gguf files."""
    from safetensors.torch import load_file, save_file

    original, read = valid[".safetensors"]
    tensors = load_file(original)
    for seed in range(200):
        metadata = {"site": "resid_post", "provenance": {"name": "x", "history": ["sum"]}}
        own = json.dumps(distorted(metadata, random.Random(seed)))
        header = {"format": "steerlens.vector/1", "steerlens": own}
        save_file(tensors, tmp_path / "wrong.safetensors", header)
        attempt(read, tmp_path / "wrong.safetensors")


def test_distorted_plans(valid, tmp_path):
    """The JSON of a plan: what is not refused is a plan, which can be saved and read again."""
    original, read = valid[".steer"]
    path, again, refused = tmp_path / "wrong.steer", tmp_path / "again.steer", 0

    def read_and_save(path):
        plan = read(path)
        sl.save_plan(plan, again)
        sl.steering_hooks(*plan)
        return read(again)

    for seed in range(N_DISTORTED):
        draw = random.Random(seed)
        tensors, content, _ = read_tensors(original)
        for _ in range(draw.randrange(3)):  # numbers of other values
            place = draw.choice(content["values"])
            place[draw.choice([*place])] = {"value": draw.randrange(len(content["values"]))}
        try:
            write_tensors(path, tensors, distorted(content, draw))
        except ValueError:  # NaN, or half a character: no JSON
            continue
        refused += attempt(read_and_save, path)
    assert refused > N_DISTORTED // 2


# Rules

words = st.sampled_from(
    ["if", "then", "and", "or", "not", "(", ")", "harmful", "legal", "refuse", "\n", "  ", "¬", "1",
     "1is", "lambda:", "x[0]", "f'{x}'", "\\d", "'\\d'", "\0", "ﬁ", "\ud800", "=", ":=", "-", "~"]
)  # fmt: skip
phrases = st.lists(words, max_size=25).map(" ".join)


@settings(max_examples=700)
@given(phrases | phrases.map("if {} then refuse".format) | st.text())
@example("if " + "-" * 900 + "x then refuse")
@example("if " + "not " * 200 + "x then refuse")
@example("if " + "(" * 450 + "x" + ")" * 450 + " then refuse")
@example("if " + "[" * 400 + "x" + "]" * 400 + " then refuse")
@example("if x" + ".y" * 450 + " then refuse")
@example("if x" + "()" * 450 + " then refuse")
@example("if " + "9" * 900 + " then refuse")
@example("if " + "then " * 190)
def test_rules(rules):
    try:
        parsed = parse_rules(rules)
    except sl.SteerlensError:
        return
    assert parse_rules([str(rule) for rule in parsed]) == parsed


# Values on the command line

PARSERS = (
    parse_strengths, parse_sizes, parse_windows, parse_tokens, parse_judges, parse_positions,
    parse_pictures, parse_pair_columns, parse_layers, existing_file, existing_directory,
    vector_file, written_vector,
)  # fmt: skip
values = st.lists(
    st.sampled_from(
        ["1", "-1", "2-4", ",", "-", " ", "last", "all", "9" * 40, "9" * 5000, "1e400", "nan", "²",
         "٣", "0x1", "1_0", "refusal", "pdf", "\0", "\ud800", "a/b", "~", "..", ".svec", "/"]
    ),
    max_size=6,
).map("".join)  # fmt: skip


@settings(max_examples=100 * int(os.environ.get("FUZZ", 1)), deadline=None)
@given(values | st.text(max_size=30))
@example("9" * 5000)
@example("1-" + "9" * 30)
@example("0-999999999")
def test_values_of_the_command_line(text):
    for parse in PARSERS:
        start = time.process_time()
        with suppress(sl.SteerlensError):
            parse(text)
        assert time.process_time() - start < SLOW


@pytest.mark.parametrize("rules", [5, None, [5], ["if a then b", None], [["if a then b"]], b"if"])
def test_rules_of_wrong_types(rules):
    with pytest.raises(sl.SteerlensError, match="rule"):
        parse_rules(rules)


# Hostile files, refused before they cost anything


def assert_refused_cheaply(path, why, read=SteeringVector.load):
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(sl.SteerlensError, match=rf"(?s){path.name}.*{why}"):
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < SLOW
    assert peak < 32 * 2**20


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def called(module, name, *arguments):
    """A pickle that calls what it names."""
    numbers = b"".join(b"\x8a\x08" + struct.pack("<q", number) for number in arguments)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + numbers + b"tR."


@pytest.mark.parametrize(
    ("module", "name"), [("builtins", "bytearray"), ("torch", "FloatTensor"), ("os", "_exit")]
)
def test_names_that_no_tensor_needs_are_not_called(tmp_path, module, name):
    path = zipped(tmp_path / "v.pt", {"v/data.pkl": called(module, name, 2**33), "v/version": b"3"})
    assert_refused_cheaply(path, f"uses '{module} {name}'")


def test_a_script_that_swells_is_not_run(tmp_path):
    script = b"\x80\x02" + b"N0" * 2**24 + b"}."
    members = {"v/data.pkl": script, "v/version": b"3"}
    path = zipped(tmp_path / "v.pt", members, zipfile.ZIP_DEFLATED)
    del script, members
    assert_refused_cheaply(path, "one short data.pkl")


def test_a_pickle_is_not_read_at_all(tmp_path):
    (tmp_path / "v.pt").write_bytes(pickle.dumps({"layer_1": [0.5]}))
    assert_refused_cheaply(tmp_path / "v.pt", "not a readable file of bare tensors")


@pytest.mark.parametrize("shape", [(10**10,), (10**5, 10**5), (2**40, 2**40)])
def test_no_room_is_made_for_arrays_that_are_not_there(tmp_path, shape):
    header = str({"descr": "<f4", "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\0" * 64
    path = zipped(tmp_path / "v.npz", {"layer_1.npy": array})
    assert_refused_cheaply(path, "declares the shape")


@pytest.mark.parametrize("ending", [".npz", ".pt"])
def test_archives_that_swell_to_gigabytes_are_not_unpacked(tmp_path, ending):
    path = zipped(tmp_path / f"v{ending}", {"layer_1.npy": b"\0" * 2**20}, zipfile.ZIP_DEFLATED)
    content = path.read_bytes().replace(struct.pack("<L", 2**20), struct.pack("<L", 2**31))
    path.write_bytes(content)
    assert_refused_cheaply(path, "2,147,483,648 bytes")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, compression):
    path = zipped(tmp_path / "v.npz", {"layer_1.npy": b"\0" * 99}, compression)
    assert_refused_cheaply(path, "uses a compression that")


@pytest.mark.parametrize("name", ["../layer_1.npy", "/tmp/layer_1.npy", "..\\layer_1.npy"])
def test_names_in_archives_are_no_paths(valid, tmp_path, name):
    (tmp_path / "deep").mkdir()
    with zipfile.ZipFile(valid[".npz"][0]) as archive:
        content = archive.read("layer_1.npy")
    path = zipped(tmp_path / "deep" / "v.npz", {name: content, "layer_2.npy": content})
    assert_refused_cheaply(path, "names no layer")
    assert [file.name for file in tmp_path.rglob("*")] == ["deep", "v.npz"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 60 + "1" + "}" * 60, "nested too deeply"),
        ('{"format": 1, "format": 2}', "'format' is given twice"),
        ('{"format": ' + "9" * 5000 + "}", "digits"),
        ('{"format": NaN}', "got NaN; expected a number"),
        ('{"format": "\\udc00"}', "not Unicode text"),
    ],
)
@pytest.mark.parametrize("kind", JSON_KINDS)
def test_json_that_is_a_trap(valid, tmp_path, kind, content, why):
    original, read = valid[kind]
    path = tmp_path / f"trap{original.suffix}"
    path.write_text(content)
    assert_refused_cheaply(path, why, read)


@pytest.mark.parametrize("combine", [10**9, 25])
def test_a_search_of_all_combinations_is_not_begun(tmp_path, combine):
    directions = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    vector = sl.SteeringVector(directions, tuple(range(50)))
    sides = Similarities(np.ones((2, 50)), np.zeros((2, 50)))
    search_similarities(vector, vector.layers, sides, sides).save(tmp_path / "s.json")
    content = json.loads((tmp_path / "s.json").read_text()) | {"combine": combine}
    (tmp_path / "s.json").write_text(json.dumps(content))
    assert_refused_cheaply(
        tmp_path / "s.json", "combinations", lambda path: ConditionSearch.load(path, vector)
    )


def test_topics_are_not_taken_for_prompts(valid):
    with pytest.raises(sl.SteerlensError, match="groups its prompts by topic"):
        read_prompts(valid["topics"][0])
