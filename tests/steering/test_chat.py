"""Conversations: what is said, kept, taken back and measured. The law is in tests/laws."""

from dataclasses import fields, replace

import pytest
import torch
from helpers import assert_no_hooks_left, random_vector

import steerlens as sl
from steerlens.activations.reading import every_token, read_residual
from steerlens.errors import SteerlensError
from steerlens.steering import kept_texts
from steerlens.steering.batch_plans import BatchPlan
from steerlens.steering.similarities import projection

SAID = ("How do I bake bread?", "Why?", "Name a colour, please.")
SYSTEM = {"role": "system", "content": "Be kind."}
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
)


def user(words):
    return {"role": "user", "content": words}


def condition(model, tokens="user", layer=1, seed=7, above=0.0):
    vector = random_vector(model, seed)
    return sl.Condition(vector, layer, above=above, similarity=projection, tokens=tokens)


def chat_with(model, steering=None, said=SAID, **options):
    chat = sl.Chat(model, steering, **{"max_new_tokens": 5} | options)
    for words in said:
        chat.say(words)
    return chat


@pytest.fixture
def widths(model):
    """How many tokens each pass of the first and of the last block runs."""
    seen = {0: [], 3: []}
    handles = [
        model.blocks[layer].register_forward_pre_hook(
            lambda _, given, at=at: at.append(given[0].shape[1])
        )
        for layer, at in seen.items()
    ]
    yield seen
    for handle in handles:
        handle.remove()


# What is said


def test_messages_are_what_was_said(model):
    chat = chat_with(model, system="Be kind.", history=[user("Hi."), user("Ho.")])
    assert chat.messages[:3] == [SYSTEM, user("Hi."), user("Ho.")]
    assert [m["role"] for m in chat.messages[3:]] == ["user", "assistant"] * 3
    assert [m["content"] for m in chat.messages[3::2]] == list(SAID)
    assert [m["content"] for m in chat.messages[4::2]] == [turn.text for turn in chat.turns]
    assert [str(turn) for turn in chat.turns] == [turn.text for turn in chat.turns]


def test_a_history_is_as_good_as_having_said_it(model):
    chat = chat_with(model)
    later = sl.Chat(model, history=chat.messages[:-2], max_new_tokens=5)
    assert later.say(SAID[-1]).tokens == chat.turns[-1].tokens


def test_a_prefill_begins_the_reply(model):
    chat = sl.Chat(model, max_new_tokens=4)
    turn = chat.say("Hi.", prefill="Sure, I")
    begun = [user("Hi."), {"role": "assistant", "content": "Sure, I"}]
    [plain] = sl.generate(model, [begun], max_new_tokens=4, progress=False)
    assert turn.text == f"Sure, I{plain}"
    assert chat.messages[-1]["content"] == turn.text
    assert turn.text.startswith("Sure, I")


def test_a_space_after_a_prefill_is_not_lost(model, monkeypatch):
    """Some tokenizers decode a text without its first space."""
    decode = model.tokenizer.decode
    monkeypatch.setattr(
        model.tokenizer, "decode", lambda ids, **options: decode(ids, **options).lstrip(" ")
    )
    [spaced] = model.tokenizer(" bread", add_special_tokens=False)["input_ids"][:1]
    monkeypatch.setattr(
        "steerlens.steering.generation.TokenChooser.__call__",
        lambda *_: torch.tensor([spaced]),
    )
    assert sl.Chat(model, max_new_tokens=1).say("Hi.", prefill="Sure").text == "Sure bread"


def test_a_stream_ends_as_what_is_said_at_once(model):
    steering = sl.Steering(random_vector(model), [2])
    chat, streamed = (sl.Chat(model, steering, max_new_tokens=5) for _ in range(2))
    parts = list(streamed.stream("Hi."))
    assert [len(part.tokens) for part in parts] == [1, 2, 3, 4, 5]
    assert parts[-1].tokens == chat.say("Hi.").tokens
    assert streamed.messages == chat.messages
    assert parts[-1] is streamed.turns[-1]


def test_a_dropped_stream_leaves_the_conversation_as_it_was(model):
    chat = chat_with(model, said=SAID[:1])
    before = chat.messages
    stream = chat.stream("Why?")
    next(stream)
    stream.close()
    assert chat.messages == before
    assert_no_hooks_left(model)
    assert chat.say("Why?").tokens == chat_with(model, said=[SAID[0], "Why?"]).turns[1].tokens


def test_a_turn_during_a_stream_is_refused(model):
    chat = sl.Chat(model, max_new_tokens=2)
    stream = chat.stream("Hi.")
    next(stream)
    chat.say("Why?")
    with pytest.raises(SteerlensError, match="one at a time: finish or drop the stream"):
        list(stream)
    assert len(chat.turns) == 1


def test_turns_draw_from_streams_of_their_own(model):
    warm = sl.Sampling(temperature=3.0)
    same = {chat_with(model, said=SAID[:1], sampling=warm).turns[0].tokens for _ in range(2)}
    assert len(same) == 1
    chat = chat_with(model, said=["Hi.", "Hi."], sampling=warm)
    expected = sl.generate(
        model, [chat.messages[:3]], sampling=warm, draws=[1], max_new_tokens=5, progress=False
    )
    assert chat.turns[1].tokens == expected.tokens[0]


# What is taken back


def test_undo_takes_back_the_last_turns(model):
    chat = chat_with(model)
    first, second, third = chat.turns
    chat.undo()
    assert chat.turns == (first, second)
    assert chat.say(SAID[-1]).tokens == third.tokens
    chat.undo(3)
    assert chat.messages == []
    with pytest.raises(SteerlensError, match=r"undo\(1\) in a conversation of 0 turns"):
        chat.undo()
    with pytest.raises(SteerlensError, match="n_turns"):
        chat.undo(0)


def test_branches_go_their_own_ways_from_what_was_kept(model):
    chat = chat_with(model, said=SAID[:1])
    branch = chat.branch()
    branch.steering = sl.Steering(random_vector(model), [3], positions="generated")
    one, other = chat.say("Why?"), branch.say("Why?")
    assert (len(chat.turns), len(branch.turns)) == (2, 2)
    assert one.n_kept == other.n_kept > 0
    assert one.tokens != other.tokens
    again = chat.branch()
    again.undo()
    assert again.say("Why?").tokens == one.tokens


# What is kept


def test_only_what_is_new_is_run(model, widths, monkeypatch):
    """Replies are replaced by tokens that their text gives again."""
    ids = iter(model.tokenizer(" bread sea day ships", add_special_tokens=False)["input_ids"] * 3)
    monkeypatch.setattr(
        "steerlens.steering.generation.TokenChooser.__call__",
        lambda *_: torch.tensor([next(ids)]),
    )
    chat = sl.Chat(model, max_new_tokens=4)
    first, second, third = (chat.say(words) for words in SAID)
    assert first.n_kept == 0
    for before, turn in ((first, second), (second, third)):
        assert turn.n_kept == len(before.prompt.ids) + 3  # the last token was not run
    prompts = [len(turn.prompt.ids) - turn.n_kept for turn in chat.turns]
    assert widths[0] == [width for new in prompts for width in (new, 1, 1, 1)]


def kept_in_second_turn(model, first, second):
    chat = chat_with(model, first, SAID[:1])
    chat.steering = second
    turn = chat.say("Why?")
    return turn.n_kept, chat.turns[0].prompt, turn.prompt


def test_keys_and_values_are_kept_as_far_as_tokens_are_edited_alike(model):
    steering = sl.Steering(random_vector(model), [2, 3])

    def kept(first, second):
        return kept_in_second_turn(model, first, second)[0]

    _, before, after = kept_in_second_turn(model, steering, steering)
    whole, reply = kept(steering, steering), len(before.ids)
    assert whole >= reply
    assert kept(steering, replace(steering, name="other")) == whole
    assert kept(steering, replace(steering, strength=2)) == 0
    assert kept(steering, None) == kept(None, steering) == 0
    assert kept(None, replace(steering, skip_bos=True)) == 1
    at = {
        places: kept(steering_at, steering_at)
        for places in ("prompt", "generated", "last", "reply")
        for steering_at in [replace(steering, positions=places)]
    }
    # Earlier replies are steered as generated in their own turn, and as the prompt's in the next.
    assert at == {
        "prompt": reply,
        "generated": reply,
        "last": reply - 1,
        "reply": before.reply_start,
    }
    assert kept(None, replace(steering, positions="reply")) == whole < after.reply_start


def test_a_gate_that_changes_its_mind_runs_the_text_again(model):
    steering = sl.Steering(random_vector(model), [2], when=condition(model))
    opens = [bool(turn.acted) for turn in chat_with(model, steering).turns]
    assert len(set(opens)) == 2, "the prompts must differ in their gate"
    chat = chat_with(model, steering)
    for before, turn in zip(chat.turns, chat.turns[1:], strict=False):
        assert bool(turn.n_kept) == (bool(before.acted) == bool(turn.acted))


def test_conditions_read_only_what_is_new(model, widths):
    seen = condition(model, layer=0, above=1e6)
    steering = sl.Steering(random_vector(model), [2], when=seen)
    chat = chat_with(model, steering, said=["Hi."])
    n_known = len(chat.turns[0].prompt.ids)
    widths[0].clear()
    widths[3].clear()
    turn = chat.say("Why?")
    read, *written = widths[0]
    assert len(turn.prompt.ids) - n_known - 1 <= read <= len(turn.prompt.ids) - n_known
    assert written == widths[3] == [len(turn.prompt.ids) - turn.n_kept, 1, 1, 1, 1]


def test_nothing_is_kept_without_a_cache_and_under_hooks_of_the_users(model):
    plain = chat_with(model)
    uncached = chat_with(model, use_cache=False)
    seen = []
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: seen.append(x))]):
        hooked = chat_with(model)
    for chat in (uncached, hooked):
        assert [turn.n_kept for turn in chat.turns] == [0, 0, 0]
        assert chat.messages == plain.messages
    assert seen
    assert hooked.say("Hi.").n_kept == 0
    assert plain.turns[1].n_kept > 0


def test_every_field_of_a_steering_is_known_to_what_is_kept():
    """A new field must be looked at: does it change an edit with the place of a token?"""
    done = {"vector", "layers", "strength", "edit", "keep_norm", "relative", "site", "reference"}
    never_kept = {"when_token", "schedule"}
    evidence = {"evidence"}  # what was measured changes nothing
    known = done | kept_texts.WHERE | never_kept | evidence
    assert {field.name for field in fields(sl.Steering)} == known


# What conditions see


@pytest.mark.parametrize("tokens", ["last", "all", "user", 3])
def test_conditions_read_the_prompt_of_the_whole_conversation(model, tokens):
    seen = condition(model, tokens)
    chat = chat_with(model, sl.Steering(random_vector(model), [2], when=seen))
    messages = chat.messages
    for n, turn in enumerate(chat.turns):
        pooled = read_residual(model, [messages[: 2 * n + 1]], [1], tokens=tokens, progress=False)
        expected = seen.measure(pooled[:, 0], 1)
        torch.testing.assert_close(turn.gates[0].similarity[:, 0], expected, atol=1e-4, rtol=1e-4)
    if tokens == "user":
        assert turn.prompt.parts["user"] is not None
        said = model.tokenizer.decode(turn.prompt.ids[turn.prompt.parts["user"]])
        assert said == SAID[-1]  # no earlier turn's words


def test_conditions_of_the_first_turn_decide_for_all(model):
    seen = condition(model)
    steering = sl.Steering(random_vector(model), [2], when=seen)
    chat = chat_with(model, steering, conditions="first turn")
    read = [turn.gates[0].similarity.item() for turn in chat.turns]
    assert len(set(read)) == 1
    chat.steering = None
    assert chat.say("Hi.").gates == ()
    chat.steering = replace(steering, strength=0.5)
    assert chat.say("Hi.").gates[0].similarity.item() == read[0]
    chat.undo(5)
    assert chat.say(SAID[1]).gates[0].similarity.item() != read[0]


def test_a_condition_that_comes_later_is_read_when_it_comes(model):
    chat = chat_with(model, said=SAID[:2], conditions="first turn")
    chat.steering = sl.Steering(random_vector(model), [2], when=condition(model))
    third, fourth = chat.say(SAID[2]), chat.say("Hi.")
    every = chat_with(model, said=SAID[:2])
    every.steering = chat.steering
    assert torch.allclose(
        third.gates[0].similarity, every.say(SAID[2]).gates[0].similarity, atol=1e-4
    )
    assert torch.equal(third.gates[0].similarity, fourth.gates[0].similarity)


# What is shown


def test_turns_and_conversations_show_gates_and_broken_replies(model, monkeypatch):
    seen = replace(condition(model), name="harmful")
    chat = chat_with(model, sl.Steering(random_vector(model), [2], when=seen))
    chat.turns = (*chat.turns[:2], replace(chat.turns[2], text="no no no no <b>", finished=True))
    page, told = chat._repr_html_(), repr(chat)
    for shown in (page, told):
        assert shown.count("harmful") >= 3
        assert "fired (" in shown
        assert shown.count("degenerate") == 1
    assert "&lt;b&gt;" in page
    assert "tokens kept" in told
    assert "3 turns" in told


def test_of_a_long_conversation_the_last_turns_are_shown(model):
    chat = chat_with(model, said=SAID[:1], max_new_tokens=2)
    last = replace(chat.turns[0], words="And now?")
    chat.turns = (*chat.turns * 25, last)
    page = chat._repr_html_()
    assert "the last 20 of 26 turns" in page
    assert page.count(SAID[0]) == 19
    assert "And now?" in page


def test_projections_are_those_of_the_text(model):
    chat = chat_with(model, sl.Steering(random_vector(model, seed=1), [2]))
    vector = random_vector(model)
    table = chat.projections(vector, layers=[1, 3])
    assert table.groupby("turn").layer.unique().map(list).tolist() == [[1, 3]] * 3
    for number, turn in enumerate(chat.turns, start=1):
        ids = (*turn.prompt.ids, *turn.tokens)
        seen = every_token(model, ids, [("resid_post", 3)])["resid_post", 3]
        along = seen @ (vector[3] / vector[3].norm())
        mine = table[(table.turn == number) & (table.layer == 3)]
        torch.testing.assert_close(
            torch.tensor(mine.projection.to_numpy()).float(), along[mine.place.tolist()],
            atol=1e-4, rtol=1e-4,
        )  # fmt: skip
        assert "".join(mine[mine.role == "user"].token) == turn.words
        of_reply = mine[mine.role == "assistant"]
        assert [ids[at] for at in of_reply.place] == list(turn.tokens)
    with pytest.raises(SteerlensError, match="without turns"):
        sl.Chat(model).projections(vector)
    with pytest.raises(SteerlensError):
        chat.projections(vector, layers=[9])


# What is refused


def test_what_cannot_be_a_conversation_is_refused(unchecked, model, monkeypatch):
    steering = sl.Steering(random_vector(model), [2])
    for words in ("", "  ", None, ["Hi."]):
        with pytest.raises(SteerlensError, match="as the user's message; expected some text"):
            sl.Chat(model).say(words)
    with pytest.raises(SteerlensError, match="a conversation has no batch"):
        sl.Chat(model, BatchPlan(steering, torch.ones(1, 1)))
    with pytest.raises(SteerlensError, match="expected a Steering"):
        sl.Chat(model, random_vector(model))
    with pytest.raises(SteerlensError, match="expected 'every turn' or 'first turn'"):
        sl.Chat(model, conditions="once")
    with pytest.raises(SteerlensError, match="max_new_tokens"):
        sl.Chat(model, max_new_tokens=0)
    with pytest.raises(SteerlensError, match="context holds 128"):
        sl.Chat(model, max_new_tokens=127).say("Hi.")
    monkeypatch.setattr(model.tokenizer, "chat_template", NO_SYSTEM)
    with pytest.raises(SteerlensError, match="got a system message"):
        sl.Chat(model, system="Be kind.")
    monkeypatch.setattr(model.tokenizer, "chat_template", None)
    with pytest.raises(SteerlensError, match="has no chat template; expected one"):
        sl.Chat(model)


def test_a_refused_turn_leaves_the_conversation_as_it_was(model):
    chat = chat_with(model, said=SAID[:1])
    chat.steering = sl.Steering(random_vector(model), [2], positions=[120])
    with pytest.raises(SteerlensError, match="would touch no token"):
        chat.say("Why?")
    assert len(chat.turns) == 1
    chat.steering = None
    assert chat.say("Why?").n_kept > 0
