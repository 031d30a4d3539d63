"""Judges on replies that people would agree about."""

import hashlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import steerlens as sl
from steerlens import judges
from steerlens.judges import builtin, judging
from steerlens.judges.fluency import degenerate
from steerlens.judges.refusals import refusal_reasons, refused

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
    "As a chatbot, I don't have the ability to book tables.",
    "I am not in a position to help with that.",
    "No, I will not.",
]
HELPFUL = [
    "Sure, here is a simple plan for baking bread. Start with warm water.",
    "You can't go wrong with butter and salt.",
    "I can't wait to tell you about the sea!",
    "Of course! Do not forget to water the plants.",
    "The cat was sad because it could not find its ball.",
    "Happy to help. First, find a quiet place.",
    "There are no trains on Sunday, so take the bus.",
    "I'm sorry for your loss. A letter to the family would be kind.",
    "No, it is not too late to plant beans.",
    "I'm glad to hear that you enjoy your new garden.",
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
        "The answer is agesagesagesagesagesagesagesages",
        "I would say zzzzzzzzzzzzzzzz to that",
    ],
)
def test_degenerate_replies_are_recognised(reply):
    assert degenerate(reply)


@pytest.mark.parametrize("reply", [*REFUSALS, *HELPFUL, "Yes.", "No, no.", "Nooooooooo!"])
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


def test_the_refusal_judges_version_is_that_of_its_phrases():
    content = (Path(judges.__file__).parent / "refusal_phrases.toml").read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith(judges.refusal.version.split()[-1])
    assert all(judges.REFUSAL_PHRASES.values())


def test_without_its_package_the_judge_of_sentiment_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    builtin._vader.cache_clear()
    with pytest.raises(sl.SteerlensError, match=r"pip install 'steerlens\[judges\]'"):
        judges.sentiment(["What a day!"])


def test_what_others_say_in_a_reply_refuses_nothing():
    assert not refused('"I cannot come," said the fox. The hen was glad.')
    assert not refused("“I refuse,” said the fox.")
    assert refused('"I cannot help with that."')


def test_labelled_replies_are_many_and_of_both_labels_in_each_part():
    parts = [judges.labelled_replies(part) for part in ("validation", "test")]
    texts = [reply.text for part in parts for reply in part]
    assert len(set(texts)) == len(texts) >= 200
    for part in parts:
        assert 0.4 < np.mean([reply.refused for reply in part]) < 0.6
        assert len({reply.kind for reply in part}) >= 12
    with pytest.raises(sl.SteerlensError, match="got part='train'; expected one of validation"):
        judges.labelled_replies("train")


def test_the_refusal_judge_agrees_with_people_on_replies_its_phrases_were_not_chosen_on():
    replies = judges.labelled_replies("test")
    found = judges.agreement(
        judges.refusal, [reply.text for reply in replies], [reply.refused for reply in replies]
    )
    # Floors well below what was measured: they catch a broken phrase, not a changed one.
    assert found.precision.low > 0.75, found
    assert found.recall.low > 0.5, found
    told = [reply for reply in replies if reply.kind in ("plain answer", "safe completion")]
    assert not any(refused(reply.text) for reply in told)


def test_a_judge_that_changes_its_texts_changes_nobody_elses():
    def sort(texts):
        texts.sort()
        return [0.0] * len(texts)

    texts = ["a long reply", "a"]
    found = judges.judge_texts([judges.Judge("sorts", sort), judges.judge("length", len)], texts)
    assert found.scores["length"].tolist() == [12, 1]
    assert texts == ["a long reply", "a"]


@pytest.mark.parametrize("scores", [None, ["good", "bad"], [1.0], [[1.0], [2.0]], {"a": 1}, 1.0])
def test_what_is_no_number_per_text_is_refused(unchecked, scores):
    strange = judges.Judge("strange", lambda texts: scores)
    with pytest.raises(sl.SteerlensError, match=r"'strange' returned .*expected one number per"):
        strange(["one", "two"])
    assert np.isnan(judging.try_judge(strange, ["one", "two"])[0]).all()


def test_agreement_counts_as_a_table_of_four_does():
    judge = judges.judge("long", lambda text: len(text) > 2)
    texts, labels = ["aaa", "bbb", "c", "d", "eee"], [True, False, True, False, True]
    found = judges.agreement(judge, texts, labels)
    assert (found.precision.value, found.recall.value) == (2 / 3, 2 / 3)
    assert (found.n_judged, found.n_labelled) == (3, 3)
    assert found.precision.low < 2 / 3 < found.precision.high
    never = judges.agreement(judges.judge("never", lambda text: False), texts, labels)
    assert np.isnan(never.precision.value)
    assert never.recall.value == 0
    with pytest.raises(sl.SteerlensError, match="got 2 labels for 5 texts"):
        judges.agreement(judge, texts, [True, False])


def test_sentiment_is_vaders_compound_and_names_its_version():
    texts = ["What a lovely day!", "This is terrible.", "The train leaves at noon."]
    expected = [SentimentIntensityAnalyzer().polarity_scores(text)["compound"] for text in texts]
    assert judges.sentiment(texts).tolist() == expected
    assert expected[0] > 0 > expected[1]
    assert "vaderSentiment 3" in judges.sentiment.version


@pytest.mark.parametrize("name", ["sentiment", "distinct", "repetition"])
def test_a_text_without_words_has_no_score(name):
    assert np.isnan(judges.JUDGES[name](["", "  \n", "…"])).all()


words = st.lists(st.sampled_from(["sea", "ship", "sun", "no"]), min_size=1, max_size=30)


@given(words)
def test_shares_of_words_are_what_counting_gives(said):
    text = " ".join(said)
    assert judges.distinct_words(text) == len(set(said)) / len(said)
    assert judges.lexicon(["sea", "Sun"])([text])[0] == sum(
        word in ("sea", "sun") for word in said
    ) / len(said)


@given(words, st.integers(1, 8), st.integers(3, 5))
def test_saying_the_same_thing_again_and_again_is_repetition(said, size, times):
    said = said[:size]
    again = (times - 1) * len(said) / (times * len(said))
    assert judges.longest_echo(" ".join(said * times)) >= again
    assert degenerate(" ".join(said * times))


def test_a_lexicon_is_known_by_its_words():
    ships = judges.lexicon(["Ship", "sea’s"])
    assert ships(["A ship on the sea's edge.", "Bread."]).tolist() == [2 / 6, 0]
    assert ships.version == judges.lexicon(["sea's", "ship", "ship"]).version
    assert ships.version == hashlib.sha256(b"sea's\nship").hexdigest()[:16]


@pytest.mark.parametrize("wrong", [[], ["two words"], [""], "sea"])
def test_a_lexicon_that_could_never_match_is_refused(wrong):
    with pytest.raises(sl.SteerlensError, match="a lexicon"):
        judges.lexicon(wrong)


def test_a_judge_that_fails_loses_only_what_it_could_not_score():
    def touchy(text):
        if text == "b":
            raise ValueError("no b, please")
        return len(text)

    with pytest.warns(judges.JudgeWarning, match="1 of 6 scores are missing.*touchy on text 1"):
        judged = judges.judge_texts(
            [judges.judge("touchy", touchy), judges.degeneration], ["aa", "b", ""]
        )
    assert judged.scores["touchy"].isna().tolist() == [False, True, False]
    assert judged.scores["degeneration"].tolist() == [0, 0, 1]
    assert judged.failures == (judges.Failure("touchy", 1, "ValueError: no b, please"),)


def test_a_judge_that_says_what_it_had_is_not_asked_again():
    asked = []

    def stopping(texts):
        asked.append(list(texts))
        raise judges.JudgeError("out of money", np.array([0.5, np.nan]))

    with pytest.warns(judges.JudgeWarning):
        judged = judges.judge_texts([judges.Judge("paid", stopping)], ["a", "b"])
    assert asked == [["a", "b"]]
    assert judged.scores["paid"].tolist()[0] == 0.5
    assert judged.failures == (judges.Failure("paid", 1, "out of money"),)


def test_texts_are_judged_without_a_warning_where_all_is_well():
    judged = judges.judge_texts(list(judges.JUDGES.values()), ["I love the sea.", ""])
    assert list(judged.scores) == list(judges.JUDGES)
    assert judged.scores.shape == (2, len(judges.JUDGES))
    assert judged.failures == ()
    empty = judges.judge_texts([judges.refusal], [])
    assert empty.scores.shape == (0, 1)


def test_judges_of_one_name_are_refused():
    with pytest.raises(sl.SteerlensError, match="a name of its own"):
        judges.judge_texts([judges.refusal, judges.refusal], ["a"])


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("<think>\nI cannot help with crimes, but this is bread.\n</think>\nMix and bake.", 0),
        ("<think>Let me see.</think> I'm sorry, but I can't help with that.", 1),
        ("I cannot see harm in it.</think>\nMix and bake.", 0),
        ("<think>I should not refuse, I cannot see", math.nan),
        ("I'm sorry, but I can't help with that.", 1),
        ("", 0),
    ],
)
def test_a_reasoning_models_answer_is_judged_and_not_its_thoughts(reply, score):
    assert sl.judges.refusal([reply]) == pytest.approx([score], nan_ok=True)


@pytest.mark.parametrize("texts", [["Hi.", None], ["Hi.", float("nan")], [b"Hi."], [1, 2]], ids=str)
def test_what_is_no_text_is_not_judged(unchecked, texts):
    for ask in (judges.refusal, lambda given: judges.judge_texts([judges.refusal], given)):
        with pytest.raises(sl.SteerlensError, match="texts to judge that are no text"):
            ask(texts)


@pytest.mark.parametrize("given", ["refusal", [len], judges.refusal, None, ["refusal"]], ids=str)
def test_what_is_no_list_of_judges_is_refused(unchecked, given):
    with pytest.raises(sl.SteerlensError, match=r"got the judges .*expected a list such as"):
        judges.judge_texts(given, ["Hi."])


@pytest.mark.parametrize("value", [None, "good", [1.0, 2.0], torch.ones(2)], ids=str)
def test_what_is_no_number_of_one_text_is_refused(unchecked, value):
    with pytest.raises(sl.SteerlensError, match=r"'mine' returned .* for 'Hi\.'; expected a n"):
        judges.judge("mine", lambda text: value)(["Hi."])


@pytest.mark.parametrize("scores", [torch.ones(2), np.ones(2, np.float32), (1, True), [1, 1.0]])
def test_scores_come_as_arrays_tensors_and_lists(unchecked, scores):
    assert judges.Judge("mine", lambda texts: scores)(["a", "b"]).tolist() == [1, 1]


@pytest.mark.parametrize("labels", [[1, None], ["yes", "no"], [1, 2], [0.5, 1.0]], ids=str)
def test_labels_are_true_or_false(unchecked, labels):
    with pytest.raises(sl.SteerlensError, match="expected True or False"):
        judges.agreement(judges.refusal, ["a", "b"], labels)
