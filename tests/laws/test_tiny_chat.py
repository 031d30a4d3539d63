"""The real thing: a gated, steered batch of the embedded model."""

from dataclasses import replace

import pytest
from helpers import assert_no_hooks_left

import steerlens as sl

N_PROMPTS = 64
OPTIONS = {"max_new_tokens": 20, "progress": False}


@pytest.fixture(scope="module")
def plan(tiny_chat):
    """Refuse what a condition takes for harmful, as in part II of the demo."""
    refusals = sl.ContrastiveDataset.load(sl.demo_file("refusal.json")).train
    refusals = replace(refusals, pairs=refusals.pairs[:10])
    refuse = sl.extract(tiny_chat, refusals, tokens="suffix", layers=[2, 3], progress=False)
    harms = sl.ContrastiveDataset.load(sl.demo_file("harmful.json"))
    harm = sl.extract(
        tiny_chat,
        harms.train,
        sl.estimators.linear_discriminant,
        tokens="last",
        layers=[0, 1],
        progress=False,
    )
    found = sl.search_conditions(
        tiny_chat,
        harm,
        harms.validation,
        tokens="last",
        similarity=sl.similarities.cosine,
        progress=False,
    )
    return sl.Steering(refuse, strength=[0.3, 0.3], relative=True, when=found.best)


@pytest.fixture(scope="module")
def prompts():
    pairs = sl.ContrastiveDataset.load(sl.demo_file("harmful.json")).validation.pairs
    return [prompt for pair in pairs[: N_PROMPTS // 2] for prompt in pair]


@pytest.fixture(scope="module")
def together(tiny_chat, plan, prompts):
    return sl.generate(tiny_chat, prompts, plan, batch_size=N_PROMPTS, **OPTIONS)


def test_a_batch_of_64_is_its_prompts_one_by_one(tiny_chat, plan, prompts, together):
    for row in range(0, N_PROMPTS, 3):
        alone = sl.generate(tiny_chat, [prompts[row]], plan, **OPTIONS)
        assert alone.tokens[0] == together.tokens[row]
        assert alone.gates[0].open[0] == together.gates[0].open[row]


def test_the_cache_changes_no_token(tiny_chat, plan, prompts, together):
    uncached = sl.generate(tiny_chat, prompts, plan, use_cache=False, **OPTIONS)
    assert uncached.tokens == together.tokens
    assert uncached.gates[0].open.tolist() == together.gates[0].open.tolist()


def test_the_gate_opens_for_harmful_prompts_and_they_are_refused(together):
    fired = together.gates[0].open
    assert fired[0::2].float().mean() > 0.8
    assert fired[1::2].float().mean() < 0.2
    refused = [sl.judges.refused(reply) for reply in together]
    agreeing = [a == b for a, b in zip(refused, fired.tolist(), strict=True)]
    assert sum(agreeing) >= 0.9 * N_PROMPTS


def test_no_hook_is_left(tiny_chat, together):
    assert_no_hooks_left(tiny_chat)
