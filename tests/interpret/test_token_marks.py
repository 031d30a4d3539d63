import io
import re
from html import unescape

import pytest
import torch
from helpers import PROMPTS, random_vector
from rich.console import Console

import steerlens as sl
from steerlens.activations.selection import answer_letter
from steerlens.data.prompts import Passage
from steerlens.interpret.token_marks import MarkedText, mark_read, mark_steered
from steerlens.models.tokenizing import tokenize

QUESTION = "Is <b>this</b> & that 'fine'?"
CHOICE = "Which?\n(A) one\n(B) two\nAnswer: (B"


@pytest.fixture(scope="module")
def vector(model):
    return random_vector(model)


def places(text):
    return [index for index, on in enumerate(text.marked) if on]


def shown_marked(text):
    """What stands between the brackets."""
    return re.findall("⟦(.*?)⟧", str(text), flags=re.DOTALL)


# Which tokens


@pytest.mark.parametrize(
    ("tokens", "chosen"),
    [
        ("last", [-1]),
        ("all", range(1, 1)),
        (2, [-2, -1]),
        ("reply", [-2, -1]),
        (slice(1, 3), [1, 2]),
        (lambda words: [words.index("<|user|>")], [1]),
    ],
)
def test_the_tokens_that_are_read(model, tokens, chosen):
    text = mark_read(model, PROMPTS[0], tokens)
    n_tokens = len(tokenize(model, PROMPTS[:1])[0].ids)
    every = range(n_tokens)
    assert places(text) == [every[place] for place in (every if tokens == "all" else chosen)]


@pytest.mark.parametrize(
    ("positions", "chosen"),
    [
        ("all", slice(None)),
        ("prompt", slice(None)),
        ("generated", slice(0, 0)),
        ("last", slice(-1, None)),
        ("reply", slice(-2, None)),
        (slice(2, -1, 2), slice(2, -1, 2)),
        ([0, -3], [0, -3]),
        (torch.tensor([False, True, True]), [1, 2]),
    ],
)
@pytest.mark.parametrize("skip_bos", [True, False])
def test_the_tokens_that_are_steered(model, vector, positions, chosen, skip_bos):
    steering = sl.Steering(vector, positions=positions, skip_bos=skip_bos)
    every = range(len(tokenize(model, PROMPTS[:1])[0].ids))
    expected = every[chosen] if isinstance(chosen, slice) else {every[place] for place in chosen}
    text = mark_steered(model, PROMPTS[0], steering)
    assert places(text) == sorted(place for place in expected if place or not skip_bos)


def test_a_suffix_and_an_answer_letter_are_marked(model):
    assert shown_marked(mark_read(model, Passage("Hi.", "No, I"), "suffix")) == ["No, I"]
    assert shown_marked(mark_read(model, CHOICE, answer_letter, chat=False)) == ["B"]


def test_what_the_user_did_not_write_is_there_too(model):
    assert str(mark_read(model, "Hi.", 1)) == "<s><|user|>Hi.<|end|>⟦<|assistant|>⟧"
    assert str(mark_read(model, "Hi.", 1, chat=False)) == "<s>Hi⟦.⟧"
    assert "<|assistant|>" not in str(mark_read(model, "Hi.", 1, generation_prompt=False))


def test_what_cannot_be_read_is_refused(model):
    with pytest.raises(sl.SteerlensError, match="prompt without suffix"):
        mark_read(model, "Hi.", "suffix")


def test_a_mark_for_the_reply_needs_the_template(model, vector):
    steering = sl.Steering(vector, positions="reply")
    with pytest.raises(sl.SteerlensError, match="needs to see the text"):
        mark_steered(model, "Hi.", steering, chat=False)


# How they are shown

MARKED = MarkedText(("<s>", "a <b>", " & ", "'c'", '"'), (False, True, True, False, True))


def test_neighbours_are_marked_together():
    assert str(MARKED) == "<s>⟦a <b> & ⟧'c'⟦\"⟧"


def test_html_is_escaped():
    html = MARKED._repr_html_()
    assert html == (
        '<code style="white-space: pre-wrap">&lt;s&gt;<mark>a &lt;b&gt; &amp; </mark>'
        "&#x27;c&#x27;<mark>&quot;</mark></code>"
    )
    tags = re.findall("<.*?>", html)
    assert set(tags) == {'<code style="white-space: pre-wrap">', "</code>", "<mark>", "</mark>"}
    assert unescape(re.sub("<.*?>", "", html)) == "".join(MARKED.tokens)


def test_a_users_own_html_and_markup_stay_text(model):
    for prompt in (QUESTION, "[red]stop[/red] <script>alert(1)</script> ⟦x⟧"):
        text = mark_read(model, prompt, "all")
        assert prompt in unescape(re.sub("</?(mark|code).*?>", "", text._repr_html_()))
        assert "<script>" not in text._repr_html_()
        assert prompt in text.__rich__().plain
        assert prompt in str(text)


def test_the_terminal_shows_marks_reversed():
    text = MARKED.__rich__()
    assert text.plain == "".join(MARKED.tokens)
    spans = [(text.plain[span.start : span.end], span.style) for span in text.spans]
    assert [part for part, style in spans if style == "reverse"] == ["a <b> & ", '"']
    screen = io.StringIO()
    Console(file=screen, force_terminal=True, color_system="standard", width=80).print(MARKED)
    assert "\x1b[7ma <b> & \x1b[0m'c'\x1b[7m\"\x1b[0m" in screen.getvalue()


@pytest.mark.parametrize("prompt", ["Hi é 日本 🙂.", "日", "two\nlines\t"])
def test_characters_made_of_several_tokens_are_whole(model, prompt):
    text = mark_read(model, prompt, "last")
    ids = tokenize(model, [prompt])[0].ids
    assert len(text.tokens) == len(text.marked) == len(ids)
    assert "".join(text.tokens) == model.tokenizer.decode(ids)
    whole = mark_read(model, prompt, "last", chat=False)
    assert prompt in "".join(whole.tokens)
