"""Every turn of a conversation is what `generate` replies to the whole of its messages.

`generate` runs every conversation from its first token; a `Chat` keeps what it can. Conversations
are drawn at random: what is said, how it is steered, what changes between the turns.
"""

from collections import Counter
from dataclasses import replace
from functools import cache
from random import Random

import pytest
import torch
import transformers
from helpers import assert_no_hooks_left, random_vector
from small_models import ARCHITECTURES, save_random

import steerlens as sl
from steerlens.models import fast_forward
from steerlens.models.loading import converters
from steerlens.steering.chat import EVERY_TURN, FIRST_TURN
from steerlens.steering.similarities import projection
from steerlens.steering.soft_gates import Logistic, SoftGate

WORDS = ("Hi.", "Why?", "How do I bake bread?", "Name a colour, please.", "And the sea?", "No!")
SYSTEMS = (None, None, "Be kind.")
TRIMS = (  # earlier replies are cut at their first e, as other templates cut thoughts
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('e')[0] }}"
    "{% else %}{{ m.content.strip() }}{% endif %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
POSITIONS = (
    "all", "all", "prompt", "generated", "last", "reply", slice(-3, None), slice(2, 9),
    slice(4, None, 2), [0, -1], torch.tensor([False, True, True, False, True]),
    sl.places.generated(stop=2) | sl.places.at("prompt"), ~sl.places.tokens(range(200, 900)),
)  # fmt: skip
READ = ("last", "all", "user", 2, slice(3, None))


def own_edit(resid, direction, strength):
    """What it does to a token depends on the others of the pass: the prompt's must be in one."""
    return resid + strength * direction * resid.mean(dim=1, keepdim=True).tanh()


def some_steering(random, model):
    """A steering of the last two layers, half of them with a condition read below."""
    last = model.cfg.n_layers - 1
    vector = random_vector(model, random.randrange(99), scale=2.0)
    layers = random.choice([[last], [last - 1, last]])
    condition = sl.Condition(
        random_vector(model, random.randrange(99)), random.choice([0, last - 1]), above=0.0,
        similarity=projection, tokens=random.choice(READ), sinks=random.random() < 0.5,
        site=random.choice(["resid_post", "resid_pre"]), name="seen",
    )  # fmt: skip
    soft = SoftGate(condition, Logistic(2.0))
    edit = random.choice([sl.hooks.add_direction, sl.hooks.ablate_direction, own_edit])
    return sl.Steering(
        vector, layers, random.choice([0.5, 1.5]), edit=edit,
        when=random.choice([None, condition, ~condition, soft]),
        when_token=random.choice([None, None, None, condition, soft]),
        schedule=random.choice([None, None, None, sl.schedules.Decay(2)]),
        positions=random.choice(POSITIONS),
        skip_bos=random.random() < 0.3, keep_norm=edit is not own_edit and random.random() < 0.3,
    )  # fmt: skip


def change(random, chat):
    """Perhaps another steering, another strength, another length, or a turn taken back."""
    steering = chat.steering
    what = random.randrange(8)
    if what == 0:
        chat.steering = random.choice([None, some_steering(random, chat.model)])
    elif what == 1 and isinstance(steering, sl.Steering):
        chat.steering = replace(steering, strength=random.choice([-1.0, 3.0]))
    elif what == 2 and chat.turns:
        chat.undo()
    elif what == 3:
        chat.max_new_tokens = random.randrange(2, 7)
    elif what == 4:
        chat.sampling = sl.Sampling(temperature=random.choice([0.0, 2.0]))
    elif what == 5:
        return chat.branch()
    return chat


def reference(chat, words, prefill, decisions):
    """The turn's reply by `generate`, given the chat before the turn."""
    asked = [*chat.messages, {"role": "user", "content": words}]
    if prefill:
        asked.append({"role": "assistant", "content": prefill})
    steerings = [chat.steering] if isinstance(chat.steering, sl.Steering) else chat.steering or []
    options = {
        "max_new_tokens": chat.max_new_tokens, "sampling": chat.sampling, "progress": False,
        "draws": [len(chat.turns)],
    }  # fmt: skip
    if chat.conditions == EVERY_TURN:
        return sl.generate(chat.model, [asked], steerings, **options)
    # Read here once, of the first prompt that is steered so; later turns act on that decision.
    seen = sl.generate(chat.model, [asked], steerings, **options)
    for gate in seen.gates:
        decisions.setdefault(gate.condition, gate)
    acting = [decided(steering, decisions) for steering in steerings]
    return sl.generate(chat.model, [asked], acting, **options)


def decided(steering, decisions):
    """The steering without its condition, as far as that opened."""
    if isinstance(steering.when, SoftGate):
        factor = float(steering.when.factor(decisions[steering.when.condition].similarity))
    else:
        opened = {condition: gate.open for condition, gate in decisions.items()}
        factor = 1.0 if steering.when is None else float(steering.when.truth(opened.get))
    strengths = [factor * one for one in steering.strengths]
    return replace(steering, when=None, strength=strengths)


def hold(model, seed, counts, conditions=EVERY_TURN):
    """Hold one conversation, and compare each turn; `counts` notes what happened."""
    random = Random(seed)
    steering = random.choice(
        [None, some_steering(random, model), [some_steering(random, model) for _ in range(2)]]
    )
    chat = sl.Chat(
        model, steering, system=random.choice(SYSTEMS), max_new_tokens=random.randrange(3, 6),
        conditions=conditions,
    )  # fmt: skip
    decisions = {}
    for _ in range(random.randrange(2, 5)):
        if conditions == EVERY_TURN:
            chat = change(random, chat)
        words = random.choice(WORDS)
        prefill = random.choice(["", "", "Sure, I"])
        expected = reference(chat, words, prefill, decisions)
        turn = chat.say(words, prefill=prefill)
        assert turn.tokens == expected.tokens[0], (seed, len(chat.turns))
        assert turn.finished == expected.finished[0]
        assert prefill or turn.text == expected.texts[0]
        if conditions == EVERY_TURN:
            assert [gate.condition for gate in turn.gates] == [
                gate.condition for gate in expected.gates
            ]
            for mine, its in zip(turn.gates, expected.gates, strict=True):
                torch.testing.assert_close(mine.similarity, its.similarity, atol=2e-4, rtol=1e-3)
                assert bool(mine.open) == bool(its.open)
        counts["turns"] += 1
        counts["kept"] += turn.n_kept > 0
        counts["kept much"] += turn.n_kept > 0.5 * len(turn.prompt.ids)
        counts["steered"] += bool(turn.acted)
        counts.update(("fired" if gate.open else "did not fire") for gate in turn.gates)


@pytest.mark.parametrize(
    "seeds", [range(40), pytest.param(range(40, 240), marks=pytest.mark.slow)], ids=str
)
def test_turns_are_runs_of_the_whole_conversation(model, seeds):
    counts = Counter()
    for seed in seeds:
        hold(model, seed, counts)
    assert_no_hooks_left(model)
    assert counts["kept"] > 0.3 * counts["turns"], counts
    assert counts["kept much"] > 0.2 * counts["turns"], counts
    assert min(counts["fired"], counts["did not fire"]) > 10, counts
    assert counts["steered"] < counts["turns"]


def test_and_where_conditions_are_read_in_the_first_turn_only(model):
    counts = Counter()
    for seed in range(15):
        hold(model, seed, counts, FIRST_TURN)
    assert counts["kept"] > 8
    assert min(counts["fired"], counts["did not fire"]) > 3, counts


def test_and_where_the_template_rewrites_earlier_turns(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "chat_template", TRIMS)
    counts = Counter()
    for seed in range(10):
        hold(model, 500 + seed, counts)
    assert counts["kept"], counts


def test_and_with_the_hosts_own_forward_passes(model):
    counts = Counter()
    with fast_forward.disabled():
        for seed in range(5):
            hold(model, 600 + seed, counts)
    assert counts["kept much"], counts


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    tokenizer = transformers.AutoTokenizer.from_pretrained(sl.demo_file("tiny-chat"))
    folder = cache(lambda name: save_random(name, tmp_path_factory.mktemp("any") / name, tokenizer))
    return lambda name, host: sl.load_model(str(folder(name)), host=host)


SLIDING = {"gemma2", "gemma3"}
"""Bridges to them drop old keys and values: every turn runs the whole conversation."""
EVERY_HOST = [(name, "auto") for name in ARCHITECTURES] + [("llama", "bridge"), ("gpt2", "bridge")]


@pytest.mark.skipif(converters is None, reason="needs a HookedTransformer")
@pytest.mark.parametrize(("name", "host"), EVERY_HOST)
def test_and_on_every_architecture_and_host(load, name, host):
    counts = Counter()
    for seed in range(2):
        hold(load(name, host), 700 + seed, counts)
    assert bool(counts["kept"]) == (name not in SLIDING), counts
