import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_predicates import built, combinations_of

import steerlens as sl
from steerlens.models.tokenizing import tokenize
from steerlens.steering import places
from steerlens.steering.positions import UNKNOWN, Seen, can_select, reads_text, selected
from steerlens.steering.predicates import Predicate

law = settings(max_examples=60, deadline=None)
OPEN, CLOSE = (7, 8), (9,)
LEAVES = {
    "generated[:]": places.generated(),
    "generated[2:5]": places.generated(2, 5),
    "generated[::3]": places.generated(step=3),
    "last": places.at("last"),
    "place[-2:]": places.at(slice(-2, None)),
    "place[0, -1]": places.at([0, -1]),
    "tokens[3, 9]": places.tokens([3, 9]),
    "between[[7, 8], [9]]": places.Between(OPEN, CLOSE),
}
combinations = combinations_of(list(LEAVES), max_leaves=4)


def combined(combination):
    return built(combination).bound(lambda leaf: LEAVES[leaf.name])


texts = st.lists(st.integers(3, 10), min_size=1, max_size=12)


def seen(text, n_prompt, since=0):
    """The last tokens of a text, as a pass with a cache sees them."""
    ids = torch.tensor([text])
    return Seen(torch.arange(since, len(text))[None], torch.tensor([[n_prompt]]), None, ids)


def truth(place, text, n_prompt):
    """Which tokens a rule selects, one by one, in plain words."""
    at = range(len(text))
    match place:
        case places.Generated(start, stop, step):
            kept = range(n_prompt + start, len(text) if stop is None else n_prompt + stop, step)
            return [index in kept for index in at]
        case places.At("last"):
            return [index >= n_prompt - 1 for index in at]
        case places.At(slice()):
            return [index >= max(0, n_prompt - 2) for index in at]
        case places.At():
            return [index in (0, n_prompt - 1) for index in at]
        case places.TokenIn(ids):
            return [token in ids for token in text]
        case places.Between():
            inside, found = False, []
            for index in at:
                found.append(inside)
                if text[index] == CLOSE[0]:
                    inside = False
                elif tuple(text[index - 1 : index + 1]) == OPEN and index:
                    inside = True
            return found
    raise AssertionError(place)


@given(st.sampled_from(list(LEAVES)), texts, st.integers(1, 12))
@law
def test_each_rule_selects_what_it_says(name, text, n_prompt):
    place = LEAVES[name]
    n_prompt = min(n_prompt, len(text))
    assert place.chosen(seen(text, n_prompt))[0].tolist() == truth(place, text, n_prompt)


@given(combinations, texts, st.integers(1, 12), st.integers(0, 11))
@law
def test_a_pass_sees_what_the_whole_text_does(combination, text, n_prompt, since):
    place = combined(combination)
    n_prompt, since = min(n_prompt, len(text)), min(since, len(text) - 1)
    whole = selected(place, seen(text, n_prompt))
    assert selected(place, seen(text, n_prompt, since)).equal(whole[:, since:])


@given(combinations, texts, texts)
@law
def test_what_can_be_selected_is_never_called_impossible(combination, prompt, reply):
    """`can_select` knows the prompt only, and must not refuse what some reply would select."""
    place = combined(combination)
    chosen = selected(place, seen([*prompt, *reply], len(prompt))).any().item()
    if chosen:
        assert can_select(place, False, prompt, len(reply) + 1)


def test_rules_that_select_nothing_are_found_out():
    none = places.generated(5) & places.at("prompt")
    assert not can_select(none, False, [3, 4], 20)
    assert not can_select(places.generated(5), False, [3, 4], 5)
    assert not can_select(places.tokens([3]) & places.at("prompt"), False, [4, 5], 9)
    assert can_select(places.tokens([3]), False, [4, 5], 9)
    assert can_select(~places.tokens([4]), False, [4], 9)
    assert not can_select(~places.tokens([4]) & places.at("prompt"), False, [4], 9)


def test_a_plan_that_can_select_nothing_is_refused(model):
    v = sl.SteeringVector(torch.ones(1, model.cfg.d_model), (1,))
    plan = sl.Steering(v, positions=places.generated(5) & places.at("prompt"))
    with pytest.raises(sl.SteerlensError, match=r"generated\[5:\] and prompt"):
        sl.generate(model, ["Hi."], plan, max_new_tokens=4, progress=False)


def test_they_are_printed_as_they_are_read():
    assert [str(place) for place in LEAVES.values()] == list(LEAVES)
    both = places.generated(stop=20) & ~(places.tokens([3]) | places.at("prompt"))
    assert str(both) == "generated[:20] and not (tokens[3] or prompt)"
    v = sl.SteeringVector(torch.eye(2), (0, 1))
    assert f"positions {both}" in repr(sl.Steering(v, positions=both))


@given(combinations)
@law
def test_what_is_printed_can_be_read(combination):
    place = combined(combination)
    if not any(isinstance(leaf, places.Between) for leaf in place.leaves()):
        read = places.parse_positions(str(place))
        assert str(places.at(read) if not isinstance(read, Predicate) else read) == str(place)


@pytest.mark.parametrize(
    "text",
    ["", "everywhere", "generated[x:]", "generated[0]", "place[1.5]", "tokens[]", "last[1:]",
     "generated[5:2]", "last and", "open('x')", "place[" + "1," * 9 + "'a']"],
)  # fmt: skip
def test_other_text_is_refused(text):
    with pytest.raises(sl.SteerlensError, match="got"):
        places.parse_positions(text)


def test_only_some_need_the_text():
    assert not reads_text(places.generated() | places.at("last"))
    assert not reads_text("all")
    assert reads_text(places.generated() & ~places.tokens([3]))


def test_unknown_tokens_are_open():
    text = torch.tensor([[7, 8, UNKNOWN, 9]])
    view = Seen(torch.arange(4)[None], torch.tensor([[2]]), None, text)
    within = places.Between(OPEN, CLOSE).possible(view)
    assert within.may[0].tolist() == [False, False, True, True]
    assert within.must[0].tolist() == [False, False, False, False]


def test_texts_written_by_the_model_count_from_their_second_token():
    both = places.positions_as_text(places.generated(stop=2) | places.at("generated"))
    assert selected(both, seen([3, 4, 5, 6], 4))[0].tolist() == [False, True, True, True]
    first = places.positions_as_text(places.generated(stop=2))
    assert selected(first, seen([3, 4, 5, 6], 4))[0].tolist() == [False, True, True, False]


# Of a model's text


def test_turns_thoughts_and_words(tiny_chat):
    chat = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Why?"},
    ]
    [row] = tokenize(tiny_chat, [chat])
    view = seen(row.ids, len(row.ids))
    pieces = tiny_chat.tokenizer.convert_ids_to_tokens(list(row.ids))
    said = {
        role: [
            piece
            for piece, on in zip(
                pieces, places.turns(tiny_chat, role).chosen(view)[0].tolist(), strict=True
            )
            if on
        ]
        for role in ("user", "assistant")
    }
    assert "".join(said["user"]).count("<|end|>") == 2
    assert "Hello" in "".join(said["assistant"])
    assert "Hi" not in "".join(said["assistant"])
    assert not set(said["user"]) & {"<|user|>", "<|assistant|>"}
    the = places.tokens(["Hi", "."], tiny_chat)
    assert [pieces[i] for i in the.chosen(view)[0].nonzero().flatten()].count(".") == 2


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda model: places.tokens([]), "got no tokens"),
        (lambda model: places.tokens([-3]), "got the token -3; expected an id"),
        (lambda model: places.tokens(["the"]), "pass the model"),
        (lambda model: places.tokens(["several words here"], model), "expected one each"),
        (lambda model: places.generated(3, 3), "can never select one"),
        (lambda model: places.generated(step=0), "at least 1"),
        (lambda model: places.turns(model, "tool"), "got the role 'tool'; expected one of"),
        (lambda model: places.between("", "</think>", model), "is no token"),
    ],
)
def test_what_says_nothing_is_refused(tiny_chat, make, told):
    with pytest.raises(sl.SteerlensError, match=told):
        make(tiny_chat)
