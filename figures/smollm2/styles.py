"""Formal style, French and a persona on SmolLM2: learned vectors beside the difference of means.

    python figures/smollm2/styles.py out/styles interest-in-sports.jsonl   # writes styles.csv here
    python figures/smollm2/tables.py

The second file holds A/B statements in the form that `load_questions` reads (Perez et al., 2022).
Run again after Ctrl-C, it goes on with what is not done.
"""

import csv
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from style_judges import formal, formality, french

import steerlens as sl
from steerlens.data.asking import Asking, few_shot, system_message
from steerlens.data.prompt_files import load_prompts
from steerlens.data.prompts import Prompt
from steerlens.data.questions import Question, load_questions
from steerlens.evaluation.ab_questions import choice_probabilities
from steerlens.evaluation.whole_replies import FEW_DEGENERATE
from steerlens.files import made_once
from steerlens.intervals import auroc, mean, rate
from steerlens.judges.builtin import degeneration
from steerlens.judges.judging import Judge
from steerlens.learning.comparing import METHODS, UNSTEERED, compare
from steerlens.learning.replies import Lesson
from steerlens.models.host import Model

HERE = Path(__file__).parent
TRAINING = sl.Training(continued=0)
"""A reply that is cut short is learned as it is: it does not begin, so it cannot begin again."""


class Way(NamedTuple):
    """A vector, and what it may spend."""

    layer: int
    method: str
    degenerate_budget: float = FEW_DEGENERATE
    """1: KL alone decides."""


WAYS = (
    Way(10, "mean_difference"),
    Way(10, "reply_likelihood"),
    Way(15, "mean_difference"),
    Way(10, "mean_difference", 1.0),
    Way(10, "reply_likelihood", 1.0),
)
"""Learned where `learn` does it by default, a third of the way up; the difference of means there
and half-way."""
LESSON_TOKENS = 32
"""Length of the replies learned from."""
JUDGED_TOKENS = 40
"""Length of the replies judged, as `compare` has it."""
WRITTEN = slice(54, 240)
"""Training instructions whose replies are asked for formally; French ones are written to those
before, and on those after it the judge of formality is validated."""
UNSEEN = slice(240, None)
STATEMENTS, HELD_OUT = 128, 200
"""Statements learned from, and measured on."""
IN_FRENCH = system_message("Tu réponds toujours en français. Always answer in French.")
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
    asking: Asking | None = None
    """The same by the prompt."""
    held_out: Sequence[Question] = ()
    """Where it is the probability of an answer that is measured, instead of the judge's score."""


class Asked(NamedTuple):
    """The unsteered model's replies, kept in a directory."""

    model: Model
    folder: Path

    def replies(
        self, name: str, prompts: Sequence[Prompt], max_new_tokens: int = LESSON_TOKENS
    ) -> list[str]:
        """Greedy replies; made once."""
        kept: list[str] = made_once(
            self.folder / f"{name}.json",
            repr(prompts),
            lambda: list(sl.generate(self.model, prompts, max_new_tokens=max_new_tokens)),
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
    """Written replies: SmolLM2's own French, when it is asked for it, is broken."""
    with (HERE / "french.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    prompts, wanted = ([row[name] for row in rows] for name in ("instruction", "reply"))
    plain = asked.replies("plain-french", prompts)
    found = lessons(prompts, wanted, plain, french)
    return Behaviour("French", "French replies", found, french, IN_FRENCH)


def formally(asked: Asked, instructions: Sequence[str]) -> Behaviour:
    """Replies of the model itself, behind three examples of formal ones."""
    prompts = instructions[WRITTEN]
    wanted = asked.replies("formal", [FORMALLY(prompt) for prompt in prompts])
    plain = asked.replies("plain-formal", prompts)
    found = lessons(prompts, wanted, plain, formal)
    return Behaviour("formal style", "formal replies", found, formal, FORMALLY)


def persona(statements: Sequence[Question]) -> Behaviour:
    """Either answer to whether one would say so."""
    learned, held_out = statements[:STATEMENTS], statements[STATEMENTS : STATEMENTS + HELD_OUT]
    found = [(asked.text, asked.matching.strip(), asked.other.strip()) for asked in learned]
    return Behaviour("persona", "p(matching answer)", found, degeneration, held_out=held_out)


ENDS = {"value_low": "low", "value_high": "high"}


def validation(asked: Asked, instructions: Sequence[str]) -> pd.DataFrame:
    """How well counting tells replies asked for formally from plain ones to the same prompts."""
    prompts = instructions[UNSEEN]
    told = asked.replies("formal-unseen", [FORMALLY(prompt) for prompt in prompts])
    plain = asked.replies("plain-unseen", prompts)
    counts = [np.array([float(formality(text)) for text in texts]) for texts in (told, plain)]
    found = auroc(*counts, seed=0)
    row: dict[str, Any] = {
        "behaviour": "formal style", "method": "judge", "measure": "AUROC, asked against plain"
    }  # fmt: skip
    row |= {**found.columns("value"), "n": len(prompts)}
    return pd.DataFrame([row]).rename(columns=ENDS)


def by_asking(asked: Asked, behaviour: Behaviour, prompts: Sequence[str]) -> pd.DataFrame:
    """A row for the unsteered model that is asked for it in the prompt."""
    if behaviour.asking is None:
        return pd.DataFrame()
    told = [behaviour.asking(prompt) for prompt in prompts]
    replies = asked.replies(f"asked-{behaviour.name.replace(' ', '-')}", told, JUDGED_TOKENS)
    score, broken = (
        rate(int(one(replies).sum()), len(replies)) for one in (behaviour.judge, degeneration)
    )
    row = {
        "behaviour": behaviour.name, "method": f"asked ({behaviour.asking.name})",
        "measure": behaviour.measure, "n": len(replies), "replies": len(replies),
        "different": len(set(replies)), **score.columns("value"), **broken.columns("degenerate"),
    }  # fmt: skip
    return pd.DataFrame([row]).rename(columns=ENDS)


def measured(
    model: Model, behaviour: Behaviour, way: Way, prompts: Sequence[str], folder: Path
) -> pd.DataFrame:
    """A row for the unsteered model, and one for a vector at the strength that spends a budget."""
    first = folder / f"{behaviour.name.replace(' ', '-')}-{way.layer}"
    path = first / f"{way.method}.safetensors"
    # The same vector under another budget.
    method = METHODS[way.method] if not path.exists() else lambda *_: sl.SteeringVector.load(path)
    own = first if way.degenerate_budget < 1 else first / "kl-alone"
    found = compare(
        model, behaviour.lessons, prompts, methods={way.method: method}, layer=way.layer,
        judge=behaviour.judge, degenerate_budget=way.degenerate_budget, training=TRAINING, out=own,
        progress=False,
    )  # fmt: skip
    table = found.table.rename(columns={"score": "value"})
    if behaviour.held_out:
        table = answered(model, behaviour.held_out, table, own)
    return table.assign(
        behaviour=behaviour.name, measure=behaviour.measure, replies=len(prompts),
        layer=way.layer, degenerate_budget=way.degenerate_budget,
    )  # fmt: skip


def answered(
    model: Model, questions: Sequence[Question], table: pd.DataFrame, folder: Path
) -> pd.DataFrame:
    """The table with p(matching answer) to other statements in place of the judge's score."""
    table = table.assign(n=len(questions))
    for index, row in table.iterrows():
        kept = made_once(
            folder / f"{row['method']}-answers.json",
            repr((row["method"], row["strength"], list(questions))),
            partial(chances, model, questions, row, folder),
        )
        table.loc[index, ["value", "low", "high"]] = list(mean(np.array(kept)))
    return table


def chances(
    model: Model, questions: Sequence[Question], row: pd.Series, folder: Path
) -> list[float]:
    """p(matching answer) of each question under the vector and strength that a row tells of."""
    steering = None
    if row["method"] != UNSTEERED:
        vector = sl.SteeringVector.load(folder / f"{row['method']}.safetensors")
        steering = sl.Steering(vector, strength=row["strength"])
    return choice_probabilities(model, questions, steering, progress=False).tolist()


COLUMNS = [
    "behaviour", "method", "layer", "degenerate_budget", "strength", "kl", "status", "measure",
    "value", "low", "high", "n", "degenerate", "degenerate_low", "degenerate_high",
    "different", "replies",
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
    by_prompt = [by_asking(asked, behaviour, prompts) for behaviour in behaviours]
    for way, behaviour in product(WAYS, behaviours):
        tables.append(measured(model, behaviour, way, prompts, folder))
        table = pd.concat([*tables, *by_prompt]).reindex(columns=COLUMNS)
        # Each way has been compared with the same unsteered model.
        again = table.duplicated(["behaviour", "method"]) & (table["method"] == UNSTEERED)
        table = table[~again]
        table.to_csv(HERE / "styles.csv", index=False, float_format="%.6g")
        print(tables[-1].to_string(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
