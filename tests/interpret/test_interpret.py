"""Explanations of a vector agree with the model's own arithmetic, and find what was planted."""

import numpy as np
import pytest
import torch
from helpers import PROMPTS, planted_pairs, random_vector, splitting_condition, stream
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

import steerlens as sl
from steerlens.activations.pairs import read_contrast
from steerlens.activations.reading import read_residual
from steerlens.interpret.contrasts import difference_spectrum, principal_scatter
from steerlens.interpret.lens import logit_lens, token_logits
from steerlens.interpret.token_scans import gate_timeline, scan_tokens
from steerlens.interpret.writers import mean_writers, weight_writers
from steerlens.models.tokenizing import tokenize
from steerlens.steering.similarities import cosine


def one_direction(direction, layer=2, **fields):
    return sl.SteeringVector(direction[None].float(), (layer,), **fields)


@pytest.mark.parametrize("token", [5, 100, 700])
def test_a_column_of_the_unembedding_promotes_its_own_token(model, token):
    lens = logit_lens(model, one_direction(model.W_U.detach()[:, token]), k=4)
    assert lens.promoted[0][0] == model.tokenizer.decode([token])
    against = logit_lens(model, one_direction(-model.W_U.detach()[:, token]), k=4)
    assert against.suppressed[0][0] == model.tokenizer.decode([token])
    assert torch.equal(against.suppressed_by, -lens.promoted_by)
    assert (lens.promoted_by.diff() <= 0).all()


def test_token_logits_are_the_slope_of_the_models_own_logits(tiny_chat):
    """At a stream of length √d_model that is orthogonal to the direction, the norm divides by 1."""
    generator = torch.Generator().manual_seed(0)
    width = tiny_chat.cfg.d_model
    unit = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    place = torch.randn(width, generator=generator)
    place -= (place @ unit) * unit
    place *= width**0.5 / place.norm()

    def logits(resid):
        with torch.no_grad():
            return tiny_chat.unembed(tiny_chat.ln_final(resid[None, None]))[0, 0].double()

    step = 0.05
    slope = (logits(place + step * unit) - logits(place - step * unit)) / (2 * step)
    found = token_logits(tiny_chat, one_direction(3 * unit))[0]
    np.testing.assert_allclose(found, slope - slope.mean(), atol=1e-3)


def test_a_lens_refuses_what_is_not_in_the_stream(model):
    with pytest.raises(sl.SteerlensError, match="which is not in the stream"):
        logit_lens(model, random_vector(model, site="ln1_out"))
    with pytest.raises(sl.SteerlensError, match="k=0"):
        logit_lens(model, random_vector(model), k=0)


def test_all_writers_add_up_to_the_stream(tiny_chat):
    vector, layer, prompts = random_vector(tiny_chat), 3, list(PROMPTS)
    unit = vector.normalized()[layer]
    found = mean_writers(tiny_chat, vector, layer, prompts, progress=False)
    read = read_residual(tiny_chat, prompts, [0], site="resid_pre", progress=False)
    whole = read_residual(tiny_chat, prompts, [layer], progress=False)
    biases = sum(block.attn.b_O.detach() @ unit for block in tiny_chat.blocks[: layer + 1])
    rest = read[:, 0].mean(dim=0) @ unit + biases
    total = found.heads.sum() + found.mlps.sum() + rest
    assert total.item() == pytest.approx((whole[:, 0].mean(dim=0) @ unit).item(), abs=1e-3)
    assert found.heads.shape == (layer + 1, tiny_chat.cfg.n_heads)


def test_the_head_and_the_mlp_that_write_a_planted_direction_are_found(model):
    head = model.blocks[1].attn.W_O.detach()[2]
    written = torch.linalg.svd(head).Vh[0]
    found = weight_writers(model, one_direction(written), 2)
    assert divmod(int(found.heads.argmax()), model.cfg.n_heads) == (1, 2)
    share = (head @ written).square().sum() / head.square().sum()
    assert found.heads[1, 2].item() == pytest.approx(share.item(), rel=1e-4)
    written = torch.linalg.svd(model.blocks[2].mlp.W_out.detach()).Vh[0]
    found = weight_writers(model, one_direction(written), 2)
    assert int(found.mlps.argmax()) == 2


def test_weight_shares_over_a_basis_add_up_to_one(model):
    basis = torch.eye(model.cfg.d_model)
    shares = [weight_writers(model, one_direction(row, layer=1), 1) for row in basis]
    torch.testing.assert_close(sum(s.heads for s in shares), torch.ones(2, model.cfg.n_heads))
    torch.testing.assert_close(sum(s.mlps for s in shares), torch.ones(2))


def test_writers_are_told_of_the_stream_after_a_block_only(model):
    with pytest.raises(sl.SteerlensError, match="expected resid_post"):
        weight_writers(model, random_vector(model, site="resid_pre"), 1)


def test_a_scan_holds_plain_dot_products(model):
    vector = random_vector(model)
    reply = [7, 8, 9]
    scan = scan_tokens(model, PROMPTS[1], vector, reply)
    [row] = tokenize(model, [PROMPTS[1]])
    ids = [*row.ids, *reply]
    assert scan.n_prompt == len(row.ids)
    assert "".join(scan.tokens) == model.tokenizer.decode(ids)
    for index, layer in enumerate(scan.layers):
        resid = stream(model, ids, layer=layer)
        unit = vector[layer] / vector[layer].norm()
        torch.testing.assert_close(scan.values[index], resid @ unit, atol=1e-4, rtol=1e-4)
    cosines = scan_tokens(model, PROMPTS[1], vector, similarity=cosine).values
    assert cosines.abs().max() <= 1 + 1e-6


def test_a_text_longer_than_the_context_is_refused(model):
    with pytest.raises(sl.SteerlensError, match="context holds 128"):
        scan_tokens(model, "Hi.", random_vector(model), [5] * 200)


@pytest.mark.parametrize("tokens", ["all", "last", 2, slice(4, None)])
def test_a_timeline_ends_at_what_the_gate_saw(model, tokens):
    condition = splitting_condition(model, tokens=tokens)
    steering = sl.Steering(random_vector(model), [2, 3], when=condition)
    replies = sl.generate(model, PROMPTS, steering, max_new_tokens=3, progress=False)
    for row, prompt in enumerate(PROMPTS):
        seen = gate_timeline(model, prompt, condition, replies.tokens[row])
        assert len(seen.tokens) == seen.n_prompt + len(replies.tokens[row])
        decided = seen.n_prompt - 1
        torch.testing.assert_close(
            seen.similarity[decided], replies.gates[0].similarity[row], atol=1e-4, rtol=1e-4
        )
        assert seen.open[decided] == replies.gates[0].open[row]
        if isinstance(tokens, slice):
            assert seen.similarity[:4].isnan().all()
            assert not seen.open[:4].any()


@given(shift=st.floats(0.5, 3), n=st.integers(4, 12), seed=st.integers(0, 99))
def test_the_scatter_is_scikit_learns_pca_with_positives_to_the_right(shift, n, seed):
    random = torch.Generator().manual_seed(seed)
    positive = torch.randn(n, 2, 6, generator=random, dtype=torch.float64) + shift
    negative = torch.randn(n + 2, 2, 6, generator=random, dtype=torch.float64)
    found = principal_scatter(positive, negative, (4, 7))
    assert (found.positive.mean(dim=0) >= found.negative.mean(dim=0)).all()
    for index in range(2):
        rows = torch.cat([positive, negative])[:, index].numpy()
        oracle = PCA(2).fit(rows)
        ours = torch.cat([found.positive, found.negative])[:, index]
        np.testing.assert_allclose(ours.abs(), np.abs(oracle.transform(rows)), atol=1e-8)
        np.testing.assert_allclose(found.explained[index], oracle.explained_variance_ratio_)


def test_the_spectrum_of_a_planted_direction_has_one_large_value():
    direction = torch.nn.functional.normalize(torch.ones(16), dim=0)
    positive, negative = planted_pairs(direction, n_pairs=50, noise=0.01)
    found = difference_spectrum(positive, negative, (0, 1))
    assert found.n_pairs == 50
    assert found.values[:, 0].tolist() == pytest.approx([2 * 50**0.5] * 2, rel=0.01)
    assert (found.values[:, 1] < 0.05 * found.values[:, 0]).all()
    with pytest.raises(sl.SteerlensError, match="activations of 2 layers"):
        difference_spectrum(positive, negative, (0, 1, 2))


def test_a_contrast_is_read_as_extract_reads_it(model):
    data = (list(PROMPTS[:3]), list(PROMPTS[3:]))
    positive, negative = read_contrast(model, data, [1, 2], progress=False)
    vector = sl.extract(model, data, sl.estimators.mean_difference, layers=[1, 2], progress=False)
    torch.testing.assert_close((positive - negative).mean(dim=0), vector.directions)
