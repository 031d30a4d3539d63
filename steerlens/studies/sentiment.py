"""The sentiment experiment: does a mood vector move the mood of what a model writes?

After *Activation Steering for LLMs*: replies unsteered, with the vector added and with it taken
away; here with intervals, coherence and random directions of equal length to compare with.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd

from steerlens import judges
from steerlens.activations.extraction import extract
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.prompts import Prompt
from steerlens.errors import SteerlensError
from steerlens.evaluation.calibration import neighbours
from steerlens.evaluation.controls import random_directions
from steerlens.evaluation.sweep_plan import windows_of
from steerlens.evaluation.sweep_store import UNSTEERED, Sweep
from steerlens.evaluation.sweeps import sweep
from steerlens.files import PathLike, require_writable, write_json, write_text
from steerlens.judges.builtin import degeneration
from steerlens.judges.judging import Judge
from steerlens.judges.models import bits_per_character
from steerlens.layer_text import layers_as_text
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.steering.sampling import Sampling
from steerlens.steering.steering import Steering
from steerlens.vectors.estimators import Estimator, linear_discriminant, mean_difference
from steerlens.vectors.vector import SteeringVector

FORMAT = "steerlens.sentiment/1"
STRENGTHS = (0.1, 0.2, 0.3)
"""Fractions of the residual norm that are tried, each with both signs."""
COHERENT = 1.35
"""How many times the unsteered bits per character a steered text may need."""
MARGIN = 1.2
"""The same where the choice is made, which must hold on other prompts too."""
REPETITIVE = 0.15
"""How much the share of degenerate replies may grow where the choice is made."""
BITS = "bits_per_character"
ESTIMATORS: Mapping[str, Estimator] = {
    "mean_difference": mean_difference,
    "linear_discriminant": linear_discriminant,
}


@dataclass(frozen=True, eq=False)
class Sentiment:
    """What was chosen on the selection prompts, and what it did on the test prompts."""

    chosen: Mapping[str, Any]
    """Vector, layers, strength, and what they reached on the selection prompts."""
    selection: Sweep
    test: Sweep
    polarity: str
    """The judge of mood."""

    @property
    def effects(self) -> pd.DataFrame:
        """Mean of each judge with its interval, by vector and sign; `unsteered` first."""
        return self.test.summary()

    @property
    def arms(self) -> pd.DataFrame:
        """Polarity and coherence of each arm, as `dashboards.sentiment` draws them."""
        each = dict(iter(self.effects.groupby("judge", sort=False)))
        polarity = each[self.polarity].reset_index(drop=True)
        names = [_label(*row) for row in zip(polarity["vector"], polarity["strength"], strict=True)]
        return pd.DataFrame({"arm": names, "polarity": polarity["mean"]}).assign(
            low=polarity["low"],
            high=polarity["high"],
            bits_per_character=each[BITS]["mean"].to_numpy(),
            n=polarity["n"],
        )

    def save(self, out: PathLike) -> None:
        """Write sentiment.json (choice, means) and replies.csv to a directory."""
        out = require_writable(out)
        write_json(
            out / "sentiment.json",
            {
                "format": FORMAT,
                "chosen": dict(self.chosen),
                "effects": _records(self.effects),
                "failures": [failure._asdict() for failure in self.test.failures],
                "plan": dict(self.test.plan),
            },
        )
        write_text(out / "replies.csv", self.test.table.to_csv(index=False))

    def __repr__(self) -> str:
        return "Sentiment({vector} at layers {layers}, strength ±{strength:g})".format(
            **self.chosen
        )


def run_sentiment(
    model: Model,
    pairs: ContrastiveDataset,
    selection: Sequence[Prompt],
    test: Sequence[Prompt],
    *,
    judge: Judge | None = None,
    layers: Iterable[int | Iterable[int]] | None = None,
    strengths: Iterable[float] = STRENGTHS,
    n_random: int = 3,
    max_new_tokens: int = 40,
    out: PathLike | None = None,
    resume: bool = False,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> Sentiment:
    """Choose estimator, layers and strength on the selection prompts; report on the test prompts.

    Chosen is what moves both signs' mean polarity furthest from the unsteered one, the lesser of
    the two counting, within bounds on bits per character and degenerate replies. `judge=None` is
    the judge "sentiment". Raises if nothing stays within the bounds.
    """
    shared = set(map(repr, selection)) & set(map(repr, test))
    if shared:
        raise SteerlensError(
            f"{len(shared)} prompts are both chosen on and tested; take them out of one of the two"
        )
    if n_random < 1:
        raise SteerlensError(
            "n_random=0 leaves no random direction to compare with; give 1 or more"
        )
    polarity = judges.sentiment if judge is None else judge
    asked: dict[str, Any] = {
        "judges": [polarity, bits_per_character(model), degeneration],
        "chat": False,
        "max_new_tokens": max_new_tokens,
        "sampling": Sampling(seed=seed),
        "resume": resume,
        **run,
    }
    moods = {
        name: _relative(extract(model, pairs, estimator, tokens="all", name=name, **run))
        for name, estimator in ESTIMATORS.items()
    }
    layers = neighbours(range(model.cfg.n_layers), (1, 2)) if layers is None else layers
    windows = {layers_as_text(window): window for window in windows_of(model, moods, layers)}
    both = [sign * strength for strength in strengths for sign in (1, -1)]
    searched = sweep(
        model, moods, selection, layers=windows.values(), strengths=both,
        out=None if out is None else Path(out) / "selection", **asked,
    )  # fmt: skip
    chosen = choose(searched, polarity.name)
    vector = moods[chosen["vector"]].vector
    drawn = enumerate(random_directions(vector, n_random, seed=seed), start=1)
    controls = {f"random {i}": _relative(control) for i, control in drawn}
    reported = sweep(
        model, {"mood": _relative(vector), **controls}, test,
        layers=[windows[chosen["layers"]]], strengths=[chosen["strength"], -chosen["strength"]],
        out=None if out is None else Path(out) / "test", **asked,
    )  # fmt: skip
    return Sentiment(chosen, searched, reported, polarity.name)


def _relative(vector: SteeringVector) -> Steering:
    """Strengths are fractions of the residual norm."""
    return Steering(vector, relative=True)


def choose(searched: Sweep, polarity: str) -> dict[str, Any]:
    """The cell pair (+ and −) that moves polarity furthest both ways and stays coherent."""
    wide = searched.summary().pivot_table(
        index=["vector", "layers", "strength"], columns="judge", values="mean"
    )
    base = wide.loc[UNSTEERED.vector].iloc[0]
    steered = wide.drop(UNSTEERED.vector).reset_index()
    steered["move"] = np.sign(steered["strength"]) * (steered[polarity] - base[polarity])
    steered["bits"] = steered[BITS] / base[BITS]
    steered["broken"] = steered[degeneration.name] - base[degeneration.name]
    steered["strength"] = steered["strength"].abs()
    signs = steered.groupby(["vector", "layers", "strength"], as_index=False).agg(
        move=("move", "min"), bits=("bits", "max"), broken=("broken", "max"), signs=("move", "size")
    )
    fluent = signs[(signs.bits <= MARGIN) & (signs.broken <= REPETITIVE) & (signs.signs == 2)]
    if fluent.empty or not fluent["move"].max() > 0:
        raise SteerlensError(
            f"of {len(signs)} settings none moves {polarity} both ways and keeps bits per "
            f"character within {MARGIN} of unsteered; try smaller strengths or other pairs"
        )
    best = fluent.loc[fluent["move"].idxmax()]
    return {
        "vector": str(best["vector"]),
        "layers": str(best["layers"]),
        "strength": float(best["strength"]),
        "move": float(best["move"]),
        "bits": float(best["bits"]),
        "settings": len(signs),
    }


def _label(vector: str, strength: float) -> str:
    return vector if not strength else f"{'+' if strength > 0 else '−'} {vector}"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, which has no NaN."""
    return table.astype(object).where(table.notna(), None).to_dict("records")
