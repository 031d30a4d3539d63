"""The sentiment experiment: does a mood vector change the sentiment of what a model writes?

After *Activation Steering for LLMs*: replies unsteered, with the vector added and with it
subtracted; here with intervals, coherence, and random directions of equal length as controls.
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
from steerlens.evaluation.controls import random_directions
from steerlens.evaluation.suggestion import neighbours
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
"""Fractions of the residual norm to try, each with both signs."""
COHERENT = 1.35
"""Greatest ratio of steered to unsteered bits per character."""
MARGIN = 1.2
"""The same on the selection prompts, stricter so that the choice holds on other prompts."""
REPETITIVE = 0.15
"""Greatest increase of the share of degenerate replies on the selection prompts."""
BITS = "bits_per_character"
"""Name of the judge of coherence."""
ESTIMATORS: Mapping[str, Estimator] = {
    "mean_difference": mean_difference,
    "linear_discriminant": linear_discriminant,
}


@dataclass(frozen=True, eq=False)
class Sentiment:
    """The setting chosen on the selection prompts, and its effect on the test prompts."""

    chosen: Mapping[str, Any]
    """Vector, layers and strength, with their scores on the selection prompts."""
    selection: Sweep
    """All settings on the selection prompts."""
    test: Sweep
    """The chosen setting and random directions on the test prompts."""
    polarity: str
    """Name of the judge of sentiment."""

    @property
    def effects(self) -> pd.DataFrame:
        """Mean score by each judge with its interval, by vector and sign; "unsteered" first."""
        return self.test.summary()

    @property
    def arms(self) -> pd.DataFrame:
        """Sentiment and coherence of each arm, for `dashboards.sentiment`."""
        by_judge = dict(iter(self.effects.groupby("judge", sort=False)))
        polarity = by_judge[self.polarity].reset_index(drop=True)
        names = [_label(*row) for row in zip(polarity["vector"], polarity["strength"], strict=True)]
        return pd.DataFrame({"arm": names, "polarity": polarity["mean"]}).assign(
            low=polarity["low"],
            high=polarity["high"],
            bits_per_character=by_judge[BITS]["mean"].to_numpy(),
            n=polarity["n"],
        )

    def save(self, out: PathLike) -> None:
        """Write sentiment.json (choice and mean scores) and replies.csv.

        Args:
            out: The directory; is made if missing.
        """
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
    """Choose estimator, layers and strength on the selection prompts; measure on the test prompts.

    The choice is the setting with the greatest change of mean sentiment (the smaller of its two
    signs' changes counts), within bounds on bits per character and degenerate replies.

    Args:
        pairs: Texts of the two moods, to extract the vectors from.
        selection: Texts to continue when choosing; none may be in `test`.
        test: Texts to continue when measuring.
        judge: Of sentiment; default: `judges.sentiment`.
        layers: Layers and windows of layers to try; default: every layer and pair of neighbours.
        strengths: Fractions of the residual norm, each tried with both signs.
        n_random: Number of random directions to compare with.
        out: Directory for the two sweeps, which can then be continued.
        resume: Continue the sweeps in `out`.
        seed: Of sampling and random directions.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    Raises:
        SteerlensError: If prompts are shared, or no setting stays within the bounds.

    >>> moods = ContrastiveDataset.load(demo_file("moods.json"))
    >>> stories = load_prompts(demo_file("beginnings.json"))
    >>> run_sentiment(model, moods.train, stories["validation"], stories["test"])  # doctest: +SKIP
    Sentiment(linear_discriminant at layers 2, strength ±0.3)
    """
    shared = set(map(repr, selection)) & set(map(repr, test))
    if shared:
        raise SteerlensError(
            f"got {len(shared)} prompts in both selection and test; expected none: remove them "
            "from one of the two"
        )
    if n_random < 1:
        raise SteerlensError(f"got n_random={n_random}; expected at least 1 to compare with")
    polarity = judges.sentiment if judge is None else judge
    options: dict[str, Any] = {
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
    signed = [sign * strength for strength in strengths for sign in (1, -1)]
    selected = sweep(
        model, moods, selection, layers=windows.values(), strengths=signed,
        out=None if out is None else Path(out) / "selection", **options,
    )  # fmt: skip
    chosen = choose(selected, polarity.name)
    vector = moods[chosen["vector"]].vector
    numbered = enumerate(random_directions(vector, n_random, seed=seed), start=1)
    controls = {f"random {i}": _relative(control) for i, control in numbered}
    tested = sweep(
        model, {"mood": _relative(vector), **controls}, test,
        layers=[windows[chosen["layers"]]], strengths=[chosen["strength"], -chosen["strength"]],
        out=None if out is None else Path(out) / "test", **options,
    )  # fmt: skip
    return Sentiment(chosen, selected, tested, polarity.name)


def _relative(vector: SteeringVector) -> Steering:
    """A steering whose strengths are fractions of the residual norm."""
    return Steering(vector, relative=True)


def choose(sweep: Sweep, polarity: str) -> dict[str, Any]:
    """The setting that changes polarity most with both signs and stays coherent.

    Args:
        sweep: Over both signs of each strength.
        polarity: Name of the judge of sentiment.

    Raises:
        SteerlensError: If no setting stays within the bounds.
    """
    wide = sweep.summary().pivot_table(
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
            f"got {len(signs)} settings, none of which changes {polarity} both ways within "
            f"{MARGIN} times the unsteered bits per character and {REPETITIVE:.0%} more degenerate "
            "replies; try smaller strengths or other pairs"
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
