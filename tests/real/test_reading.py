"""SmolLM2's attention sinks, and conditions that are no length detectors for all of them."""

import numpy as np
import pytest
import torch
from helpers import PROMPTS

import steerlens as sl
from steerlens.activations.reading import largest_sinks, read_residual, read_rows
from steerlens.models.tokenizing import tokenize
from steerlens.steering.topics import extract_topics, leads

pytestmark = pytest.mark.real

OPTIONS = {"max_new_tokens": 2, "progress": False}


def test_the_first_token_is_a_sink_and_is_left_out(smollm2):
    rows = tokenize(smollm2, PROMPTS)
    reading = read_rows(smollm2, rows, tokens="all", progress=False)
    sinks = largest_sinks(reading, range(30))
    assert {sink.layer for sink in sinks} >= set(range(11, 28))
    assert {sink.position for sink in sinks} == {0}
    whole = read_rows(smollm2, rows, tokens="all", sinks=True, progress=False)
    n = torch.tensor([len(row.ids) for row in rows])[:, None]
    first = read_residual(smollm2, PROMPTS, tokens=slice(0, 1), progress=False)
    expected = (whole.pooled * n[..., None] - first) / (n[..., None] - 1)
    torch.testing.assert_close(reading.pooled[:, 11:28], expected[:, 11:28], atol=0.1, rtol=1e-2)
    assert (reading.norms[:, 11:27] < 1000).all()


def test_sinks_are_left_out_alike_in_batches_shared_beginnings_and_gates(smollm2):
    alone = [read_residual(smollm2, [p], [12], tokens="user", progress=False) for p in PROMPTS]
    read = read_residual(smollm2, PROMPTS, [12], tokens="user", progress=False)
    torch.testing.assert_close(read, torch.cat(alone), atol=1e-2, rtol=1e-4)
    vector = sl.SteeringVector(torch.randn(1, 576), (12,))
    for tokens in ("user", "all"):
        condition = sl.Condition(vector, 12, above=0, tokens=tokens)
        read = read_residual(smollm2, PROMPTS, [12], tokens=tokens, progress=False)
        expected = condition.measure(read[:, 0], 12)[:, None]
        plan = sl.Steering(sl.SteeringVector(torch.ones(1, 576), (20,)), when=condition)
        for use_cache in (True, False):
            replies = sl.generate(smollm2, PROMPTS, plan, use_cache=use_cache, **OPTIONS)
            torch.testing.assert_close(replies.gates[0].similarity, expected, atol=1e-4, rtol=0)


def test_the_default_condition_is_no_length_detector(smollm2):
    """On prompts whose length says nothing, but a constant text before them differs in repeats."""
    harms = sl.ContrastiveDataset.load(sl.demo_file("harmful.json"))
    before = "Please read what follows with care, and then answer it. "
    random = np.random.default_rng(0)

    def longer(pairs):
        return [[before * random.integers(0, 5) + prompt for prompt in pair] for pair in pairs]

    train, validation, test = (
        sl.ContrastiveDataset([tuple(pair) for pair in longer(part.pairs[:n])])
        for part, n in ((harms.train, 60), (harms.validation, 30), (harms.test, 40))
    )
    vector = sl.extract(smollm2, train, progress=False)
    search = sl.search_conditions(smollm2, vector, validation, held_out=test, progress=False)
    assert (search.tokens, search.layers) == ("last", tuple(range(9, 21)))
    seen = np.concatenate(
        [search.standard.mean_of(torch.from_numpy(side))[:, 0] for side in search.scored_on]
    )
    lengths = np.concatenate([side[:, 0] for side in search.confounds.scored_lengths])
    assert abs(np.corrcoef(seen, lengths)[0, 1]) <= 0.2
    assert search.scores.f1.value > 0.9
    assert "explained by length" not in search.verdict


def test_topics_are_told_apart_in_gates_as_in_reads(smollm2):
    groups = sl.load_prompts(sl.demo_file("topics.json"))
    train, test = ({name: side[:12] for name, side in groups[part].items()} for part in
                   ("train", "test"))  # fmt: skip
    topics = extract_topics(smollm2, train, layers=range(5, 15), progress=False)
    asked = [text for side in test.values() for text in side[:2]]
    read = read_residual(smollm2, asked, topics.layers, tokens="user", progress=False)
    expected = leads(topics.scores(read))
    steering = sl.SteeringVector(torch.ones(1, 576), (20,))
    plans = [sl.Steering(steering, when=one) for one in topics.conditions.values()]
    replies = sl.generate(smollm2, asked, plans, **OPTIONS)
    seen = torch.cat([gate.compared for gate in replies.gates], dim=1)
    torch.testing.assert_close(seen, expected, atol=0.05, rtol=1e-3)
    assert torch.equal(torch.stack([g.open for g in replies.gates], dim=1), expected > 0)
