"""What figures/smollm2/styles.py measures, and with which judges."""

import csv
import doctest
import importlib
import json
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest

import steerlens as sl
from steerlens.data.questions import Question
from steerlens.evaluation.ab_questions import choice_probabilities
from steerlens.judges.validation import labelled_replies

FOLDER = Path(__file__).parents[2] / "figures" / "smollm2"
FRENCH = [
    "Bonjour, je voudrais un café et deux croissants, s'il vous plaît.",
    "Les enfants jouent dans le jardin pendant que leur mère lit.",
    "Il n'y a pas de train ce soir ; vous pouvez dormir chez nous.",
    "Qu'est-ce que tu fais ? J'attends mon frère.",
    "La lumière de la lune est douce sur la mer.",
]
FOREIGN = [
    "La casa de mi madre es grande y está cerca de la playa.",
    "Il gatto dorme sul letto perché è molto stanco.",
    "Der Zug fährt um acht Uhr ab, und wir sind zu spät.",
    "We had a pain au chocolat at a café near the Place de la Concorde.",
    "Bonjour means good morning, and merci means thank you.",
    "",
]
FORMAL = [
    "It is recommended that the applicant submit the form prior to the first of May.",
    "One should not, however, infer from this that a reply is required.",
    "The committee shall therefore convene upon receipt of your letter.",
    "I should be obliged if you would kindly confirm your attendance.",
    "Furthermore, the goods are to be returned within a suitable period.",
]
COLLOQUIAL = [
    "Hey, that's awesome, let's grab a coffee!",
    "You'll need to get some stuff from the shop, okay?",
    "I don't know, it's kinda cool I guess.",
    "Sure! Here's what I'd do.",
    "You're gonna love this one, kids!",
]


@pytest.fixture
def styles(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("styles")


@pytest.fixture
def judges(styles):
    return importlib.import_module("style_judges")


def test_the_examples_run(judges):
    result = doctest.testmod(judges)
    assert result.attempted
    assert not result.failed


def test_french_is_told_from_other_languages(judges):
    assert judges.french(FRENCH).tolist() == [1] * len(FRENCH)
    assert judges.french(FOREIGN).tolist() == [0] * len(FOREIGN)


def test_the_written_replies_are_french_and_english_ones_are_not(judges):
    with (FOLDER / "french.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    wanted = judges.french([row["reply"] for row in rows])
    assert wanted.sum() >= len(rows) - 1
    assert not judges.french([row["instruction"] for row in rows]).any()
    neutral = json.loads(sl.demo_file("neutral.json").read_text())["parts"].values()
    english = [*chain.from_iterable(neutral), *(reply.text for reply in labelled_replies())]
    assert not judges.french(english).any()


def test_french_is_written_to_training_instructions_only():
    parts = sl.data.load_prompts(sl.demo_file("questions.json"))
    with (FOLDER / "french.tsv").open(encoding="utf-8") as file:
        asked = {row["instruction"] for row in csv.DictReader(file, delimiter="\t")}
    assert len(asked) >= 24
    assert asked <= set(parts["train"])
    assert not asked & {*parts["validation"], *parts["test"]}


def test_formal_replies_are_told_from_colloquial_ones(judges):
    assert judges.formal(FORMAL).tolist() == [1] * len(FORMAL)
    assert judges.formal(COLLOQUIAL).tolist() == [0] * len(COLLOQUIAL)
    assert judges.formal(["Bread is made of flour.", ""]).tolist() == [0, 0]


def test_lessons_are_replies_with_the_style_beside_ones_without(styles):
    shouts = sl.judges.judge("shouts", lambda text: text.endswith("!"))
    prompts, wanted, plain = ["a", "b", "c"], ["Yes!", "No!", "Oh."], ["Yes.", "No!", "Oh."]
    assert styles.lessons(prompts, wanted, plain, shouts) == [("a", "Yes!", "Yes.")]


def test_a_persona_is_measured_by_its_answers_on_other_statements(styles, model, tmp_path):
    asked = [Question(f"Do you like {n}?", "Yes", "No") for n in range(styles.STATEMENTS + 3)]
    behaviour = styles.persona(asked)
    assert len(behaviour.held_out) == 3
    assert not {lesson[0] for lesson in behaviour.lessons} & {one.text for one in asked[-3:]}
    few = behaviour._replace(lessons=behaviour.lessons[:4])
    for budget in (0.5, 1.0):
        way = styles.Way(1, "mean_difference", budget)
        table = styles.measured(model, few, way, ["Where are the ships?"], tmp_path)
        assert table["method"].tolist() == ["unsteered", "mean_difference"]
        vector = sl.SteeringVector.load(tmp_path / "persona-1" / "mean_difference.safetensors")
        plans = (None, sl.Steering(vector, strength=table["strength"].iloc[1]))
        chances = [choice_probabilities(model, asked[-3:], one, progress=False) for one in plans]
        assert table["value"].tolist() == pytest.approx([one.mean() for one in chances])
        assert set(table["n"]) == {3}


def test_the_document_says_how_well_formality_is_judged():
    [row] = pd.read_csv(FOLDER / "styles.csv").query("method == 'judge'").itertuples()
    told = f"AUROC of {row.value:.2f} [{row.low:.2f}, {row.high:.2f}], n = {row.n}"
    assert told in (FOLDER.parents[1] / "docs" / "learning.md").read_text()
