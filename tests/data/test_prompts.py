"""Lists of texts, whatever held them; and what is no list of texts."""

from collections import UserDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import steerlens as sl
from steerlens.data.prompts import as_texts

TEXTS = ["Hi.", "Ho."]


@pytest.mark.parametrize(
    "held",
    [
        TEXTS,
        tuple(TEXTS),
        pd.Series(TEXTS, index=[7, 3]),
        pd.DataFrame({"prompt": TEXTS})["prompt"],
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
        (text for text in TEXTS),
        dict.fromkeys(TEXTS).keys(),
    ],
    ids=lambda held: type(held).__name__,
)
def test_texts_come_in_many_containers(held):
    assert as_texts(held) == TEXTS


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("Hello", r"one text .'Hello'.*\[text\]"),
        (b"Hello", "one text"),
        ({"a": "Hi."}, "a mapping"),
        (UserDict(a="Hi."), "a mapping"),
        (pd.DataFrame({"prompt": TEXTS, "label": [0, 1]}), "a table.*one column"),
        (pa.table({"prompt": TEXTS}), "a table"),
        ({"Hi.", "Ho."}, "a set.*no order"),
        (None, "got None .NoneType"),
        (3, "got 3 .int"),
    ],
)
def test_what_is_no_list_is_refused_by_name(given, told):
    with pytest.raises(sl.SteerlensError, match=f"^prompts: .*{told}"):
        as_texts(given)


WRONG = ["Hello", {"a": "Hi."}, pd.DataFrame({"prompt": TEXTS})]


@pytest.mark.parametrize("given", WRONG, ids=lambda given: type(given).__name__)
def test_every_door_refuses_them(unchecked, tiny_chat, given):
    vector = sl.SteeringVector(torch.ones(1, 192), layers=(2,))
    doors = [
        lambda: sl.generate(tiny_chat, given),
        lambda: next(sl.stream(tiny_chat, given)),
        lambda: sl.evaluate(tiny_chat, sl.Steering(vector), given),
        lambda: sl.sweep(tiny_chat, vector, given),
        lambda: sl.extract(tiny_chat, (given, given)),
        lambda: sl.judges.refusal(given),
        lambda: sl.judges.judge_texts([sl.judges.refusal], given),
        lambda: sl.ContrastiveDataset.from_sides(given, given),
    ]
    for door in doors:
        with pytest.raises(sl.SteerlensError, match="expected a list of texts"):
            door()


def test_a_series_is_read_by_place_not_by_label(unchecked, tiny_chat):
    series = pd.Series(["How do I bake bread?", "Why?"], index=[5, 0])
    options = {"max_new_tokens": 3, "progress": False}
    expected = list(sl.generate(tiny_chat, list(series), **options))
    assert list(sl.generate(tiny_chat, series, **options)) == expected
    assert sl.judges.refusal(pd.Series(["I can't help.", "Sure."], index=[1, 0])).tolist() == [1, 0]
