"""A text that grows is read as a whole would be, and only what is new is run."""

import pytest
import torch
from transformers import DynamicCache

from steerlens.activations.growing_texts import read_on
from steerlens.activations.reading import every_token
from steerlens.errors import SteerlensError
from steerlens.models import fast_forward
from steerlens.models.cache_beginnings import can_be_cut

PLACES = [("resid_post", 0), ("attn_out", 2), ("resid_pre", 1)]
TEXT = tuple(range(40, 70))


@pytest.fixture
def widths(model):
    """How many tokens each pass of the first block runs."""
    seen = []
    block = model.blocks[0]
    handle = block.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    yield seen
    handle.remove()


def assert_read(model, read, ids, places=PLACES):
    assert read.ids == tuple(ids)
    assert list(read.activations) == places
    for place, seen in every_token(model, ids, places).items():
        torch.testing.assert_close(read.activations[place], seen, atol=1e-5, rtol=1e-5)


def test_only_what_is_new_is_run(model, widths):
    first = read_on(model, TEXT[:20], PLACES)
    longer = read_on(model, TEXT, PLACES, first)
    other = read_on(model, (*TEXT[:10], *TEXT[15:]), PLACES, longer)
    again = read_on(model, TEXT[:20], PLACES, other)
    assert widths == [20, 10, 15, 10]
    assert_read(model, longer, TEXT)
    assert_read(model, other, (*TEXT[:10], *TEXT[15:]))
    assert_read(model, again, TEXT[:20])


def test_what_was_read_before_stays_as_it_was(model):
    first = read_on(model, TEXT[:20], PLACES)
    copies = {place: seen.clone() for place, seen in first.activations.items()}
    keys = first.cache[0].past_keys.clone()
    read_on(model, (*TEXT[:5], *TEXT[20:]), PLACES, first)
    assert torch.equal(first.cache[0].past_keys, keys)
    assert all(torch.equal(first.activations[place], copies[place]) for place in PLACES)


def test_the_whole_text_is_run_where_other_places_or_other_passes_were_read(model, widths):
    first = read_on(model, TEXT[:20], PLACES)
    fewer = read_on(model, TEXT, PLACES[:1], first)
    with fast_forward.disabled():
        plain = read_on(model, TEXT, PLACES, first)
    assert widths == [20, 30, 30]
    assert_read(model, fewer, TEXT, PLACES[:1])
    assert_read(model, plain, TEXT)


def test_nothing_is_kept_under_hooks_of_the_users(model, widths):
    first = read_on(model, TEXT[:20], PLACES)
    double = ("blocks.0.hook_resid_pre", lambda resid, hook: 2 * resid)
    with model.hooks(fwd_hooks=[double]):
        hooked = read_on(model, TEXT, PLACES, first)
        assert_read(model, hooked, TEXT)
    assert hooked.cache is None
    assert_read(model, read_on(model, TEXT, PLACES, hooked), TEXT)
    assert widths == [20, 30, 30, 30, 30]  # two of them by `every_token`


def test_a_cache_that_a_bridge_left_empty_is_not_gone_on_from():
    cache = DynamicCache()
    assert not can_be_cut(cache)
    cache.update(*torch.ones(2, 1, 2, 3, 4), 0)
    assert can_be_cut(cache)


def test_a_text_longer_than_the_context_is_refused(model):
    first = read_on(model, TEXT[:20], PLACES)
    with pytest.raises(SteerlensError, match=r"the text has 129 tokens, .* context holds 128"):
        read_on(model, (*TEXT[:20], *[40] * 109), PLACES, first)
