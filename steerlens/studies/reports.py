"""A study's directory → one page with its figures, tables, texts, and how to make it again."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from steerlens.dashboards.comparisons import rates, saturation, sentiment
from steerlens.dashboards.conditions import similarities_by_layer, threshold_sweep
from steerlens.dashboards.effects import dose_response, layer_strength
from steerlens.dashboards.tables import (
    DOSE_RESPONSE,
    PARETO,
    RATES,
    SATURATION,
    SENTIMENT,
    SWEEP,
    Contract,
    kind_of,
)
from steerlens.dashboards.tradeoffs import pareto
from steerlens.dashboards.vectors import explained_variance, vector_cosines
from steerlens.errors import SteerlensError
from steerlens.files import PathLike, require_writable, write_text
from steerlens.steering.condition_search import ConditionSearch
from steerlens.studies.html import Block, Code, Listing, Section, page
from steerlens.studies.study import REPORT, Study, read_study
from steerlens.vectors.vector import SteeringVector

DRAWN: dict[Contract, Callable[[pd.DataFrame], go.Figure]] = {
    SWEEP: layer_strength,
    DOSE_RESPONSE: dose_response,
    PARETO: pareto,
    SENTIMENT: sentiment,
    SATURATION: saturation,
    RATES: rates,
}
"""The figure of each kind of table."""
MOST_FIGURES = 12
"""Threshold sweeps on one page."""
SOME_REPLIES, MOST_REPLIES = 8, 200


def report(directory: PathLike, out: PathLike | None = None) -> Path:
    """Write one self-contained page about a directory of results, `report.html` in it by default.

    What is there is shown; what is not understood is listed with the reason. Raises if there is
    nothing to show.

    >>> report("figures/study", "out/report.html").name
    'report.html'
    """
    study = read_study(directory)
    sections = [section for section in _sections(study) if section.blocks]
    if not any((study.results, study.replies, study.vectors, study.searches, study.tables)):
        raise SteerlensError(
            f"{str(directory)!r} holds no results to report"
            + "".join(f"; {name}: {why}" for name, why in list(study.left_out.items())[:5])
        )
    path = Path(out) if out is not None else study.directory / REPORT
    require_writable(path.parent)
    return write_text(
        path, page(f"Study: {study.directory.resolve().name}", _lead(study), sections)
    )


def _sections(study: Study) -> Iterator[Section]:
    yield Section("Results", list(_results(study)))
    yield Section("Before and after", list(_replies(study)))
    yield Section("Sweeps and evaluations", list(_tables(study)))
    yield Section("Conditions", list(_conditions(study.searches)))
    yield Section("Vectors", list(_vectors(study.vectors)))
    yield Section("Where it comes from, and how to make it again", list(_origins(study)))
    reasons = pd.DataFrame(list(study.left_out.items()), columns=["file", "reason"])
    shown = [Listing.of(reasons, "Files that are not shown")] if len(reasons) else []
    yield Section("What was not understood", shown)


def _lead(study: Study) -> str:
    counts = {
        "result table": len(study.results) + len(study.tables),
        "set of replies": len(study.replies),
        "condition": len(study.searches),
        "vector": len(study.vectors),
        "file that is not shown": len(study.left_out),
    }
    told = [f"{count} × {what}" for what, count in counts.items() if count]
    return f"In this directory: {', '.join(told)}."


def _drawn(draw: Callable[..., go.Figure], *arguments: Any) -> Block:
    """The figure, or why there is none."""
    try:
        return draw(*arguments)
    except SteerlensError as error:
        return f"Not drawn: {error}"


def _results(study: Study) -> Iterator[Block]:
    for name, content in study.results.items():
        table = pd.DataFrame(content["rows"])
        measures = list(dict.fromkeys(table.get("measure", [])))
        for measure in measures[:2]:
            yield _drawn(rates, table, measure)
        yield Listing.of(table, f"All cells of {name}", most=200, folded=bool(measures))


def _replies(study: Study) -> Iterator[Block]:
    for name, content in study.replies.items():
        rows = content["rows"]
        gated = any(row.get("fired") for row in rows)
        table = pd.DataFrame(
            [
                {
                    "prompt": row.get("prompt", ""),
                    "unsteered": row.get("unsteered", ""),
                    "steered": row.get("steered", ""),
                }
                | ({"condition": _fired(row.get("fired", []))} if gated else {})
                for row in rows
            ]
        )
        # rows are often sorted by kind: take them evenly
        some = table.iloc[:: max(1, len(table) // SOME_REPLIES)].head(SOME_REPLIES)
        yield Listing.of(some, f"{name}: {len(some)} of {len(table)} replies, evenly taken")
        yield f"Steered by {content['steering']}."
        if len(table) > len(some):
            yield Listing.of(table, f"{name}: replies", most=MOST_REPLIES, folded=True)


def _fired(fired: Sequence[bool]) -> str:
    return ", ".join("fired" if one else "did not fire" for one in fired)


def _tables(study: Study) -> Iterator[Block]:
    for name, table in study.tables.items():
        kind = kind_of(table)
        if kind is None:
            yield (
                f"{name} has {len(table):,} rows; its columns are those of no figure that is known."
            )
        else:
            yield _drawn(DRAWN[kind], table)
        yield Listing.of(table, f"{name}: {kind.name if kind else 'table'}", folded=True)


def _conditions(searches: Mapping[str, ConditionSearch]) -> Iterator[Block]:
    if not searches:
        return
    rows = []
    for name, search in searches.items():
        best, scores = search.candidates[0], search.scores
        rows.append(
            {
                "condition": search.name or name,
                "layers": ", ".join(map(str, best.layers)),
                "fires": f"{best.side} {best.threshold:.4f}",
                "F1": str(scores.f1),
                "precision": str(scores.precision),
                "recall": str(scores.recall),
                "n": f"{scores.n_positive} + {scores.n_negative}",
            }
        )
    yield Listing.of(pd.DataFrame(rows), "Conditions, on prompts they were not chosen on")
    drawn = list(searches.values())[:MOST_FIGURES]
    yield similarities_by_layer(*drawn)
    yield from map(threshold_sweep, drawn)
    if len(searches) > len(drawn):
        yield f"The figures show the first {len(drawn)} of {len(searches)} conditions."


def _vectors(vectors: Mapping[str, SteeringVector]) -> Iterator[Block]:
    if not vectors:
        return
    told = ("model", "estimator", "tokens", "pairs", "weights")
    rows = [
        {
            "vector": name,
            "site": vector.site,
            "layers": ", ".join(map(str, vector.layers)),
            "width": vector.width,
            **{key: str(vector.provenance.get(key, "–")) for key in told},
        }
        for name, vector in vectors.items()
    ]
    yield Listing.of(pd.DataFrame(rows), "Vectors")
    alike: dict[tuple[Any, ...], dict[str, SteeringVector]] = {}
    for name, vector in vectors.items():
        alike.setdefault((vector.site, vector.layers, vector.width), {})[name] = vector
    for group in alike.values():
        if len(group) > 1:
            yield _drawn(vector_cosines, group, next(iter(group)))
    yield _drawn(explained_variance, vectors)


def _origins(study: Study) -> Iterator[Block]:
    place = shlex.quote(str(study.directory))
    commands = []
    for name, content in study.results.items():
        run = content["run"] if isinstance(content["run"], dict) else {}
        told = {key: value for key, value in run.items() if not isinstance(value, dict)}
        told |= {f"version of {key}": value for key, value in _versions(run).items()}
        yield _pairs(f"Run of {name}", told)
        model, seed = shlex.quote(str(run.get("model", ""))), run.get("seed", 0)
        quick = " --quick" if run.get("quick") else ""
        commands.append(f"steerlens demo --model {model} --seed {seed}{quick} --out {place}")
    for name, content in study.manifests.items():
        yield _pairs(f"{name}.json", content)
        if isinstance(content.get("command"), str):
            commands.append(content["command"])
    yield Code("\n".join([*commands, f"steerlens report {place}"]))
    if study.pages:
        others = ", ".join(path.name for path in study.pages.values())
        yield f"Other pages beside this one: {others}."


def _pairs(caption: str, content: Mapping[str, Any]) -> Listing:
    table = pd.DataFrame({"what": list(content), "value": [str(v)[:300] for v in content.values()]})
    return Listing.of(table, caption)


def _versions(run: Mapping[str, Any]) -> Mapping[str, Any]:
    versions = run.get("versions")
    return versions if isinstance(versions, dict) else {}
