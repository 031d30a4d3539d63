"""Whatever takes prompts takes conversations: a chat of one message is the text itself."""

import json

import pytest
import torch
from helpers import random_vector
from typer.testing import CliRunner

import steerlens as sl
from steerlens.activations.extraction import extract
from steerlens.activations.reading import read_residual
from steerlens.cli import app
from steerlens.data.prompt_files import read_pairs, read_prompts
from steerlens.interpret.token_marks import mark_read
from steerlens.interpret.token_scans import scan_tokens
from steerlens.judges.judging import judge

TEXTS = [
    "How do I bake bread?", "I love the sea.", "Why is it so?", "Name a colour, please.",
    "Tell me about ships.", "I hate this day.", "What is a good way?", "Where are you now?",
]  # fmt: skip
length = judge("length", len)
QUIET = {"progress": False}
SHORT = {"max_new_tokens": 4, "progress": False}


def one_message(text):
    return [{"role": "user", "content": text}]


def conversation(text):
    said = [("system", "Be kind."), ("user", "Hi."), ("assistant", "Hello, you."), ("user", text)]
    return [{"role": role, "content": words} for role, words in said]


def begun(text):
    return [*one_message(text), {"role": "assistant", "content": "Sure, I"}]


def extracted(model, prompts):
    return extract(model, (prompts[:4], prompts[4:]), tokens="user", **QUIET).directions


def read(model, prompts):
    return read_residual(model, prompts, [1, 2], tokens="all", **QUIET)


def replied(model, prompts):
    replies = sl.generate(model, prompts, sl.Steering(random_vector(model), [2]), **SHORT)
    assert replies._repr_html_()
    return torch.tensor([len(text) for text in replies])


def streamed(model, prompts):
    *_, replies = sl.stream(model, prompts, max_new_tokens=3)
    return torch.tensor([len(text) for text in replies])


def searched(model, prompts):
    chosen, scored = (prompts[:2], prompts[4:6]), (prompts[2:4], prompts[6:])
    found = sl.search_conditions(model, random_vector(model), chosen, held_out=scored, **QUIET)
    return torch.tensor([found.best.threshold, found.scores.f1.value])


def told_apart(model, prompts):
    topics = {"first": prompts[:4], "second": prompts[4:]}
    found = sl.extract_topics(model, topics, layers=[1], **QUIET)
    return torch.cat([condition.vector.directions for condition in found.conditions.values()])


def evaluated(model, prompts):
    steering = sl.Steering(random_vector(model), [2])
    found = sl.evaluate(
        model, steering, prompts[:4], judges=[length], texts=prompts[:2], safety=prompts[2:4],
        controls=1, **SHORT,
    )  # fmt: skip
    assert str(found)
    return torch.tensor(found.table["score"].to_numpy())


def swept(model, prompts):
    found = sl.sweep(
        model, random_vector(model), prompts[:3], layers=[2], strengths=[1.0], judges=[length],
        **SHORT,
    )  # fmt: skip
    return torch.tensor(found.table["length"].to_numpy())


def calibrated(model, prompts):
    steering = sl.Steering(random_vector(model), [2])
    found = sl.calibrate_strength(
        model, steering, texts=TEXTS[:2], prompts=prompts[:2], tolerance=0.5, **SHORT
    )
    return torch.tensor([found.kl, found.strength])


def learned(model, prompts):
    data = [(prompt, "Yes.") for prompt in prompts[:4]]
    training = sl.Training(steps=2, batch_size=2)
    return sl.learn(model, data, layers=[1], training=training, **QUIET).directions


def scanned(model, prompts):
    return scan_tokens(model, prompts[0], random_vector(model)).values


def marked(model, prompts):
    return torch.tensor(mark_read(model, prompts[0], tokens="user").marked)


EVERY_USE = [
    extracted, read, replied, streamed, searched, told_apart, evaluated, swept, calibrated, learned,
    scanned, marked,
]  # fmt: skip


@pytest.mark.parametrize("use", EVERY_USE, ids=lambda use: use.__name__)
def test_a_chat_of_one_message_is_its_text(model, use):
    of_texts = use(model, TEXTS)
    of_chats = use(model, [one_message(text) for text in TEXTS])
    torch.testing.assert_close(of_chats, of_texts, atol=1e-5, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("use", EVERY_USE, ids=lambda use: use.__name__)
def test_longer_chats_are_taken_too(model, use):
    chats = [(conversation, begun)[index % 2](text) for index, text in enumerate(TEXTS)]
    got = use(model, chats)
    assert got.numel()
    assert got.isfinite().all()


def test_files_of_chats_are_read_and_replied_to(tmp_path):
    chats = [conversation(text) for text in TEXTS]
    lines = tmp_path / "chats.jsonl"
    lines.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    listed = tmp_path / "chats.json"
    listed.write_text(json.dumps(chats))
    pairs = tmp_path / "pairs.json"
    pairs.write_text(
        json.dumps(
            [{"positive": a, "negative": b} for a, b in zip(chats[:4], chats[4:], strict=True)]
        )
    )
    assert read_prompts(lines) == read_prompts(listed) == sl.load_prompts(lines)["all"] == chats
    assert read_pairs(pairs).pairs[0] == (chats[0], chats[4])
    run = CliRunner(env={"COLUMNS": "300"}).invoke
    vector, replies = tmp_path / "v.safetensors", tmp_path / "replies.json"
    made = run(app, ["extract", str(pairs), "--layers", "2", "--out", str(vector)])
    assert made.exit_code == 0, made.output
    done = run(
        app,
        ["generate", str(vector), "--file", str(lines), "--layers", "2", "--strength", "1",
         "--max-new-tokens", "4", "--out", str(replies)],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = json.loads(replies.read_text())["rows"]
    expected = sl.generate(sl.load_model(), chats, **SHORT)
    assert [row["unsteered"] for row in rows] == list(expected)
