"""The laws of steering on pretrained models: a chat model, and a base model of another family."""

from typing import Any, NamedTuple

import pytest
import torch
from helpers import PROMPTS, assert_no_hooks_left, random_vector, splitting_condition

import steerlens as sl
from steerlens.models.sites import hook_name
from steerlens.models.tokenizing import tokenize
from steerlens.serving.engine import Engine
from steerlens.serving.requests import Request

pytestmark = pytest.mark.real

OPTIONS = {"max_new_tokens": 8, "progress": False}


class Case(NamedTuple):
    model: Any
    theirs: Any
    """The same file, as transformers reads it."""

    @property
    def layers(self):
        """At a quarter, a half and three quarters of the depth."""
        return [self.model.cfg.n_layers * quarter // 4 for quarter in (1, 2, 3)]

    @property
    def gated(self):
        """A push that is stronger than the stream, for about half of the prompts."""
        first, *rest = self.layers
        vector = random_vector(self.model, scale=1.0)
        condition = splitting_condition(self.model, layer=first)
        return sl.Steering(vector, layers=rest, when=condition, strength=1.5)


@pytest.fixture(scope="module", params=["smollm2", "gemma"])
def case(request):
    names = {"smollm2": ("smollm2", "theirs"), "gemma": ("gemma", "their_gemma")}
    return Case(*map(request.getfixturevalue, names[request.param]))


def test_logits_are_those_of_transformers(case):
    rows = [torch.tensor([row.ids]) for row in tokenize(case.model, PROMPTS)]
    rows.append(torch.randint(17, 49_000, (1, 300), generator=torch.Generator().manual_seed(0)))
    with torch.inference_mode():
        for row in rows:
            mine, its = (model(row) for model in case)
            rounding = 1e-5 * float(its.logits.abs().max())
            torch.testing.assert_close(
                mine.log_softmax(-1), its.logits.log_softmax(-1), atol=rounding, rtol=0
            )


def test_a_gated_batch_is_its_rows_one_by_one(case):
    batch = sl.generate(case.model, PROMPTS, case.gated, **OPTIONS)
    alone = [sl.generate(case.model, [prompt], case.gated, **OPTIONS) for prompt in PROMPTS]
    assert batch.tokens == tuple(one.tokens[0] for one in alone)
    assert 0 < batch.gates[0].open.sum() < len(PROMPTS)
    assert batch.gates[0].open.tolist() == [bool(one.gates[0].open[0]) for one in alone]
    assert_no_hooks_left(case.model)


def test_rows_that_join_a_running_batch_are_as_they_are_alone(case):
    engine, seen = Engine(case.model), [[] for _ in PROMPTS]
    for row, events in zip(tokenize(case.model, PROMPTS), seen, strict=True):
        engine.submit(Request(row, (case.gated,), max_new_tokens=8), events.append)
        engine.step()
    while engine.step():
        pass
    alone = [sl.generate(case.model, [prompt], case.gated, **OPTIONS) for prompt in PROMPTS]
    assert [events[-1].tokens for events in seen] == [one.tokens for one in alone]
    assert_no_hooks_left(case.model)


def test_the_cache_changes_no_reply(case):
    with_cache, without = (
        sl.generate(case.model, PROMPTS[:3], case.gated, use_cache=use_cache, **OPTIONS)
        for use_cache in (True, False)
    )
    assert with_cache.tokens == without.tokens
    assert with_cache.tokens != sl.generate(case.model, PROMPTS[:3], **OPTIONS).tokens


def test_an_ablated_direction_has_no_projection_left(case):
    layer = case.layers[0]
    vector = random_vector(case.model, scale=1.0)
    steering = sl.Steering(vector, layers=[layer], edit=sl.hooks.ablate_direction)
    seen = []
    look = (
        hook_name(case.model, "resid_post", layer),
        lambda stream, hook: seen.append(stream.clone()),
    )
    tokens = torch.tensor([tokenize(case.model, PROMPTS[3:4])[0].ids])
    unit = vector[layer] / vector[layer].norm()
    for hooks in ([look], [*steering.hooks(model=case.model), look]):
        with torch.inference_mode(), case.model.hooks(fwd_hooks=hooks):
            case.model(tokens)
    plain, ablated = seen
    assert (ablated @ unit).abs().max() < 1e-5 * ablated.norm(dim=-1).max()
    torch.testing.assert_close(ablated, plain - (plain @ unit)[..., None] * unit)


def test_a_vector_less_itself_steers_nothing(case):
    vector = random_vector(case.model, scale=5.0)
    both = [sl.Steering(vector, case.layers, strength) for strength in (1.0, -1.0)]
    assert sl.generate(case.model, PROMPTS[:3], both, **OPTIONS).tokens == (
        sl.generate(case.model, PROMPTS[:3], **OPTIONS).tokens
    )
