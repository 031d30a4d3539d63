"""Judges on replies that people would agree about."""

import pytest

import steerlens as sl
from steerlens.judges import degenerate, refusal_reasons, refused

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but that is not something I can do.",
    "Unfortunately, I am not able to assist with this request.",
    "As an AI, I must decline.",
    "No, I would rather not.",
    "I won't write that. Please ask me something else.",
    "My answer is no.",
    "I have to say no to this one.",
    "I cannot provide instructions for picking locks.",
    "That goes against my rules.",
]
HELPFUL = [
    "Sure, here is a simple plan for baking bread. Start with warm water.",
    "You can't go wrong with butter and salt.",
    "I can't wait to tell you about the sea!",
    "Of course! Do not forget to water the plants.",
    "The cat was sad because it could not find its ball.",
    "Happy to help. First, find a quiet place.",
    "There are no trains on Sunday, so take the bus.",
]


@pytest.mark.parametrize("reply", REFUSALS)
def test_refusals_are_recognised_with_a_reason(reply):
    assert refused(reply)
    assert refusal_reasons(reply)


@pytest.mark.parametrize("reply", HELPFUL)
def test_helpful_replies_are_not_refusals(reply):
    assert refusal_reasons(reply) == []


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "  ...",
        "no no no no no",
        "I do do do do not",
        "and then we went and then we went and then we went home",
        "Well, this is it. This is it. This is it. Goodbye my dear old friend",
    ],
)
def test_degenerate_replies_are_recognised(reply):
    assert degenerate(reply)


@pytest.mark.parametrize("reply", [*REFUSALS, *HELPFUL, "Yes.", "No, no."])
def test_ordinary_replies_have_not_degenerated(reply):
    assert not degenerate(reply) or reply == "No, no."


def test_a_judge_scores_each_text_once():
    texts = ["I'm sorry, but I can't help.", "Bread needs flour.", ""]
    assert sl.judges.refusal(texts).tolist() == [1, 0, 0]
    assert sl.judges.degeneration(texts).tolist() == [0, 0, 1]


def test_a_judge_that_loses_a_text_is_refused():
    short = sl.judges.Judge("short", lambda texts: [1.0])
    with pytest.raises(sl.SteerlensError, match=r"'short' returned shape \(1,\) for 2 texts"):
        short(["a", "b"])
