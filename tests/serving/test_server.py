"""The server as OpenAI's own client sees it; what it replies is what `generate` does."""

import asyncio
import http.client
import json
import socket
from contextlib import ExitStack, closing
from threading import Thread

import httpx
import openai
import pytest
from helpers import PROMPTS, assert_no_hooks_left, random_vector, splitting_condition, waited
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import client_of

import steerlens as sl
from steerlens.serving.engine import Limits
from steerlens.serving.plans import Plan
from steerlens.serving.running import bound, in_background, make_service, token_for

HI = [{"role": "user", "content": "Hi."}]


@pytest.fixture(scope="module")
def plans(model):
    vector, condition = random_vector(model), splitting_condition(model)
    gated = sl.Steering(vector, [2, 3], when=condition)
    tokenwise = sl.Steering(vector, [3], when_token=condition)
    return {"push": (sl.Steering(vector, [2]),), "gated": (gated,), "words": (tokenwise,)}


@pytest.fixture(scope="module")
def service(model, plans):
    named = [Plan(name, steerings, f"{name}.safetensors") for name, steerings in plans.items()]
    return make_service(model, named, name="tiny", longest=100)


@pytest.fixture(scope="module")
def address(service):
    with in_background(service) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with client_of(address) as client:
        yield client


def chat(client, prompt="Hi.", **options):
    options = {"model": "tiny", "temperature": 0, "max_tokens": 8} | options
    return client.chat.completions.create(messages=[{"role": "user", "content": prompt}], **options)


def replied(model, prompts, steerings=(), length=8, **options):
    return sl.generate(
        model, prompts, list(steerings), max_new_tokens=length, progress=False, **options
    )


def texts(reply):
    return [choice.message.content for choice in reply.choices]


# Replies


def test_a_chat_is_what_generate_replies(client, model, plans):
    for plan in [(), *plans.values()]:
        for prompt in PROMPTS[:3]:
            name = next((f"tiny+{key}" for key in plans if plans[key] is plan), "tiny")
            assert texts(chat(client, prompt, model=name)) == list(replied(model, [prompt], plan))


@pytest.mark.parametrize("by_name", [True, False])
def test_a_request_chooses_its_strength(client, model, plans, by_name):
    [push] = plans["push"]
    stronger = sl.Steering(push.vector, [2], -3.5)
    asked = (
        {"model": "tiny+push@-3.5"}
        if by_name
        else {"extra_body": {"steering": {"plan": "push", "strength": -3.5}}}
    )
    reply = chat(client, **asked)
    assert texts(reply) == list(replied(model, ["Hi."], [stronger]))
    assert texts(reply) != texts(chat(client, model="tiny+push"))
    assert reply.steering["plans"] == [{"plan": "push", "strength": -3.5}]


def test_several_plans_act_together(client, model, plans):
    asked = [{"plan": "words"}, {"plan": "push", "strength": 2}]
    both = [*plans["words"], sl.Steering(plans["push"][0].vector, [2], 2)]
    with pytest.raises(openai.BadRequestError, match="in the model's name and in"):
        chat(client, model="tiny+push", extra_body={"steering": asked})
    expected = list(replied(model, ["Hi."], both))
    assert texts(chat(client, extra_body={"steering": asked})) == expected
    assert texts(chat(client, model="tiny+words+push@2")) == expected


def test_seeded_replies_are_generates_and_others_tell_their_seed(client, model, plans):
    warm = {"temperature": 1.2, "top_p": 0.9, "n": 3, "model": "tiny+gated"}
    sampling = sl.Sampling(1.2, top_p=0.9, seed=7)
    expected = list(replied(model, ["Hi."] * 3, plans["gated"], sampling=sampling))
    assert len(set(expected)) > 1
    assert texts(chat(client, seed=7, **warm)) == expected
    first, second = chat(client, **warm), chat(client, **warm)
    assert texts(first) != texts(second)
    assert texts(chat(client, seed=first.steering["seed"], **warm)) == texts(first)


def test_completions_take_texts_and_tokens(client, model, plans):
    options = {"model": "tiny+push", "temperature": 0, "max_tokens": 5}
    expected = replied(model, ["The sea", "A tree"], plans["push"], length=5, chat=False)
    reply = client.completions.create(prompt=["The sea", "A tree"], **options)
    assert [choice.text for choice in reply.choices] == list(expected)
    assert [choice.index for choice in reply.choices] == [0, 1]
    ids = [list(row.ids) for row in sl.models.tokenizing.tokenize(model, ["The sea"], chat=False)]
    for prompt in ("The sea", ids, ids[0]):
        [choice] = client.completions.create(prompt=prompt, **options).choices
        assert choice.text == expected[0]
    written = sum(map(len, expected.tokens))
    assert reply.usage.completion_tokens == written
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + written


def test_a_stream_is_the_reply_in_pieces(client):
    options = {"model": "tiny+words", "n": 2, "temperature": 1.0, "seed": 4, "logprobs": True}
    whole = chat(client, **options)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, **options))
    for index, choice in enumerate(whole.choices):
        parts = [one for chunk in chunks for one in chunk.choices if one.index == index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == ["length"]
        scores = [one for part in parts if part.logprobs for one in part.logprobs.content]
        assert scores == choice.logprobs.content
    assert len(chunks) > 8
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].steering == whole.steering
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.choices for chunk in chat(client, stream=True))


def test_a_completion_streams_too(client):
    options = {"model": "tiny", "prompt": "The sea", "temperature": 0, "max_tokens": 6}
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(stream=True, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_a_stop_string_ends_a_reply(client):
    [whole] = texts(chat(client))
    stop = whole[5:8]
    reply = chat(client, stop=["€€", stop])
    assert texts(reply) == [whole[: whole.find(stop)]]
    assert reply.choices[0].finish_reason == "stop"
    parts = chat(client, stop=stop, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == texts(reply)[0]


def test_probabilities_are_told(client):
    content = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(content) == 8
    for one in content:
        assert (
            one.logprob
            == one.top_logprobs[0].logprob
            == max(likely.logprob for likely in one.top_logprobs)
        )
        assert bytes(one.bytes).decode() == one.token
    scores = (
        client.completions.create(
            model="tiny", prompt="The sea", max_tokens=3, temperature=0, logprobs=2
        )
        .choices[0]
        .logprobs
    )
    assert scores.text_offset[1] == len(scores.tokens[0])
    assert [max(likely.values()) for likely in scores.top_logprobs] == scores.token_logprobs
    assert chat(client).choices[0].logprobs is None


def test_replies_say_what_gates_saw(client, model, plans):
    for prompt in PROMPTS[:4]:
        [gate] = replied(model, [prompt], plans["gated"]).gates
        [seen] = chat(client, prompt, model="tiny+gated").steering["choices"]
        assert seen["gates"][0]["fired"] == bool(gate.open)
        assert seen["gates"][0]["similarity"] == pytest.approx(gate.similarity[0].tolist())
        assert seen["gates"][0]["threshold"] == gate.condition.threshold
    [gate] = replied(model, ["Hi."], plans["words"]).token_gates
    [line] = gate.timelines
    [seen] = chat(client, model="tiny+words").steering["choices"][0]["token_gates"]
    assert seen["tokens"] == list(line.tokens)
    assert seen["fired"] == line.open.tolist()
    assert seen["prompt_tokens"] == line.n_prompt
    assert seen["similarity"][0] == [None]


def test_what_a_prompt_makes_one_wonder_is_told(client):
    reply = client.completions.create(model="tiny", prompt="<s><s>Hi.", max_tokens=1)
    assert "two of the BOS" in reply.steering["warnings"][0]


# Many at once


def test_32_clients_with_32_plans_get_what_each_gets_alone(client, address, model, plans):
    vector = plans["push"][0].vector
    jobs = [(PROMPTS[i % 6], ("push", "gated", "words")[i % 3], 0.25 * i - 4) for i in range(32)]

    async def all_at_once():
        async with client_of(address, openai.AsyncOpenAI) as many:
            return await asyncio.gather(
                *(chat(many, prompt, model=f"tiny+{plan}@{dose}") for prompt, plan, dose in jobs)
            )

    found = asyncio.run(all_at_once())
    changed = set()
    for (prompt, plan, dose), reply in zip(jobs, found, strict=True):
        [one] = plans[plan]
        alone = sl.Steering(vector, one.layers, dose, when=one.when, when_token=one.when_token)
        assert texts(reply) == list(replied(model, [prompt], [alone]))
        changed.update(texts(reply))
    assert len(changed) > 16


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_rows(service, address, stream):
    before = service.engine.counts.cancelled
    body = {"model": "tiny+push", "messages": HI, "max_tokens": 100, "n": 8, "stream": stream}
    with closing(socket.create_connection(address.removeprefix("http://").split(":"))) as wire:
        content = json.dumps(body).encode()
        head = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost")
        wire.sendall("\r\n".join([*head, f"Content-Length: {len(content)}", "", ""]).encode())
        wire.sendall(content)
        assert waited(lambda: service.engine.load.running_rows)
    assert waited(lambda: service.engine.load == (0, 0))
    assert service.engine.counts.cancelled == before + 1


def test_a_full_queue_is_told(model):
    service = make_service(model, name="tiny", limits=Limits(rows=1, queue=1), longest=100)
    with in_background(service) as address, client_of(address) as client:
        streams = []
        for waiting in range(2):
            streams.append(chat(client, max_tokens=100, stream=True))
            assert waited(lambda n=waiting: service.engine.load == (1, n))
        with pytest.raises(openai.RateLimitError) as error:
            chat(client)
        assert error.value.response.headers["retry-after"] == "1"
        assert error.value.code == "queue_full"
        for stream in streams:
            stream.close()
        assert waited(lambda: service.engine.load == (0, 0))
        assert texts(chat(client))


# Errors


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"model": "gpt-9"}, 404, "expected 'tiny'"),
        ({"model": "tiny+refuse"}, 404, "expected one of those loaded: 'push'"),
        ({"model": "tiny+push@x"}, 400, "PLAN@STRENGTH"),
        ({"model": "tiny+push@inf"}, 400, "finite"),
        ({"max_tokens": 101}, 400, "at most 100"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "word " * 100, "max_tokens": 100}, 400, "context"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "warm"}, 400, "temperature"),
        ({"temperature": 1e-9}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"seed": 2**60}, 400, "seed"),
        ({"n": 17}, 400, "n: got 17"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
        ({"tools": []}, 400, "unknown key 'tools'"),
        ({"extra_body": {"steering": {"plan": "push", "dose": 1}}}, 400, "dose"),
        ({"extra_body": {"steering": "push"}}, 400, "steering"),
    ],
    ids=str,
)
def test_errors_are_openais(client, options, status, message):
    with pytest.raises(openai.APIStatusError, match=message) as error:
        chat(client, **options)
    assert error.value.status_code == status
    assert error.value.type == "invalid_request_error"


def test_other_addresses_are_refused_in_the_same_form(address):
    for method, path, status in [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/gpt-9", 404),
    ]:
        answer = httpx.request(method, address + path)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"
    large = httpx.post(f"{address}/v1/completions", content=b" " * (2**20 + 1))
    assert large.status_code == 413


def test_a_plan_that_fails_is_told_in_the_stream_too(model):
    def fails(resid, direction, strength):
        return resid * torch_nan

    torch_nan = float("nan")
    plan = Plan("bad", (sl.Steering(random_vector(model), [2], edit=fails),), "bad.safetensors")
    service = make_service(model, [plan], name="tiny", longest=100)
    with in_background(service) as address, client_of(address) as client:
        with pytest.raises(openai.BadRequestError, match="returned NaN"):
            chat(client, model="tiny+bad")
        with pytest.raises(openai.APIError, match="returned NaN"):
            list(chat(client, model="tiny+bad", stream=True))
        assert texts(chat(client))
        assert service.engine.counts.failed == 2
    assert_no_hooks_left(model)


VALID = {"model": "tiny", "messages": HI, "max_tokens": 1, "temperature": 0.0, "steering": None}
anything = st.text(st.characters(), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | anything,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)
"""NaN, lone surrogates and numbers beyond 64 bits included."""
bodies = (
    st.binary(max_size=60)
    | json_values.map(json.dumps).map(str.encode)
    | st.tuples(
        st.sampled_from(
            [*VALID, "n", "stop", "seed", "top_p", "logprobs", "stream", "prompt", "x"]
        ),
        json_values,
    ).map(lambda change: json.dumps(VALID | dict([change])).encode())
    | st.integers(50, 5000).map(lambda depth: b'{"model":' + b"[" * depth)
)


@given(bodies, st.sampled_from(["chat/completions", "completions", "steering"]))
@settings(max_examples=200, deadline=None)
def test_hostile_bodies_are_refused_and_hurt_nothing(address, wire, body, path):
    wire.request("POST", f"/v1/{path}", body)
    answer = wire.getresponse()
    content = answer.read()
    assert answer.status == 200 or 400 <= answer.status < 500, content
    if answer.status != 200:
        assert json.loads(content)["error"]["message"]


@pytest.fixture(scope="module")
def wire(address):
    with closing(http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)) as wire:
        yield wire


def test_after_all_of_it_the_server_lives(address, client, service):
    health = httpx.get(f"{address}/health").json()
    assert health == {"status": "ok", "running_rows": 0, "waiting_requests": 0}
    told = httpx.get(f"{address}/metrics").text
    counts = dict(line.split() for line in told.splitlines() if not line.startswith("#"))
    done = {name: int(counts[f"steerlens_requests_{name}_total"]) for name in
            ("finished", "failed", "cancelled")}  # fmt: skip
    assert int(counts["steerlens_requests_total"]) == sum(done.values())
    assert done["finished"] == service.engine.counts.finished
    assert int(counts['steerlens_http_answers_total{status="200"}']) > 20
    assert texts(chat(client))


# Plans


def test_plans_are_listed_as_models_and_in_words(client, address, plans):
    names = [model.id for model in client.models.list()]
    assert names == ["tiny", *(f"tiny+{plan}" for plan in plans)]
    assert client.models.retrieve("tiny+push").owned_by == "steerlens"
    listed = httpx.get(f"{address}/v1/steering").json()["data"]
    assert [one["name"] for one in listed] == list(plans)
    assert listed[0]["steerings"] == [repr(plans["push"][0])]


def test_clients_load_plans_only_from_the_allowed_directory(model, tmp_path, address):
    refused = httpx.post(f"{address}/v1/steering", json={"path": "v.safetensors"})
    assert (refused.status_code, httpx.delete(f"{address}/v1/steering/push").status_code) == (
        403,
        403,
    )
    inside, outside = tmp_path / "in", tmp_path / "out.safetensors"
    inside.mkdir()
    vector = random_vector(model)
    vector.save(inside / "sea.safetensors")
    vector.save(outside)
    (inside / "link.safetensors").symlink_to(outside)
    service = make_service(model, name="tiny", folder=inside)
    with in_background(service) as address, client_of(address) as client:
        url = f"{address}/v1/steering"
        for path, status in [
            (str(outside), 403),
            ("../out.safetensors", 403),
            ("link.safetensors", 403),
            ("none.safetensors", 400),
            ("a\0b", 400),
            ("x" * 5000, 400),
        ]:
            assert httpx.post(url, json={"path": path}).status_code == status, path
        asked = {"path": "sea.safetensors", "layers": [2], "strength": 2.0}
        assert httpx.post(url, json=asked).status_code == 201
        assert "a second plan" in httpx.post(url, json=asked).json()["error"]["message"]
        expected = replied(model, ["Hi."], [sl.Steering(vector, [2], 2.0)])
        assert texts(chat(client, model="tiny+sea")) == list(expected)
        assert httpx.delete(f"{url}/sea").json() == {"name": "sea", "deleted": True}
        assert httpx.delete(f"{url}/sea").status_code == 404
        with pytest.raises(openai.NotFoundError):
            chat(client, model="tiny+sea")


def test_plans_of_other_models_and_unclear_names_are_refused(model, other_model, tmp_path):
    foreign = sl.Steering(random_vector(other_model))
    with pytest.raises(sl.SteerlensError, match="another model"):
        make_service(model, [Plan("foreign", (foreign,), "f")], name="tiny")
    with pytest.raises(sl.SteerlensError, match="--name"):
        make_service(model, name="a+b")
    from steerlens.serving.plans import read_plan

    random_vector(model).save(tmp_path / "a+b.safetensors")
    with pytest.raises(sl.SteerlensError, match="name of a plan"):
        read_plan(tmp_path / "a+b.safetensors")


# Who is served


def test_foreign_names_and_pages_are_refused(address):
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Host": "[::"}):
        answer = httpx.get(f"{address}/v1/models", headers=headers)
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"
    assert httpx.get(f"{address}/v1/models", headers={"Origin": address}).status_code == 200


def test_a_token_is_asked_for(model):
    service = make_service(model, name="tiny", token="a long secret")
    with in_background(service) as address:
        with client_of(address, token="a long secret") as client:
            assert texts(chat(client))
        wrong = pytest.raises(openai.AuthenticationError, match="no valid token")
        with client_of(address, token="another one") as client, wrong:
            chat(client)
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/health", headers={"Host": "elsewhere"}).status_code == 200


def test_beyond_this_machine_there_is_always_a_token():
    assert len(token_for("0.0.0.0", None)) > 20
    assert token_for("localhost", None) is None
    with pytest.raises(sl.SteerlensError, match="8 characters"):
        token_for("0.0.0.0", "short")
    with bound("127.0.0.1", 0) as taken, pytest.raises(sl.SteerlensError, match="--port"):
        bound("127.0.0.1", taken.getsockname()[1])


# The end


@pytest.mark.parametrize(("patience", "whole"), [(30, True), (0, False)])
def test_the_end_lets_replies_end_or_frees_their_rows(model, patience, whole):
    vector = random_vector(model)
    plan = Plan("push", (sl.Steering(vector, [2]),), "push.safetensors")
    service = make_service(model, [plan], name="tiny", longest=100)
    expected = replied(model, ["Hi."], plan.steerings, length=100)[0]
    server = ExitStack()
    address = server.enter_context(in_background(service, patience=patience))
    with client_of(address) as client:
        stream = chat(client, model="tiny+push", max_tokens=100, stream=True)
        next(iter(stream))
        ending = Thread(target=server.close)
        ending.start()
        try:
            text = "".join(part.choices[0].delta.content or "" for part in stream)
        except (httpx.HTTPError, openai.APIError):
            text = ""
        ending.join(60)
        assert not ending.is_alive()
        assert (text == expected) is whole
    assert service.engine.load == (0, 0)
    assert_no_hooks_left(model)
