import pytest
import torch
from helpers import assert_no_hooks_left

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.models.fingerprint import fingerprint
from steerlens.vectors.estimators import mean_difference, pca_center, pca_difference, pca_pairwise

PAIRS = [
    ("I love the sea.", "I hate the sea."),
    ("You are kind.", "You are mean to me."),
    ("What a good day!", "What a bad day!"),
    ("She likes bread.", "She cannot stand bread."),
]
DATA = sl.ContrastiveDataset(PAIRS, name="liking")
SIDES = [positive for positive, _ in PAIRS], [negative for _, negative in PAIRS]


@pytest.mark.parametrize("estimator", [mean_difference, pca_pairwise, pca_center])
@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
def test_a_vector_is_the_estimate_from_what_is_read(model, estimator, site):
    options = {"layers": [1, 3], "tokens": "all", "site": site, "progress": False}
    vector = sl.extract(model, DATA, estimator, **options)
    sides = [read_residual(model, side, **options) for side in SIDES]
    torch.testing.assert_close(vector.directions, estimator(*sides), atol=1e-4, rtol=1e-4)
    assert (vector.layers, vector.site) == ((1, 3), site)


def test_two_lists_are_as_good_as_a_dataset(model):
    one, other = (sl.extract(model, data, progress=False) for data in (DATA, SIDES))
    assert torch.equal(one.directions, other.directions)
    assert other.provenance["pairs_hash"] == one.provenance["pairs_hash"]


def test_token_ids_and_chats_are_as_good_as_text(model):
    chats = tuple([[{"role": "user", "content": text}] for text in side] for side in SIDES)
    one, other = (sl.extract(model, data, progress=False) for data in (DATA, chats))
    assert torch.equal(one.directions, other.directions)


@pytest.mark.parametrize("estimator", [mean_difference, pca_pairwise, pca_difference])
def test_swapping_the_sides_negates(model, estimator):
    one = sl.extract(model, SIDES, estimator, progress=False)
    other = sl.extract(model, SIDES[::-1], estimator, progress=False)
    torch.testing.assert_close(other.directions, -one.directions, atol=1e-5, rtol=1e-4)


def test_the_order_of_pairs_does_not_matter(model):
    one = sl.extract(model, SIDES, progress=False)
    shuffled = tuple([side[row] for row in (2, 0, 3, 1)] for side in SIDES)
    other = sl.extract(model, shuffled, progress=False)
    torch.testing.assert_close(other.directions, one.directions, atol=1e-5, rtol=1e-4)


def test_a_planted_difference_comes_back(model):
    """At the first block's input, two prompts differ by their embeddings and nothing else."""
    sides = [[1, 40, 300], [1, 50, 300]], [[1, 40, 400], [1, 50, 400]]
    vector = sl.extract(
        model, sides, mean_difference, layers=[0], site="resid_pre", tokens="last", progress=False
    )
    torch.testing.assert_close(vector[0], (model.W_E[300] - model.W_E[400]).detach())


def test_suffixes_are_read_row_by_row(model):
    data = sl.ContrastiveDataset(PAIRS[:2], [("No, I", "Sure, I can"), ("Sorry", "Here you are")])
    vector = sl.extract(model, data, mean_difference, tokens="suffix", progress=False)
    sides = [
        read_residual(model, list(side), tokens="suffix", progress=False)
        for side in (data.positive, data.negative)
    ]
    torch.testing.assert_close(vector.directions, mean_difference(*sides), atol=1e-4, rtol=1e-4)
    assert vector.provenance["pairs"] == 4


def test_the_dataset_says_how_it_is_templated(model):
    raw = sl.ContrastiveDataset(PAIRS, chat=False)
    vector = sl.extract(model, raw, mean_difference, progress=False)
    sides = [read_residual(model, side, chat=False, progress=False) for side in SIDES]
    torch.testing.assert_close(vector.directions, mean_difference(*sides), atol=1e-4, rtol=1e-4)


def test_a_vector_knows_its_scale_and_its_share(model):
    vector = sl.extract(model, DATA, sl.estimators.pca_pairwise, progress=False)
    read = torch.cat([read_residual(model, side, progress=False) for side in SIDES])
    torch.testing.assert_close(vector.norms, read.norm(dim=-1).mean(dim=0), atol=1e-4, rtol=1e-4)
    assert ((vector.explained > 0.25) & (vector.explained <= 1)).all()


def test_provenance_tells_where_it_came_from(model, tmp_path):
    vector = sl.extract(model, DATA, tokens=2, progress=False)
    found = vector.provenance
    expected = {
        "name": "liking",
        "model": model.cfg.model_name,
        "weights": fingerprint(model),
        "processing": "none",
        "tokens": 2,
        "estimator": "linear_discriminant",
        "sinks": False,
        "sinks_seen": [],
        "pairs": 4,
    }
    assert {key: found[key] for key in expected} == expected
    assert set(found["versions"]) == {"steerlens", "transformer-lens", "transformers", "torch"}
    vector.save(tmp_path / "v.safetensors")
    assert sl.SteeringVector.load(tmp_path / "v.safetensors").provenance == found


def test_extracting_leaves_no_hooks(model):
    sl.extract(model, DATA, progress=False)
    assert_no_hooks_left(model)


# Bad input


def test_unequal_sides_are_refused(model):
    with pytest.raises(sl.SteerlensError, match="got 2 positive but 1 negative prompts; expected"):
        sl.extract(model, (["a", "b"], ["c"]))


def test_sides_that_do_not_differ_are_refused(model):
    with pytest.raises(sl.SteerlensError, match=r"identical.*check the pairs, the suffixes"):
        sl.extract(model, (["Hi."], ["Hi."]), progress=False)


def test_an_estimator_of_another_shape_is_refused(model):
    def first(positive, negative):
        return positive[0, 0]

    with pytest.raises(
        sl.SteerlensError, match=r"first returned shape \(32,\) of float32; expected .*\(4, 32\)"
    ):
        sl.extract(model, DATA, first, progress=False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (torch.Tensor.tolist, "returned a list; expected"),
        (lambda _: None, "returned a NoneType"),
        (lambda found: (found, 1.0), "returned a tuple"),
        (lambda _: 1.0, "returned a float"),
        (lambda found: found.to(torch.complex64), "returned shape .* of complex64"),
        (lambda found: found * torch.nan, "returned NaN or infinite values"),
        (lambda found: found.numpy().astype(str), "returned a ndarray"),
    ],
)
def test_an_estimator_that_returns_no_directions_is_refused(unchecked, model, change, told):
    def strange(positive, negative):
        return change(mean_difference(positive, negative))

    with pytest.raises(sl.SteerlensError, match=f"strange {told}"):
        sl.extract(model, DATA, strange, progress=False)


def test_an_estimator_of_ones_own_may_be_written_in_numpy_and_in_place(unchecked, model):
    def in_numpy(positive, negative):
        return (positive.numpy() - negative.numpy()).mean(axis=0)

    def in_place(positive, negative):
        positive -= negative
        return positive.mean(dim=0)

    plain = sl.extract(model, DATA, mean_difference, progress=False)
    for estimator in (in_numpy, in_place):
        found = sl.extract(model, DATA, estimator, progress=False)
        torch.testing.assert_close(found.directions, plain.directions)
        torch.testing.assert_close(found.explained, plain.explained)


def test_an_estimate_without_direction_is_refused(model):
    """One difference, centred, is nothing: a zero direction would steer nothing, silently."""
    with pytest.raises(sl.SteerlensError, match=r"pca_difference found no direction .*layer"):
        sl.extract(model, (["Hi."], ["Why?"]), pca_difference, progress=False)


def test_activations_that_overflow_are_refused(model):
    def overflow(resid, hook):
        return resid * torch.inf

    with (
        model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", overflow)]),
        pytest.raises(sl.SteerlensError, match="positive activations hold NaN or infinite"),
    ):
        sl.extract(model, DATA, progress=False)
