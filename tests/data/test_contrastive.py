import json
import time
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.data.prompt_files import load_prompts
from steerlens.data.prompts import Passage

PAIRS = [("Be kind.", "Be rude."), ("Help.", "Refuse."), ("Smile.", "Frown.")]
ENDINGS = [("No, I", "Sure, I"), ("Sorry,", "Here,")]

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.strip)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": words}),
    min_size=1,
    max_size=2,
)
pairs = st.lists(st.tuples(words | messages, words | messages), min_size=1, max_size=6)
suffixes = st.one_of(
    st.just([]), st.lists(words, max_size=3), st.lists(st.tuples(words, words), max_size=3)
)


def test_rows_cross_pairs_with_suffixes_suffix_by_suffix():
    data = sl.ContrastiveDataset(PAIRS, ENDINGS, system=("Be good.", None))
    assert len(data) == 6
    assert data[4] == (
        Passage("Help.", "Sorry,", "Be good."),
        Passage("Refuse.", "Here,", None),
    )
    assert [row[0].suffix for row in data] == ["No, I"] * 3 + ["Sorry,"] * 3


def test_a_shared_suffix_goes_to_both_sides():
    positive, negative = sl.ContrastiveDataset(PAIRS, ["And so"])[0]
    assert positive.suffix == negative.suffix == "And so"


@given(pairs, suffixes)
@settings(max_examples=30, deadline=None)
def test_every_pair_meets_every_suffix_once(pairs, suffixes):
    data = sl.ContrastiveDataset(pairs, suffixes)
    assert len(data) == len(list(data)) == len(pairs) * max(1, len(suffixes))
    assert data[:] == list(zip(data.positive, data.negative, strict=True))
    assert data[-1] == data[len(data) - 1]


def test_rows_beyond_the_end_do_not_exist():
    with pytest.raises(IndexError):
        sl.ContrastiveDataset(PAIRS)[3]


def test_a_million_rows_take_no_memory_and_no_time():
    thousand = [(f"Do {n}.", f"Undo {n}.") for n in range(1000)]
    endings = [(f"Yes {n}", f"No {n}") for n in range(1000)]
    began = time.perf_counter()
    tracemalloc.start()
    data = sl.ContrastiveDataset(thousand, endings)
    assert len(data.positive) == 1_000_000
    assert data.negative[999_999] == Passage("Undo 999.", "No 999")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6  # a thousandth of what the rows would take
    assert time.perf_counter() - began < 1


def test_one_group_is_contrasted_with_each_other_row_by_row():
    groups = {"legal": ["l1", "l2"], "health": ["h1", "h2"], "base": ["b1", "b2"]}
    data = sl.ContrastiveDataset.one_against_rest(groups, "health")
    assert data.name == "health"
    assert list(data.pairs) == [("h1", "l1"), ("h2", "l2"), ("h1", "b1"), ("h2", "b2")]


# Parts


@given(
    # many pairs share a prompt with another, few groups are large
    st.lists(st.integers(0, 60).map(lambda n: (f"{n}", f"{n + n % 2}")), min_size=30, max_size=60),
    st.integers(0, 5),
)
@settings(max_examples=30, deadline=None)
def test_split_parts_share_no_prompt_and_lose_none(pairs, seed):
    data = sl.ContrastiveDataset(pairs)
    try:
        parts = data.split(seed=seed)
    except sl.SteerlensError:
        reject()  # one group of pairs that share prompts took a part's whole place
    found = [parts.train, parts.validation, parts.test]
    assert sorted(pair for part in found for pair in part.pairs) == sorted(pairs)
    prompts = [{prompt for pair in part.pairs for prompt in pair} for part in found]
    assert not prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2]


def test_split_sizes_and_seed():
    data = sl.ContrastiveDataset([(f"a{n}", f"b{n}") for n in range(50)], ENDINGS)
    split = data.split(seed=3)
    sizes = len(split.train.pairs), len(split.validation.pairs), len(split.test.pairs)
    assert sizes == (30, 10, 10)
    assert split.train.pairs == data.split(seed=3).train.pairs
    assert split.train.pairs != data.split(seed=4).train.pairs
    assert split.test.suffixes == ENDINGS


def test_parts_that_cannot_be_filled_are_refused():
    linked = [("same", f"other {n}") for n in range(20)]
    with pytest.raises(sl.SteerlensError, match=r"1 groups without a shared prompt.*'validation'"):
        sl.ContrastiveDataset(linked).split()


def test_unknown_parts_are_refused():
    with pytest.raises(sl.SteerlensError, match=r"no part 'test' \(its parts: none\)"):
        _ = sl.ContrastiveDataset(PAIRS).test


# Files


@given(pairs, suffixes, st.tuples(st.none() | words, st.none() | words), st.booleans())
@settings(max_examples=30, deadline=None)
def test_save_and_load_round_trip(tmp_path_factory, pairs, suffixes, system, chat):
    path = tmp_path_factory.mktemp("contrast") / "data.json"
    data = sl.ContrastiveDataset(pairs, suffixes, system=system, chat=chat, name="Ünï")
    data.save(path)
    loaded = sl.ContrastiveDataset.load(path)
    assert list(loaded) == list(data)
    assert (loaded.chat, loaded.name, loaded.parts) == (chat, "Ünï", {})


def test_parts_survive_saving_and_so_does_the_whole(tmp_path):
    data = sl.ContrastiveDataset([(f"a{n}", f"b{n}") for n in range(10)], ENDINGS).split()
    data.save(tmp_path / "split.json")
    loaded = sl.ContrastiveDataset.load(tmp_path / "split.json")
    for part in ("train", "validation", "test"):
        assert list(loaded.part(part)) == list(data.part(part))
    assert list(loaded) == list(data)


@pytest.mark.parametrize("name", ["refusal", "harmful", "moods"])
def test_demo_data_keep_their_parts_apart(name):
    data = sl.ContrastiveDataset.load(sl.demo_file(f"{name}.json"))
    assert {"train", "validation", "test"} <= set(data.parts)
    if data.suffixes:  # there the prompts may be shared and the suffixes set parts apart
        contents = [set(data.part(part).suffixes) for part in data.parts]
    else:
        contents = [{p for pair in data.part(part).pairs for p in pair} for part in data.parts]
    assert sum(map(len, contents)) == len(set().union(*contents))


def test_prompt_lists_load_by_part(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"format": "steerlens.prompts/1", "parts": {"test": ["Hi."]}}))
    assert load_prompts(path) == {"test": ["Hi."]}


# Bad input


def test_an_empty_dataset_is_refused():
    with pytest.raises(sl.SteerlensError, match="'x' is empty; expected at least one pair"):
        sl.ContrastiveDataset([], name="x")


def test_unequal_lengths_are_refused():
    with pytest.raises(sl.SteerlensError, match="got 2 positive but 1 negative prompts"):
        sl.ContrastiveDataset.from_sides(["a", "b"], ["c"])


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        (("a", "b", "c"), r"at parts.all.pairs\[1\]: got .*; expected at most 2 entries"),
        (("a", " \n"), "pair 1 .* empty prompt"),
        (("a", 3), r"at parts.all.pairs\[1\]\[1\]: got 3; expected a valid string or"),
        (("a", [{"role": "user"}]), "pair 1 .* a prompt is text, or a chat"),
    ],
)
def test_malformed_pairs_are_named_by_their_number(unchecked, tmp_path, pair, told):
    path = tmp_path / "bad.json"
    sl.ContrastiveDataset(PAIRS).save(path)
    content = json.loads(path.read_text())
    content["parts"]["all"]["pairs"][1] = pair
    path.write_text(json.dumps(content))
    with pytest.raises(sl.SteerlensError, match=f"(?s)bad.json.*{told}"):
        sl.ContrastiveDataset.load(path)


@pytest.mark.parametrize("suffixes", [["No", ("No", "Yes")], [("No", "Yes", "Hm")]])
def test_suffixes_mixed_in_form_are_refused(unchecked, suffixes):
    with pytest.raises(sl.SteerlensError, match="mixed in form"):
        sl.ContrastiveDataset(PAIRS, suffixes)


@pytest.mark.parametrize("target", ["unknown", "only"])
def test_a_group_without_others_is_refused(target):
    with pytest.raises(sl.SteerlensError, match="one of at least two groups"):
        sl.ContrastiveDataset.one_against_rest({"only": ["a"]}, target)


def test_a_truncated_file_is_refused_by_name_and_place(tmp_path):
    path = tmp_path / "cut.json"
    sl.ContrastiveDataset(PAIRS).save(path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(sl.SteerlensError, match=r"cut.json.* not valid JSON.* line \d+"):
        sl.ContrastiveDataset.load(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "is not a contrastive dataset: got no table; expected"),
        ({"format": "other"}, "got the format 'other'; expected the format 'steerlens.contrast/1'"),
        ({"format": "steerlens.contrast/1"}, "got no 'parts'"),
        (
            {"format": "steerlens.contrast/1", "parts": ["train"]},
            "at parts: got .*; expected a table",
        ),
        (
            {"format": "steerlens.contrast/1", "parts": {"train": {}}},
            "at parts.train: got no 'pairs'",
        ),
        (
            {"format": "steerlens.contrast/1", "parts": {"train": {"pairs": [3]}}},
            r"at parts.train.pairs\[0\]: got 3; expected a valid list",
        ),
        ({"format": "steerlens.contrast/1", "parts": {"all": {"pairs": []}}}, "is empty"),
    ],
)
def test_other_files_are_refused_by_name(unchecked, tmp_path, content, told):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    with pytest.raises(sl.SteerlensError, match=f"other.json.*{told}"):
        sl.ContrastiveDataset.load(path)


@pytest.mark.parametrize("content", [{"format": "x"}, {"format": "steerlens.prompts/1"}])
def test_other_prompt_lists_are_refused_by_name(tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(content))
    with pytest.raises(sl.SteerlensError, match=r"prompts.json.*(format|parts)"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda content: content.update(chat=False), "chat"),
        (lambda content: content["parts"]["all"].update(sufixes=["No"]), "sufixes"),
    ],
)
def test_misspelt_keys_are_refused_by_name(tmp_path, change, key):
    sl.ContrastiveDataset([("Up.", "Down.")]).save(tmp_path / "d.json")
    content = json.loads((tmp_path / "d.json").read_text())
    change(content)
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(sl.SteerlensError, match=f"d.json.*unknown key '{key}'"):
        sl.ContrastiveDataset.load(tmp_path / "d.json")


def test_a_dataset_is_a_value():
    data = sl.ContrastiveDataset(PAIRS)
    with pytest.raises(AttributeError):
        data.chat = True
    assert replace(data, chat=True).chat
    assert repr(replace(data, suffixes=ENDINGS)) == (
        "ContrastiveDataset('contrast': 3 pairs × 2 suffixes)"
    )
