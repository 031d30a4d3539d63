"""Each format there and back, as other programs write it, broken, and hostile."""

import json
import pickle
import re
import struct
import warnings
import zipfile
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import steerlens as sl
from steerlens.activations.provenance import ProvenanceWarning, check_provenance
from steerlens.activations.reading import read_residual
from steerlens.vectors import foreign
from steerlens.vectors.formats import FORMATS, LossyFormatWarning

ENDINGS = sorted(FORMATS)
WRITTEN = sorted(ending for ending, form in FORMATS.items() if form.write)

numbers = st.floats(-(2.0**99), 2.0**99, width=32)
vectors = st.integers(1, 5).flatmap(
    lambda width: st.dictionaries(
        st.integers(1, 200), st.lists(numbers, min_size=width, max_size=width), min_size=1
    )
)


def of(rows, **fields):
    layers = tuple(sorted(rows))
    return sl.SteeringVector(torch.tensor([rows[layer] for layer in layers]), layers, **fields)


def whole(**fields):
    fields = {
        "norms": torch.tensor([10.5, 11.25]),
        "explained": torch.tensor([0.1, 0.7]),
        "provenance": {"name": "kind", "model": "tiny-chat", "pairs": 4},
    } | fields
    return of({3: [1.0, 2.0, 0.1], 5: [-1.0, 0.0, 3.0]}, **fields)


def save_quietly(vector, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LossyFormatWarning)
        vector.save(path)
    return path


def assert_same_directions(one, other):
    assert one.layers == other.layers
    assert torch.equal(one.directions, other.directions)


def write_control_vector(path, tensors, architecture="controlvector", **strings):
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in strings.items():
        writer.add_string(name.replace("__", "."), value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_refused(path, why, **options):
    """With the file's name and the reason, in either order."""
    with pytest.raises(sl.SteerlensError, match=re.escape(path.name)) as caught:
        sl.SteeringVector.load(path, **options)
    assert re.search(why, str(caught.value))


def floats(*shape):
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


# There and back


@given(vectors, st.sampled_from(WRITTEN), st.booleans())
@settings(max_examples=40, deadline=None)
def test_directions_come_back_exactly(tmp_path_factory, rows, ending, explained):
    path = tmp_path_factory.mktemp("formats") / f"v{ending}"
    saved = of(rows, explained=torch.rand(len(rows)) if explained else None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of this vector is lost in any format
        saved.save(path)
    loaded = sl.SteeringVector.load(path)
    assert_same_directions(loaded, saved)
    assert loaded.site == "resid_post"
    assert torch.equal(loaded.explained, saved.explained) if explained else not loaded.explained


@pytest.mark.parametrize("ending", [".safetensors", ".gguf"])
@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
def test_what_can_hold_all_gives_all_back(tmp_path, ending, site):
    saved = whole(site=site)
    loaded = sl.SteeringVector.load(save_quietly(saved, tmp_path / f"v{ending}"))
    assert_same_directions(loaded, saved)
    assert torch.equal(loaded.norms, saved.norms)
    assert torch.equal(loaded.explained, saved.explained)
    assert loaded.site == site
    provenance = dict(loaded.provenance)
    source = provenance.pop("source", None)
    assert provenance == saved.provenance
    assert source == (None if ending == ".safetensors" else {"format": ".gguf", "file": "v.gguf"})


@pytest.mark.parametrize("ending", [".svec", ".gguf"])
def test_the_second_round_trip_changes_nothing(tmp_path, ending):
    once = sl.SteeringVector.load(save_quietly(whole(), tmp_path / f"v{ending}"))
    once.save(tmp_path / f"v{ending}")  # without a warning
    twice = sl.SteeringVector.load(tmp_path / f"v{ending}")
    assert_same_directions(once, twice)
    assert once.provenance == twice.provenance


def test_capital_endings_are_endings(tmp_path):
    whole().save(tmp_path / "V.SAFETENSORS")
    assert_same_directions(sl.SteeringVector.load(tmp_path / "V.SAFETENSORS"), whole())


# What is lost is said


def told(vector, path):
    with pytest.warns(LossyFormatWarning) as caught:
        vector.save(path)
    assert len(caught) == 1
    return str(caught[0].message)


def test_svec_says_what_it_leaves_out(tmp_path):
    path = tmp_path / "v.svec"
    assert told(whole(site="attn_out"), path) == (
        f"{str(path)!r} leaves out the site 'attn_out' and the activation norms and the "
        "provenance (name, pairs); .safetensors would keep all"
    )
    bare = whole(norms=None, provenance={"model": "tiny-chat"})
    bare.save(path)
    assert sl.SteeringVector.load(path).provenance["model_type"] == "tiny-chat"


def test_gguf_says_that_others_add_to_the_block_output(tmp_path):
    whole().save(tmp_path / "v.gguf")
    assert "leaves out the site 'attn_out' for llama.cpp and repeng;" in told(
        whole(site="attn_out"), tmp_path / "v.gguf"
    )


def test_a_warning_made_an_error_leaves_no_file(tmp_path):
    with pytest.raises(LossyFormatWarning):  # pytest makes every warning an error
        whole().save(tmp_path / "v.svec")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layers", "advice"),
    [((0, 1, 2), "save layers 1–2 of it with .*, or all as .safetensors"), ((0,), "save it as")],
)
def test_gguf_has_no_layer_zero(tmp_path, layers, advice):
    vector = of({layer: [1.0, 2.0] for layer in layers})
    with pytest.raises(sl.SteerlensError, match=rf"v.gguf.*llama.cpp never.*layer 0.*{advice}"):
        vector.save(tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())


# As other programs read and write it


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["pca_diff", "pca_center"])
def test_repengs_files_hold_repengs_directions(oracles, model, method):
    folder = oracles / "steering-vectors"
    loaded = sl.SteeringVector.load(folder / f"repeng_{model}_{method}.gguf")
    expected = np.load(folder / f"repeng_{model}.npz")
    assert loaded.layers == (1, 2, 3)
    assert loaded.site == "resid_post"
    assert loaded.provenance["model_type"] == model
    for layer in loaded.layers:
        key = f"{method}|bs=8|pad=right|layers=default|L{layer}"
        assert np.array_equal(loaded[layer].numpy(), expected[key])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_repengs_layers_are_our_block_outputs(oracles, name):
    """Except for the last, which repeng reads after the final norm."""
    folder = oracles / "steering-vectors"
    pairs = json.loads((folder / "inputs.json").read_text())["pairs"]
    texts = [text for pair in pairs for text in pair]
    model = sl.load_model(str(folder / f"tiny-{name}"))
    tokenizer = AutoTokenizer.from_pretrained(folder / f"tiny-{name}")  # the model's adds a BOS
    ids = [tokenizer(text)["input_ids"] for text in texts]
    read = read_residual(model, ids, tokens="last", progress=False)
    expected = np.load(folder / f"repeng_{name}.npz")
    off = [
        np.abs(read[:, layer].numpy() - expected[f"hiddens|bs=1|pad=right|L{layer}"]).max()
        for layer in range(4)
    ]
    assert max(off[:3]) < 1e-4
    assert off[3] > 0.01


def test_repeng_reads_what_is_written(tmp_path):
    """By the steps of repeng's `ControlVector.import_gguf`."""
    whole(provenance={"model_type": "llama"}).save(tmp_path / "v.gguf")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    for name, value in (("general.architecture", "controlvector"), ("model_hint", "llama")):
        name = name if "." in name else f"controlvector.{name}"
        assert str(bytes(reader.get_field(name).parts[-1]), "utf-8") == value
    assert reader.get_field("controlvector.layer_count").parts[-1].tolist() == [2]
    read = {int(tensor.name.split(".")[1]): tensor.data for tensor in reader.tensors}
    assert {layer: data.tolist() for layer, data in read.items()} == {
        layer: whole()[layer].tolist() for layer in (3, 5)
    }


def test_llama_cpp_reads_what_is_written(tmp_path):
    """By the demands of llama.cpp's `common_control_vector_load_one`."""
    whole().save(tmp_path / "v.gguf")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert reader.get_field("GGUF.version").parts[0] == 3
    for tensor in reader.tensors:
        stem, number = tensor.name.split(".")
        assert stem == "direction"
        assert int(number) > 0
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tensor.shape.tolist() == [3]


def test_repengs_layer_zero_is_read(tmp_path):
    tensors = {f"direction.{layer}": floats(3) * layer for layer in (2, 0, 1)}
    path = write_control_vector(tmp_path / "v.gguf", tensors)
    loaded = sl.SteeringVector.load(path)
    assert loaded.layers == (0, 1, 2)
    assert torch.equal(loaded.directions[2], torch.tensor([2.0, 4, 6]))
    assert loaded.provenance == {"name": "v", "source": {"format": ".gguf", "file": "v.gguf"}}


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_of_gguf_are_read(tmp_path, dtype):
    path = write_control_vector(tmp_path / "v.gguf", {"direction.4": floats(3).astype(dtype)})
    assert torch.equal(sl.SteeringVector.load(path)[4], torch.from_numpy(floats(3)))


def test_svec_as_activation_steering_writes_it(tmp_path, cast_oracle):
    """`SteeringVector.save` of IBM/activation-steering, on directions that it extracted."""
    directions = cast_oracle["arrays"]["dir/refusal/nopad/pca_pairwise/1"]
    data = {
        "model_type": "llama",
        "directions": {k: v.tolist() for k, v in dict(enumerate(directions)).items()},
        "explained_variances": {layer: 0.25 * layer for layer in range(len(directions))},
    }
    (tmp_path / "refuse.svec").write_text(json.dumps(data))
    loaded = sl.SteeringVector.load(tmp_path / "refuse.svec")
    assert loaded.layers == tuple(range(6))
    assert np.array_equal(loaded.directions.numpy(), directions.astype(np.float32))
    assert loaded.explained.tolist() == [0.25 * layer for layer in range(6)]
    assert (loaded.site, loaded.norms) == ("resid_post", None)
    assert loaded.provenance == {
        "name": "refuse",
        "model_type": "llama",
        "source": {"format": ".svec", "file": "refuse.svec"},
    }
    loaded.save(tmp_path / "refuse.svec")
    assert json.loads((tmp_path / "refuse.svec").read_text()) == json.loads(json.dumps(data))


# Bare tensors


def save_torch(path, found):
    torch.save(found, path)


def save_numpy(path, found):
    found = found if isinstance(found, dict) else {"arr_0": found}
    np.savez(path, **{str(name): tensor.numpy() for name, tensor in found.items()})


@pytest.mark.parametrize(("ending", "save"), [(".pt", save_torch), (".npz", save_numpy)])
class TestBareTensors:
    def load(self, path, save, found, **options):
        save(path, found)
        loaded = sl.SteeringVector.load(path, **options)
        assert loaded.site == "resid_post"
        assert loaded.provenance["source"] == {"format": path.suffix, "file": path.name}
        return loaded

    def test_all_layers_in_one(self, tmp_path, ending, save):
        loaded = self.load(tmp_path / f"v{ending}", save, torch.eye(3))
        assert loaded.layers == (0, 1, 2)
        assert torch.equal(loaded.directions, torch.eye(3))

    @pytest.mark.parametrize("shape", [(4,), (1, 4)])
    def test_the_layer_in_the_name(self, tmp_path, ending, save, shape):
        path = tmp_path / f"vec_layer_13_Llama-2-7b-chat-hf{ending}"
        assert self.load(path, save, torch.ones(shape)).layers == (13,)
        assert self.load(path, save, torch.ones(shape), layer=7).layers == (7,)

    def test_a_tensor_for_each_layer(self, tmp_path, ending, save):
        for names in ((9, 4), ("9", "4"), ("layer_9", "layer.4")):
            found = dict(zip(names, (torch.ones(2), torch.zeros(2)), strict=True))
            loaded = self.load(tmp_path / f"v{ending}", save, found)
            assert loaded.layers == (4, 9)
            assert loaded[9].tolist() == [1, 1]

    def test_half_precision_is_read(self, tmp_path, ending, save):
        found = torch.tensor([[1, 0.5], [2, 0.25]], dtype=torch.float16)
        assert self.load(tmp_path / f"v{ending}", save, found)[1].tolist() == [2, 0.25]

    @pytest.mark.parametrize(
        ("found", "options", "why"),
        [
            (torch.ones(4), {}, r"does not say of which layer; give the layer: .*layer=13\)"),
            (torch.ones(3, 4), {"layer": 2}, r"holds 3 layers.*then take .at\(\[2\]\)"),
            ({4: torch.ones(2), 5: torch.ones(2)}, {"layer": 4}, "holds 2 layers"),
            ({4: torch.ones(2), 5: torch.ones(3)}, {}, "differ in width: 2 at layer 4, 3 at"),
            ({4: torch.ones(2), "04": torch.ones(2)}, {}, "holds layer 4 twice"),
            ({4: torch.ones(2), "mean": torch.ones(2)}, {}, "'mean' names no layer"),
            (torch.ones(2, 3, 4), {}, r"has shape \(2, 3, 4\)"),
            (torch.ones(2, 3).long(), {}, "holds torch.int64"),
            (torch.ones(2, 3, dtype=torch.complex64), {}, "holds torch.complex64"),
            (torch.full((2, 3), torch.nan), {}, r"NaN or infinite values at layer\(s\) \[0, 1\]"),
            (torch.full((2, 3), 1e300, dtype=torch.float64), {}, "NaN or infinite"),
            (torch.ones(0, 3), {}, "no direction for any layer"),
            (torch.ones(2, 0), {}, r"layer 0 has shape \(0,\)"),
            (torch.ones(4), {"layer": -1}, "none negative"),
        ],
    )
    def test_what_is_refused(self, tmp_path, ending, save, found, options, why):
        path = tmp_path / f"v{ending}"
        save(path, found)
        assert_refused(path, why, **options)


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (open, (str(self.place), "w"))


@pytest.mark.parametrize("ending", [".pt", ".npz"])
def test_no_object_is_unpickled(tmp_path, ending):
    place, path = tmp_path / "sprung", tmp_path / f"v{ending}"

    def pickled():
        path.write_bytes(pickle.dumps(Trap(place)))

    def saved():
        torch.save({3: Trap(place)}, path)

    def in_an_array():
        np.savez(path.with_suffix(".npz"), np.array([Trap(place)], dtype=object))
        path.with_suffix(".npz").rename(path)

    for write in (pickled, saved, in_an_array):
        write()
        with pytest.raises(sl.SteerlensError, match=f"v{ending}.*is not a readable file of bare"):
            sl.SteeringVector.load(path)
    assert not place.exists()


def test_shapes_larger_than_the_file_are_refused(tmp_path):
    torch.save(torch.ones(1).expand(2**40).unsqueeze(0), tmp_path / "v.pt")
    with pytest.raises(sl.SteerlensError, match=r"v.pt.*declares the shape .*4 bytes are stored"):
        sl.SteeringVector.load(tmp_path / "v.pt", layer=3)
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 1000000000000000), }\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\0" * 12
    with zipfile.ZipFile(tmp_path / "v.npz", "w") as archive:
        archive.writestr("a.npy", array)
    with pytest.raises(sl.SteerlensError, match=r"v\.npz"):
        sl.SteeringVector.load(tmp_path / "v.npz")


@pytest.mark.parametrize("ending", [".pt", ".npz"])
def test_archives_that_swell_are_refused_unread(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(foreign, "LARGEST_FILE", 10_000)
    with zipfile.ZipFile(tmp_path / f"v{ending}", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * 20_000)
    with pytest.raises(sl.SteerlensError, match=f"v{ending}.*holds 20,000 bytes.*is it a model"):
        sl.SteeringVector.load(tmp_path / f"v{ending}")


# Broken and hostile files


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_that_are_no_vectors(tmp_path, ending, monkeypatch):
    path = tmp_path / f"v{ending}"
    with pytest.raises(sl.SteerlensError, match=f"no file .*v{ending}"):
        sl.SteeringVector.load(path)
    path.write_bytes(b"")
    with pytest.raises(sl.SteerlensError, match=f"v{ending}"):
        sl.SteeringVector.load(path)
    monkeypatch.setattr(foreign, "LARGEST_FILE", 3)
    path.write_bytes(b"1234")
    with pytest.raises(sl.SteerlensError, match=f"v{ending}': it holds 4 bytes.*is it a model"):
        sl.SteeringVector.load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(sl.SteerlensError, match=f"no file .*v{ending}"):
        sl.SteeringVector.load(path)


@pytest.mark.parametrize("act", [sl.SteeringVector.load, whole().save])
def test_other_endings_are_refused(tmp_path, act):
    told = r"the ending '.bin' in .*v.bin.*; expected .*.safetensors, .svec, .gguf, .pt, .npz"
    with pytest.raises(sl.SteerlensError, match=told):
        act(tmp_path / "v.bin")


@pytest.mark.parametrize("ending", [".pt", ".npz"])
def test_bare_tensors_are_not_written(tmp_path, ending):
    told = rf"v{ending}.* is only read; save as .safetensors, .svec, .gguf"
    with pytest.raises(sl.SteerlensError, match=told):
        whole().save(tmp_path / f"v{ending}")


@pytest.mark.parametrize("ending", WRITTEN)
def test_a_layer_is_not_given_where_the_file_says_it(tmp_path, ending):
    path = save_quietly(whole(), tmp_path / f"v{ending}")
    with pytest.raises(sl.SteerlensError, match=rf"layer=3 .*v{ending}.*take .at\(\[3\]\)"):
        sl.SteeringVector.load(path, layer=3)


SVEC = {"model_type": "llama", "directions": {"1": [1.0, 2.0], "2": [3, 4]}}


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([], "on the whole: got .*; expected a table"),
        ({"directions": [1]}, "at directions: got .*; expected a table"),
        (SVEC | {"directions": {}}, "holds no direction"),
        (SVEC | {"directions": {"1": [1.0], "2": [1.0, 2.0]}}, "differ in width: 1 at layer 1, 2"),
        (SVEC | {"directions": {"1": [1.0], "01": [1.0]}}, "holds layer 1 twice"),
        (SVEC | {"directions": {"-1": [1.0]}}, "'-1' names no layer"),
        (SVEC | {"directions": {"one": [1.0]}}, "'one' names no layer"),
        (SVEC | {"directions": {"9" * 30: [1.0]}}, "names no layer"),
        (SVEC | {"directions": {"1": "12"}}, "at directions.1: got '12'; expected a valid list"),
        (
            SVEC | {"directions": {"1": ["1", 2]}},
            r"at directions.1\[0\]: got '1'; expected",
        ),
        (SVEC | {"directions": {"1": [[1], [2]]}}, "expected a valid number"),
        (SVEC | {"directions": {"1": [True]}}, "got True; expected a valid number"),
        (SVEC | {"directions": {"1": []}}, "at least 1 entries"),
        (SVEC | {"directions": {"1": [float("nan")]}}, "got NaN; expected a number"),
        (SVEC | {"directions": {"1": [1e39]}}, "NaN or infinite"),
        (
            SVEC | {"directions": {"1": [10**400]}},
            "got 1000.*; expected a valid number",
        ),
        (SVEC | {"explained_variances": {"1": 0.5}}, r"layers \[1, 2\], but .* for \[1\]"),
        (SVEC | {"explained_variances": [1]}, "at explained_variances: .*; expected a table"),
        (
            SVEC | {"explained_variances": {"1": 1, "2": None}},
            "variances.2: got None",
        ),
    ],
)
def test_broken_svec(tmp_path, found, why):
    (tmp_path / "v.svec").write_text(json.dumps(found))
    assert_refused(tmp_path / "v.svec", why)


def test_svec_with_numbers_of_thousands_of_digits(tmp_path):
    (tmp_path / "v.svec").write_text('{"directions": {"1": [' + "9" * 5000 + "]}}")
    with pytest.raises(sl.SteerlensError, match=r"v\.svec"):
        sl.SteeringVector.load(tmp_path / "v.svec")


OWN = {"steerlens__metadata": "{}"}


@pytest.mark.parametrize(
    ("tensors", "options", "why"),
    [
        (
            {"direction.1": floats(3)},
            {"architecture": "llama"},
            "of architecture 'llama'",
        ),
        ({}, {}, "holds no direction"),
        ({"direction.1": floats(3), "direction.2": floats(4)}, {}, "differ in width"),
        ({"direction.1": floats(2, 3)}, {}, r"layer 1 has shape \(2, 3\)"),
        ({"direction.1": floats(3).astype(np.int32)}, {}, "is of type I32"),
        ({"direction.1": floats(3) * np.nan}, {}, r"NaN or infinite values at layer\(s\) \[1\]"),
        ({"direction.1": np.full(3, 1e300)}, {}, "overflow"),
        ({"direction.one": floats(3)}, {}, "'direction.one' names no layer"),
        ({"direction.1": floats(3), "direction.01": floats(3)}, {}, "layer 1 twice"),
        ({"token_embd.weight": floats(3)}, {}, "'token_embd.weight' names no layer"),
        ({"direction.1": floats(3)}, OWN, "steerlens.metadata', on the whole: got no 'site'"),
        (
            {"direction.1": floats(3)},
            {"steerlens__metadata": '{"site": 3, "provenance": {}}'},
            "at site: got 3; expected a valid string",
        ),
        (
            {"direction.1": floats(3)},
            {"steerlens__metadata": '{"site": "z", "provenance": {}, "norms": [1, 2]}'},
            "norms of shape",
        ),
        (
            {"direction.1": floats(3)},
            {"steerlens__metadata": '{"site": "z", "provenance": {}, "norms": ["1"]}'},
            r"at norms\[0\]: got '1'; expected a valid number",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_broken_control_vectors(tmp_path, tensors, options, why):
    write_control_vector(tmp_path / "v.gguf", tensors, **options)
    assert_refused(tmp_path / "v.gguf", why)


def header(*pairs, n_tensors=0, tensors=b""):
    string = lambda text: struct.pack("<Q", len(text)) + text  # noqa: E731
    keys = b"".join(string(key) + value for key, value in pairs)
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, len(pairs)) + keys + tensors


ARCHITECTURE = (
    b"general.architecture",
    struct.pack("<IQ", 8, 13) + b"controlvector",
)
ENDLESS = (b"endless", struct.pack("<IIQ", 9, 0, 2**62))


def declared(shape, kind=0, offset=0):
    name = struct.pack("<Q", 11) + b"direction.1"
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return name + dimensions + struct.pack("<IQ", kind, offset) + b"\0" * 64


@pytest.mark.parametrize(
    "content",
    [
        header(ARCHITECTURE, ENDLESS),
        header(ARCHITECTURE, ENDLESS) + b"\0" * 1_000_000,
        header(ARCHITECTURE, (b"x", struct.pack("<IQ", 8, 2**63))),
        header(ARCHITECTURE, ARCHITECTURE),
        header(ARCHITECTURE, n_tensors=2**60),
        header(ARCHITECTURE, n_tensors=1, tensors=declared([2**40])),
        header(ARCHITECTURE, n_tensors=1, tensors=declared([2**32, 2**32])),
        header(ARCHITECTURE, n_tensors=1, tensors=declared([4], offset=2**63)),
        header(ARCHITECTURE, n_tensors=1, tensors=declared([4], kind=2)),
        header(ARCHITECTURE, n_tensors=1, tensors=declared([4], kind=999)),
        header(),
        header((b"general.architecture", struct.pack("<II", 4, 7))),
        header(ARCHITECTURE, (b"general.alignment", struct.pack("<II", 4, 3))),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    ],
)
def test_hostile_control_vectors_end_quickly(tmp_path, content):
    (tmp_path / "v.gguf").write_bytes(content)
    with pytest.raises(sl.SteerlensError, match=r"v\.gguf"):
        sl.SteeringVector.load(tmp_path / "v.gguf")


def test_a_model_is_refused_before_its_vocabulary_is_read(tmp_path):
    model = (b"general.architecture", struct.pack("<IQ", 8, 5) + b"llama")
    (tmp_path / "v.gguf").write_bytes(header(model, ENDLESS))
    with pytest.raises(sl.SteerlensError, match="architecture 'llama'"):
        sl.SteeringVector.load(tmp_path / "v.gguf")


@pytest.mark.parametrize(
    ("name", "tensor", "why"),
    [
        ("directions", torch.ones(2, 3).long(), "holds torch.int64"),
        ("layers", torch.tensor([1.0, 2.0]), "the layers are torch.float32"),
        ("layers", torch.tensor([[1, 2]]), r"of shape \(1, 2\)"),
        ("layers", torch.tensor([-1, 2]), "none negative"),
        ("norms", torch.tensor([1, 2]), "'norms' holds torch.int64"),
    ],
)
def test_safetensors_of_wrong_types(tmp_path, name, tensor, why):
    tensors = {"directions": torch.ones(2, 3), "layers": torch.tensor([1, 2])} | {name: tensor}
    content = foreign.VectorFile(tensors, {"site": "resid_post", "provenance": {}})
    FORMATS[".safetensors"].write(tmp_path / "v.safetensors", content)
    assert_refused(tmp_path / "v.safetensors", why)


def test_without_gguf_the_way_to_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(sl.SteerlensError, match=r"pip install 'steerlens\[exchange\]'"):
        whole().save(tmp_path / "v.gguf")


# Fuzz: whatever comes, a vector or a SteerlensError


@pytest.fixture(scope="module")
def valid_files(tmp_path_factory):
    """The bytes of a good file of each format."""
    folder = tmp_path_factory.mktemp("valid")
    for ending in WRITTEN:
        save_quietly(whole(), folder / f"v{ending}")
    save_torch(folder / "v.pt", torch.ones(2, 3))
    save_numpy(folder / "v.npz", torch.ones(2, 3))
    return {ending: (folder / f"v{ending}").read_bytes() for ending in ENDINGS}


def load_or_refuse(path, content):
    path.write_bytes(content)
    try:
        loaded = sl.SteeringVector.load(path)
    except sl.SteerlensError as error:
        said = str(error)
    else:
        said = path.name if loaded.directions.isfinite().all() else "not finite"
    assert path.name in said


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_truncation_is_refused(tmp_path, ending, valid_files):
    content = valid_files[ending]
    path = tmp_path / f"v{ending}"
    padding = 32 if ending == ".gguf" else 1  # of the last tensor, or a last line end
    for length in range(0, len(content) - padding, max(1, len(content) // 150)):
        path.write_bytes(content[:length])
        assert_refused(path, "")


@given(st.sampled_from(ENDINGS), st.data())
@settings(max_examples=300, deadline=2000)
def test_changed_bytes_never_surprise(tmp_path_factory, valid_files, ending, data):
    content = bytearray(valid_files[ending])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    load_or_refuse(tmp_path_factory.mktemp("fuzz") / f"v{ending}", bytes(content))


@given(st.sampled_from(ENDINGS), st.binary(max_size=200))
@settings(max_examples=100, deadline=2000)
def test_random_bytes_never_surprise(tmp_path_factory, valid_files, ending, noise):
    for start in (b"", valid_files[ending][:24]):
        load_or_refuse(tmp_path_factory.mktemp("fuzz") / f"v{ending}", start + noise)


# Whose vector it is


@pytest.fixture(scope="module")
def extracted(model):
    return sl.extract(model, (["I love it.", "Good."], ["I hate it.", "Bad."]), progress=False)


def test_a_models_own_vector_fits_it(model, extracted):
    check_provenance(model, extracted)
    check_provenance(model, (extracted + extracted) / 2)
    check_provenance(model, replace(extracted, provenance={}))


def test_equal_weights_are_one_model_whatever_its_name(model, extracted):
    renamed = {**extracted.provenance, "model": "another name"}
    check_provenance(model, replace(extracted, provenance=renamed))


def test_other_weights_are_warned_of(model, extracted):
    name = model.cfg.model_name
    other = replace(extracted, provenance={**extracted.provenance, "weights": "f00"})
    for vector in (other, extracted + other, 2 * (other - extracted)):
        with pytest.warns(ProvenanceWarning, match=rf"{name} \(weights f00\), but .*{name}"):
            check_provenance(model, vector)
    with pytest.warns(ProvenanceWarning, match=f"comes from gpt2, but is used with {name}"):
        check_provenance(model, replace(extracted, provenance={"model": "gpt2"}))


def test_another_models_shape_is_refused(model, other_model, extracted):
    with pytest.raises(sl.SteerlensError, match=r"got layer\(s\) \[3\]; expected"):
        check_provenance(other_model, extracted)
    with pytest.raises(sl.SteerlensError, match=r"32 wide, but .* 16; it belongs to another model"):
        check_provenance(other_model, extracted.at([0, 1]))


def test_generation_warns_of_other_weights(model, extracted):
    other = replace(extracted, provenance={**extracted.provenance, "weights": "f00"})
    with pytest.warns(ProvenanceWarning, match="f00"):
        sl.generate(model, ["Hi."], sl.Steering(other), max_new_tokens=1, progress=False)
