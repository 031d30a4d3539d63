"""Judges that are models, each against a plain loop."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import steerlens as sl
from steerlens.judges.models import bits_per_character, classifier
from steerlens.models.fingerprint import fingerprint

TEXTS = ["What a day!", "", "The sea is wide and the ships are small.", " \n", "No."]


@pytest.fixture(scope="module")
def make_classifier(tmp_path_factory):
    """Makes folders of random text classifiers with tiny-chat's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(sl.demo_file("tiny-chat"))

    def make(*labels):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=32, initializer_range=0.5,
            pad_token_id=tokenizer.pad_token_id, id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )  # fmt: skip
        folder = tmp_path_factory.mktemp("classifier")
        LlamaForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def moods(make_classifier):
    return make_classifier("NEGATIVE", "neutral", "POSITIVE")


def plain_probabilities(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits
    return dict(zip(model.config.id2label.values(), logits.softmax(-1)[0].tolist(), strict=True))


def test_a_classifier_gives_the_probability_of_its_label(moods):
    judge = classifier(moods, "neutral", batch_size=2)
    expected = [plain_probabilities(moods, text)["neutral"] for text in TEXTS if text.strip()]
    scores = judge(TEXTS)
    assert np.isnan(scores[[1, 3]]).all()
    np.testing.assert_allclose(scores[[0, 2, 4]], expected, atol=1e-5)
    assert np.ptp(expected) > 0.01  # or batches could be mixed up unseen


def test_without_a_label_it_is_positive_less_negative(moods):
    of = plain_probabilities(moods, TEXTS[2])
    judge = classifier(moods)
    assert judge([TEXTS[2]])[0] == pytest.approx(of["POSITIVE"] - of["NEGATIVE"], abs=1e-5)
    assert "weights" in judge.version
    assert judge.name.endswith("positive−negative")


def test_texts_longer_than_the_classifier_reads_are_cut(moods):
    long = "sea " * 400
    assert 0 <= classifier(moods, "neutral")([long])[0] <= 1


def test_texts_are_cut_where_only_the_model_knows_its_length(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(sl.demo_file("tiny-chat"))
    tokenizer.model_max_length = int(1e30)  # as sentiment models on the hub have it
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=34, pad_token_id=1, type_vocab_size=4,
        id2label={0: "fine", 1: "joy"}, label2id={"fine": 0, "joy": 1},
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert 0 <= classifier(str(tmp_path), "joy")(["sea " * 400])[0] <= 1


def test_labels_that_do_not_tell_are_asked_for(make_classifier):
    folder = make_classifier("toxic", "fine")
    with pytest.raises(sl.SteerlensError, match="give label= one of toxic, fine"):
        classifier(folder)
    with pytest.raises(
        sl.SteerlensError, match=r"got label='joy' for .*; expected one of toxic, fine"
    ):
        classifier(folder, "joy")


def test_a_directory_without_a_classifier_is_refused_by_name(tmp_path):
    with pytest.raises(sl.SteerlensError, match="could not be loaded as a text classifier"):
        classifier(str(tmp_path))


def plain_bits(model, ids, first):
    """One token after the other, from the host's own forward pass."""
    with torch.no_grad():
        log_probs = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    return -sum(log_probs[at - 1, ids[at]].item() for at in range(first, len(ids))) / math.log(2)


def test_bits_of_a_text_are_the_sum_of_its_tokens_surprise(tiny_chat):
    scores = bits_per_character(tiny_chat, batch_size=2)(TEXTS)
    assert np.isnan(scores[[1, 3]]).all()
    for index in (0, 2, 4):
        ids = tiny_chat.to_tokens(TEXTS[index])[0].tolist()
        expected = plain_bits(tiny_chat, ids, 1) / len(TEXTS[index])
        assert scores[index] == pytest.approx(expected, rel=1e-4)


def test_bits_of_a_reply_are_those_after_its_prompt(tiny_chat):
    prompts = ["How do I bake bread?"] * 2
    texts = ["Sure, here is a plan.", "Ships sink at sea."]
    tokenizer = tiny_chat.tokenizer
    scores = bits_per_character(tiny_chat, prompts)(texts)
    for text, score in zip(texts, scores, strict=True):
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompts[0]}], add_generation_prompt=True, tokenize=False
        )
        before = tokenizer(asked, add_special_tokens=False)["input_ids"]
        after = tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = plain_bits(tiny_chat, before + after, len(before)) / len(text)
        assert score == pytest.approx(expected, rel=1e-4)
    assert scores[0] < scores[1]  # what it would say is less surprising than what it would not


def test_a_fluent_text_is_less_surprising_than_its_words_shuffled(tiny_chat):
    fluent = "Sure, here is a simple plan for baking bread."
    shuffled = "bread a Sure, is for plan simple baking here."
    one, other = bits_per_character(tiny_chat)([fluent, shuffled])
    assert one < other


def test_a_model_without_bos_does_not_count_the_first_token(model_folder):
    model = sl.load_model(str(model_folder))
    model.cfg.default_prepend_bos = False
    text = "The sea is wide."
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    counted = len(text) - len(model.tokenizer.decode(ids[:1]))
    expected = plain_bits(model, ids, 1) / counted
    score = bits_per_character(model)([text])[0]
    assert score == pytest.approx(expected, rel=1e-4)


def test_a_steered_model_is_no_judge(model):
    judge = bits_per_character(model)
    with (
        model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda resid, hook: resid)]),
        pytest.raises(sl.SteerlensError, match="got a model with hooks at blocks"),
    ):
        judge(["The sea."])


def test_a_batch_of_none_is_refused(model):
    with pytest.raises(sl.SteerlensError, match="got batch_size=0"):
        bits_per_character(model, batch_size=0)


def test_each_text_needs_its_prompt(model):
    with pytest.raises(sl.SteerlensError, match="got 1 texts for 2 prompts"):
        bits_per_character(model, ["a", "b"])(["a"])


def test_the_version_says_which_weights_and_units(model):
    version = bits_per_character(model).version
    assert fingerprint(model) in version
    assert "bits" in version
