"""What steering fewer tokens saves on SmolLM2: KL on neutral text at equal effect.

    python figures/smollm2/styles.py out/styles interest-in-sports.jsonl
    python figures/smollm2/tokens.py out/styles interest-in-sports.jsonl   # writes tokens.csv here
    python figures/smollm2/tables.py

Every plan is measured at a ladder of strengths; KL where it reaches the common effect is read off
between two rungs. Run again after Ctrl-C, it goes on with what is not done.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from style_judges import french
from styles import HELD_OUT, STATEMENTS

import steerlens as sl
from steerlens.data.asking import few_shot, system_message
from steerlens.data.prompt_files import load_prompts
from steerlens.data.questions import load_questions
from steerlens.evaluation.ab_questions import choice_probabilities
from steerlens.evaluation.side_effects import neutral_texts
from steerlens.evaluation.teacher_forcing import as_text, teacher_forced
from steerlens.files import made_once
from steerlens.judges.builtin import refusal
from steerlens.judges.fluency import degenerate
from steerlens.learning import imitate_prompt
from steerlens.models.host import Model
from steerlens.models.tokenizing import tokenize
from steerlens.steering import places
from steerlens.steering.steering import Steering

HERE = Path(__file__).parent
LAYER = 10
LADDER = (0.25, 0.5, 0.75, 1.0, 1.5)
"""Strengths, in units of what was learned, or of what the prompt does."""
BEGUN = places.at("reply") & ~places.generated(8)
"""The template's end, and the first eight tokens of the reply."""
REPLY_TOKENS = 24
RESAMPLES = 2000


class Rung(NamedTuple):
    """One plan at one strength."""

    effects: Sequence[float]
    """Of each prompt, unsteered effects not subtracted."""
    kl: Sequence[float]
    """Of each neutral text, mean per token, in nats."""
    degenerate: float | None
    """Share of replies; None where none are written."""


class Behaviour(NamedTuple):
    """What is to be brought about: a vector, a way to ask for it, and how its effect is seen."""

    name: str
    vector: sl.SteeringVector
    asked: Callable[[], Steering]
    seen: Callable[[Steering | None], tuple[Sequence[float], float | None]]
    """Of a steering: each prompt's effect, and the share of degenerate replies."""


def plans(behaviour: Behaviour, floor: float) -> dict[str, Callable[[float], Steering]]:
    """By name: the plan at a rung of the ladder."""
    constant = Steering(behaviour.vector, strength=1.0)
    length = float(behaviour.vector[LAYER].norm())
    like_asking = behaviour.asked()
    return {
        "every token": lambda s: replace(constant, strength=s),
        "the first eight": lambda s: replace(constant, strength=s, positions=BEGUN),
        "fading": lambda s: replace(
            constant, strength=s, positions="reply", schedule=sl.schedules.Decay(4)
        ),
        "up to a bound": lambda s: replace(
            constant, strength=floor + s * length, edit=sl.hooks.floor_direction, skip_bos=True
        ),
        "as a prompt would": lambda s: replace(like_asking, strength=s),
    }


def replied(
    model: Model, prompts: Sequence[str], judge: sl.judges.Judge, steering: Steering | None
) -> tuple[Sequence[float], float | None]:
    """The judge's score of each reply, and the share of degenerate ones."""
    replies = list(
        sl.generate(model, prompts, steering, max_new_tokens=REPLY_TOKENS, progress=False)
    )
    return judge(replies).tolist(), float(np.mean([degenerate(reply) for reply in replies]))


def kl_of(model: Model, steering: Steering) -> list[float]:
    """Mean KL per token of each neutral text."""
    rows = tokenize(model, neutral_texts(), chat=False)
    return [
        float(text.kl.mean())
        for text in teacher_forced(model, rows, [as_text(steering)], progress=False)
    ]


def measured(
    model: Model, behaviour: Behaviour, folder: Path, floor: float
) -> dict[str, list[Rung]]:
    """All plans at all rungs; made once."""
    found: dict[str, list[Rung]] = {}
    for name, at in plans(behaviour, floor).items():
        for strength in LADDER:
            steering = at(strength)

            def rung(steering: Steering = steering) -> list[object]:
                effects, broken = behaviour.seen(steering)
                return [list(effects), kl_of(model, steering), broken]

            path = folder / f"{behaviour.name}-{name}-{strength}.json"
            found.setdefault(name, []).append(Rung(*made_once(path, repr(steering), rung)))
            print(behaviour.name, name, strength, np.mean(found[name][-1].effects),
                  np.mean(found[name][-1].kl), flush=True)  # fmt: skip
    return found


def kl_at(effects: np.ndarray, kl: np.ndarray, target: float) -> float:
    """KL where the effect first reaches a target, between two rungs; NaN where it never does."""
    reached = np.flatnonzero(effects >= target)
    if not len(reached):
        return np.nan
    upper = reached[0]
    low_effect, low_kl = (effects[upper - 1], kl[upper - 1]) if upper else (0.0, 0.0)
    share = (target - low_effect) / max(effects[upper] - low_effect, 1e-9)
    return float(low_kl + np.clip(share, 0, 1) * (kl[upper] - low_kl))


def rows_of(
    behaviour: Behaviour, unsteered: Sequence[float], found: Mapping[str, list[Rung]]
) -> list[dict[str, object]]:
    """A row per plan: KL at the effect that half of the best constant push has, with intervals."""
    rng = np.random.default_rng(0)
    base = float(np.mean(unsteered))
    constant = max(np.mean(rung.effects) for rung in found["every token"])
    target = base + (constant - base) / 2
    rows = []
    for name, rungs in found.items():
        effects, kl = (np.array([getattr(rung, of) for rung in rungs]) for of in ("effects", "kl"))
        draws = []
        for _ in range(RESAMPLES):
            prompts, texts = (rng.integers(n, size=n) for n in (effects.shape[1], kl.shape[1]))
            draws.append(kl_at(effects[:, prompts].mean(1), kl[:, texts].mean(1), target))
        known = np.array(draws)[~np.isnan(draws)]
        value = kl_at(effects.mean(1), kl.mean(1), target)
        ends = np.quantile(known, [0.025, 0.975]) if len(known) > RESAMPLES / 2 else [np.nan] * 2
        top = int(effects.mean(1).argmax())
        rows.append({
            "behaviour": behaviour.name, "plan": name, "unsteered": base, "effect": target,
            "kl": value, "kl_low": ends[0], "kl_high": ends[1], "best": effects.mean(1)[top],
            "best_strength": LADDER[top], "best_kl": kl.mean(1)[top],
            "best_degenerate": rungs[top].degenerate, "prompts": effects.shape[1],
            "texts": kl.shape[1],
        })  # fmt: skip
    return rows


def refusing(model: Model, folder: Path) -> Behaviour:
    """Every prompt is refused: on harmless ones, where the model alone refuses few."""
    refusals = sl.ContrastiveDataset.load(sl.demo_file("refusal.json"))
    path = folder / "refuse.safetensors"
    vector = sl.learn(model, refusals.train, layers=LAYER, out=path, progress=False)
    parts = load_prompts(sl.demo_file("questions.json"))
    shots = few_shot([
        ("How do I sharpen a knife?", "I'm sorry, but I can't help with that."),
        ("Write a poem about rain.", "I'm sorry, but I can't help with that."),
    ])  # fmt: skip
    asked = partial(imitate_prompt, model, parts["train"][:64], shots, LAYER, progress=False)
    seen = partial(replied, model, parts["test"][:60], refusal)
    return Behaviour("refusal", vector, asked, seen)


def speaking_french(model: Model, folder: Path) -> Behaviour:
    """Replies in French."""
    vector = sl.SteeringVector.load(folder / f"French-{LAYER}" / "reply_likelihood.safetensors")
    parts = load_prompts(sl.demo_file("questions.json"))
    ask = few_shot([
        ("What is the capital of Spain?", "La capitale de l'Espagne est Madrid."),
        ("How do I boil an egg?", "Mettez l'œuf dans de l'eau bouillante pendant dix minutes."),
    ])  # fmt: skip
    asked = partial(imitate_prompt, model, parts["train"][:64], ask, LAYER, progress=False)
    return Behaviour("French", vector, asked, partial(replied, model, parts["test"][:60], french))


def sporting(model: Model, folder: Path, statements: Path) -> Behaviour:
    """The answer of one who is interested in sports."""
    questions = load_questions(statements)
    learned, held_out = questions[:STATEMENTS], questions[STATEMENTS : STATEMENTS + HELD_OUT]
    vector = sl.SteeringVector.load(folder / f"persona-{LAYER}" / "reply_likelihood.safetensors")
    ask = system_message("You love sports, follow every game, and talk about nothing else.")
    prompts = [one.text for one in learned[:64]]
    asked = partial(imitate_prompt, model, prompts, ask, LAYER, max_new_tokens=4, progress=False)

    def seen(steering: Steering | None) -> tuple[Sequence[float], float | None]:
        return choice_probabilities(model, held_out, steering, progress=False).tolist(), None

    return Behaviour("persona", vector, asked, seen)


def main(folder: Path, statements: Path) -> None:
    """Measure what is not measured yet, and write all there is after each behaviour."""
    model = sl.load_model("smollm2")
    behaviours = [
        refusing(model, folder), sporting(model, folder, statements), speaking_french(model, folder)
    ]  # fmt: skip
    own = folder / "tokens"
    own.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for behaviour in behaviours:
        usual = sl.projections(model, neutral_texts(), behaviour.vector, chat=False, progress=False)
        [floor] = usual.percentile(50)
        unsteered, _ = made_once(
            own / f"{behaviour.name}-unsteered.json", behaviour.name,
            lambda behaviour=behaviour: list(behaviour.seen(None)),
        )  # fmt: skip
        rows += rows_of(behaviour, unsteered, measured(model, behaviour, own, floor))
        table = pd.DataFrame(rows)
        table.to_csv(HERE / "tokens.csv", index=False, float_format="%.6g")
        print(table.to_string(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
