"""The page of AxBench: leaderboards, layers and concepts."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from steerlens.dashboards.leaderboards import detection_by_layer, leaderboard
from steerlens.intervals import Interval
from steerlens.studies.html import Listing, Section, page

DETECTION_LEAD = (
    "Detection is whether a concept is in a text: the area under the ROC curve on rows that "
    "nothing was fitted to or chosen on."
)
STEERING_LEAD = (
    "Steering is whether a reply shows the concept, answers the instruction and is fluent: each "
    "from 0 to 2, and their harmonic mean as the score. The strength was chosen on half of the "
    "instructions, and is scored on the other half."
)


def axbench_page(table: pd.DataFrame, dropped: Sequence[str]) -> str:
    """One self-contained page of the parts that were run.

    Args:
        table: The tidy rows of all arms.
        dropped: Concepts and arms left out, with the reasons.
    """
    parts = {"detection": (DETECTION_LEAD, _detection), "steering": (STEERING_LEAD, _steering)}
    run = [parts[name] for name in parts if (table["part"] == name).any()]
    sections = [
        section
        for name, (_, sections_of) in parts.items()
        if (table["part"] == name).any()
        for section in sections_of(table[table["part"] == name])
    ]
    if dropped:
        sections.append(Section("Left out", list(dropped)))
    lead = " ".join([*(words for words, _ in run), "Intervals of means are over concepts."])
    return page("AxBench", lead, sections)


def _detection(table: pd.DataFrame) -> list[Section]:
    overall, concepts = table[table["concept"] == "all"], table[table["concept"] != "all"]
    best = overall[overall["measure"].str.startswith("auroc chosen (")]
    by_layer = overall[overall["measure"].isin(["auroc (mean)", "auroc (max)"])]
    keys = best.assign(measure=best["measure"].str.replace("auroc chosen", "auroc"))
    keys = keys[["arm", "layer", "measure"]].astype(str)
    shown = concepts.assign(layer=concepts["layer"].astype(str)).merge(
        keys, on=["arm", "layer", "measure"]
    )
    words = best[best["arm"].str.startswith("words")]
    return [
        Section(
            "Detection: leaderboard",
            [
                leaderboard(best, "Detection of concepts", "AUROC, mean over concepts", 0.5),
                Listing.of(detection_leaderboard(table), "Means over concepts"),
            ],
            "Each arm at the layer and pooling chosen on training rows that were held out.",
        ),
        Section(
            "Detection: by layer", [detection_by_layer(by_layer, words)], "Means over concepts."
        ),
        Section(
            "Detection: by concept",
            [Listing.of(_by_concept(shown), "AUROC at the chosen layer", most=1000)],
        ),
    ]


def _steering(table: pd.DataFrame) -> list[Section]:
    overall, concepts = table[table["concept"] == "all"], table[table["concept"] != "all"]
    chosen = overall[overall["measure"] == "score"]
    floor = chosen[chosen["arm"] == "unsteered"]["value"]
    judges = table[table["arm"] == "judge"]
    return [
        Section(
            "Steering: leaderboard",
            [
                leaderboard(
                    chosen, "Steering to concepts", "score from 0 to 2, mean over concepts",
                    float(floor.iloc[0]) if len(floor) else None,
                ),
                Listing.of(steering_leaderboard(table), "Means over concepts"),
            ],
            "Equal KL: every vector at the strength with the same side effect on neutral text.",
        ),
        Section(
            "Steering: by concept",
            [
                Listing.of(_by_concept(concepts[concepts["measure"] == measure]), told, most=1000)
                for measure, told in (
                    ("score", "Score at the chosen strength"),
                    ("score at equal KL", "Score at equal KL"),
                    ("factor chosen", "Strength chosen, times that of the KL budget"),
                )
            ],
        ),
        Section(
            "Steering: judges",
            [Listing.of(_told_columns(judges, ["concept", "measure"]), "AUROC of each", most=1000)],
            "On texts whose answer is known, and that the judge was not fitted to.",
        ),
    ]  # fmt: skip


def detection_leaderboard(table: pd.DataFrame) -> pd.DataFrame:
    """The mean over concepts of each arm of detection where it was chosen, the best first."""
    overall = table[(table["part"] == "detection") & (table["concept"] == "all")]
    best = overall[overall["measure"].str.match(r"auroc chosen \(")]
    minus = overall[overall["measure"] == "auroc chosen minus words alone"].set_index("arm")
    return pd.DataFrame(
        {
            "arm": row["arm"],
            "AUROC": told(row),
            "layer": row["layer"],
            "pooling": row["measure"].partition("(")[2].rstrip(")"),
            "minus words alone": told(minus.loc[row["arm"]]) if row["arm"] in minus.index else "",
            "concepts": row["n"],
        }
        for _, row in best.sort_values("value", ascending=False, kind="stable").iterrows()
    )


def steering_leaderboard(table: pd.DataFrame) -> pd.DataFrame:
    """The mean scores over concepts of each arm of steering, the best first."""
    overall = table[(table["part"] == "steering") & (table["concept"] == "all")]
    cells = {(row["arm"], row["measure"]): row for _, row in overall.iterrows()}
    best = overall[overall["measure"] == "score"].sort_values(
        "value", ascending=False, kind="stable"
    )
    measures = (
        "score", "concept", "instruction", "fluency", "score at equal KL",
        "score at equal KL minus difference of means",
    )  # fmt: skip
    return pd.DataFrame(
        {
            "arm": arm,
            **{
                measure: told(cells[arm, measure]) if (arm, measure) in cells else ""
                for measure in measures
            },
            "concepts": n,
        }
        for arm, n in zip(best["arm"], best["n"], strict=True)
    )


def _by_concept(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each concept, a column for each arm."""
    rows = rows.assign(value=rows["value"].astype(float).round(3))
    table = rows.pivot_table(index="concept", columns="arm", values="value", sort=False)
    return table.reset_index()


def _told_columns(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    listed = [
        {name: row[name] for name in names} | {"AUROC": told(row)} for _, row in rows.iterrows()
    ]
    return pd.DataFrame(listed)


def told(row: Any) -> str:
    """A row's value with its interval."""
    return str(Interval(row["value"], row["low"], row["high"]))
