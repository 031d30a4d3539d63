"""Where texts begin, and where the user's words, suffixes and replies stand in a chat."""

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import steerlens as sl
from steerlens.data.prompts import Passage
from steerlens.models.token_text import decoded
from steerlens.models.tokenizing import TokenRow, end_tokens, own_prefix, tokenize

INSTRUCT = (  # the assistant's turn begins with a space
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
FORGETS_THOUGHTS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined "
    "and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)


@pytest.fixture
def templated(model, monkeypatch):
    def use(template):
        monkeypatch.setattr(model.tokenizer, "chat_template", template)
        return model

    return use


def text(model, row, start=0, end=None):
    return model.tokenizer.decode(row.ids[start:end])


# BOS


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("host", ["auto", "bridge"])
def test_texts_begin_as_the_models_own_tokenizer_begins_them(model_folder, tmp_path, adds, host):
    original = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    original.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder, add_bos_token=adds)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer("The old man said")["input_ids"]
    assert (ids[0] == tokenizer.bos_token_id) == adds
    model = sl.load_model(str(tmp_path), host=host)
    plain, begun = tokenize(model, ["The old man said", "<s>The old man said"], chat=False)
    assert list(plain.ids) == ids
    assert list(begun.ids).count(tokenizer.bos_token_id) == 1
    (chat,) = tokenize(model, ["Hi"])
    assert list(chat.ids).count(tokenizer.bos_token_id) == 1
    assert model.to_tokens("The old man said")[0].tolist() == ids
    assert bool(own_prefix(model.tokenizer)) == adds


def test_a_host_that_is_set_to_add_a_bos_adds_it(model, monkeypatch):
    monkeypatch.setattr(model.cfg, "default_prepend_bos", True)
    (row,) = tokenize(model, ["Hi"], chat=False)
    assert row.ids[0] == model.tokenizer.bos_token_id


# Places


words_of_users = st.text(st.sampled_from("asien dru<|>.\n"), min_size=1).filter(
    lambda words: words.strip() and "<s>" not in words  # of a spelt-out BOS a warning is given
)


@given(words_of_users)
def test_the_users_words_are_where_the_template_puts_them(model, words):
    (row,) = tokenize(model, [words])
    shown = text(model, row, row.user_start, row.reply_start)  # a token may begin with a space
    assert shown.strip() == words.strip() or "<|" in words
    assert text(model, row, row.reply_start).endswith("<|end|><|assistant|>")


@pytest.mark.parametrize("words", ["assistant", "s", "end", "user"])
def test_words_that_stand_in_the_template_are_not_mistaken_for_it(model, words):
    (row,) = tokenize(model, [words])
    assert text(model, row, row.reply_start) == "<|end|><|assistant|>"


@pytest.mark.parametrize("thoughts", ["", "<think>He greets me.</think>"])
def test_an_answered_chat_has_its_answer_in_the_reply(templated, thoughts):
    model = templated(FORGETS_THOUGHTS)
    chat = [
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": f"{thoughts}I love this day."},
    ]
    (row,) = tokenize(model, [chat], generation_prompt=False)
    assert text(model, row, row.reply_start) == "<|end|><|assistant|>I love this day.<|end|>"


def test_a_suffix_stands_as_the_template_writes_a_reply(templated):
    model = templated(INSTRUCT)
    (row,) = tokenize(model, [Passage("Hi", "Sure, here")])
    assert text(model, row) == "<s>[INST] Hi [/INST] Sure, here"
    (other,) = tokenize(model, [Passage("Hi", " Sure, here")])
    assert other.ids == row.ids


def test_a_begun_reply_is_gone_on_with(model):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure, I"}]
    row, joined = tokenize(model, [chat, Passage(chat, " can")])
    assert text(model, row).endswith("<|end|><|assistant|>Sure, I")
    assert text(model, joined).endswith("Sure, I can")
    assert text(model, joined, joined.suffix_start) == " can"


def test_a_reply_that_the_template_rewrites_is_refused(templated):
    model = templated(FORGETS_THOUGHTS)
    with pytest.raises(sl.SteerlensError, match="template rewrites the reply"):
        tokenize(model, [Passage("Hi", "<think>Well</think>Sure")])


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages if m.role != 'system' %}<|user|>{{ m.content }}{% endfor %}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system!') }}{% endif %}"
        "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}",
    ],
    ids=["left out", "refused"],
)
def test_system_messages_that_a_template_does_not_take_are_refused(templated, template):
    model = templated(template)
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Be kind. Hi"}]
    for prompt in (chat, Passage("Hi", system="Be kind.")):
        with pytest.raises(sl.SteerlensError, match="beginning of the user's first message"):
            tokenize(model, [prompt])
    assert text(model, tokenize(model, [chat[1:]])[0]) == "<|user|>Be kind. Hi"


def test_a_system_message_may_stand_in_the_users_message(templated):
    model = templated(
        "{% for m in messages %}{% if m.role != 'system' %}[INST]{% if loop.index == 2 %}"
        "{{ messages[0].content }} / {% endif %}{{ m.content }}[/INST]{% endif %}{% endfor %}"
    )
    [row] = tokenize(model, [Passage("Hi", system="Be kind.")])
    assert text(model, row) == "[INST]Be kind. / Hi[/INST]"


def test_options_reach_the_template(model_folder, monkeypatch):
    model = sl.load_model(str(model_folder), template_options={"enable_thinking": False})
    monkeypatch.setattr(model.tokenizer, "chat_template", FORGETS_THOUGHTS)
    assert text(model, tokenize(model, ["Hi"])[0]).endswith("<|assistant|><think></think>")
    model.template_options = {}
    assert text(model, tokenize(model, ["Hi"])[0]).endswith("<|assistant|>")


def test_a_text_in_the_template_already_is_read_as_it_stands(model):
    (right,) = tokenize(model, ["Hi"])
    whole = text(model, right)
    with pytest.warns(UserWarning, match="in the model's chat template already"):
        (row,) = tokenize(model, [whole])
    assert row.ids == right.ids
    assert tokenize(model, [whole], chat=False)[0].ids == right.ids


# Padding


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_read_by_its_mask_and_refused_without(model, side):
    texts = ["Hi there", "Hi there my dear friend"]
    batch = model.tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    rows = [row.ids for row in tokenize(model, batch)]
    assert rows == [tuple(ids) for ids in model.tokenizer(texts)["input_ids"]]
    with pytest.raises(sl.SteerlensError, match=r"expected rows without padding.*attention_mask"):
        tokenize(model, batch["input_ids"])
    ready = [TokenRow(tuple(ids)) for ids in batch["input_ids"].tolist()]
    assert tokenize(model, ready) == ready


def test_tables_that_are_no_batch_are_refused(model):
    with pytest.raises(sl.SteerlensError, match=r"got a mapping .*expected a list of texts"):
        tokenize(model, {"prompt": ["Hi"]})
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(sl.SteerlensError, match=r"\[3, 3\] and an attention_mask with \[2, 2\]"):
        tokenize(model, {"input_ids": ids, "attention_mask": ids[:, :2]})


# Ends


def test_every_declared_end_token_ends_a_reply(model_folder, tmp_path):
    original = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    original.generation_config.eos_token_id = [7, 9]
    original.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    tokenizer.save_pretrained(tmp_path)
    assert end_tokens(sl.load_model(str(tmp_path))) == {7, 9, tokenizer.eos_token_id}


def test_ids_beyond_the_vocabulary_are_marked_in_the_text(model, monkeypatch):
    """Embeddings are often larger than vocabularies, and some tokenizers raise on such ids."""
    tokenizer = transformers.ByT5Tokenizer()
    beyond = len(tokenizer) + 100
    ids = [*tokenizer("Hé", add_special_tokens=False)["input_ids"], beyond, beyond, 35]
    assert decoded(tokenizer, ids) == "Hé\ufffd\ufffd" + tokenizer.decode([35])
    monkeypatch.setattr(model, "tokenizer", tokenizer)
    rows = [[35, 36, 37]]
    replies = sl.generate(model, rows, max_new_tokens=12, progress=False)
    assert replies.texts == tuple(
        decoded(tokenizer, reply, skip_special_tokens=True) for reply in replies.tokens
    )
    *_, last = sl.stream(model, rows, max_new_tokens=12)
    assert last.texts == replies.texts


@pytest.mark.parametrize(
    "held",
    [
        [(1, 5, 6), (1, 7, 8)],
        torch.tensor([[1, 5, 6], [1, 7, 8]], dtype=torch.int32),
        np.array([[1, 5, 6], [1, 7, 8]]),
        [np.array([1, 5, 6]), torch.tensor([1, 7, 8])],
        [[np.int64(1), 5, 6], [1, 7, 8]],
        {"input_ids": [[0, 1, 5, 6], [1, 7, 8]], "attention_mask": [[0, 1, 1, 1], [1, 1, 1]]},
        pd.Series([[1, 5, 6], [1, 7, 8]]),
    ],
    ids=str,
)
def test_token_ids_come_in_many_containers(unchecked, model, held):
    assert [row.ids for row in tokenize(model, held)] == [(1, 5, 6), (1, 7, 8)]
    replies = sl.generate(model, held, max_new_tokens=2, progress=False)
    alone = sl.generate(model, [[1, 5, 6], [1, 7, 8]], max_new_tokens=2, progress=False)
    assert (len(replies.prompts), replies.tokens) == (2, alone.tokens)
    *_, last = sl.stream(model, held, max_new_tokens=2)
    assert last.tokens == alone.tokens


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ([1, 5, 6], r"prompt 0 is the number 1; .*as in \[ids\]"),
        (torch.tensor([1, 5, 6]), r"shape \(3,\).*as in \[ids\]"),
        (torch.tensor(5), "shape"),
        (torch.full((2, 3), 0.5), "float32"),
        (np.ones((2, 2)), "float64"),
        (torch.ones(1, 2, 3, dtype=torch.long), r"shape \(1, 2, 3\)"),
        (torch.ones(1, 3, dtype=torch.bool), "bool"),
        ([[True, False]], "integers"),
        ([[1, "a"]], "integers"),
        ([[1.5, 2.5]], "a prompt is text"),
        ([b"Hi."], "a prompt is text"),
        ([None], "a prompt is text"),
        (["Hi.", float("nan")], "prompt 1 has the prompt nan"),
        (np.array([["Hi."]]), r"shape \(1, 1\)"),
        (["Hi\ud800"], "half a character"),
        ([[]], "a prompt is text"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "lengths"),
        ({"input_ids": [1, 2], "attention_mask": [1, 1]}, r"\[batch, pos\]"),
        ({"input_ids": [[1.5]], "attention_mask": [[1]]}, r"\[batch, pos\]"),
    ],
    ids=str,
)
def test_what_are_no_prompts_is_refused_by_name(unchecked, model, held, told):
    for ask in (tokenize, lambda *given: sl.generate(*given, max_new_tokens=2, progress=False)):
        with pytest.raises(sl.SteerlensError, match=told):
            ask(model, held)


def test_prompts_may_be_an_iterator(unchecked, model):
    texts = ["Hi there.", "What is that?"]
    replies = sl.generate(model, iter(texts), max_new_tokens=2, progress=False)
    assert replies.prompts == tuple(texts)
    *_, last = sl.stream(model, iter(texts), max_new_tokens=2)
    assert last.texts == replies.texts


def test_a_text_with_the_mark_of_places_is_refused(model):
    with pytest.raises(sl.SteerlensError, match=r"U\+E0F1"):
        tokenize(model, ["a \ue0f1 b"])


@pytest.mark.parametrize("rewritten", ["content[:4]", "content.split(' ')[0]", "content.upper()"])
def test_words_that_a_template_cuts_or_changes_are_in_no_part(templated, rewritten):
    model = templated(
        f"{{% for m in messages %}}<|user|>{{{{ m.{rewritten} }}}}<|end|>{{% endfor %}}"
    )
    [row] = tokenize(model, ["How do I bake bread?"])
    assert row.user_start is None
    assert row.reply_start in (None, len(row.ids) - 1)


@pytest.mark.parametrize("prompt", ["How do I bake?", Passage("How do I bake?", "Sure")], ids=str)
def test_a_template_that_leaves_the_prompt_out_is_refused(templated, prompt):
    model = templated("{% for m in messages %}<|user|>Hello.<|end|>{% endfor %}")
    with pytest.raises(sl.SteerlensError, match=r"leaves the user's words .* out"):
        tokenize(model, [prompt])


def test_a_template_that_shows_the_last_message_only_takes_no_suffix(templated):
    model = templated("<|user|>{{ messages[-1].content }}<|end|><|assistant|>")
    assert tokenize(model, ["How do I bake?"])[0].user_start == 1
    with pytest.raises(sl.SteerlensError, match="where a reply follows"):
        tokenize(model, [Passage("How do I bake?", "Sure, I")])


def test_a_text_in_the_template_without_its_bos_gets_it(model):
    whole = "<s><|user|>Hi<|end|><|assistant|>"
    for text in (whole, whole.removeprefix("<s>")):
        with pytest.warns(UserWarning, match="in the model's chat template already"):
            [row] = tokenize(model, [text])
        assert row.ids == tuple(model.tokenizer(whole, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nHi<|im_end|>",
        "[INST] Hi [/INST]",
        "<start_of_turn>user\nHi<end_of_turn>",
        "<|start_header_id|>user<|end_header_id|>Hi",
        "### Instruction:\nHi\n### Response:",
    ],
)
def test_another_models_template_is_told(model, text):
    with pytest.warns(UserWarning, match="as other models' chat templates write it"):
        [row] = tokenize(model, [text])
    assert text in model.tokenizer.decode(row.ids)


def test_two_bos_are_told(model):
    with pytest.warns(UserWarning, match="begins with two of the BOS 1"):
        tokenize(model, ["<s><s>Hi"], chat=False)
