"""Formal style, French and a persona on SmolLM2: learned vectors beside the difference of means.

    python figures/smollm2/styles.py out/styles interest-in-sports.jsonl   # writes styles.csv here
    python figures/smollm2/tables.py

The second file holds A/B statements in the form that `load_questions` reads (Perez et al., 2022).
Run again after Ctrl-C, it goes on with what is not done.
"""

import csv
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from style_judges import formal, formality, french

import steerlens as sl
from steerlens.data.asking import few_shot
from steerlens.data.prompt_files import load_prompts
from steerlens.data.prompts import Prompt
from steerlens.data.questions import Question, load_questions
from steerlens.evaluation.ab_questions import choice_probabilities
from steerlens.files import made_once
from steerlens.intervals import auroc, mean
from steerlens.judges.builtin import degeneration
from steerlens.judges.judging import Judge
from steerlens.learning.comparing import METHODS, UNSTEERED, compare
from steerlens.learning.replies import Lesson
from steerlens.models.host import Model

HERE = Path(__file__).parent
TRAINING = sl.Training(continued=0)
"""A reply that is cut short is learned as it is: it does not begin, so it cannot begin again."""
WAYS = (
    (10, "mean_difference"),
    (10, "reply_likelihood"),
    (15, "mean_difference"),
    (10, "bipo"),
    (20, "mean_difference"),
)
"""Layer and method: learned where `learn` does it by default; the difference of means may choose
its layer by what it comes to, which favours it."""
REPLY_TOKENS = 32
WRITTEN = slice(54, 240)
"""Training instructions whose replies are asked for formally; French ones are written to those
before, and on those after it the judge of formality is validated."""
UNSEEN = slice(240, None)
STATEMENTS, HELD_OUT = 128, 200
"""Statements learned from, and measured on."""
FORMALLY = few_shot([
    (
        "Good morning.",
        "Good morning. I should be most obliged if you would kindly state the matter with which I "
        "may be of assistance.",
    ),
    (
        "Which tea is best in the evening?",
        "One would be well advised to select an infusion of chamomile. It is regarded as "
        "particularly suitable, as it contains no caffeine and is therefore conducive to repose.",
    ),
    (
        "Where can I park my car?",
        "It is recommended that the vehicle be left in a designated car park. Furthermore, one "
        "should ascertain in advance whether a permit is required.",
    ),
])  # fmt: skip


class Behaviour(NamedTuple):
    """What is to be brought about, and how it is seen."""

    name: str
    measure: str
    lessons: Sequence[Lesson]
    judge: Judge
    """Of replies to instructions."""
    held_out: Sequence[Question] = ()
    """Where it is the probability of an answer that is measured, instead of the judge's score."""


class Asked(NamedTuple):
    """The unsteered model's replies, kept in a directory."""

    model: Model
    folder: Path

    def replies(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Greedy replies; made once."""
        kept: list[str] = made_once(
            self.folder / f"{name}.json",
            repr(prompts),
            lambda: list(sl.generate(self.model, prompts, max_new_tokens=REPLY_TOKENS)),
        )
        return kept


def lessons(
    prompts: Sequence[str], wanted: Sequence[str], plain: Sequence[str], judge: Judge
) -> list[Lesson]:
    """Those whose wanted reply has the style, and whose plain one has not."""
    shows, lacks = judge(wanted) > 0, judge(plain) == 0
    chosen = np.flatnonzero(shows & lacks)
    return [(prompts[index], wanted[index], plain[index]) for index in chosen]


def in_french(asked: Asked) -> Behaviour:
    """Written replies: those that SmolLM2 gives when it is asked for French are hardly French."""
    with (HERE / "french.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    prompts, wanted = ([row[name] for row in rows] for name in ("instruction", "reply"))
    plain = asked.replies("plain-french", prompts)
    found = lessons(prompts, wanted, plain, french)
    return Behaviour("French", "French replies", found, french)


def formally(asked: Asked, instructions: Sequence[str]) -> Behaviour:
    """Replies of the model itself, behind three examples of formal ones."""
    prompts = instructions[WRITTEN]
    wanted = asked.replies("formal", [FORMALLY(prompt) for prompt in prompts])
    plain = asked.replies("plain-formal", prompts)
    found = lessons(prompts, wanted, plain, formal)
    return Behaviour("formal style", "formal replies", found, formal)


def persona(statements: Sequence[Question]) -> Behaviour:
    """Either answer to whether one would say so."""
    learned, held_out = statements[:STATEMENTS], statements[STATEMENTS : STATEMENTS + HELD_OUT]
    found = [(asked.text, asked.matching.strip(), asked.other.strip()) for asked in learned]
    return Behaviour("persona", "p(matching answer)", found, degeneration, held_out)


def validation(asked: Asked, instructions: Sequence[str]) -> pd.DataFrame:
    """How well counting tells replies asked for formally from plain ones to the same prompts."""
    prompts = instructions[UNSEEN]
    told = asked.replies("formal-unseen", [FORMALLY(prompt) for prompt in prompts])
    plain = asked.replies("plain-unseen", prompts)
    counts = [np.array([float(formality(text)) for text in texts]) for texts in (told, plain)]
    found = auroc(*counts, seed=0)
    row = {"behaviour": "formal style", "method": "judge", "measure": "AUROC, asked against plain"}
    return pd.DataFrame([{**row, **found.columns("value"), "n": len(prompts)}]).rename(
        columns={"value_low": "low", "value_high": "high"}
    )


def measured(
    model: Model, behaviour: Behaviour, way: tuple[int, str], prompts: Sequence[str], folder: Path
) -> pd.DataFrame:
    """A row for the unsteered model and one for a vector, at the strength that spends a budget."""
    layer, method = way
    own = folder / f"{behaviour.name.replace(' ', '-')}-{layer}"
    found = compare(
        model, behaviour.lessons, prompts, methods={method: METHODS[method]}, layer=layer,
        judge=behaviour.judge, training=TRAINING, out=own, progress=False,
    )  # fmt: skip
    table = found.table.rename(columns={"score": "value"})
    if behaviour.held_out:
        for index, row in table.iterrows():
            chances = answered(model, behaviour.held_out, own, row)
            table.loc[index, ["value", "low", "high"]] = list(mean(chances))
        table["n"] = len(behaviour.held_out)
    table["layer"] = table["method"].map({method: layer})
    return table.assign(behaviour=behaviour.name, measure=behaviour.measure, replies=len(prompts))


def answered(
    model: Model, questions: Sequence[Question], folder: Path, row: pd.Series
) -> np.ndarray:
    """p(matching answer) of each statement under the vector that a row tells of; made once."""

    def chances() -> list[float]:
        steering = None
        if row["method"] != UNSTEERED:
            vector = sl.SteeringVector.load(folder / f"{row['method']}.safetensors")
            steering = sl.Steering(vector, strength=row["strength"])
        return choice_probabilities(model, questions, steering, progress=False).tolist()

    job = repr((row["method"], row["strength"], list(questions)))
    return np.array(made_once(folder / f"{row['method']}-answers.json", job, chances))


COLUMNS = [
    "behaviour", "method", "layer", "strength", "kl", "status", "measure", "value", "low", "high",
    "n", "degenerate", "degenerate_low", "degenerate_high", "different", "replies",
]  # fmt: skip


def main(folder: Path, statements: Path) -> None:
    """Measure what is not measured yet, and write all there is after each step."""
    folder.mkdir(parents=True, exist_ok=True)
    model = sl.load_model("smollm2")
    parts = load_prompts(sl.demo_file("questions.json"))
    asked, prompts = Asked(model, folder), parts["test"]
    behaviours = [
        formally(asked, parts["train"]),
        in_french(asked),
        persona(load_questions(statements)),
    ]
    tables = [validation(asked, parts["train"])]
    for way, behaviour in product(WAYS, behaviours):
        tables.append(measured(model, behaviour, way, prompts, folder))
        table = pd.concat(tables).reindex(columns=COLUMNS)
        # The unsteered model is measured once for each layer.
        table = table.drop_duplicates(["behaviour", "method", "layer"])
        table.to_csv(HERE / "styles.csv", index=False, float_format="%.6g")
        print(tables[-1].to_string(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
