import json
import struct

import numpy as np
import pytest
import torch
import transformers
from gguf_models import ARCHITECTURES, write_gguf
from small_models import save_random
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import bytes_to_unicode

import steerlens as sl
from steerlens.models import loading, weight_cache
from steerlens.models.gguf_files import end_tokens
from steerlens.models.gguf_header import read_header
from steerlens.models.host import is_hooked
from steerlens.models.pre_tokenizers import PRE_TOKENIZERS, apply_cuts
from steerlens.models.weight_cache import (
    cached_directory,
    cached_models,
    clear_cached_models,
)

TEXTS = (
    "In 2024 I paid 12,345.67€.",
    "  two  spaces\tand\n\nlines ",
    "😀👍🏽 naïve Œuvre",
    "x+=1; f(a)",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(sl.demo_file("tiny-chat"))


@pytest.fixture(scope="module")
def original(tokenizer, tmp_path_factory):
    def load(name):
        folder = save_random(name, tmp_path_factory.mktemp("original") / name, tokenizer)
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager"
        ).eval()

    return load


@pytest.fixture(scope="module")
def llama(original):
    return original("llama")


@pytest.fixture
def llama_file(llama, tokenizer, tmp_path):
    return write_gguf(tmp_path / "llama.gguf", "llama", llama, tokenizer, ids={"eot": 4})


# What is read


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gguf_file_is_the_model_that_was_written(name, original, tokenizer, tmp_path):
    theirs = original(name)
    if name == "gemma2":  # no GGUF file holds it: all but the largest of the family have this one
        for layer in theirs.model.layers:
            layer.self_attn.scaling = transformers.Gemma2Config().query_pre_attn_scalar ** -0.5
    path = write_gguf(tmp_path / f"{name}.gguf", name, theirs, tokenizer, add_bos=True)
    model = sl.load_model(str(path))
    tokens = torch.randint(6, len(tokenizer), (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, its = model(tokens), theirs(tokens).logits
    torch.testing.assert_close(mine.log_softmax(-1), its.log_softmax(-1), atol=1e-4, rtol=0)
    assert is_hooked(model) == (loading.converters is not None and name != "gemma2")
    # Gemma's tokenizer class cannot encode without an unknown token, which this tokenizer lacks.
    for text in TEXTS if name != "gemma2" else ():
        assert model.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert model.tokenizer.chat_template == tokenizer.chat_template
    assert model.tokenizer.bos_token_id == tokenizer.bos_token_id
    assert model.cfg.n_ctx == theirs.config.max_position_embeddings


def test_all_end_tokens_of_the_file_end_replies(llama_file):
    assert end_tokens(read_header(llama_file)) == [5, 4]
    model = sl.load_model(str(llama_file))
    assert set(model.end_tokens) == {4, 5}


@pytest.mark.parametrize("adds", [True, False])
def test_texts_begin_as_the_file_says(llama, tokenizer, tmp_path, adds):
    path = write_gguf(tmp_path / "m.gguf", "llama", llama, tokenizer, add_bos=adds)
    model = sl.load_model(str(path))
    marked = sl.interpret.mark_read(model, "Hi there", "last", chat=False)
    assert (marked.tokens[0] == tokenizer.bos_token) == adds
    again = sl.interpret.mark_read(model, f"{tokenizer.bos_token}Hi there", "last", chat=False)
    assert again.tokens.count(tokenizer.bos_token) == 1


def test_nothing_of_the_quantisation_is_left(llama_file):
    with cached_directory(llama_file, loading._write_as_directory) as directory:
        config = json.loads((directory / "config.json").read_text())
        assert "quantization_config" not in config
        model = transformers.AutoModelForCausalLM.from_pretrained(directory)
        model.save_pretrained(directory.parent.parent / "again")


# Pre-tokenizers


def cut(name, text):
    backend = Tokenizer(BPE())
    apply_cuts(backend, PRE_TOKENIZERS[name])
    normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_cuts_lose_nothing(name, text):
    assert "".join(cut(name, text))
    bytes_of = bytes_to_unicode()
    spelled = {letter: byte for byte, letter in bytes_of.items()}
    assert bytes(spelled[letter] for letter in "".join(cut(name, text))).decode() == text


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("smollm", "in 2024", ["in", "Ġ", "2", "0", "2", "4"]),
        ("gpt-2", "in 2024", ["in", "Ġ2024"]),
        ("llama-bpe", "in 12345", ["in", "Ġ", "123", "45"]),
        ("qwen2", "in 2024", ["in", "Ġ", "2", "0", "2", "4"]),
        ("gpt-4o", "fooBar", ["foo", "Bar"]),
        ("tekken", "a 12", ["a", "Ġ", "1", "2"]),
        ("falcon", "a 12345", ["a", "Ġ", "123", "45"]),
        ("llama-bpe", "I'LL go", ["I", "'LL", "Ġgo"]),
        ("gpt-2", "I'LL go", ["I", "'", "LL", "Ġgo"]),
    ],
)
def test_cuts_are_those_of_the_family(name, text, pieces):
    assert cut(name, text) == pieces


@pytest.mark.parametrize("pre", ["default", None, "superbpe"])
def test_unknown_pre_tokenizers_are_refused_by_name(llama, tokenizer, tmp_path, pre):
    path = write_gguf(tmp_path / "m.gguf", "llama", llama, tokenizer, pre=pre)
    with pytest.raises(sl.SteerlensError, match=f"pre-tokenizer {pre!r}.*expected one of .*smollm"):
        sl.load_model(str(path))


# What is refused


def test_tensors_that_are_missing_or_passed_over_are_refused(llama, tokenizer, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, "llama", llama, tokenizer, drop=["blk.1.ffn_up.weight"])
    with pytest.raises(sl.SteerlensError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        sl.load_model(str(path))
    factors = [("rope_freqs.weight", np.ones(4, np.float32))]
    write_gguf(path, "llama", llama, tokenizer, more=factors)
    with pytest.raises(sl.SteerlensError, match=r"ignored some tensors, likely rope_freqs"):
        sl.load_model(str(path))


def test_settings_that_would_be_passed_over_are_refused(llama, tokenizer, tmp_path):
    extra = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "m.gguf", "llama", llama, tokenizer, extra=extra)
    with pytest.raises(sl.SteerlensError, match=r"does not read.*rope\.scaling\.type='yarn'"):
        sl.load_model(str(path))
    harmless = {"rope.scaling.type": "none"}
    sl.load_model(str(write_gguf(path, "llama", llama, tokenizer, extra=harmless)))


def test_a_control_vector_is_no_model(tmp_path):
    vector = sl.SteeringVector(torch.ones(1, 8), layers=(1,))
    vector.save(tmp_path / "v.gguf")
    with pytest.raises(sl.SteerlensError, match=r"is a control vector, not a model"):
        sl.load_model(str(tmp_path / "v.gguf"))


def test_unknown_architectures_are_refused_by_name(tmp_path):
    key = b"general.architecture"
    name = b"hal9000"
    path = tmp_path / "m.gguf"
    path.write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
        + struct.pack("<IQ", 8, len(name)) + name
    )  # fmt: skip
    with pytest.raises(sl.SteerlensError, match=r"architecture 'hal9000'.*it converts .*llama"):
        sl.load_model(str(path))


def test_damaged_files_are_refused(llama_file, tmp_path):
    whole = llama_file.read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "damaged.gguf"
    for length in (4, 20, 24, *generator.integers(24, 20_000, 20)):
        path.write_bytes(whole[:length])
        with pytest.raises(sl.SteerlensError, match="is not a whole GGUF file"):
            read_header(path)
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(sl.SteerlensError, match="its version is 0"):
        sl.load_model(str(path))
    (tmp_path / "words.txt").write_text("no model")
    with pytest.raises(sl.SteerlensError, match="a file of another format than GGUF; expected"):
        sl.load_model(str(tmp_path / "words.txt"))
    with pytest.raises(sl.SteerlensError, match=r"there is no file 'gone\.gguf'"):
        sl.load_model("gone.gguf")


def test_a_file_on_the_hub_is_fetched(llama_file, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        return str(llama_file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = sl.load_model("someone/small:llama.gguf", revision="v2")
    assert asked == [("someone/small", "llama.gguf", "v2")]
    assert model.cfg.n_layers == 3


# The cache


def test_the_second_load_converts_nothing(llama_file, own_cache, monkeypatch):
    first = sl.load_model(str(llama_file))

    def convert(*_):
        raise AssertionError("converted again")

    monkeypatch.setattr(loading, "_write_as_directory", convert)
    second = sl.load_model(str(llama_file))
    tokens = torch.arange(6, 30)[None]
    torch.testing.assert_close(first(tokens), second(tokens), rtol=0, atol=0)
    [entry] = cached_models()
    assert entry.source == str(llama_file.resolve())
    assert entry.size == sum(file.stat().st_size for file in entry.directory.iterdir())
    assert clear_cached_models() == entry.size
    assert not own_cache.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "no record"])
def test_damaged_entries_are_made_anew(llama_file, damage):
    right = sl.load_model(str(llama_file))
    [entry] = cached_models()
    weights = entry.directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "cut":
        weights.write_bytes(content[:-100])
    elif damage == "flipped":
        content[-17] ^= 1
        weights.write_bytes(content)
    elif damage == "gone":
        (entry.directory / "tokenizer.json").unlink()
    else:
        (entry.directory / weight_cache._RECORD).unlink()
    again = sl.load_model(str(llama_file))
    for mine, its in zip(again.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=0)
    assert len(cached_models()) == 1


def test_a_replaced_file_is_another_model(llama, llama_file, tokenizer):
    import os

    before = llama_file.stat()
    first = sl.load_model(str(llama_file))
    content = bytearray(llama_file.read_bytes())
    content[-40:] = struct.pack("<10f", *[0.5] * 10)  # same size, same beginning
    llama_file.write_bytes(content)
    os.utime(llama_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = sl.load_model(str(llama_file))
    changed = [
        not torch.equal(mine, its)
        for mine, its in zip(first.parameters(), second.parameters(), strict=True)
    ]
    assert any(changed)


def test_two_at_once_make_one_entry(tmp_path):
    """The slower one finds the other's entry in its place, and uses it."""
    source = tmp_path / "source"
    source.write_bytes(b"x")

    def write(path, directory):
        (directory / "config.json").write_text("{}")

    def slow(path, directory):
        write(path, directory)
        with cached_directory(source, write):  # another process is faster
            pass

    with cached_directory(source, slow) as directory:
        assert (directory / "config.json").read_text() == "{}"
    [entry] = cached_models()
    assert entry.directory == directory
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_without_a_place_to_keep_it_a_model_is_converted_for_once(
    llama_file, tmp_path, monkeypatch
):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "taken"))
    with pytest.warns(UserWarning, match="cannot be kept in .*set STEERLENS_CACHE"):
        assert sl.load_model(str(llama_file)).cfg.n_layers == 3
