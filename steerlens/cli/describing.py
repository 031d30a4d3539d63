"""What a file or directory is, in words, judged by its content instead of its name.

Nothing here imports torch, except to load vectors.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steerlens.cli.names import PLAN_ENDING, VECTOR_ENDINGS
from steerlens.cli.plan_words import plan_facts
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.row_files import ENDINGS, PAIRS, RowFile, read_row_file
from steerlens.errors import SteerlensError, short_repr
from steerlens.files import read_json
from steerlens.layer_text import layers_as_text

FEW_PROMPTS = 20
"""Scores on fewer prompts are reported as uncertain."""
SHOWN_VALUE = 400
"""Characters of one value."""


@dataclass(frozen=True)
class Description:
    """What a file is: its kind, facts by name, and warnings."""

    kind: str
    facts: Mapping[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    known: bool = True


def describe(path: Path) -> Description:
    """Describe a file or directory; an unknown or broken one gives `known=False` and the reason.

    >>> describe(demo_file("harmful.json")).kind
    'a contrastive dataset'
    """
    try:
        description = _directory(path) if path.is_dir() else _file(path)
    except SteerlensError as error:
        return Description("not understood", {"because": _short(error)}, known=False)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # it names a known format, but lacks a field of it
        reason = f"it lacks a part of its format ({type(error).__name__}: {error})"
        return Description("not understood", {"because": _short(reason)}, known=False)
    facts = {
        name: _short(value) for name, value in description.facts.items() if value not in (None, "")
    }
    return replace(description, facts=facts)


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_VALUE else text[: SHOWN_VALUE - 1] + "…"


def _file(path: Path) -> Description:
    if not path.exists():
        raise SteerlensError(f"there is no file {str(path)!r}")
    if path.suffix.lower() in VECTOR_ENDINGS:
        return _vector(path)
    if path.suffix.lower() == PLAN_ENDING:
        return Description("a plan for steering", plan_facts(path))
    if path.suffix.lower() == ".json":
        content = read_json(path)
        format_name = content.get("format") if isinstance(content, dict) else None
        if format_name in _JSON:
            return _JSON[format_name](path, content)
    elif path.suffix.lower() not in ("", ".text", ".ndjson", *ENDINGS):
        raise SteerlensError(f"steerlens reads and writes no files that end in {path.suffix!r}")
    return _rows(path)


# Vectors


def _vector(path: Path) -> Description:
    from steerlens.vectors.vector import SteeringVector

    vector = SteeringVector.load(path)
    provenance = dict(vector.provenance)
    lengths = vector.directions.norm(dim=1)
    zero = [layer for layer, length in zip(vector.layers, lengths, strict=True) if not length]
    warnings = {
        f"the direction of layer {layers_as_text(zero)} is zero": bool(zero),
        "the activations' norms are not known: --relative strengths cannot be used": (
            vector.norms is None
        ),
        "it does not say which model it was made with, so this is not checked": (
            not provenance.get("model") and not provenance.get("model_type")
        ),
    }
    names = ("estimator", "tokens", "pairs", "processing", "history", "source")
    return Description(
        "a steering vector",
        {
            "name": provenance.get("name"),
            "model": provenance.get("model") or provenance.get("model_type"),
            "layers": layers_as_text(vector.layers),
            "site": vector.site,
            "width": vector.width,
            **{name: _words(provenance.get(name)) for name in names},
            "attention sinks": {"True": "averaged too", "False": "left out"}.get(
                str(provenance.get("sinks"))
            ),
            "lengths": _range(lengths.tolist()),
            "activation norms": None if vector.norms is None else _range(vector.norms.tolist()),
            "explained variance": (
                None if vector.explained is None else _range(vector.explained.tolist())
            ),
            "versions": _pairs(provenance.get("versions")),
        },
        tuple(text for text, holds in warnings.items() if holds),
    )


def _range(values: Iterable[float]) -> str:
    numbers = sorted(values)
    ends = dict.fromkeys((f"{numbers[0]:.4g}", f"{numbers[-1]:.4g}"))
    return " to ".join(ends)


def _pairs(table: object) -> str:
    if not isinstance(table, dict):
        return ""
    return ", ".join(f"{name} {value}" for name, value in table.items())


def _words(value: object) -> object:
    if isinstance(value, list):
        return "; ".join(str(_words(item)) for item in value)
    return _pairs(value) if isinstance(value, dict) else value


# JSON files that say their format


def _dataset(path: Path, content: Any) -> Description:
    data = ContrastiveDataset.load(path)
    n_equal = sum(positive == negative for positive, negative in data.pairs)
    parts = {name: f"{len(part)}" for name, (part, _) in data.parts.items()}
    no_contrast = n_equal and not data.suffixes and data.system[0] == data.system[1]
    return Description(
        "a contrastive dataset",
        {
            "name": data.name,
            "about": content.get("about"),
            "pairs": len(data.pairs),
            "suffixes": len(data.suffixes) or None,
            "rows": len(data),
            "parts": _pairs(parts),
            "system messages": data.system if any(data.system) else None,
            "chat template": {None: "if there is one", True: "yes", False: "no"}[data.chat],
        },
        (f"{n_equal} pairs have two equal sides: they show no contrast",) if no_contrast else (),
    )


def _search(path: Path, content: Any) -> Description:
    best, scores = content["best"], content["scores"]
    sides = {name: content["scored_on"][name] for name in ("positive", "negative")}
    n = sum(map(len, sides.values()))
    value, low, high = scores["f1"]
    f1 = f"{value:.3f} [{low:.3f}, {high:.3f}]"
    few = f"scored on only {n} prompts: its scores are uncertain"
    return Description(
        "a condition search",
        {
            "name": content["name"],
            "layers searched": layers_as_text(content["layers"]),
            "site": content["site"] or "that of the vector",
            "tokens": content["tokens"],
            "similarity": content["similarity"],
            "best": (
                f"{'mean of layers' if content['combine'] is None else 'layer'} "
                f"{layers_as_text(sorted(best['layers']))} {best['side']} {best['threshold']:.4f}"
            ),
            "F1": f"{f1} on {n} prompts that it was not chosen on",
            "precision, recall": ", ".join(
                f"{scores[name][0]:.3f}" for name in ("precision", "recall")
            ),
            "vector": f"extracted from the pairs {content['vector']}"
            if content["vector"]
            else None,
        },
        (few,) if n < FEW_PROMPTS else (),
    )


def _replies(path: Path, content: Any) -> Description:
    if "rows" not in content:
        return _rows(path)
    rows = content["rows"]
    fired = [any(row["fired"]) for row in rows if row["fired"]]
    return Description(
        "replies before and after steering",
        {
            "steering": content["steering"],
            "prompts": len(rows),
            "condition fired": f"on {sum(fired)} of {len(fired)}" if fired else None,
        },
    )


def _demo(path: Path, content: Any) -> Description:
    run = content["run"]
    return Description(
        "results of the demo",
        {
            "model": run["model"],
            "layers": layers_as_text(run["layers"]),
            "strength": run["strength"],
            "seed": run["seed"],
            "prompts": "fewer (--quick)" if run["quick"] else "all",
            "numbers": len(content["rows"]),
            "versions": _pairs(run.get("versions")),
        },
        ("made with --quick: on few prompts",) if run["quick"] else (),
    )


def _sweep(path: Path, content: Any) -> Description:
    plan = content["plan"]
    parts = sorted(path.parent.glob("part-*.parquet"))
    done = sum(_n_rows(part) for part in parts)
    strengths = {strength for each in plan["strengths"].values() for strength in each}
    missing = f"{plan['rows'] - done} of {plan['rows']} rows are missing: continue with --resume"
    return Description(
        "a sweep",
        {
            "model": plan["model"],
            "vectors": ", ".join(plan["vectors"]),
            "layers": " · ".join(plan["layers"]),
            "strengths": ", ".join(f"{strength:g}" for strength in sorted(strengths)),
            "positions": ", ".join(dict.fromkeys(plan["positions"].values())),
            "judges": ", ".join(plan["judges"]) or "none",
            "cells": plan["cells"],
            "rows": f"{done} of {plan['rows']}",
        },
        (missing,) if done < plan["rows"] else (),
    )


def _n_rows(part: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(part).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise SteerlensError(f"{str(part)!r} is no readable Parquet file: {error}") from error


def _evaluation(path: Path, content: Any) -> Description:
    settings = content["settings"]
    failed = [f"the judge {name} failed: {why}" for name, why in settings["failures"].items()]
    missing = [
        name for name in content["sha256"] if not (path.parent / f"{name}.parquet").is_file()
    ]
    return Description(
        "an evaluation",
        {
            "model": settings["model"],
            "steering": settings["steering"],
            "strengths": ", ".join(f"{strength:g}" for strength in settings["strengths"]),
            "judges": ", ".join(settings["judges"]),
            "verdict": " ".join(content["verdict"]),
        },
        (*failed, *settings["notes"], *(f"{name}.parquet is missing" for name in missing)),
    )


def _certificate(path: Path, content: Any) -> Description:
    is_exact = content["max_logit_difference"] <= content["tolerance"]
    return Description(
        "a steered model, exported",
        {
            "source": content["source"],
            "architecture": content["architecture"],
            "steering": "; ".join(content["steering"]),
            "changed": ", ".join(content["changed"]),
            "verified": (
                f"logits within {content['max_logit_difference']:.1e} of hook steering on "
                f"{content['prompts']} prompts ({content['tokens']} tokens)"
            ),
            "versions": _pairs(content["versions"]),
        },
        () if is_exact else ("its logits differ from those of hook steering",),
    )


def _sentiment(path: Path, content: Any) -> Description:
    chosen = content["chosen"]
    names = ("vector", "layers", "strength")
    return Description(
        "results of the sentiment experiment",
        {"model": content["plan"]["model"], **{name: chosen[name] for name in names}},
        tuple(f"not judged: {failure}" for failure in content["failures"]),
    )


def _cast_table(path: Path, content: Any) -> Description:
    names = ("steering", "search")
    return Description("CAST's table", {name: content[name] for name in names})


_JSON: dict[str, Callable[[Path, Any], Description]] = {
    PAIRS: _dataset,
    "steerlens.search/1": _search,
    "steerlens.replies/1": _replies,
    "steerlens.demo/1": _demo,
    "steerlens.sweep/1": _sweep,
    "steerlens.evaluation/1": _evaluation,
    "steerlens.certificate/1": _certificate,
    "steerlens.sentiment/1": _sentiment,
    "steerlens.cast-table/1": _cast_table,
}
"""A JSON file's "format" → the function that describes it. A new format is a line here."""


# Rows: prompts, topics, questions, tables


def _rows(path: Path) -> Description:
    file = read_row_file(path)
    names = file.columns
    kind = "a table" if names else "prompts"
    if file.format == "steerlens.topics/1":
        kind = "prompts by topic"
    elif {"question", "answer_matching_behavior"} <= set(names):
        kind = "A/B questions"
    counts = {name: len(rows) for name, rows in file.parts.items()}
    return Description(
        f"{kind} ({file.kind})",
        {
            "rows": sum(counts.values()),
            "parts": _pairs(counts) if set(counts) != {"all"} else None,
            "topics" if kind == "prompts by topic" else "columns": ", ".join(names),
            "first": _first(file),
        },
        () if any(counts.values()) else ("it holds no row",),
    )


def _first(file: RowFile) -> str | None:
    rows = file.part("")
    return short_repr(rows[0]) if rows and not isinstance(rows[0], dict) else None


# Directories


def _directory(path: Path) -> Description:
    for name in _MAIN_FILES:
        if (path / name).is_file():
            main = _file(path / name)
            return replace(main, facts={**main.facts, "files": ", ".join(_names_in(path))})
    if (path / "config.json").is_file():
        return _model(path)
    names = _names_in(path)
    if not names:
        raise SteerlensError("the directory is empty")
    kinds: dict[str, list[str]] = {}
    for name in names:
        is_file = (path / name).is_file()
        kind = describe(path / name).kind if is_file else "a directory"
        kinds.setdefault(kind, []).append(name)
    if set(kinds) <= {"not understood", "a directory"}:
        raise SteerlensError(f"it holds no file that steerlens knows: {', '.join(names)}")
    return Description("a directory", {kind: ", ".join(files) for kind, files in kinds.items()})


def _names_in(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir() if not file.name.startswith("."))


_MAIN_FILES = (
    "steerlens-certificate.json",
    "plan.json",
    "evaluation.json",
    "sentiment.json",
    "cast-table.json",
    "results.json",
)
"""Files that say what their whole directory is."""


def _model(path: Path) -> Description:
    config = read_json(path / "config.json")
    weights = [file for file in path.iterdir() if file.suffix in (".safetensors", ".bin")]
    text = config.get("text_config") or config
    return Description(
        "a Hugging Face model",
        {
            "architecture": ", ".join(config.get("architectures") or ["unknown"]),
            "layers": text.get("num_hidden_layers") or text.get("n_layer"),
            "width": text.get("hidden_size") or text.get("n_embd"),
            "vocabulary": text.get("vocab_size"),
            "chat template": "yes" if _has_template(path) else "no",
        },
        () if weights else ("it holds no weights (*.safetensors, *.bin)",),
    )


def _has_template(path: Path) -> bool:
    settings = path / "tokenizer_config.json"
    if (path / "chat_template.jinja").is_file():
        return True
    return settings.is_file() and bool(read_json(settings).get("chat_template"))
