"""The page of AxBench: its leaderboard, layers and concepts."""

from collections.abc import Sequence

import pandas as pd

from steerlens.dashboards.leaderboards import detection_by_layer, leaderboard
from steerlens.studies.html import Listing, Section, page


def detection_page(table: pd.DataFrame, best_rows: pd.DataFrame, dropped: Sequence[str]) -> str:
    """One self-contained page of a detection's results.

    Args:
        table: The tidy rows of all arms.
        best_rows: The leaderboard.
        dropped: Concepts left out, with the reasons.
    """
    overall = table[table["concept"] == "all"]
    concepts = table[table["concept"] != "all"]
    best = overall[overall["measure"].str.startswith("auroc chosen (")]
    by_layer = overall[overall["measure"].isin(["auroc (mean)", "auroc (max)"])]
    keys = best.assign(measure=best["measure"].str.replace("auroc chosen", "auroc"))
    keys = keys[["arm", "layer", "measure"]].astype(str)
    shown = concepts.assign(layer=concepts["layer"].astype(str)).merge(
        keys, on=["arm", "layer", "measure"]
    )
    by_concept = shown.pivot_table(
        index="concept", columns="arm", values="value", sort=False
    ).reset_index()
    lead = (
        "Whether a concept is in a text, by the area under the ROC curve on rows that nothing was "
        "fitted to or chosen on. Intervals of means are over concepts."
    )
    missing = [f"Left out: {one}" for one in dropped]
    words = best[best["arm"].str.startswith("words")]
    return page(
        "AxBench: detection",
        lead,
        [
            Section(
                "Leaderboard",
                [leaderboard(best), Listing.of(best_rows, "Means over concepts")],
                "Each arm at the layer and pooling chosen on training rows that were held out.",
            ),
            Section("By layer", [detection_by_layer(by_layer, words)], "Means over concepts."),
            Section(
                "By concept",
                [Listing.of(by_concept, "AUROC at the chosen layer", most=1000), *missing],
            ),
        ],
    )
