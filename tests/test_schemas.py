"""Declared files: what is wrong is told by its place, and nothing is converted or left unread."""

import json
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

import steerlens as sl
from steerlens.schemas import Declared, FileModel, Many, Two, check, read_as


class Inner(Declared):
    pairs: Many[Two[str | list[dict[str, str]]]]
    share: Annotated[float, Field(ge=0)] = 0.5


class Outer(FileModel):
    title = "an outer"
    format: Literal["test.outer/1"]
    parts: dict[str, Inner]


class Other(FileModel):
    title = "another"
    format: Literal["test.other/1"]
    count: int


PARTS = {"all": {"pairs": [["a", "b"], ["c", [{"role": "user"}]]]}}
WHOLE = {"format": "test.outer/1", "parts": PARTS}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"parts": 3}, "at parts: got 3; expected a table"),
        ({"parts": {"all": {}}}, "at parts.all: got no 'pairs'; expected one"),
        ({"parts": {"all": {"pairs": [["a", "b"], ["c"]]}}}, r"pairs\[1\]: .*at least 2 entries"),
        ({"parts": {"all": {"pairs": [["a", 5]]}}}, r"pairs\[0\]\[1\]: got 5; .*string or a valid"),
        ({"parts": {"all": {"pairs": [["a", [{"role": 5}]]]}}}, r"\[0\]\[1\]\[0\].role: got 5"),
        ({"parts": {"all": {"pairs": [], "share": -1.0}}}, "share: got -1.0; expected greater"),
        ({"parts": {"all": {"pairs": [], "share": "1"}}}, "got '1'; expected a valid number"),
        ({"parts": {"all": {"pairs": [], "share": True}}}, "got True; expected a valid number"),
        (
            {"parts": {"all": {"pairs": [], "shrae": 1.0}}},
            "at parts.all.shrae: got the unknown key 'shrae'",
        ),
        ({"format": "test.outer/2"}, "is not an outer: got the format 'test.outer/2'; expected"),
        ({"format": 3}, "is not an outer"),
    ],
)
def test_what_is_wrong_is_told_by_its_place(tmp_path, changed, told):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(WHOLE | changed))
    with pytest.raises(sl.SteerlensError, match=f"x.json'.*{told}"):
        read_as(path, Outer)


def test_the_format_chooses_the_kind(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(WHOLE))
    assert read_as(path, Other, Outer) == Outer(**WHOLE)
    path.write_text(json.dumps({"format": "test.other/1", "count": 2}))
    assert read_as(path, Other, Outer).count == 2
    path.write_text("[]")
    with pytest.raises(sl.SteerlensError, match="not another or an outer: got no table"):
        read_as(path, Other, Outer)


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(trees)
def test_what_is_taken_is_what_was_there(tree):
    content = WHOLE | {"parts": {"all": {"pairs": tree}}}
    try:
        found = check(Outer, content, "x.json")
    except sl.SteerlensError:
        return
    assert found.parts["all"].pairs == tree
