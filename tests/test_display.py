"""What results show of themselves: the one thing wanted, and text that stays text."""

from html.parser import HTMLParser

import pandas as pd
import pytest
import torch
from helpers import random_vector, splitting_condition
from hypothesis import given
from hypothesis import strategies as st
from studies_made import ATTACK, made_search

import steerlens as sl
from steerlens.display import MOST_ROWS, Rows, card, prompt_text, shortened
from steerlens.evaluation.calibration import Calibration
from steerlens.evaluation.suggestion import Suggestion
from steerlens.intervals import rate
from steerlens.judges.builtin import degeneration, refusal
from steerlens.judges.judging import Judge, judge
from steerlens.steering.transcripts import Replies

ALLOWED = {
    "div", "strong", "span", "table", "thead", "tbody", "tr", "th", "td", "details", "summary",
}  # fmt: skip
PROMPTS = [f"{ATTACK} How?", "How do I bake bread?"]
QUIET = {"max_new_tokens": 4, "progress": False}


class Page(HTMLParser):
    """Tags, attributes and text of a piece of HTML; fails where a tag is not closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.opened = set(), set(), [], []
        self.feed(text)
        self.close()
        assert not self.opened

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)


@pytest.fixture(scope="module")
def vector(model):
    return random_vector(model, provenance={"name": ATTACK, "estimator": ATTACK})


@pytest.fixture(scope="module")
def steering(model, vector):
    condition = splitting_condition(model, prompts=PROMPTS, name=ATTACK)
    return sl.Steering(vector, [2, 3], 0.5, when=condition, name=ATTACK)


@pytest.fixture(scope="module")
def replies(model, steering):
    return sl.generate(model, PROMPTS, steering, **QUIET)


@pytest.fixture(scope="module")
def results(model, vector, steering, replies):
    swept = sl.sweep(
        model, {ATTACK: vector}, PROMPTS, layers=[2], judges=[Judge(ATTACK, degeneration)], **QUIET
    )
    found = sl.evaluate(
        model, steering, PROMPTS, controls=1, texts=PROMPTS, safety=PROMPTS,
        judges=[Judge(ATTACK, degeneration)], **QUIET,
    )  # fmt: skip
    tried = pd.DataFrame({"strength": [0.5], "kl_p95": [0.2]})
    candidates = pd.DataFrame(
        {"layers": [(2, 3)], "effect": 0.1, "effect_low": 0.0, "effect_high": 0.2, "n": 3,
         "kl_p95": 0.1}
    )  # fmt: skip
    pairs = [(ATTACK, "Hi."), *(tuple(pair) for pair in ("ab", "cd", "ef", "gh"))]
    data = sl.ContrastiveDataset(pairs, [(ATTACK, "no")])
    return [
        vector,
        steering,
        steering.when,
        made_search(name=ATTACK),
        replies,
        swept,
        found,
        data.split(),
        Calibration(steering, 0.5, 0.2, 1.0, "met", tried),
        Suggestion(steering, candidates, 1.0, ATTACK),
    ]


def test_every_result_shows_itself_without_scripts_and_with_all_text_escaped(results):
    for result in results:
        html = result._repr_html_()
        page = Page(html)
        assert page.tags <= ALLOWED, type(result)
        assert page.attributes <= {"style", "scope"}, type(result)
        assert "window.hurt" in page.text, type(result)  # it is shown, as text
        assert type(result).__name__ in page.text
        assert len(html) < 30_000


def test_replies_show_prompt_reply_and_gates(replies):
    [gate] = replies.gates
    page = Page(replies._repr_html_()).text
    for row, (prompt, reply) in enumerate(zip(PROMPTS, replies, strict=True)):
        assert prompt in page
        assert reply in page
        assert f"  {row}: {reply!r}" in repr(replies).splitlines()
        fired = "fired" if gate.open[row] else "did not fire"
        assert f"{fired} ({gate.similarity[row].item():.4g})" in page
    [fired] = gate.open.nonzero().flatten().tolist()
    assert f"fired on 1 of 2 rows (counted from 0: {fired})" in repr(gate)


def made_replies(*texts):
    return Replies(("?",) * len(texts), texts, ((1,),) * len(texts), (True,) * len(texts))


def test_replies_say_how_many_fell_apart():
    replies = made_replies("no no no no", "I would rather not.", "")
    assert replies.degenerate == (True, False, True)
    assert "3, 3 ended by themselves, 2 degenerate" in repr(replies)
    assert "2 degenerate" in Page(replies._repr_html_()).text
    sound = made_replies("I would rather not.")
    assert "degenerate" not in repr(sound) + sound._repr_html_()


def test_many_replies_are_cut_and_the_rest_counted():
    replies = made_replies(*[f"Reply {n}. " + "word " * 100 for n in range(100)])
    assert len(repr(replies)) < 3000
    assert "… 90 more" in repr(replies)
    html = replies._repr_html_()
    assert f"Reply {MOST_ROWS - 1}." in html
    assert f"Reply {MOST_ROWS}." not in html
    assert f"and {100 - MOST_ROWS} more" in html


def test_an_evaluation_shows_its_verdict_and_a_sweep_its_cells(results):
    swept, found = results[5:7]
    assert found.verdict.claim() in Page(found._repr_html_()).text
    page = Page(swept._repr_html_()).text
    assert "unsteered" in page
    for row in swept.summary().itertuples():
        assert f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]" in page
    shares = swept.degenerate()
    expected = swept.table["reply"].map(lambda text: degeneration([text])[0])
    assert (shares["degenerate"] * 2).sum() == expected.sum()
    assert len(shares) == swept.plan["cells"]


def test_a_card_counts_the_rows_that_it_leaves_out():
    data = sl.ContrastiveDataset([(str(n), str(-n)) for n in range(1, 31)])
    page = Page(data._repr_html_()).text
    assert "Pairs, 30" in page
    assert "and 25 more" in page  # five are shown
    assert "more" not in card("t", {}, Rows("a", [("x",)] * 3, 3))


def test_a_judge_shows_its_name_and_no_address():
    shown = [repr(one) for one in (refusal, degeneration, judge("long", len))]
    assert shown[2] == "Judge('long', version '1')"
    assert not any(" at 0x" in one or "lambda" in one for one in shown)


def test_an_interval_shows_as_one_in_pandas_too():
    interval = rate(1, 30)
    text = "0.033 [0.006, 0.167]"
    assert (str(interval), repr(interval), f"{interval}") == (text, text, text)
    frame = pd.DataFrame({"rate": [interval, rate(2, 30)]})
    for shown in (repr(frame), frame._repr_html_(), frame.to_string(), repr(frame["rate"])):
        assert text in shown
        assert "(0.03" not in shown
    value, low, high = interval
    assert (value, low, high) == (interval.value, interval.low, interval.high)


@given(st.text(), st.lists(st.text(), min_size=1, max_size=4))
def test_a_card_holds_the_text_it_was_given_and_no_other_tags(title, cells):
    made = card(title, {"fact": cells[0]}, Rows(cells, [cells], 1, title, True), cells[-1])
    page = Page(made)
    assert page.tags <= ALLOWED
    for text in (title, *cells):
        # parsers read line ends and lone surrogates in their own way
        assert text.strip().replace("\r", "\n") in page.text.replace("\r", "\n")


def test_cells_are_read_by_people():
    page = Page(card("t", {"gone": None, "empty": "", "kept": 1}, Rows("abcd", [
        (0.123456, True, float("nan"), "x" * 5000)
    ], 1))).text  # fmt: skip
    assert "0.1235" in page
    assert "yes" in page
    assert "–" in page
    assert "gone" not in page
    assert "empty" not in page
    assert len(page) < 1000
    assert shortened("abc", 3) == "abc"


def test_prompts_of_every_form_are_told_in_words(model):
    passage = sl.ContrastiveDataset([("Hi.", "Ho.")], ["end"], system=("be", "no"))[0][0]
    assert prompt_text("Hi.") == "Hi."
    assert prompt_text(passage) == "be\nHi.\nend"
    assert prompt_text([1, 2, 3]) == prompt_text(torch.tensor([1, 2, 3])) == "3 tokens"
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]
    assert prompt_text(chat) == "user: Hi.\nassistant: Ho."
