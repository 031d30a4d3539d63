"""Whoever shares the batch, each reply is the one that `generate` gives alone."""

import random
from threading import Thread

import pytest
import torch
from helpers import PROMPTS, assert_no_hooks_left, random_vector, splitting_condition, waited

import steerlens as sl
from steerlens.models.tokenizing import tokenize
from steerlens.serving import requests
from steerlens.serving.engine import BusyError, ClosedError, Engine, Limits
from steerlens.serving.requests import Piece, Request
from steerlens.steering import generation, hooks, places, schedules
from steerlens.steering.soft_gates import Logistic, SoftGate
from steerlens.steering.transcripts import Replies

LONGEST = 8
SAMPLINGS = (
    sl.Sampling(),
    sl.Sampling(temperature=1.5, top_p=0.95, seed=3),
    sl.Sampling(temperature=1.0, top_k=5, repetition_penalty=1.3, seed=4),
)


@pytest.fixture(scope="module")
def plans(model):
    """Every kind of steering that there is, and none."""
    vector, condition = random_vector(model), splitting_condition(model)
    other = splitting_condition(model, layer=0, seed=8)
    steer = sl.Steering(vector, layers=[2, 3])

    def changed(**fields):
        return (sl.Steering(vector, **{"layers": [2, 3], **fields}),)

    return [
        (),
        (steer,),
        changed(strength=3, layers=[1]),
        changed(edit=hooks.ablate_direction, keep_norm=True),
        changed(positions="generated"),
        changed(positions="last", strength=3),
        changed(positions=slice(-3, None), skip_bos=True),
        changed(positions=places.generated(stop=2) & ~places.tokens([13, 198])),
        changed(positions=places.turns(model, "user")),
        changed(when=condition),
        changed(when=SoftGate(condition, Logistic(2.0))),
        changed(when_token=other),
        changed(when_token=other | places.generated(3), when=~condition),
        changed(schedule=schedules.Decay(half_life=2)),
        (steer, sl.Steering(random_vector(model, 5), [3], -2.0, when=other & condition)),
    ]


@pytest.fixture(scope="module")
def rows_end_early(model):
    """A token that replies hold at different places ends them, so that rows leave the batch."""
    tokens = sl.generate(model, PROMPTS, max_new_tokens=10, progress=False).tokens
    ends = frozenset({tokens[0][2], tokens[1][5], tokens[3][0]})
    with pytest.MonkeyPatch.context() as patch:
        for module in (generation, requests):
            patch.setattr(module, "end_tokens", lambda model: ends)
        yield


@pytest.fixture(scope="module")
def alone(model, plans, rows_end_early):
    """What `generate` replies to a prompt that has the model for itself."""
    known = {}

    def replies(prompt, plan, sampling, n, length):
        key = (prompt, plan, sampling, n, length)
        if key not in known:
            known[key] = sl.generate(
                model,
                [prompt] * n,
                list(plans[plan]),
                sampling=SAMPLINGS[sampling],
                max_new_tokens=length,
                progress=False,
            )
        return known[key]

    return replies


def asked(model, prompt, steerings=(), **fields):
    [row] = tokenize(model, [prompt])
    return Request(row, tuple(steerings), **fields)


def finished(engine, *asks):
    """What each request's listener got, once all have ended."""
    seen = [[] for _ in asks]
    for request, events in zip(asks, seen, strict=True):
        engine.submit(request, events.append)
    while engine.step():
        pass
    return seen


def text_of(events, choice=0):
    return "".join(one.text for one in events if isinstance(one, Piece) and one.choice == choice)


def assert_same(found, expected):
    assert found.tokens == expected.tokens
    assert list(found) == list(expected)
    assert found.finished == expected.finished
    for one, other in zip(found.gates, expected.gates, strict=True):
        assert torch.equal(one.open, other.open)
        torch.testing.assert_close(one.similarity, other.similarity, atol=1e-3, rtol=1e-4)
    for one, other in zip(found.token_gates, expected.token_gates, strict=True):
        for line, line_alone in zip(one.timelines, other.timelines, strict=True):
            assert line.tokens == line_alone.tokens
            assert torch.equal(line.open, line_alone.open)
            seen = (line.similarity, line_alone.similarity)
            torch.testing.assert_close(*seen, atol=1e-3, rtol=1e-4, equal_nan=True)


# The law


def some_request(chance, plans):
    """A prompt, and the numbers of a plan and a sampling; how many replies of what length."""
    return (
        chance.choice(PROMPTS[:3]), chance.randrange(len(plans)), chance.randrange(len(SAMPLINGS)),
        chance.choice([1, 1, 3]), chance.choice([2, LONGEST]),
    )  # fmt: skip


def interleaved(model, plans, chance):
    """Requests that come, go and are cancelled at random: each with its events and ticket."""
    engine = Engine(model, Limits(rows=chance.randint(3, 9), queue=100))
    jobs, most_rows = [], 0
    while len(jobs) < 6 or engine.load != (0, 0):
        if len(jobs) < 6 and chance.random() < 0.6:
            what = prompt, plan, sampling, n, length = some_request(chance, plans)
            fields = {"sampling": SAMPLINGS[sampling], "n": n, "max_new_tokens": length}
            request, events = asked(model, prompt, plans[plan], **fields), []
            jobs.append((what, events, engine.submit(request, events.append)))
        if jobs and chance.random() < 0.05:
            chance.choice(jobs)[2].cancel()
        engine.step()
        most_rows = max(most_rows, engine.load.running_rows)
    return jobs, most_rows


@pytest.mark.parametrize(
    "times", [12, pytest.param(400, marks=pytest.mark.slow)], ids="{} times".format
)
def test_rows_that_come_and_go_at_random_are_as_they_are_alone(model, plans, alone, times):
    chance = random.Random(times)
    compared, cancelled, rows = 0, 0, []
    for _ in range(times):
        jobs, most_rows = interleaved(model, plans, chance)
        rows.append(most_rows)
        for what, events, ticket in jobs:
            if not events or not isinstance(events[-1], Replies):
                assert ticket.cancelled
                cancelled += 1
                continue
            assert_same(events[-1], alone(*what))
            assert [text_of(events, row) for row in range(what[3])] == list(events[-1])
            compared += 1
    assert compared > 3 * times
    assert cancelled
    assert max(rows) > 5
    assert_no_hooks_left(model)


def test_a_joined_cache_grows_beyond_its_room(model, plans, monkeypatch):
    from steerlens.serving import batch

    monkeypatch.setattr(batch, "ROOM", 3)
    found = finished(
        Engine(model), *(asked(model, p, plans[1], max_new_tokens=11) for p in PROMPTS)
    )
    alone = sl.generate(model, PROMPTS, list(plans[1]), max_new_tokens=11, progress=False)
    assert [events[-1].tokens[0] for events in found] == list(alone.tokens)


def test_it_is_so_without_fast_passes(model, plans):
    from steerlens.models.fast_forward import disabled

    with disabled():
        asks = [asked(model, p, plans[11], max_new_tokens=5 + i) for i, p in enumerate(PROMPTS)]
        found = finished(Engine(model), *asks)
    for i, (prompt, events) in enumerate(zip(PROMPTS, found, strict=True)):
        alone = sl.generate(model, [prompt], plans[11][0], max_new_tokens=5 + i, progress=False)
        assert_same(events[-1], alone)


# What a step does


def test_requests_share_forward_passes(model, plans):
    engine = Engine(model)
    finished(
        engine, *(asked(model, p, plan, max_new_tokens=6) for p in PROMPTS for plan in plans[:4])
    )
    assert engine.counts.generated_tokens > 3 * engine.counts.steps
    assert engine.counts.finished == engine.counts.requests == 24


def test_cancelling_frees_the_row_before_the_next_step(model):
    engine = Engine(model, Limits(rows=1))
    first, second = [], []
    ticket = engine.submit(asked(model, "Hi.", max_new_tokens=50), first.append)
    engine.submit(asked(model, "Why?", max_new_tokens=2), second.append)
    engine.step()
    assert engine.load == (1, 1)
    heard = len(first)
    ticket.cancel()
    engine.step()
    assert len(first) == heard
    assert isinstance(second[-1], Replies)
    assert engine.counts.cancelled == 1


def test_one_requests_failure_is_its_own(model, vector_that_fails):
    alone = sl.generate(model, ["Why?"], max_new_tokens=6, progress=False)
    at_prompt, later = vector_that_fails(0), vector_that_fails(3)
    good, bad, worse = finished(
        Engine(model),
        asked(model, "Why?", max_new_tokens=6),
        asked(model, "Hi.", [at_prompt], max_new_tokens=6),
        asked(model, "Hi.", [later], max_new_tokens=6),
    )
    assert_same(good[-1], alone)
    assert isinstance(bad[-1], ZeroDivisionError)
    assert isinstance(worse[-1], ZeroDivisionError)
    assert len(worse) == 4
    assert_no_hooks_left(model)


@pytest.fixture
def vector_that_fails(model):
    def make(after):
        calls = []

        def fails(resid, direction, strength):
            calls.append(1)
            return resid + direction / (len(calls) <= after or 1 / 0)

        return sl.Steering(random_vector(model), [2], edit=fails)

    return make


def test_too_strong_a_steering_is_told_and_hurts_nobody(model):
    def endless(resid, direction, strength):
        return resid + torch.inf

    good, bad = finished(
        Engine(model),
        asked(model, "Why?", max_new_tokens=6),
        asked(model, "Hi.", [sl.Steering(random_vector(model), [2], edit=endless)]),
    )
    assert isinstance(good[-1], Replies)
    assert "not finite" in str(bad[-1])


def test_the_queue_is_bounded_and_takes_all_or_none(model):
    engine = Engine(model, Limits(rows=2, queue=2))
    asks = [asked(model, "Hi.", max_new_tokens=2)] * 3
    with pytest.raises(sl.SteerlensError, match="3 prompts"):
        engine.submit_all(asks, lambda *_: None)
    assert engine.load == (0, 0)
    engine.submit(asks[0], lambda _: None)
    with pytest.raises(BusyError, match="at most 2"):
        engine.submit_all(asks[:2], lambda *_: None)
    assert engine.load == (0, 1)
    with pytest.raises(sl.SteerlensError, match="at most 2"):
        engine.submit(asked(model, "Hi.", n=3), lambda _: None)


def test_what_cannot_be_replied_to_is_refused_at_once(model):
    engine = Engine(model)
    nothing = sl.Steering(random_vector(model), positions=[99])
    late = splitting_condition(model, layer=3)
    apart = [
        sl.Steering(random_vector(model), [1]),
        sl.Steering(random_vector(model), [3], when=late),
    ]
    for request, message in [
        (asked(model, "Hi.", max_new_tokens=1000), "context"),
        (asked(model, "Hi.", [nothing]), "touch no token"),
        (asked(model, "Hi.", apart), "must be read before"),
    ]:
        with pytest.raises(sl.SteerlensError, match=message):
            engine.submit(request, lambda _: None)
    assert engine.load == (0, 0)


# Stop strings and probabilities


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_reply_ends_before_its_first_stop_string(tiny_chat, length):
    [whole] = sl.generate(tiny_chat, ["How do I bake bread?"], max_new_tokens=20, progress=False)
    for start in range(1, len(whole) - length, 16):
        stop = whole[start : start + length]
        request = asked(tiny_chat, "How do I bake bread?", max_new_tokens=20, stop=("€", stop))
        [events] = finished(Engine(tiny_chat), request)
        assert events[-1][0] == whole[: whole.find(stop)] == text_of(events)
        assert events[-2].finish == "stop"
    [events] = finished(
        Engine(tiny_chat), asked(tiny_chat, "How do I bake bread?", max_new_tokens=20, stop=("€",))
    )
    assert text_of(events) == whole
    assert events[-2].finish == "length"


def test_probabilities_are_the_steered_models(model, plans):
    [events] = finished(
        Engine(model), asked(model, "Why?", plans[1], max_new_tokens=3, top_logprobs=2)
    )
    scores = [one.score for one in events[:-1] if one.score is not None]
    tokens = events[-1].tokens[0]
    assert [score.token for score in scores] == list(tokens)
    [row] = tokenize(model, ["Why?"])
    text = torch.tensor([[*row.ids, *tokens]])
    with torch.no_grad(), model.hooks(fwd_hooks=plans[1][0].hooks()):
        logprobs = model(text)[0, len(row.ids) - 1 :].log_softmax(dim=1)
    for place, score in enumerate(scores):
        assert score.logprob == pytest.approx(logprobs[place, score.token].item(), abs=1e-4)
        assert [token for token, _ in score.likeliest] == logprobs[place].topk(2).indices.tolist()


# The thread


def test_the_engine_stops_its_thread_and_leaves_the_model_as_it_was(model, plans):
    engine = Engine(model)
    engine.start()
    events, late = [], []
    engine.submit(asked(model, "Hi.", plans[1], max_new_tokens=4), events.append)
    engine.submit(asked(model, "Why?", plans[2], max_new_tokens=100), late.append)
    assert waited(lambda: events and isinstance(events[-1], Replies))
    closing = Thread(target=engine.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    assert engine.load == (0, 0)
    assert isinstance(late[-1], Replies | ClosedError)
    with pytest.raises(ClosedError):
        engine.submit(asked(model, "Hi."), events.append)
    assert_no_hooks_left(model)


def test_what_nobody_expects_is_told_and_the_thread_lives(model, monkeypatch):
    engine = Engine(model)
    engine.start()
    events, later = [], []
    with monkeypatch.context() as broken:
        broken.setattr(requests.RequestRows, "replies", lambda rows: 1 / 0)
        engine.submit(asked(model, "Hi.", max_new_tokens=2), events.append)
        assert waited(lambda: events and isinstance(events[-1], ZeroDivisionError))
    engine.submit(asked(model, "Hi.", max_new_tokens=2), later.append)
    engine.close(patience=60)
    assert isinstance(later[-1], Replies)


def test_patience_lets_replies_end(model):
    engine = Engine(model)
    engine.start()
    events = []
    engine.submit(asked(model, "Hi.", max_new_tokens=30), events.append)
    engine.close(patience=60)
    assert isinstance(events[-1], Replies)


def test_others_may_use_the_model_meanwhile(model, plans):
    expected = sl.generate(model, PROMPTS, list(plans[9]), max_new_tokens=5, progress=False)
    engine = Engine(model)
    engine.start()
    events = []
    for _ in range(5):
        engine.submit(asked(model, "Why?", plans[2], max_new_tokens=20), events.append)
        found = sl.generate(model, PROMPTS, list(plans[9]), max_new_tokens=5, progress=False)
        assert found.tokens == expected.tokens
    engine.close(patience=60)
    assert sum(isinstance(event, Replies) for event in events) == 5
