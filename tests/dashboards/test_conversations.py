"""The drift of a conversation: every token and every message's mean is in the figure."""

import numpy as np
import pandas as pd
import pytest
from helpers import random_vector

import steerlens as sl
from steerlens.dashboards import drift
from steerlens.errors import SteerlensError


@pytest.fixture(scope="module")
def table(model):
    chat = sl.Chat(model, max_new_tokens=4)
    for words in ("How do I bake bread?", "Why?", "Name a colour."):
        chat.say(words)
    return chat.projections(random_vector(model), layers=[1, 3])


def test_every_token_and_every_mean_is_drawn(table):
    figure = drift(table)
    assert [note.text for note in figure.layout.annotations] == ["layer 1", "layer 3"]
    traces = iter(figure.data)
    for layer in (1, 3):
        for role in ("user", "assistant"):
            of_role = table[(table.layer == layer) & (table.role == role)]
            dots, bars = next(traces), next(traces)
            np.testing.assert_allclose(dots.y, of_role.projection)
            means = of_role.groupby("turn").projection.mean()
            drawn = np.array(bars.y, dtype=float).reshape(-1, 3)
            np.testing.assert_allclose(drawn[:, :2], np.stack([means, means], axis=1))
            assert np.isnan(drawn[:, 2]).all()
            assert (bars.name, bars.showlegend) == (role, layer == 1)
    assert next(traces, None) is None
    said = table[table.layer == 1]
    everywhere = sorted(x for trace in (figure.data[0], figure.data[2]) for x in trace.x)
    assert everywhere == list(range(len(said)))
    assert figure.layout.xaxis2.title.text == "tokens that were said"
    assert list(figure.layout.xaxis2.ticktext) == ["turn 1", "turn 2", "turn 3"]


def test_one_layer_needs_no_heading_and_many_turns_few_ticks(table):
    one = table[table.layer == 3]
    assert not drift(one).layout.annotations
    many = pd.concat([one[one.turn == 1].assign(turn=turn) for turn in range(1, 31)])
    assert len(drift(many).layout.xaxis.ticktext) <= 12


def test_other_tables_are_refused(table):
    with pytest.raises(SteerlensError, match="add projection"):
        drift(table.drop(columns="projection"))
    with pytest.raises(SteerlensError, match="nothing to draw"):
        drift(table.assign(projection=np.nan))
    deep = pd.concat([table[table.layer == 1].assign(layer=layer) for layer in range(30)])
    with pytest.raises(SteerlensError, match="got 30 layers"):
        drift(deep)
