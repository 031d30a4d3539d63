from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import steerlens as sl
from steerlens.vectors.foreign import VectorFile
from steerlens.vectors.formats import write_safetensors

numbers = st.floats(-100, 100, width=32)
rows = st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=2, max_size=2)
law = settings(max_examples=30, deadline=None)


def of(rows):
    return sl.SteeringVector(torch.tensor(rows), (3, 5))


def vector(**fields):
    fields = {"directions": torch.arange(6.0).reshape(2, 3), "layers": (3, 5)} | fields
    return sl.SteeringVector(**fields)


def assert_same(one, other):
    torch.testing.assert_close(one.directions, other.directions)
    assert (one.layers, one.site) == (other.layers, other.site)


# Arithmetic


@given(rows, rows)
@law
def test_addition_commutes_and_subtraction_undoes_it(rows, others):
    v, w = of(rows), of(others)
    assert_same(v + w, w + v)
    torch.testing.assert_close(((v + w) - w).directions, v.directions, atol=1e-4, rtol=1e-4)
    assert not (v - v).directions.any()


@given(rows)
@law
def test_scaling(rows):
    v = of(rows)
    assert_same(v + v, 2 * v)
    assert_same((v * 4) / 2, 2 * v)
    assert_same(-1 * -v, v)
    assert_same(v - v, v + -v)


@given(rows)
@law
def test_cosine_is_one_with_itself_and_zero_for_a_zero_direction(rows):
    v = of(rows)
    present = (v.directions.norm(dim=1) > 0).float()
    torch.testing.assert_close(v.cosine(v), present, atol=1e-5, rtol=0)
    torch.testing.assert_close(v.cosine(-3 * v), -present, atol=1e-5, rtol=0)


@given(rows)
@law
def test_normalizing_twice_is_normalizing_once(rows):
    v = of(rows)
    unit = v.normalized()
    torch.testing.assert_close(unit.directions.norm(dim=1), v.directions.any(dim=1).float())
    assert_same(unit.normalized(), unit)


def test_cosine_is_torchs():
    v, w = (vector(directions=torch.randn(2, 3)) for _ in range(2))
    expected = torch.cosine_similarity(v.directions, w.directions)
    torch.testing.assert_close(v.cosine(w), expected)


def test_what_was_done_is_remembered():
    v = vector(provenance={"name": "kind"}, explained=torch.ones(2))
    assert (2 * v.normalized()).provenance["history"] == ["normalized", "times 2"]
    assert (v + v).provenance == {"sum": [{"name": "kind"}] * 2}
    assert (2 * v).explained is None


def test_a_vector_is_a_value():
    v = vector()
    with pytest.raises(AttributeError):
        v.site = "resid_pre"
    assert replace(v, site="resid_pre").site == "resid_pre"
    assert repr(v) == "SteeringVector('vector', resid_post, layers 3, 5, d 3)"


# Layers


def test_layers_are_found_by_their_number():
    v = vector(norms=torch.tensor([1.0, 2.0]))
    assert torch.equal(v[5], v.directions[1])
    assert v.at([5]).layers == (5,)
    assert v.at([5]).norms.tolist() == [2.0]
    assert v.at([5, 3, 5]).layers == (3, 5)
    assert (len(v), v.width) == (2, 3)


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(sl.SteerlensError, match="no direction for layer 4; it has 3, 5"):
        vector()[4]
    with pytest.raises(sl.SteerlensError, match="no layer was asked for"):
        vector().at([])


# Files


@given(rows, st.booleans(), st.dictionaries(st.text(), st.text() | st.integers()))
@settings(max_examples=15, deadline=None)
def test_save_and_load_round_trip(tmp_path_factory, rows, whole, provenance):
    path = tmp_path_factory.mktemp("vector") / "v.safetensors"
    extra = {"norms": torch.rand(2), "explained": torch.rand(2)} if whole else {}
    saved = replace(of(rows), site="attn_out", provenance=provenance, **extra)
    saved.save(path)
    loaded = sl.SteeringVector.load(path)
    assert torch.equal(loaded.directions, saved.directions)
    assert (loaded.layers, loaded.site) == (saved.layers, "attn_out")
    assert loaded.provenance == provenance
    for name in ("norms", "explained"):
        mine, theirs = getattr(saved, name), getattr(loaded, name)
        assert theirs is None if mine is None else torch.equal(mine, theirs)


def test_a_saved_vector_is_plain_safetensors(tmp_path):
    vector().save(tmp_path / "v.safetensors")
    assert set(load_file(tmp_path / "v.safetensors")) == {"directions", "layers"}


@pytest.mark.parametrize("n_bytes", [0, 5, 100, -4])
def test_truncated_files_are_refused_by_name(tmp_path, n_bytes):
    path = tmp_path / "cut.safetensors"
    vector().save(path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(sl.SteerlensError, match=r"cut.safetensors.*may be truncated"):
        sl.SteeringVector.load(path)


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "other.safetensors"
    with pytest.raises(sl.SteerlensError, match=r"no file .*other.safetensors"):
        sl.SteeringVector.load(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(sl.SteerlensError, match=r"other.safetensors.* of format None"):
        sl.SteeringVector.load(path)
    write_safetensors(
        path, VectorFile({"weight": torch.ones(2)}, {"site": "resid_post", "provenance": {}})
    )
    with pytest.raises(sl.SteerlensError, match=r"other.safetensors.* lacks 'directions'"):
        sl.SteeringVector.load(path)


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"provenance": {}}, "got no 'site'; expected one"),
        ({"site": 3, "provenance": {}}, "at site: got 3; expected a valid string"),
        ({"site": "resid_post", "provenance": [1]}, r"at provenance: got \[1\]; expected a table"),
    ],
)
def test_a_file_of_strange_metadata_is_refused_by_name(tmp_path, metadata, told):
    path = tmp_path / "odd.safetensors"
    tensors = {"directions": torch.ones(1, 3), "layers": torch.tensor([4])}
    write_safetensors(path, VectorFile(tensors, metadata))
    with pytest.raises(sl.SteerlensError, match=told) as caught:
        sl.SteeringVector.load(path)
    assert path.name in str(caught.value)


def test_numbers_too_large_for_float32_are_refused(unchecked):
    with pytest.raises(sl.SteerlensError, match=r"NaN or infinite values at layer\(s\) \[5\]"):
        vector(directions=torch.tensor([[1, 2, 3], [4, 1e39, 6]], dtype=torch.float64))


def test_a_file_with_a_broken_vector_is_refused_by_name(tmp_path):
    path = tmp_path / "nan.safetensors"
    tensors = {"directions": torch.full((1, 3), torch.nan), "layers": torch.tensor([4])}
    write_safetensors(path, VectorFile(tensors, {"site": "resid_post", "provenance": {}}))
    with pytest.raises(sl.SteerlensError, match=r"nan.safetensors.*NaN or infinite.*\[4\]"):
        sl.SteeringVector.load(path)


# Bad input


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"directions": torch.ones(3)}, r"got directions of shape \(3,\); expected \[layer"),
        ({"layers": (3,)}, "got 2 directions and 1 layers"),
        ({"directions": torch.ones(0, 3), "layers": ()}, "expected one layer for each direction"),
        ({"layers": (5, 3)}, r"\(5, 3\); expected them to increase"),
        ({"layers": (3, 3)}, "without repeats"),
        ({"norms": torch.ones(3)}, r"norms of shape \(3,\); expected one number for each of 2"),
        (
            {"directions": torch.tensor([[1, 2, 3], [4, torch.inf, 6]])},
            r"NaN or infinite values at layer\(s\) \[5\]",
        ),
        (
            {"norms": torch.tensor([1, torch.nan])},
            r"got norms \[1.0, nan\]; expected no NaN or infinite",
        ),
    ],
)
def test_what_is_no_vector_is_refused(unchecked, fields, told):
    with pytest.raises(sl.SteerlensError, match=told):
        vector(**fields)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"site": "attn_out"}, "different site: 'resid_post' and 'attn_out'"),
        ({"layers": (3, 4)}, r"different layers: \(3, 5\) and \(3, 4\)"),
        ({"directions": torch.ones(2, 4)}, "different width: 3 and 4"),
    ],
)
def test_vectors_that_do_not_match_are_not_combined(other, told):
    with pytest.raises(sl.SteerlensError, match=f"cannot combine .*{told}"):
        vector() + vector(**other)
    with pytest.raises(sl.SteerlensError, match=f"cannot compare .*{told}"):
        vector().cosine(vector(**other))
