"""The effect of a steering compared with its controls, and its side effects, with intervals."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

import numpy as np
import pandas as pd
import torch
from pydantic import ConfigDict, Field

from steerlens.display import Rows, card
from steerlens.errors import SteerlensError
from steerlens.evaluation.arms import Arm, Controls, arms_of, named_controls
from steerlens.evaluation.effects import (
    STEERED,
    UNSTEERED,
    ahead_of_asking,
    mean_doses,
    paired_effects,
    prompt_slopes,
)
from steerlens.evaluation.safety_panel import Safety
from steerlens.evaluation.side_effects import measure_side_effects
from steerlens.evaluation.verdict import Verdict
from steerlens.files import (
    PathLike,
    digest,
    read_parquet,
    require_writable,
    write_json,
    write_parquet,
)
from steerlens.judges.builtin import degeneration, refusal
from steerlens.judges.judging import Judge, reason, require_judges, try_judge
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.tokenizing import Readable, TokenRow, as_prompts
from steerlens.schemas import Declared, FileModel, read_as
from steerlens.steering.batch_plans import stacked
from steerlens.steering.generation import generate
from steerlens.steering.sampling import Sampling
from steerlens.steering.steering import Steering, require_steering
from steerlens.steering.transcripts import Replies

_REPLY_COLUMNS = ["prompt", "text", "arm", "strength", "reply", "reply_tokens", "finished", "open"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` measured; printing it gives the verdict."""

    table: pd.DataFrame
    """One row per prompt × arm × strength × judge: `prompt` (its index), `text`, `arm`, `strength`
    (as applied), `reply`, `reply_tokens`, `finished`, `open` (condition fired), `judge`, `score`.
    """
    side_effects: pd.DataFrame
    """One row per arm × strength × measure: `value`, `low`, `high`, `n`, `of`."""
    settings: Mapping[str, Any]
    """How it was measured: steering, judges, the meant sign of the effect, seed, failures."""

    @property
    def replies(self) -> pd.DataFrame:
        """One row per prompt × arm × strength, without scores."""
        first = self.table.judge == self.table.judge.iloc[0]
        return self.table.loc[first, _REPLY_COLUMNS].reset_index(drop=True)

    @property
    def judges(self) -> tuple[str, ...]:
        """Names of the judges; the first one's score is what the steering is meant to change."""
        return tuple(self.table.judge.unique())

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Mean scores and paired changes by judge, arm and strength (`paired_effects`)."""
        return paired_effects(self.table, seed=self.settings["seed"])

    @cached_property
    def asked(self) -> pd.DataFrame:
        """By how much the steering is ahead of asking for it (`ahead_of_asking`)."""
        return ahead_of_asking(self.table, seed=self.settings["seed"])

    @cached_property
    def slopes(self) -> pd.DataFrame:
        """Slope and rank correlation of each prompt's score with strength (`prompt_slopes`)."""
        return prompt_slopes(self.table)

    @cached_property
    def dose(self) -> pd.DataFrame:
        """Mean slope and rank correlation over prompts, with intervals (`mean_doses`)."""
        return mean_doses(self.slopes, seed=self.settings["seed"])

    @property
    def verdict(self) -> Verdict:
        """The effect with its interval, controls, side effects, and what remains unshown."""
        return Verdict(
            self.effects, self.dose, self.side_effects, self.replies, self.settings, self.asked
        )

    def __str__(self) -> str:
        return str(self.verdict)

    def __repr__(self) -> str:
        arms, n = len(self.table.arm.unique()), self.table.prompt.nunique()
        return f"Evaluation({n} prompts × {arms} arms, judges {', '.join(self.judges)})"

    def _repr_html_(self) -> str:
        """For notebooks: the verdict, and a table of all effects."""
        claim, *lines = str(self.verdict).splitlines()
        table = self.effects[["judge", "arm", "strength", "n", "mean", "effect"]]
        rows = table.itertuples(index=False, name=None)
        return card(
            f"Evaluation: {claim}",
            {},
            "\n".join(lines),
            Rows(list(table.columns), rows, len(table), "All effects", folded=True),
        )

    def judged(self, judges: Sequence[Judge]) -> "Evaluation":
        """The same replies scored by other judges, or again by one that failed.

        Args:
            judges: They replace the judges of this evaluation.
        """
        table, outcome = _judged(self.replies, judges)
        return Evaluation(table, self.side_effects, {**self.settings, **outcome})

    def save(self, directory: PathLike) -> None:
        """Write `scores.parquet`, `side_effects.parquet` and, last, `evaluation.json`.

        Args:
            directory: Is made if missing; files of these names are replaced.
        """
        directory = require_writable(directory)
        digests = {}
        for name, table in (("scores", self.table), ("side_effects", self.side_effects)):
            path = directory / f"{name}.parquet"
            write_parquet(path, table)
            digests[name] = digest(path.read_bytes())
        content = {"format": "steerlens.evaluation/1", "settings": dict(self.settings)}
        content |= {"sha256": digests, "verdict": str(self).splitlines()}
        write_json(directory / "evaluation.json", content)

    @classmethod
    def load(cls, directory: PathLike) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            SteerlensError: If a table is not the one that `evaluation.json` was saved with.
        """
        directory = Path(directory)
        content = read_as(directory / "evaluation.json", _File)
        tables = []
        for name in ("scores", "side_effects"):
            path = directory / f"{name}.parquet"
            stored = path.read_bytes() if path.is_file() else b""
            if digest(stored) != getattr(content.sha256, name):
                raise SteerlensError(
                    f"got {str(path)!r}, which is not the file that evaluation.json was saved "
                    "with: a save was interrupted or a file changed; save the evaluation again"
                )
            tables.append(read_parquet(path))
        return cls(tables[0], tables[1], content.settings.model_dump())


class _Settings(Declared):
    """The settings that a verdict reads; others are kept unchecked."""

    model_config = ConfigDict(extra="allow")

    strength: float
    raises: bool
    seed: Annotated[int, Field(ge=0)]
    judges: dict[str, str]
    failures: dict[str, str]
    notes: list[str]


class _Digests(Declared):
    scores: str
    side_effects: str


class _File(FileModel):
    title = "an evaluation"
    format: Literal["steerlens.evaluation/1"]
    settings: _Settings
    sha256: _Digests
    verdict: list[str]
    """For other programs; `load` computes it again from the tables."""


def evaluate(
    model: Model,
    steering: Steering,
    prompts: Sequence[Readable],
    *,
    judges: Sequence[Judge] = (refusal, degeneration),
    raises: bool = True,
    strengths: Sequence[float] | None = None,
    controls: int | Controls = 3,
    texts: Sequence[Readable] | None = None,
    safety: Safety = None,
    max_new_tokens: int = 40,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    chat: bool | None = None,
    **run: Unpack[RunOptions],
) -> Evaluation:
    """The effect of a steering on replies, compared with controls; print it for the verdict.

    Arms: unsteered, steered, negative (the opposite sign) and the controls, each at every strength,
    as rows of one batch; and prompts that ask for the effect, alone and steered as well. A failing
    judge is reported in the verdict; replies are kept.

    Args:
        prompts: Texts, chats, passages or token ids, to be replied to in every arm.
        judges: The first judge's score is what the steering should raise.
        raises: False if that score should fall.
        strengths: Steering coefficients of one sign; default: the steering's own. For a steering
            with strengths by layer, factors that multiply them.
        controls: A number of random directions of the vector's length; or vectors from
            `random_directions`, `shuffled_labels` and `learned_controls`, or any others by name;
            and prompts that ask for the effect: `system_message`, `instruction` and `few_shot` of
            `steerlens.data`.
        texts: Neutral texts for side effects; default: those that ship with steerlens.
        safety: Sets of prompts for side effects, by name, or one of harmless prompts; empty: none.
            Default: a panel of harmless, look-alike and harmful prompts, and the refusal direction.
        sampling: How replies are sampled; its seed also draws random directions and intervals.
        chat: Whether prompts go through the chat template; default: if the model has one.
        run: `batch_size`, `progress`, and an `engine` such as `Ray` that runs the model elsewhere
            (judges run here).

    Raises:
        SteerlensError: Before anything runs, if strengths, judges or controls do not fit.

    >>> evaluation = evaluate(model, steering, prompts, texts=prompts, safety=prompts)
    >>> print(evaluation)  # doctest: +SKIP
    >>> evaluation.verdict.controls.arm.tolist()
    ['random 1', 'random 2', 'random 3']
    """
    require_steering(steering)
    prompts = as_prompts(prompts)
    judges = require_judges(judges)
    if not judges or not prompts:
        raise SteerlensError(
            f"got {len(prompts)} prompts and {len(judges)} judges; expected at least one of each"
        )
    doses, seed = _doses(steering, strengths), sampling.seed
    named = named_controls(steering, controls, seed)
    strength = next((dose for dose in doses if dose == steering.strength), max(doses, key=abs))
    arms = arms_of(steering, doses, named, strength)
    asked = [prompt for arm in arms for prompt in arm.asked(prompts)]
    effects = _side_effects(
        model, arms, texts, safety, max_new_tokens=max_new_tokens, seed=seed, **run
    )
    replies = generate(
        model,
        asked,
        stacked([arm.steering for arm in arms], len(prompts)),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        chat=chat,
        **run,
    )
    table, outcome = _judged(_reply_table(arms, prompts, steering, replies), judges)
    shuffled = any(name.startswith("shuffled") for name in named)
    maker = "learned_controls" if "training" in steering.vector.provenance else "shuffled_labels"
    settings = {
        "steering": repr(steering),
        "provenance": dict(steering.vector.provenance),
        "model": model.cfg.model_name,
        "strength": strength,
        "strengths": doses,
        "raises": raises,
        "max_new_tokens": max_new_tokens,
        "temperature": sampling.temperature,
        "seed": seed,
        "notes": [] if shuffled else [f"no shuffled labels: {maker}() makes such controls"],
        **outcome,
    }
    return Evaluation(table, effects, settings)


def _doses(steering: Steering, strengths: Sequence[float] | None) -> list[float]:
    given = steering.strength
    if strengths is None:
        strengths = [float(given) if isinstance(given, int | float) else 1.0]
    doses = [float(strength) for strength in strengths]
    one_sign = all(dose > 0 for dose in doses) or all(dose < 0 for dose in doses)
    if not doses or not one_sign or len(set(doses)) < len(doses) or not np.isfinite(doses).all():
        raise SteerlensError(
            f"got strengths={doses}; expected different finite numbers of one sign: 0 (unsteered) "
            "and the opposite sign run as well"
        )
    return doses


def _side_effects(
    model: Model,
    arms: Sequence[Arm],
    texts: Sequence[Readable] | None,
    safety: Safety,
    **settings: Any,
) -> pd.DataFrame:
    """On text for every vector; on prompts, which needs replies, for what is steered or asked."""
    alone = [arm for arm in arms if (arm.steering is None) != (arm.asking is None)]
    named = {str(index): arm for index, arm in enumerate(alone)}
    ways = {name: arm.steering or arm.asking for name, arm in named.items()}
    table = measure_side_effects(
        model,
        {name: way for name, way in ways.items() if way is not None},
        texts=texts,
        safety=safety,
        on_prompts=[n for n, arm in named.items() if arm.name == STEERED or arm.asking],
        **settings,
    )
    named[UNSTEERED] = arms[0]
    table.insert(0, "arm", [named[name].name for name in table.steering])
    table.insert(1, "strength", [named[name].strength for name in table.steering])
    return table.drop(columns="steering")


def _reply_table(
    arms: Sequence[Arm], prompts: Sequence[Readable], steering: Steering, replies: Replies
) -> pd.DataFrame:
    is_open = np.ones(len(replies), dtype=bool)
    if steering.when is not None:
        gates = {gate.condition: gate.open for gate in replies.gates}
        is_open = steering.when.truth(lambda condition: gates[condition]).cpu().numpy()
    n, texts = len(prompts), [_text_of(prompt) for prompt in prompts]
    return pd.DataFrame({
        "prompt": np.tile(np.arange(n), len(arms)),
        "text": texts * len(arms),
        "arm": np.repeat([arm.name for arm in arms], n),
        "strength": np.repeat([arm.strength for arm in arms], n),
        "reply": list(replies),
        "reply_tokens": [len(tokens) for tokens in replies.tokens],
        "finished": list(replies.finished),
        "open": is_open,
    })  # fmt: skip


def _text_of(prompt: Readable) -> str:
    """A prompt as text for a table; chats and token ids as JSON."""
    if isinstance(prompt, str):
        return prompt
    prompt = prompt.ids if isinstance(prompt, TokenRow) else prompt
    items = prompt.tolist() if isinstance(prompt, torch.Tensor) else list(prompt)
    return json.dumps(items, ensure_ascii=False, default=str)


def _judged(
    replies: pd.DataFrame, judges: Sequence[Judge]
) -> tuple[pd.DataFrame, dict[str, dict[str, str]]]:
    """One row per reply and judge (NaN if the judge failed); the judges' versions and failures."""
    failures, tables = {}, []
    for judge in judges:
        scores, error = try_judge(judge, list(replies.reply))
        if error:
            failures[judge.name] = reason(error)
        tables.append(replies.assign(judge=judge.name, score=scores))
    versions = {judge.name: judge.version for judge in judges}
    return pd.concat(tables, ignore_index=True), {"judges": versions, "failures": failures}
