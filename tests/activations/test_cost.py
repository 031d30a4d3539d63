import pytest
from helpers import PROMPTS

from steerlens.activations.batching import reading_passes
from steerlens.activations.cost import estimate_cost
from steerlens.activations.reading import read_rows
from steerlens.models.hooking import Attachment
from steerlens.models.sites import hook_name
from steerlens.models.tokenizing import TokenRow, tokenize


def tokens_run(model, rows, **options):
    """How many tokens enter the first block, padding included."""
    seen = []
    name = hook_name(model, "resid_pre", 0)
    counting = Attachment()
    counting.attach(model, [(name, lambda resid, hook: seen.append(resid.shape[:2].numel()))])
    try:
        read_rows(model, rows, progress=False, **options)
    finally:
        counting.remove()
    return sum(seen)


@pytest.mark.parametrize("batch_tokens", [30, 8192])
@pytest.mark.parametrize("tokens", ["last", "all"])
@pytest.mark.parametrize("beginning", [0, 20])
def test_tokens_are_counted_exactly(model, tokens, batch_tokens, beginning):
    start = tuple(range(40, 40 + beginning))
    rows = [TokenRow((*start, *range(90, 91 + more))) for more in range(6)]
    rows += [*rows[:2], *tokenize(model, PROMPTS, chat=False)]  # some of them twice
    options = {"tokens": tokens, "batch_tokens": batch_tokens}
    passes = reading_passes(model, rows, **options)
    assert sum(one.tokens for one in passes) == tokens_run(model, rows, **options)
    assert any(one.n_shared > 15 for one in passes) == (beginning > 0)


def test_a_forecast_tells_tokens_time_and_memory(model):
    pairs = (PROMPTS[:3], PROMPTS[3:])
    forecast = estimate_cost(model, pairs, layers=[1, 2])
    rows = tokenize(model, PROMPTS)
    assert forecast.tokens == sum(one.tokens for one in reading_passes(model, rows))
    assert forecast.seconds > 0
    weights = sum(weight.numel() for weight in model.parameters())
    assert forecast.weight_bytes == 4 * weights
    assert forecast.result_bytes == 2 * 4 * len(PROMPTS) * 2 * model.cfg.d_model
    assert forecast.peak_bytes > forecast.weight_bytes + forecast.result_bytes
    assert str(forecast).startswith(f"{forecast.tokens} tokens in 1 passes, about ")


def test_more_prompts_cost_more(model):
    few = estimate_cost(model, (PROMPTS[:1], PROMPTS[1:2]))
    ids = [[token, token + 1, 7] for token in range(40, 900)]
    many = estimate_cost(model, (ids, [[*row, 9] for row in ids]), batch_tokens=512)
    assert many.tokens > few.tokens
    assert many.passes > few.passes
    assert many.result_bytes > few.result_bytes
