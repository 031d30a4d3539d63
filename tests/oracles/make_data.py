"""Cuts `data/` out of the full recordings of other libraries (44 MB, not in the repository).

    python tests/oracles/make_data.py RECORDINGS ACTIVATION_STEERING

RECORDINGS holds `cast/` and `steering-vectors/` as `data/README.md` describes them, whole.
ACTIVATION_STEERING is a checkout of IBM/activation-steering at 52be602: its `SteeringDataset`
turns sentences of this project into text. The same input makes the same bytes.
"""

import hashlib
import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"
VOCABULARY = slice(None, None, 8)
"""The tokens whose logits are kept."""
COORDINATES = slice(None, None, 4)
"""The coordinates of activations that are kept where they are only compared."""
READ_LAYERS = slice(5)
"""activation-steering reads its sixth and last layer after the final norm: not compared."""

DATASETS = ("refusal", "refusal2", "harmful", "legal", "crime", "strsuffix", "sysmsg")
METHODS = ("pca_pairwise", "pca_center", "pca_diff")
POOLINGS = ("1", "3", "all")
ERRORS = (
    "apply(token_indices=list) without min_token_index=None",
    "generate with token_indices list",
    "generate with 1d mask",
    "ablate with zero vector -> any NaN",
)
N_SPECIAL = 8
"""tiny-llama's special tokens come first, and keep their ids."""


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def copy_model(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        shutil.copyfile(path, target / path.name)


# activation-steering


def relabelling(recordings: Path, n_vocab: int) -> np.ndarray:
    """The new id of every token: its order can be had from the full recordings only."""
    digest = hashlib.sha256((recordings / "cast" / "oracle.json").read_bytes()).digest()
    order = np.random.default_rng(list(digest)).permutation(n_vocab - N_SPECIAL)
    return np.concatenate([np.arange(N_SPECIAL), order + N_SPECIAL])


def cut_result(result: dict, new_ids: np.ndarray) -> dict:
    kept: dict[str, Any] = {
        "input_ids": new_ids[result["input_ids"]].tolist(),
        "condition_met": result["condition_met"],
    }
    for kind in ("default", "plain_greedy20"):
        if kind in result:
            kept[kind] = {
                "new_token_ids": new_ids[result[kind]["new_token_ids"]].tolist(),
                "min_top2_margin": result[kind]["min_top2_margin"],
            }
    return kept


def cut_runs(runs: dict[str, dict], new_ids: np.ndarray) -> dict[str, dict]:
    return {
        name: {
            "config": run["config"],
            "results": [cut_result(result, new_ids) for result in run["results"]],
        }
        for name, run in runs.items()
    }


def cut_cast_json(whole: dict, new_ids: np.ndarray) -> dict:
    steering = whole["steering"]
    return {
        "datasets": {
            name: [
                [new_ids[ids].tolist() for ids in pair]
                for pair in whole["datasets"][name]["token_ids_unpadded"]
            ]
            for name in DATASETS
        },
        "prompts": {
            group: [new_ids[prompt["respond_token_ids"]].tolist() for prompt in prompts]
            for group, prompts in whole["prompts"].items()
        },
        "condition_similarities": {
            key: groups
            for key, groups in whole["condition_similarities"].items()
            if "/nopad/" in key
        },
        "steering": {
            "single": cut_runs(steering["single"], new_ids),
            "multi": cut_runs(steering["multi"], new_ids),
            "multi_vectors": steering["multi_vectors"],
        },
    }


def directions_used(cut: dict) -> set[str]:
    """The keys of the directions that are compared, or steered or gated with."""
    steering = cut["steering"]
    configs = [run["config"] or {} for run in steering["single"].values()]
    return {
        *(f"dir/{d}/nopad/{m}/{p}" for d in DATASETS for m in METHODS for p in POOLINGS),
        *(f"dir/{key.rsplit('/', 1)[0]}" for key in cut["condition_similarities"]),
        *(c[k] for c in configs for k in ("behavior_vector", "condition_vector") if k in c),
        *steering["multi_vectors"].values(),
    }


def cut_cast_arrays(arrays: Any, cut: dict, new_ids: np.ndarray) -> dict[str, np.ndarray]:
    kept = {}
    for key in sorted(directions_used(cut)):
        kept[key] = arrays[key]
        for kind in ("ev", "ev2over1"):
            about = key.replace("dir/", f"{kind}/", 1)
            if about in arrays:
                kept[about] = arrays[about]
    for name in (*cut["steering"]["single"], *cut["steering"]["multi"]):
        key = f"steer/{name}/logits_step0to2_default"
        if key in arrays:
            kept[key] = arrays[key][..., np.argsort(new_ids)][..., VOCABULARY]
    return kept


def relabel_model(folder: Path, new_ids: np.ndarray) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = np.ascontiguousarray(weights[name][np.argsort(new_ids)])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def steering_dataset(checkout: Path) -> ModuleType:
    """The original's module, without its package, which demands an older transformers."""
    package = ModuleType("activation_steering")
    package.__path__ = [str(checkout / "activation_steering")]
    sys.modules["activation_steering"] = package
    return importlib.import_module("activation_steering.steering_dataset")


def token_ids_of(module: ModuleType, tokenizer: Any, spec: dict) -> list:
    spec = spec | {"examples": [tuple(pair) for pair in spec["examples"]]}
    if spec.get("suffixes"):
        spec["suffixes"] = [s if isinstance(s, str) else tuple(s) for s in spec["suffixes"]]
    if "system_message" in spec:
        spec["system_message"] = tuple(spec["system_message"])
    pairs = module.SteeringDataset(tokenizer, **spec).formatted_dataset
    return [[tokenizer(text)["input_ids"] for text in (p.positive, p.negative)] for p in pairs]


def both_sides(suffixes: str | list[str]) -> list[str]:
    return [suffixes, suffixes] if isinstance(suffixes, str) else suffixes


def own_prompts() -> dict[str, dict]:
    """What the original's datasets can be, in this project's sentences (`demo-data/`)."""
    folder = Path(__file__).parents[2] / "demo-data"
    part = {
        name: json.loads((folder / f"{name}.json").read_text())["parts"]["train"]
        for name in ("refusal", "harmful")
    }
    questions, suffixes = part["refusal"]["pairs"][:12], part["refusal"]["suffixes"][:6]
    contrast = part["harmful"]["pairs"][:16]
    return {
        "suffix pairs": {"examples": questions, "suffixes": suffixes},
        "one suffix for both": {"examples": contrast, "suffixes": ["I think", "Sure, here"]},
        "no suffix": {"examples": contrast, "disable_suffixes": True},
        "system messages": {
            "examples": questions,
            "disable_suffixes": True,
            "system_message": ["You are rude.", "You are kind."],
        },
    }


def made_of_own_prompts(recordings: Path, checkout: Path, whole: dict) -> dict:
    """Their token ids, by the very steps that made the recorded ones."""
    from transformers import AutoTokenizer

    module = steering_dataset(checkout)
    tokenizer = AutoTokenizer.from_pretrained(recordings / "cast" / "tiny-llama")
    for name in DATASETS:
        recorded = whole["datasets"][name]
        if token_ids_of(module, tokenizer, recorded["spec"]) != recorded["token_ids_unpadded"]:
            raise SystemExit(f"{name} becomes other tokens than were recorded")
    return {
        name: {
            "spec": spec,
            "token_ids": token_ids_of(module, tokenizer, spec),
            "suffix_token_lengths": [
                [len(tokenizer(suffix)["input_ids"]) for suffix in both_sides(suffixes)]
                for suffixes in spec.get("suffixes", [])
            ],
        }
        for name, spec in own_prompts().items()
    }


def make_cast(recordings: Path, checkout: Path) -> None:
    source, target = recordings / "cast", DATA / "cast"
    whole = json.loads((source / "oracle.json").read_text())
    copy_model(source / "tiny-llama", target / "tiny-llama")
    config = json.loads((source / "tiny-llama" / "config.json").read_text())
    new_ids = relabelling(recordings, config["vocab_size"])
    relabel_model(target / "tiny-llama", new_ids)
    cut = cut_cast_json(whole, new_ids)
    write_json(target / "oracle.json", cut)
    write_json(target / "own_prompts.json", made_of_own_prompts(recordings, checkout, whole))
    arrays = np.load(source / "oracle.npz")
    write_arrays(target / "oracle.npz", cut_cast_arrays(arrays, cut, new_ids))
    pooled = np.load(source / "pooled_hiddens_nopad.npz")
    keys = [f"h/{name}/nopad/{pooling}" for name in DATASETS for pooling in POOLINGS]
    write_arrays(
        target / "pooled_hiddens_nopad.npz",
        {key: pooled[key][READ_LAYERS, :, COORDINATES] for key in keys if key in pooled},
    )


# steering-vectors, repeng, representation-engineering


def cut_applied(key: str, array: np.ndarray) -> np.ndarray:
    if key.endswith("|logits"):
        return array[..., VOCABULARY]
    return array[..., COORDINATES] if key.endswith("|resid") else array


def cut_generated(logits: Any) -> dict[str, np.ndarray]:
    kept = {}
    for key in logits.files:
        top = np.argsort(logits[key], axis=1)[:, :-3:-1]
        kept[key] = logits[key][:, VOCABULARY]
        kept[f"{key}|top ids"] = top
        kept[f"{key}|top"] = np.take_along_axis(logits[key], top, axis=1)
    return kept


def make_steering_vectors(recordings: Path) -> None:
    source, target = recordings / "steering-vectors", DATA / "steering-vectors"
    inputs = json.loads((source / "inputs.json").read_text())
    for name in ("gpt2", "llama"):
        copy_model(source / f"tiny-{name}", target / f"tiny-{name}")
        inputs[name].pop("eval_token_ids")

        def arrays(kind: str, name: str = name) -> Any:
            return np.load(source / f"{kind}_{name}.npz")

        def write(kind: str, kept: dict[str, np.ndarray], name: str = name) -> None:
            write_arrays(target / f"{kind}_{name}.npz", kept)

        raw, train, applied = arrays("raw_acts"), arrays("sv_train"), arrays("sv_apply")
        write("raw_acts", {key: raw[key][..., COORDINATES] for key in raw.files})
        write("sv_train", dict(train))
        write("sv_apply", {key: cut_applied(key, applied[key]) for key in applied.files})
        write("sv_generate_logits", cut_generated(arrays("sv_generate_logits")))
        repeng, repe = arrays("repeng"), arrays("repe")
        kinds = ("hiddens|", "arith|", "pca_diff|", "pca_center|")
        write("repeng", {key: repeng[key] for key in repeng.files if key.startswith(kinds)})
        kinds = ("H|", "pca|", "cluster_mean|")
        write("repe", {key: repe[key] for key in repe.files if key.startswith(kinds)})
        generated = json.loads((source / f"sv_generate_{name}.json").read_text())
        generated["errors"] = {key: generated["errors"][key] for key in ERRORS}
        write_json(target / f"sv_generate_{name}.json", generated)
        for method in ("pca_diff", "pca_center"):
            file = f"repeng_{name}_{method}.gguf"
            shutil.copyfile(source / file, target / file)
    write_json(target / "inputs.json", {key: inputs[key] for key in ("pairs", "gpt2", "llama")})
    labels = json.loads((source / "repe_inputs.json").read_text())["labels"]
    write_json(target / "repe_inputs.json", {"labels": labels})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    make_cast(Path(sys.argv[1]), Path(sys.argv[2]))
    make_steering_vectors(Path(sys.argv[1]))
