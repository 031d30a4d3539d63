"""Agreement with steering-vectors, repeng and representation-engineering on tiny random models."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles.make_data import COORDINATES
from sklearn.linear_model import LogisticRegression

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.models.tokenizing import right_padded, tokenize
from steerlens.vectors import estimators

LAYERS = range(4)
PEER_SITES = {
    "decoder_block": "resid_post",
    "self_attn": "attn_out",
    "mlp": "mlp_out",
    "input_layernorm": "ln1_out",
    "post_attention_layernorm": "ln2_out",
}
ESTIMATORS = {
    "mean": estimators.mean_difference,
    "pca": estimators.pca_uncentred,
    "logistic": estimators.logistic_probe,
    "logistic_C10": estimators.probe(LogisticRegression(C=10, fit_intercept=False, max_iter=1000)),
}
REPENG = {"pca_diff": estimators.pca_difference, "pca_center": estimators.pca_pairwise}
READING = 2e-5
"""Float32 through four blocks of another implementation; activations have lengths up to 50."""
LINE = 2e-5
"""Of unit directions; where the second eigenvalue nears the first (never above 0.95 of it here) the
rows' errors, small against their length, are magnified up to twentyfold."""


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def peer(request, oracles):
    folder = oracles / "steering-vectors"
    inputs = json.loads((folder / "inputs.json").read_text())
    tokens = inputs[request.param]
    arrays = {
        kind: np.load(folder / f"{kind}_{request.param}.npz")
        for kind in ("raw_acts", "sv_train", "repeng", "repe")
    }
    return SimpleNamespace(
        name=request.param,
        folder=folder / f"tiny-{request.param}",
        model=sl.load_model(str(folder / f"tiny-{request.param}")),
        texts=inputs["pairs"],
        pairs=tokens["pair_token_ids"],
        callable_index=tokens["callable_index"],
        labels=json.loads((folder / "repe_inputs.json").read_text())["labels"],
        bos=tokens["bos"],
        **arrays,
    )


def sides(peer, pairs=None):
    positive, negative = zip(*(pairs or peer.pairs), strict=True)
    return positive, negative


def selection(peer, index):
    """The original's index, one number or one for each prompt, as a choice of positions."""
    if isinstance(index, int):
        return lambda str_tokens: [index]
    chosen = {
        tuple(peer.model.tokenizer.decode([token]) for token in ids): [place]
        for pair, places in zip(peer.pairs, index, strict=True)
        for ids, place in zip(pair, places, strict=True)
    }
    return lambda str_tokens: chosen[tuple(str_tokens)]


def read(peer, index, site="resid_post"):
    """Activations of both sides at one token of each prompt, [pair layer d_model] each."""
    positive, negative = sides(peer)
    pooled = read_residual(
        peer.model, [*positive, *negative], tokens=selection(peer, index), site=site, progress=False
    )
    return pooled.chunk(2)


def extract(peer, estimator, index=-1, pairs=None, **options):
    return sl.extract(
        options.pop("model", peer.model),
        sides(peer, pairs),
        estimator,
        tokens=selection(peer, index),
        progress=False,
        **options,
    )


def recorded(arrays, key, layers=LAYERS):
    return np.stack([arrays[f"{key}|L{layer}"] for layer in layers])


def assert_same_lines(ours, theirs, rows):
    """Equal up to sign, where the rows define a direction; returns the sign of each layer."""
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    values = np.linalg.svd(np.asarray(rows, dtype=float).swapaxes(0, 1), compute_uv=False) ** 2
    if values.shape[1] > 1:
        assert (values[:, 1] < 0.95 * values[:, 0]).all(), "a spectrum is nearly degenerate"
    same_sign = np.sign((ours * theirs).sum(1))
    np.testing.assert_allclose(ours, theirs * same_sign[:, None], atol=LINE)
    return same_sign


def assert_signed_by_most_pairs(same_sign, ours, positive, negative):
    """Theirs has the same sign, unless the pairs tie: then it is the solver's, ours the mean's."""
    along = torch.einsum("pld,ld->pl", positive - negative, ours)
    tied = (along.sign().sum(dim=0) == 0).numpy()
    assert (same_sign[~tied] == 1).all()
    assert (along.sum(dim=0).numpy()[tied] > 0).all()


def test_prompts_become_the_same_tokens(peer):
    rows = tokenize(peer.model, [text for pair in peer.texts for text in pair], chat=False)
    ours = [list(row.ids) for row in rows]
    theirs = [ids for pair in peer.pairs for ids in pair]
    assert ours == theirs


# steering-vectors


@pytest.mark.parametrize("layer_type", PEER_SITES)
def test_activations_of_every_token(peer, layer_type):
    site = PEER_SITES[layer_type]
    prompts = [(i, j, ids) for i, pair in enumerate(peer.pairs) for j, ids in enumerate(pair)]
    for place in range(max(len(ids) for _, _, ids in prompts)):
        long_enough = [prompt for prompt in prompts if len(prompt[2]) > place]
        ours = read_residual(
            peer.model,
            [ids for _, _, ids in long_enough],
            tokens=slice(place, place + 1),
            site=site,
            progress=False,
        )
        theirs = np.stack(
            [
                peer.raw_acts[f"{layer_type}|{i}|{('pos', 'neg')[j]}"][:, place]
                for i, j, _ in long_enough
            ]
        )
        np.testing.assert_allclose(ours[..., COORDINATES].numpy(), theirs, atol=READING)


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("index", [-1, -2, 3, "callable"])
@pytest.mark.parametrize("aggregator", ESTIMATORS)
def test_trained_vectors(peer, aggregator, index, batch_size):
    places = peer.callable_index if index == "callable" else index
    ours = extract(peer, ESTIMATORS[aggregator], places)
    key = f"{aggregator}|idx={index}|bs={batch_size}|pad=right|decoder_block"
    assert_trained_alike(peer, aggregator, ours, key, places)


@pytest.mark.parametrize("layer_type", [t for t in PEER_SITES if t != "decoder_block"])
@pytest.mark.parametrize("aggregator", ["mean", "pca"])
def test_vectors_trained_at_other_sites(peer, aggregator, layer_type):
    site = PEER_SITES[layer_type]
    ours = extract(peer, ESTIMATORS[aggregator], site=site)
    assert_trained_alike(peer, aggregator, ours, f"{aggregator}|idx=-1|bs=8|pad=right|{layer_type}")


def assert_trained_alike(peer, aggregator, ours, key, index=-1):
    theirs = recorded(peer.sv_train, key)
    if aggregator == "pca":
        positive, negative = read(peer, index, ours.site)
        same_sign = assert_same_lines(ours.directions, theirs, positive - negative)
        assert (same_sign == 1).all()  # both by the mean projection
    else:
        # the solver of the regressions stops early, but at the same step for nearly the same rows
        np.testing.assert_allclose(ours.directions.numpy(), theirs, atol=READING)


def test_an_index_for_each_side(peer):
    ours = extract(peer, estimators.mean_difference, [[1, 2]] * len(peer.pairs))
    theirs = recorded(
        peer.sv_train, "mean|idx=per_sample(pos=1,neg=2)|bs=8|pad=right|decoder_block"
    )
    np.testing.assert_allclose(ours.directions.numpy(), theirs, atol=READING)


def test_negative_layers(peer):
    ours = extract(peer, estimators.mean_difference, layers=[-1, -3])
    key = "mean|idx=-1|bs=8|pad=right|decoder_block|layers=-1,-3"
    theirs = recorded(peer.sv_train, key, layers=ours.layers)
    assert ours.layers == (1, 3)
    np.testing.assert_allclose(ours.directions.numpy(), theirs, atol=READING)


@pytest.mark.parametrize("aggregator", ["mean", "pca", "logistic"])
def test_one_pair(peer, aggregator):
    ours = extract(peer, ESTIMATORS[aggregator], pairs=peer.pairs[:1])
    theirs = recorded(
        peer.sv_train, f"{aggregator}|idx=-1|bs=1|pad=right|decoder_block|single_pair"
    )
    np.testing.assert_allclose(ours.directions.numpy(), theirs, atol=READING)


@pytest.mark.parametrize("aggregator", ["mean", "pca"])
def test_double_precision(peer, aggregator):
    model = sl.load_model(str(peer.folder), dtype=torch.float64)
    ours = extract(peer, ESTIMATORS[aggregator], model=model)
    theirs = recorded(peer.sv_train, f"{aggregator}|idx=-1|bs=1|pad=right|decoder_block|float64")
    # a vector is kept in float32
    np.testing.assert_allclose(ours.directions.numpy(), theirs, atol=1e-6)


def test_the_two_rules_for_signs_really_differ(peer):
    """Why `pca_uncentred` exists: on some layers most pairs oppose the mean difference."""
    by_mean, by_pairs = (
        extract(peer, estimator, index=peer.callable_index)
        for estimator in (estimators.pca_uncentred, estimators.pca_pairwise)
    )
    cosine = by_mean.cosine(by_pairs)
    torch.testing.assert_close(cosine.abs(), torch.ones(4))
    assert (cosine < 0).any()


# Faults of steering-vectors


def test_where_the_prompts_begin_alike_there_is_no_direction(peer):
    """The original returns zeros, or, where its rounding differs, a unit vector of that noise."""
    key = "idx=0|bs=1|pad=right|decoder_block"
    assert np.abs(recorded(peer.sv_train, f"mean|{key}")).max() < 1e-6
    noise = np.linalg.norm(recorded(peer.sv_train, f"pca|{key}"), axis=1)
    np.testing.assert_allclose(noise, 1 if peer.name == "llama" else 0, atol=1e-6)
    with pytest.raises(sl.SteerlensError, match="identical in layer row"):
        extract(peer, estimators.pca_uncentred, index=0)


@pytest.mark.parametrize("index", [-1, -2, 3, "callable"])
def test_left_padding_changes_what_gpt2_says(peer, index):
    """The original pads without position ids: learned positions then count the padding.

    Its right-padded vectors, and its own activations of single prompts, are those that ours equal.
    """
    key = f"mean|idx={index}|bs=8|pad={{}}|decoder_block"
    left, right = (recorded(peer.sv_train, key.format(side)) for side in ("left", "right"))
    if peer.name == "llama":  # rotary positions are relative: padding shifts all of them alike
        np.testing.assert_allclose(left, right, atol=READING)
        return
    assert np.abs(left - right).max() > 0.3
    places = peer.callable_index if index == "callable" else index
    alone, together = (
        extract(peer, estimators.mean_difference, places, batch_tokens=batch_tokens)
        for batch_tokens in (1, 10_000)
    )
    for ours in (alone, together):
        np.testing.assert_allclose(ours.directions.numpy(), right, atol=READING)


@pytest.mark.parametrize("counted_from_the_text", [False, True])
def test_position_ids_are_the_whole_difference(peer, counted_from_the_text):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(peer.folder).eval()
    means = []
    for side in sides(peer):
        last = []
        for start in range(0, len(side), 8):
            ids, mask = right_padded([row[::-1] for row in side[start : start + 8]], pad=0)
            ids, mask = ids.flip(1), mask.flip(1)
            places = (mask.cumsum(1) - 1).clamp_min(0) if counted_from_the_text else None
            with torch.no_grad():
                seen = model(
                    ids, attention_mask=mask.long(), position_ids=places, output_hidden_states=True
                )
            last.append(torch.stack([h[:, -1] for h in seen.hidden_states[1:4]], dim=1))
        means.append(torch.cat(last).mean(dim=0))
    padding = "right" if counted_from_the_text else "left"
    key = f"mean|idx=-1|bs=8|pad={padding}|decoder_block"
    np.testing.assert_allclose(
        (means[0] - means[1]).numpy(), recorded(peer.sv_train, key, range(3)), atol=READING
    )


# repeng

PADDINGS = [(1, "right"), (8, "right"), (32, "right"), (1, "left"), (8, "left"), (32, "left")]


def skip_if_padding_shifts(peer, batch_size, padding):
    if (peer.name, padding) == ("gpt2", "left") and batch_size > 1:
        pytest.skip("the original's learned positions count the padding: see its own test")


def hiddens(peer, batch_size=1, padding="right"):
    rows = recorded(peer.repeng, f"hiddens|bs={batch_size}|pad={padding}").swapaxes(0, 1)
    return torch.from_numpy(rows[::2]), torch.from_numpy(rows[1::2])


@pytest.mark.parametrize(("batch_size", "padding"), PADDINGS)
@pytest.mark.parametrize("method", REPENG)
def test_repeng_directions(peer, method, batch_size, padding):
    """Its layers but the last, which it reads after the final norm."""
    skip_if_padding_shifts(peer, batch_size, padding)
    positive, negative = read(peer, -1)
    theirs = hiddens(peer, batch_size, padding)
    for ours, side in zip((positive, negative), theirs, strict=True):
        np.testing.assert_allclose(ours[:, :3], side[:, :3], atol=READING)
    ours = extract(peer, REPENG[method], layers=range(3)).directions
    for kept in ("default", "all"):  # by default it leaves out layer 0
        layers = range(1 if kept == "default" else 0, 3)
        key = f"{method}|bs={batch_size}|pad={padding}|layers={kept}"
        assert_repeng_lines(
            method, ours[layers], recorded(peer.repeng, key, layers), positive[:, layers],
            negative[:, layers],
        )  # fmt: skip


@pytest.mark.parametrize(("batch_size", "padding"), PADDINGS)
@pytest.mark.parametrize("method", REPENG)
def test_repeng_directions_of_its_own_activations(peer, method, batch_size, padding):
    """All layers, and its faulty activations too: the estimators agree whatever they are given."""
    positive, negative = hiddens(peer, batch_size, padding)
    ours = REPENG[method](positive, negative)
    theirs = recorded(peer.repeng, f"{method}|bs={batch_size}|pad={padding}|layers=all")
    assert_repeng_lines(method, ours, theirs, positive, negative)


def assert_repeng_lines(method, ours, theirs, positive, negative):
    rows = estimators.CENTRING.get(REPENG[method], estimators.pairwise_centred)(positive, negative)
    assert_signed_by_most_pairs(assert_same_lines(ours, theirs, rows), ours, positive, negative)


def test_repeng_reads_the_last_layer_after_the_final_norm(peer):
    """A direction for another place than the block's output, where it is then added."""
    ours = read(peer, -1)
    for mine, theirs in zip(ours, hiddens(peer), strict=True):
        assert (mine[:, 3] - theirs[:, 3]).abs().max() > 1
        with torch.no_grad():
            normed = peer.model.ln_final(mine[:, 3:])[:, 0]
        np.testing.assert_allclose(normed, theirs[:, 3], atol=READING)


def test_repeng_left_padding_has_the_same_fault(peer):
    left, alone = hiddens(peer, 8, "left"), hiddens(peer, 1, "left")
    error = max((a - b).abs().max().item() for a, b in zip(left, alone, strict=True))
    assert error > 1 if peer.name == "gpt2" else error < READING


def test_repeng_arithmetic(peer):
    def vector(key):
        return sl.SteeringVector(
            torch.from_numpy(recorded(peer.repeng, f"arith|{key}", range(1, 4))), (1, 2, 3)
        )

    v, w = vector("v"), vector("w")
    results = {"v+2*w": v + 2 * w, "v-w": v - w, "-v": -v, "v*0.5": v * 0.5, "v/4": v / 4}
    for key, ours in results.items():
        torch.testing.assert_close(ours.directions, vector(key).directions)


# representation-engineering

REPE_TOKENS = pytest.mark.parametrize("token", [-1, -3])


def repe(peer, kind, token, what, layers=LAYERS):
    """Its layers count from the end, −1 being the last."""
    key = f"{kind}|rt={token}|L{{}}|{what}" if what else f"{kind}|rt={token}|L{{}}"
    return np.stack([peer.repe[key.format(layer - 4)] for layer in layers])


def repe_signs(peer):
    """Its data shuffle each pair; the label says whether the positive came first."""
    return torch.tensor([1.0 if first else -1.0 for first, _ in peer.labels])


def repe_activations(peer, token):
    rows = torch.from_numpy(repe(peer, "H", token, "")).transpose(0, 1)
    first, second = rows[::2], rows[1::2]
    came_first = repe_signs(peer)[:, None, None] > 0
    return torch.where(came_first, first, second), torch.where(came_first, second, first)


@REPE_TOKENS
def test_repe_reads_the_same_but_the_last_layer(peer, token):
    for ours, theirs in zip(read(peer, token), repe_activations(peer, token), strict=True):
        np.testing.assert_allclose(ours[:, :3], theirs[:, :3], atol=READING)
        with torch.no_grad():
            normed = peer.model.ln_final(ours[:, 3:])[:, 0]
        np.testing.assert_allclose(normed, theirs[:, 3], atol=READING)


@REPE_TOKENS
def test_repe_pca(peer, token):
    signs = repe_signs(peer)
    for layers, (positive, negative) in (
        (range(3), read(peer, token)),
        (LAYERS, repe_activations(peer, token)),
    ):
        positive, negative = positive[:, layers], negative[:, layers]
        ours = estimators.repe_pca(positive, negative, signs=signs)
        theirs = repe(peer, "pca", token, "directions", layers)[:, 0]
        theirs = theirs * repe(peer, "pca", token, "signs", layers)[:, :1]
        rows = signs[:, None, None] * (positive - negative)
        same_sign = assert_same_lines(ours, theirs, rows - rows.mean(dim=0))
        assert_signed_by_most_pairs(same_sign, ours, positive, negative)


@REPE_TOKENS
def test_repe_cluster_mean(peer, token):
    theirs = repe(peer, "cluster_mean", token, "directions")[:, 0]
    ours = estimators.cluster_mean(*read(peer, token))
    np.testing.assert_allclose(ours[:3], theirs[:3], atol=READING)
    ours = estimators.cluster_mean(*repe_activations(peer, token))
    np.testing.assert_allclose(ours, theirs, atol=READING)
