"""A directory of results → one page with figures, tables, replies and commands to reproduce it."""

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
from steerlens.dashboards.vectors import cosine_matrix, explained_variance, vector_cosines
from steerlens.errors import SteerlensError
from steerlens.files import PathLike, require_writable, write_text
from steerlens.steering.condition_search import ConditionSearch
from steerlens.studies.findings import PARTS, findings
from steerlens.studies.html import Block, Code, Fold, Listing, Section, page
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
"""Most threshold sweeps on one page."""
SOME_REPLIES, MOST_REPLIES = 8, 200
"""Replies shown at once, and when a table is opened."""


def report(directory: PathLike, out: PathLike | None = None) -> Path:
    """Write one self-contained HTML page about a directory of results; returns its path.

    Files that cannot be shown are listed with the reason.

    Args:
        directory: Written by `steerlens demo --out`, sweeps, evaluations, or your own.
        out: The page; default: `report.html` in the directory.

    Raises:
        SteerlensError: If the directory is missing or holds no results.

    >>> report("figures/study", "out/report.html").name
    'report.html'
    """
    study = read_study(directory)
    if not any(_counts(study).values()):
        raise SteerlensError(
            f"got {str(directory)!r}, which holds no results to report"
            + "".join(f"; {name}: {why}" for name, why in list(study.left_out.items())[:5])
        )
    sections = [section for section in _sections(study) if section.blocks]
    path = Path(out) if out is not None else study.directory / REPORT
    require_writable(path.parent)
    title = f"Study: {study.directory.resolve().name}"
    return write_text(path, page(title, "\n".join(findings(study)), sections))


def _sections(study: Study) -> Iterator[Section]:
    yield Section(
        "Results",
        list(_results(study)),
        "Shares of replies, part by part, with 95 % intervals: bars whose intervals do not overlap "
        "differ by more than chance.",
    )
    yield Section(
        "Before and after",
        list(_replies(study)),
        "The same prompts answered without and with steering: read some before you trust a number.",
    )
    yield Section(
        "Evaluations",
        list(_evaluations(study)),
        "The effect of a steering compared with random directions of the same length, and its side "
        "effects on text that it should not change.",
    )
    yield Section(
        "Sweeps",
        list(_sweeps(study)),
        "Where and how strongly to steer. The best of many cells looks better than it is: evaluate "
        "it on other prompts.",
    )
    yield Section(
        "Other tables",
        list(_tables(study)),
        "Other tables in this directory, drawn if their columns are those of a figure.",
    )
    yield Section(
        "Conditions",
        list(_conditions(study.searches)),
        "Similarities of prompts that a condition should fire on (positive) and of others "
        "(negative), and how its threshold was chosen.",
        folded=True,
    )
    yield Section(
        "Vectors",
        list(_vectors(study.vectors)),
        "Where the directions come from, and how similar they are.",
        folded=True,
    )
    yield Section(
        "How to reproduce these results",
        list(_origins(study)),
        "Settings and versions of the run, and the commands that repeat it.",
        folded=True,
    )
    reasons = pd.DataFrame(list(study.left_out.items()), columns=["file", "reason"])
    left_out = [Listing.of(reasons, "Files not shown, and why")] if len(reasons) else []
    yield Section("Files not shown", left_out, "Files in this directory that could not be read.")


def _counts(study: Study) -> dict[str, int]:
    return {
        "result table": len(study.results) + len(study.tables),
        "set of replies": len(study.replies),
        "evaluation": len(study.evaluations),
        "sweep": len(study.sweeps),
        "condition": len(study.searches),
        "vector": len(study.vectors),
    }


def _drawn(draw: Callable[..., go.Figure], *arguments: Any) -> Block:
    """The figure, or why there is none."""
    try:
        return draw(*arguments)
    except SteerlensError as error:
        return f"Not drawn: {error}"


def _results(study: Study) -> Iterator[Block]:
    for name, content in study.results.items():
        table = pd.DataFrame(content["rows"])
        meanings = {part: PARTS[part] for part in PARTS if part in {*table.get("part", ())}}
        if meanings:
            yield _pairs("The parts", meanings)
        for index, measure in enumerate(list(dict.fromkeys(table.get("measure", [])))[:2]):
            parts = _like_groups(table[table["measure"] == measure])
            figures = [_drawn(rates, part, measure) for part in parts]
            yield from [Fold(f"Replies {measure}", figures)] if index else figures
        yield Listing.of(table, f"All cells of {name}", most=200, folded=True)


def _like_groups(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Parts with the same groups, as one table each: a figure compares the same groups."""
    if not {"part", "group"} <= set(table.columns):
        return [table]
    groups = table.groupby("part", sort=False)["group"].agg(tuple)
    kinds = table["part"].map(groups)
    return [part for _, part in table.groupby(kinds, sort=False)]


def _evaluations(study: Study) -> Iterator[Block]:
    for name, evaluation in study.evaluations.items():
        yield Code(f"{name}\n{evaluation}")
        yield _drawn(dose_response, evaluation)
        yield _drawn(pareto, evaluation)
        yield Listing.of(evaluation.effects, f"{name}: all effects", most=200, folded=True)
        side = evaluation.side_effects
        yield Listing.of(side, f"{name}: all side effects", most=200, folded=True)


def _sweeps(study: Study) -> Iterator[Block]:
    for name, sweep in study.sweeps.items():
        yield f"{name}: {sweep!r}."
        if list(sweep.plan["judges"]):
            yield _drawn(layer_strength, sweep)
            summary = sweep.summary().merge(sweep.degenerate(), how="left")
            yield Listing.of(summary, f"{name}: all cells", most=200, folded=True)
        replies = sweep.table[["vector", "layers", "strength", "prompt", "reply"]]
        yield Listing.of(replies, f"{name}: replies", most=MOST_REPLIES, folded=True)


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
        # rows are often sorted by kind: sample them evenly
        some = table.iloc[:: max(1, len(table) // SOME_REPLIES)].head(SOME_REPLIES)
        yield Listing.of(some, f"{name}: {len(some)} of {len(table)} replies, evenly sampled")
        yield f"Steering: {content['steering']}."
        if len(table) > len(some):
            yield Listing.of(table, f"{name}: replies", most=MOST_REPLIES, folded=True)


def _fired(fired: Sequence[bool]) -> str:
    return ", ".join("fired" if is_open else "did not fire" for is_open in fired)


def _tables(study: Study) -> Iterator[Block]:
    for name, table in study.tables.items():
        kind = kind_of(table)
        if kind is None:
            yield (f"{name} has {len(table):,} rows; no figure takes its columns.")
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
    drawn = dict(list(searches.items())[:MOST_FIGURES])
    yield similarities_by_layer(*drawn.values())
    for index, (name, search) in enumerate(drawn.items()):
        figure = threshold_sweep(search)
        yield Fold(f"Threshold of {search.name or name}", [figure]) if index else figure
    if len(searches) > len(drawn):
        yield f"The figures show the first {len(drawn)} of {len(searches)} conditions."


def _largest_sink(vector: SteeringVector) -> str:
    """Of the texts it was read from, as its provenance notes it."""
    seen = vector.provenance.get("sinks_seen") or ()
    if not seen:
        return "–"
    layer, position, times = max(seen, key=lambda sink: sink[2])
    return f"{times:g} × the median norm (layer {layer}, position {position})"


def _vectors(vectors: Mapping[str, SteeringVector]) -> Iterator[Block]:
    if not vectors:
        return
    keys = ("model", "estimator", "tokens", "pairs", "weights")
    rows = [
        {
            "vector": name,
            "site": vector.site,
            "layers": ", ".join(map(str, vector.layers)),
            "width": vector.width,
            **{key: str(vector.provenance.get(key, "–")) for key in keys},
            "largest attention sink": _largest_sink(vector),
        }
        for name, vector in vectors.items()
    ]
    yield Listing.of(pd.DataFrame(rows), "Vectors")
    comparable: dict[tuple[Any, ...], dict[str, SteeringVector]] = {}
    for name, vector in vectors.items():
        comparable.setdefault((vector.site, vector.layers, vector.width), {})[name] = vector
    for group in comparable.values():
        if len(group) > 2:
            yield _drawn(cosine_matrix, group)
        elif len(group) == 2:
            yield _drawn(vector_cosines, group, next(iter(group)))
    yield _drawn(explained_variance, vectors)


def _origins(study: Study) -> Iterator[Block]:
    directory = shlex.quote(str(study.directory))
    commands = []
    for name, content in study.results.items():
        run = content["run"] if isinstance(content["run"], dict) else {}
        settings = {key: value for key, value in run.items() if not isinstance(value, dict)}
        settings |= {f"version of {key}": value for key, value in _versions(run).items()}
        yield _pairs(f"Run of {name}", settings)
        model, seed = shlex.quote(str(run.get("model", ""))), run.get("seed", 0)
        quick = " --quick" if run.get("quick") else ""
        commands.append(f"steerlens demo --model {model} --seed {seed}{quick} --out {directory}")
    for name, content in study.manifests.items():
        yield _pairs(f"{name}.json", content)
        if isinstance(content.get("command"), str):
            commands.append(content["command"])
    yield Code("\n".join([*commands, f"steerlens report {directory}"]))
    if study.pages:
        others = ", ".join(path.name for path in study.pages.values())
        yield f"Other pages in this directory: {others}."


def _pairs(caption: str, content: Mapping[str, Any]) -> Listing:
    table = pd.DataFrame({"name": list(content), "value": [str(v)[:300] for v in content.values()]})
    return Listing.of(table, caption)


def _versions(run: Mapping[str, Any]) -> Mapping[str, Any]:
    versions = run.get("versions")
    return versions if isinstance(versions, dict) else {}
