import pytest
import torch
from helpers import PROMPTS, random_vector

import steerlens as sl
from steerlens.activations.reading import every_token
from steerlens.models.tokenizing import tokenize
from steerlens.steering import hooks


def test_they_are_the_dot_products_of_every_token_but_the_first(model):
    vector = random_vector(model)
    replies = [[5, 6, 7]] * len(PROMPTS)
    found = sl.projections(model, PROMPTS, vector, replies, layers=[1, 3], progress=False)
    expected = []
    for row, reply in zip(tokenize(model, PROMPTS), replies, strict=True):
        places = [("resid_post", layer) for layer in (1, 3)]
        stream = every_token(model, (*row.ids, *reply), places)
        along = [
            stream["resid_post", layer] @ vector[layer] / vector[layer].norm() for layer in (1, 3)
        ]
        expected.append(torch.stack(along, dim=1)[1:])
    torch.testing.assert_close(found.values, torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert found.layers == (1, 3)
    middle = torch.cat(expected).double().quantile(0.5, dim=0)
    assert found.percentile(50) == pytest.approx(middle.tolist(), abs=1e-5)
    assert "layer 3" in repr(found)


def test_a_cap_at_their_maximum_changes_nothing_and_below_it_does(model):
    vector = random_vector(model)
    plain = sl.generate(model, PROMPTS, max_new_tokens=5, progress=False)
    usual = sl.projections(model, PROMPTS, vector, plain.tokens, layers=[2], progress=False)
    cap = sl.Steering(vector, [2], usual.percentile(100), edit=hooks.cap_direction, skip_bos=True)
    capped = sl.generate(model, PROMPTS, cap, max_new_tokens=5, progress=False)
    assert capped.tokens == plain.tokens
    low = sl.Steering(vector, [2], usual.percentile(1), edit=hooks.cap_direction, skip_bos=True)
    assert sl.generate(model, PROMPTS, low, max_new_tokens=5, progress=False).tokens != plain.tokens


def test_sinks_are_left_out(model):
    vector = random_vector(model)

    def lengthen(resid, hook):
        resid[:, 2] *= 1000
        return resid

    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_post", lengthen)]):
        found = sl.projections(model, PROMPTS[3:4], vector, layers=[2], progress=False)
    [row] = tokenize(model, PROMPTS[3:4])
    assert len(found.values) == len(row.ids) - 2


def test_what_makes_no_sense_is_refused(model):
    vector = random_vector(model)
    with pytest.raises(sl.SteerlensError, match="got 1 replies for 6 prompts"):
        sl.projections(model, PROMPTS, vector, [[3]], progress=False)
    found = sl.projections(model, PROMPTS[:1], vector, progress=False)
    with pytest.raises(sl.SteerlensError, match="expected 0 to 100"):
        found.percentile(101)
