"""Hooks in somebody else's forward passes: right, or an error that names the way out."""

import pytest
import torch
from helpers import random_vector, stream

import steerlens as sl
from steerlens.models import new_cache
from steerlens.steering.clocks import PlainHooksClock
from steerlens.steering.similarities import projection

LONG, SHORT = [1, 40, 7, 300, 22], [17]


@pytest.fixture(scope="module")
def vector(model):
    return random_vector(model)


@torch.no_grad()
def logits(model, ids, cache=None):
    return model(torch.tensor([ids]), past_kv_cache=cache)


def steered(model, steering, ids):
    with model.hooks(fwd_hooks=steering.hooks()):
        return logits(model, ids)


def fires_on(model, vector, yes, no, tokens="last"):
    """A condition at layer 0 that holds for one text and not for the other."""
    values = [stream(model, ids, layer=0) @ vector[0] / vector[0].norm() for ids in (yes, no)]
    first, second = (of[-1].item() if tokens == "last" else of.mean().item() for of in values)
    side = "above" if first > second else "below"
    cut = {side: (first + second) / 2}
    return sl.Condition(vector, 0, similarity=projection, tokens=tokens, **cut)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("keep", ["hooks", "attached"])
def test_a_one_token_prompt_is_judged_by_its_own_gate(model, vector, keep):
    """Never by that of the prompt before."""
    steering = sl.Steering(vector, [2], when=fires_on(model, vector, LONG, SHORT))
    right = steered(model, steering, SHORT)
    close(right, logits(model, SHORT))  # it does not fire
    if keep == "hooks":
        with model.hooks(fwd_hooks=steering.hooks()):
            logits(model, LONG)
            close(logits(model, SHORT), right)
    else:
        attachment = steering.attach(model)
        try:
            logits(model, LONG)
            close(logits(model, SHORT), right)
        finally:
            attachment.remove()


@pytest.mark.parametrize("positions", ["prompt", "generated", "last", [0], slice(0, 2)])
def test_a_one_token_prompt_after_another_is_a_prompt(model, vector, positions):
    steering = sl.Steering(vector, [2], positions=positions)
    right = steered(model, steering, SHORT)
    with model.hooks(fwd_hooks=steering.hooks()):
        logits(model, LONG)
        close(logits(model, SHORT), right)


def test_where_only_the_blocks_input_is_seen_a_one_token_prompt_is_refused(model, vector):
    steering = sl.Steering(vector, [0], site="resid_pre", positions="prompt")
    right = steered(model, steering, SHORT)
    with model.hooks(fwd_hooks=steering.hooks()):
        logits(model, LONG)
        with pytest.raises(sl.SteerlensError, match=r"plain hooks cannot find.*steerlens.generate"):
            logits(model, SHORT)
        close(logits(model, SHORT), right)  # afresh


@pytest.mark.parametrize(
    "fields",
    [
        {"positions": slice(0, 2)}, {"positions": [1]}, {"positions": "last"},
        {"positions": "prompt"}, {"positions": "generated"}, {"skip_bos": True}, {"when": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_prompt_in_chunks_is_refused_where_it_matters(model, vector, fields):
    if "when" in fields:
        fields = {"when": fires_on(model, vector, LONG, SHORT, tokens="all")}
    steering, cache = sl.Steering(vector, [2], **fields), new_cache(model, 1)
    with model.hooks(fwd_hooks=steering.hooks()):
        logits(model, LONG[:3], cache)
        with pytest.raises(sl.SteerlensError, match=r"continue 3 cached.*steerlens\.generate"):
            logits(model, LONG[3:], cache)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_a_prompt_in_chunks_is_steered_everywhere(model, vector, site):
    steering, cache = sl.Steering(vector, [2], site=site), new_cache(model, 1)
    with model.hooks(fwd_hooks=steering.hooks()):
        parts = [logits(model, ids, cache) for ids in (LONG[:3], LONG[3:])]
    close(torch.cat(parts, dim=1), steered(model, steering, LONG))


@pytest.mark.parametrize("n_cached", [2, 4])
def test_a_text_whose_beginning_was_not_seen_is_refused(model, vector, n_cached):
    """Its cache is another prompt's than the one that these hooks saw last."""
    steering = sl.Steering(vector, [2], when=fires_on(model, vector, LONG, SHORT))
    cache = new_cache(model, 1)
    logits(model, LONG[:n_cached], cache)
    with model.hooks(fwd_hooks=steering.hooks()):
        logits(model, [3, 4, 5])
        with pytest.raises(sl.SteerlensError, match="unknown which of these tokens are the prompt"):
            logits(model, [6], cache)


@pytest.mark.parametrize("site", ["resid_pre", "ln1_out", "z", "resid_post"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_decoding_goes_on_from_the_prompt(model, site, use_cache):
    vector = random_vector(model, site=site)
    steering = sl.Steering(vector, [1], positions="generated", site=site)
    more = [9, 8, 200]
    whole = [*LONG, *more]
    expected = sl.Steering(vector, [1], positions=slice(len(LONG), None), site=site)
    with model.hooks(fwd_hooks=expected.hooks(model=model)):
        right = logits(model, whole)[:, -1]
    cache = new_cache(model, 1) if use_cache else None
    with model.hooks(fwd_hooks=steering.hooks(model=model)):
        for n in range(len(LONG), len(whole) + 1):
            shown = whole[:n] if n == len(LONG) or not use_cache else whole[n - 1 : n]
            found = logits(model, shown, cache)[:, -1]
    close(found, right)


def test_batches_of_other_sizes_follow_each_other(model, vector):
    steering = sl.Steering(vector, [2], positions="prompt")
    right = steered(model, steering, LONG)
    with model.hooks(fwd_hooks=steering.hooks()):
        for rows in (1, 3, 2, 1):
            batch = [LONG] * rows
            with torch.no_grad():
                found = model(torch.tensor(batch))
            close(found, right.expand_as(found))


def test_a_clock_that_is_read_before_its_pass_is_refused():
    with pytest.raises(sl.SteerlensError, match="run the model with all of the hooks"):
        _ = PlainHooksClock().current
