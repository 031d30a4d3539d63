"""One look: orange is positive everywhere, and all of it is seen on light and on dark ground."""

import re

import numpy as np
import pytest
import torch
from helpers import PROMPTS, random_vector
from studies_made import made_search

import steerlens as sl
from steerlens import dashboards
from steerlens.dashboards.theme import (
    CHOSEN,
    DARK,
    FADED_ON_DARK,
    FLOOR,
    INK,
    LINES,
    NEGATIVE,
    ON_DARK,
    PALE_DIVERGING,
    POSITIVE,
    TEMPLATE,
    dark,
    faded,
    line_style,
)


def channels(color):
    return [int(color[place : place + 2], 16) for place in (1, 3, 5)]


def contrast(one, other):
    """As WCAG 2 defines it."""

    def luminance(color):
        shares = np.array(channels(color)) / 255
        linear = np.where(shares <= 0.03928, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def is_orange(color):
    red, _, blue = channels(color) if color[0] == "#" else map(int, re.findall(r"\d+", color)[:3])
    return red > blue


def test_positive_is_orange_in_every_figure_and_each_says_so(model):
    vector = random_vector(model)
    scan = sl.interpret.scan_tokens(model, PROMPTS[3], vector)
    text = dashboards.token_text(scan, scan.layers[-1])
    grounds = re.findall(r"background: (rgba\([^)]*\))", text._repr_html_())
    values = [value for value, ground in zip(text.values, grounds, strict=True)]
    assert {value > 0 for value in values} == {True, False}
    for value, ground in zip(text.values, grounds, strict=True):
        assert is_orange(ground) == (value > 0)
    lens = dashboards.logit_lens(sl.interpret.logit_lens(model, vector, k=2))
    writers = sl.interpret.mean_writers(model, vector, 2, PROMPTS[:2], progress=False)
    maps = {
        "scan": (dashboards.token_scan(scan), lambda figure: figure.data[0].colorscale),
        "lens": (lens, lambda figure: figure.layout.coloraxis.colorscale),
        "writers": (dashboards.writers(writers), lambda figure: figure.data[0].colorscale),
    }
    for name, (figure, scale_of) in maps.items():
        scale = scale_of(figure)
        assert is_orange(scale[-1][1]), name
        assert not is_orange(scale[0][1]), name
        assert "orange: " in figure.layout.title.subtitle.text.replace("<br>", " "), name
    assert "orange: " in text._repr_html_()
    spread = dashboards.similarities_by_layer(made_search())
    assert [(one.name, one.marker.color) for one in spread.data] == [
        ("positive prompts", POSITIVE), ("negative prompts", NEGATIVE),
    ]  # fmt: skip


def test_everything_drawn_is_seen_on_dark_ground_and_text_is_read_on_both():
    ground = DARK.layout.paper_bgcolor
    for color in (*LINES, POSITIVE, NEGATIVE, CHOSEN, FLOOR):
        assert contrast(ON_DARK[color], ground) > 4.5, color
    for _, color in PALE_DIVERGING:
        assert contrast(INK, color) > 7
        assert contrast(ON_DARK[INK], ON_DARK[color]) > 4.5
    assert contrast(INK, TEMPLATE.layout.paper_bgcolor) > 7


def test_the_dark_figure_changes_colours_and_no_text(model):
    lens = sl.interpret.logit_lens(model, random_vector(model), k=2)
    figure = dashboards.logit_lens(lens)
    figure.add_scatter(x=[0], y=[1], name=POSITIVE + ", 2", text=["#0072B2, and more"])
    figure.add_scatter(x=[0], y=[1], fillcolor=faded(NEGATIVE), line={"color": NEGATIVE})
    other = dark(figure)
    assert [stop[1] for stop in other.layout.coloraxis.colorscale] == [
        ON_DARK[color] for _, color in PALE_DIVERGING
    ]
    assert other.data[0].textfont.color == ON_DARK[INK]
    assert other.data[-1].line.color == ON_DARK[NEGATIVE]
    assert other.data[-1].fillcolor == FADED_ON_DARK[faded(NEGATIVE).rpartition(",")[0]] + ",0.2)"
    assert other.data[-2].name == POSITIVE + ", 2"
    assert tuple(other.data[-2].text) == ("#0072B2, and more",)
    assert figure.data[-1].line.color == NEGATIVE


def test_a_dozen_lines_differ_in_colour_or_dash():
    styles = [line_style(index) for index in range(12)]
    looks = {(style["line"]["color"], style["line"]["dash"]) for style in styles}
    assert len(looks) == 12


@pytest.mark.parametrize("n", [5, 60])
def test_tokens_keep_their_labels_apart(n):
    scan = sl.interpret.TokenScan(tuple("ab " * n)[:n], (1, 2), torch.randn(2, n), n, "cosine")
    figure = dashboards.token_scan(scan)
    assert figure.layout.meta["min_width"] >= 15 * n
    assert figure.layout.xaxis.tickangle == (-60 if n == 5 else -90)
