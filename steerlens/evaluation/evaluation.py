"""The effect of a steering beside its controls and side effects, with intervals."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from steerlens.activations.selection import Tokens
from steerlens.errors import SteerlensError
from steerlens.evaluation.controls import random_directions, shuffled_labels
from steerlens.evaluation.effects import (
    NEGATIVE,
    STEERED,
    UNSTEERED,
    mean_doses,
    paired_effects,
    prompt_slopes,
)
from steerlens.evaluation.side_effects import prompt_effects, text_effects
from steerlens.evaluation.verdict import Verdict
from steerlens.files import PathLike, read_json, require_writable, write_atomically, write_json
from steerlens.judges.builtin import degeneration, refusal
from steerlens.judges.judging import Judge, reason, try_judge
from steerlens.models.engine import LOCAL, Engine
from steerlens.models.host import Model
from steerlens.models.tokenizing import Readable, Sides
from steerlens.steering.batch_plans import stacked
from steerlens.steering.generation import Replies, generate
from steerlens.steering.sampling import Sampling
from steerlens.steering.steering import Steering
from steerlens.vectors.estimators import Estimator
from steerlens.vectors.vector import SteeringVector

FORMAT = "steerlens.evaluation/1"
_REPLY = ["prompt", "text", "arm", "strength", "reply", "reply_tokens", "finished", "open"]


class _Arm(NamedTuple):
    name: str
    strength: float
    plan: Steering | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` measured; printing it gives the verdict."""

    table: pd.DataFrame
    """One row per prompt × arm × strength × judge: `prompt` (number), `text`, `arm`, `strength` (as
    applied), `reply`, `reply_tokens`, `finished`, `open` (the condition fired), `judge`, `score`.
    """
    side_effects: pd.DataFrame
    """One row per arm × strength × measure: `value`, `low`, `high`, `n`, `of`."""
    settings: Mapping[str, Any]
    """How it was measured: steering, judges, what raises or lowers, seed, what went wrong."""

    @property
    def replies(self) -> pd.DataFrame:
        """One row per prompt × arm × strength, without scores."""
        first = self.table.judge == self.table.judge.iloc[0]
        return self.table.loc[first, _REPLY].reset_index(drop=True)

    @property
    def judges(self) -> tuple[str, ...]:
        """Names of the judges; the first one's score is what the steering is meant to change."""
        return tuple(self.table.judge.unique())

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Paired effects by judge, arm and strength, as `effects.paired_effects` makes them."""
        return paired_effects(self.table, seed=self.settings["seed"])

    @cached_property
    def slopes(self) -> pd.DataFrame:
        """How each prompt's score goes with strength, as `effects.prompt_slopes` finds it."""
        return prompt_slopes(self.table)

    @cached_property
    def dose(self) -> pd.DataFrame:
        """The mean of the slopes, and how monotone they are, with intervals."""
        return mean_doses(self.slopes, seed=self.settings["seed"])

    @property
    def verdict(self) -> Verdict:
        """The effect with its interval, controls and side effects, and what is not shown."""
        return Verdict(self.effects, self.dose, self.side_effects, self.replies, self.settings)

    def __str__(self) -> str:
        return str(self.verdict)

    def __repr__(self) -> str:
        arms, n = len(self.table.arm.unique()), self.table.prompt.nunique()
        return f"Evaluation({n} prompts × {arms} arms, judges {', '.join(self.judges)})"

    def judged(self, judges: Sequence[Judge]) -> "Evaluation":
        """The same replies scored by other judges, or again by one that failed."""
        table, noted = _judged(self.replies, judges)
        return Evaluation(table, self.side_effects, {**self.settings, **noted})

    def save(self, directory: PathLike) -> None:
        """Write `scores.parquet`, `side_effects.parquet` and, last, `evaluation.json`."""
        directory = require_writable(directory)
        digests = {}
        for name, table in (("scores", self.table), ("side_effects", self.side_effects)):
            path = directory / f"{name}.parquet"
            write_atomically(path, table.to_parquet)
            digests[name] = _digest(path)
        content = {"format": FORMAT, "settings": dict(self.settings), "sha256": digests}
        write_json(directory / "evaluation.json", {**content, "verdict": str(self).splitlines()})

    @classmethod
    def load(cls, directory: PathLike) -> "Evaluation":
        """Read what `save` wrote; refuses tables that do not belong to the JSON beside them."""
        directory = Path(directory)
        content = read_json(directory / "evaluation.json")
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise SteerlensError(f'{str(directory)!r} is not an evaluation ("format": {FORMAT!r})')
        tables = []
        for name in ("scores", "side_effects"):
            path = directory / f"{name}.parquet"
            if not path.is_file() or _digest(path) != content["sha256"][name]:
                raise SteerlensError(
                    f"{str(path)!r} is not the file that evaluation.json was saved with: a save "
                    "was interrupted or a file was changed; save the evaluation again"
                )
            tables.append(pd.read_parquet(path))
        return cls(tables[0], tables[1], content["settings"])


def evaluate(
    model: Model,
    steering: Steering,
    prompts: Sequence[Readable],
    *,
    judges: Sequence[Judge] = (refusal, degeneration),
    raises: bool = True,
    strengths: Sequence[float] | None = None,
    controls: int = 3,
    data: Sides | None = None,
    estimator: Estimator | None = None,
    tokens: Tokens | None = None,
    texts: Sequence[Readable] | None = None,
    harmless: Sequence[Readable] | None = None,
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    chat: bool | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    engine: Engine = LOCAL,
) -> Evaluation:
    """What a steering does to replies, beside controls and side effects; printing it is a verdict.

    Arms: unsteered, steered, negative (the other sign), and `controls` random directions of the
    same length; with `data`, the pairs that the vector came from, also so many vectors from
    shuffled labels. All arms at all `strengths` (default: the steering's own; if that is a row of
    strengths by layer, multiples of it) run as rows of one batch. The first judge's score is what
    the steering should raise, or lower with `raises=False`; a judge that fails is told in the
    verdict, and costs no reply. Side effects on `texts` and `harmless` prompts (default: those
    that ship with steerlens) are measured too. An `engine` such as `distributed.Ray` runs the
    model elsewhere; judges run here.

    >>> print(evaluate(load_model(), steering, prompts, data=refusals.train))
    """
    names = [judge.name for judge in judges]
    if not names or len(set(names)) < len(names):
        raise SteerlensError(f"the judges {names} came; needed is at least one, no name twice")
    if len(prompts) < 1 or controls < 0:
        raise SteerlensError(f"{len(prompts)} prompts and controls={controls} cannot be evaluated")
    doses = _doses(steering, strengths)
    arms = _arms(
        steering,
        doses,
        _controls(model, steering, controls, data, estimator, tokens, seed, progress, engine),
    )
    effects = _side_effects(
        model, arms, texts, harmless, max_new_tokens, batch_size, seed, progress, engine
    )
    plans = [arm.plan for arm in arms]
    replies = generate(
        model,
        list(prompts) * len(arms),
        stacked(plans, len(prompts)),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, seed=seed),
        chat=chat,
        batch_size=batch_size,
        progress=progress,
        engine=engine,
    )
    table, noted = _judged(_reply_table(arms, prompts, steering, replies), judges)
    own = torch.as_tensor(steering.strength)
    main = float(own) if own.ndim == 0 and float(own) in doses else max(doses, key=abs)
    settings = {
        "steering": repr(steering),
        "provenance": dict(steering.vector.provenance),
        "model": model.cfg.model_name,
        "strength": main,
        "strengths": doses,
        "raises": raises,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "notes": [] if data is not None else ["no shuffled labels: data= would give the pairs"],
        **noted,
    }
    return Evaluation(table, effects, settings)


def _doses(steering: Steering, strengths: Sequence[float] | None) -> list[float]:
    own = torch.as_tensor(steering.strength)
    if strengths is None:
        strengths = [float(own) if own.ndim == 0 else 1.0]
    doses = [float(strength) for strength in strengths]
    one_sign = all(dose > 0 for dose in doses) or all(dose < 0 for dose in doses)
    if not doses or not one_sign or len(set(doses)) < len(doses) or not np.isfinite(doses).all():
        raise SteerlensError(
            f"strengths={doses} cannot be evaluated; needed are different finite numbers of one "
            "sign: 0 (unsteered) and the other sign are run beside them"
        )
    return doses


def _controls(
    model: Model,
    steering: Steering,
    count: int,
    data: Sides | None,
    estimator: Estimator | None,
    tokens: Tokens | None,
    seed: int,
    progress: bool,
    engine: Engine,
) -> dict[str, SteeringVector]:
    vector = steering.vector.at(steering.layers_steered)
    found = list(random_directions(vector, count, seed=seed))
    if data is not None:
        found += shuffled_labels(
            model, vector, data, count,
            estimator=estimator, tokens=tokens, seed=seed, progress=progress, engine=engine,
        )  # fmt: skip
    return {control.provenance["name"]: control for control in found}


def _arms(
    steering: Steering, doses: Sequence[float], controls: Mapping[str, SteeringVector]
) -> list[_Arm]:
    vectors = {STEERED: (steering.vector, 1), NEGATIVE: (steering.vector, -1)}
    vectors |= {name: (control, 1) for name, control in controls.items()}
    own = torch.as_tensor(steering.strength)
    unit: Any = 1.0 if own.ndim == 0 else own
    arms = [_Arm(UNSTEERED, 0.0, None)]
    for name, (vector, sign) in vectors.items():
        for dose in doses:
            plan = replace(steering, vector=vector, strength=sign * dose * unit)
            arms.append(_Arm(name, sign * dose, plan))
    return arms


def _side_effects(
    model: Model,
    arms: Sequence[_Arm],
    texts: Sequence[Readable] | None,
    harmless: Sequence[Readable] | None,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    progress: bool,
    engine: Engine,
) -> pd.DataFrame:
    """On text for every arm; on prompts, where it needs replies, for the steered ones."""
    named = {UNSTEERED: arms[0], **{str(i): arm for i, arm in enumerate(arms) if arm.plan}}
    plans = {name: arm.plan for name, arm in named.items() if arm.plan is not None}
    steered = {name: plan for name, plan in plans.items() if named[name].name == STEERED}
    on_text = text_effects(model, plans, texts, seed=seed, progress=progress, engine=engine)
    on_prompts = prompt_effects(
        model, steered, harmless, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed,
        progress=progress, engine=engine,
    )  # fmt: skip
    table = pd.concat([on_text, on_prompts], ignore_index=True)
    table.insert(0, "arm", [named[name].name for name in table.plan])
    table.insert(1, "strength", [named[name].strength for name in table.plan])
    return table.drop(columns="plan")


def _reply_table(
    arms: Sequence[_Arm], prompts: Sequence[Readable], steering: Steering, replies: Replies
) -> pd.DataFrame:
    opened = np.ones(len(replies), dtype=bool)
    if steering.when is not None:
        gates = {gate.condition: gate.open for gate in replies.gates}
        opened = steering.when.truth(lambda condition: gates[condition]).cpu().numpy()
    n, shown = len(prompts), [_shown(prompt) for prompt in prompts]
    return pd.DataFrame({
        "prompt": np.tile(np.arange(n), len(arms)),
        "text": shown * len(arms),
        "arm": np.repeat([arm.name for arm in arms], n),
        "strength": np.repeat([arm.strength for arm in arms], n),
        "reply": list(replies),
        "reply_tokens": [len(tokens) for tokens in replies.tokens],
        "finished": list(replies.finished),
        "open": opened,
    })  # fmt: skip


def _shown(prompt: Readable) -> str:
    """A prompt as text, to be read in a table."""
    if isinstance(prompt, str):
        return prompt
    listed = prompt.tolist() if isinstance(prompt, torch.Tensor) else list(prompt)
    return json.dumps(listed, ensure_ascii=False, default=str)


def _judged(
    replies: pd.DataFrame, judges: Sequence[Judge]
) -> tuple[pd.DataFrame, dict[str, dict[str, str]]]:
    """One row per reply and judge; where a judge fails, NaN, and why."""
    failures, tables = {}, []
    for judge in judges:
        scores, error = try_judge(judge, list(replies.reply))
        if error:
            failures[judge.name] = reason(error)
        tables.append(replies.assign(judge=judge.name, score=scores))
    versions = {judge.name: judge.version for judge in judges}
    return pd.concat(tables, ignore_index=True), {"judges": versions, "failures": failures}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
