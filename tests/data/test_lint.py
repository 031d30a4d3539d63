"""Each finding is found where it was planted, and nothing is found in even pairs."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import steerlens as sl
from steerlens.data.lint import ALIKE, LintWarning, lint_pairs, near_duplicates, words_of

ANIMALS = ["cat", "dog", "cow", "hen", "pig", "bee", "ant", "fox", "owl", "rat", "emu", "yak"]
EVEN = [
    (f"Tell me of a {animal} and {number} more.", f"Sing me of a {animal} or {number} less.")
    for number, animal in enumerate(ANIMALS)
]


def kinds(pairs, **options):
    return [finding.kind for finding in lint_pairs(pairs, {}, **options)]


def planted(change, n=12):
    return [change(p, q) if index < n else (p, q) for index, (p, q) in enumerate(EVEN)]


LONGER = planted(lambda p, q: (f"{p} Then go on.", q))
TEMPLATE = "template tokens in prompts"


@pytest.mark.parametrize(
    ("pairs", "kind", "told"),
    [
        (LONGER, "length skew", "11 words, .* 8 .*100% of them"),
        (
            planted(lambda p, q: (p.replace("and", "bomb"), q)),
            "leaked words",
            r"'bomb' \(100%.* 0%",
        ),
        (planted(lambda p, q: (p, p), 1), "prompts on both sides", "1, such as 'Tell me of a cat"),
        (planted(lambda p, q: (EVEN[0][0], q)), "class balance", "1 different positive and 12"),
        ([*EVEN, EVEN[3]], "duplicates", "1 pairs repeat another, as of 'Tell me of a hen"),
        (planted(lambda p, q: (f"<|im_start|>{p}", q), 2), TEMPLATE, "2 prompts"),
        (planted(lambda p, q: (p, f"Human: {q}"), 1), TEMPLATE, "1 prompts"),
        (planted(lambda p, q: (p + " so" * 99, q), 1), "over-long rows", "1 prompts .* up to 107"),
        (planted(lambda p, q: (p, " "), 1), "empty rows", "1 prompts"),
    ],
)
def test_what_is_planted_is_found(pairs, kind, told):
    found = {one.kind: one.told for one in lint_pairs(pairs, {})}
    assert set(found) == {"leaked words", kind}  # the words that the pairs are made to differ in
    assert re.search(told, found[kind])


def test_even_pairs_leak_only_the_words_they_differ_in():
    assert kinds(EVEN) == ["leaked words"]
    assert kinds(EVEN, same_prompts=True) == []
    swapped = [pair[::-1] if index % 2 else pair for index, pair in enumerate(EVEN)]
    assert kinds(swapped) == []


sentences = st.lists(st.sampled_from(ANIMALS), min_size=1, max_size=8).map(" ".join)


@given(st.lists(sentences, max_size=8), st.lists(sentences, max_size=8))
def test_near_duplicates_are_those_of_all_pairs(known, asked):
    def alike(one, other):
        one, other = words_of(one), words_of(other)
        if min(len(one), len(other)) < 4:
            return one == other
        return len(one & other) / len(one | other) >= ALIKE

    expected = [text for text in asked if any(alike(text, other) for other in known)]
    found = near_duplicates(known, asked)
    assert [text for _, text in found] == expected
    assert all(alike(*pair) for pair in found)


def test_parts_that_share_prompts_almost_are_found():
    data = sl.ContrastiveDataset(
        [*EVEN, ("Tell me, of a cat and 0 more!", "Nothing like it here.")],
        parts={"train": (range(12), range(0)), "test": (range(12, 13), range(0))},
    )
    [finding] = [one for one in data.lint() if "parts" in one.kind]
    assert finding.told.startswith("1 prompts of 'test' are almost in 'train'")


def test_extract_warns_once_with_the_numbers(model):
    data = sl.ContrastiveDataset(LONGER, name="skewed")
    with pytest.warns(LintWarning, match="'skewed' may mislead: length skew: .*100%") as caught:
        sl.extract(model, data, progress=False)
    assert len(caught) == 1
    fair = sl.ContrastiveDataset([("Hi.", "Hi.")], suffixes=[("No", "Yes")])
    assert fair.lint() == []
