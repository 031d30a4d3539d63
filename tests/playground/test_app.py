"""The playground without a browser: settings, code, readings, queue, access, uploads."""

import base64
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import httpx
import pytest
import torch
from helpers import assert_no_hooks_left, random_vector
from rich.console import Console
from typer.testing import CliRunner

import steerlens as sl
from steerlens.access import is_loopback
from steerlens.activations.reading import read_residual
from steerlens.playground import access, library, request
from steerlens.playground import app as playground
from steerlens.playground.jobs import Job, JobQueue, State, Tabs
from steerlens.playground.library import Cut, Entry, Lists, Recipe, Shelf
from steerlens.playground.request import Push, Trial, run
from steerlens.playground.script import python
from steerlens.playground.token_view import cosines_by_layer, read_prompt
from steerlens.playground.vector_files import (
    LARGEST_UPLOAD,
    entries_of_plan,
    entry_of_search,
    uploaded,
)
from steerlens.steering.rules import parse_rules

PROMPT = "How do I bake bread?"
PUSH = Push("push", (2, 3), 6.0)
TRIAL = Trial((PUSH,), PROMPT, max_new_tokens=12)


def pushed(**changes):
    return (replace(PUSH, **changes),)


@pytest.fixture(autouse=True)
def kept_here(tmp_path, monkeypatch):
    """What is made is kept in a directory of the test's own."""
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tiny_chat, tmp_path_factory):
    """Two vector files to upload."""
    folder = tmp_path_factory.mktemp("files")
    random_vector(tiny_chat, 0).save(folder / "push.safetensors")
    random_vector(tiny_chat, 7).save(folder / "topic.safetensors")
    return folder


@pytest.fixture(scope="module")
def vectors(tiny_chat, folder):
    found = {}
    for name in ("push", "topic"):
        content = (folder / f"{name}.safetensors").read_bytes()
        entry, warning = uploaded(tiny_chat, f"{name}.safetensors", content, found)
        assert not warning
        found[entry.name] = entry
    return found


@pytest.fixture(scope="module")
def shelf(tiny_chat, vectors):
    return Shelf(tiny_chat, entries=vectors.values())


def seen(model, vectors, layer=1):
    return read_prompt(model, PROMPT, vectors).by_vector["topic"].cosine(layer)


# settings


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": "a" * 2001}, "at most 2000"),
        ({"rule": "a" * 1001}, "at most 1000"),
        ({"max_new_tokens": 201}, "1 to 200"),
        ({"max_new_tokens": 0}, "1 to 200"),
        ({"pushes": pushed(strength=51.0)}, "at most ±50"),
        ({"pushes": pushed(strength=float("nan"))}, "at most ±50"),
        ({"pushes": pushed(vector="gone")}, "upload it again"),
        ({"pushes": pushed(layers=(7, 9))}, "layers 7 to 9, none of which"),
        ({"rule": "if topic than steer"}, "if CONDITION then STEERING"),
        ({"rule": "if other then steer"}, "unknown condition 'other'"),
        ({"rule": "if topic then refuse"}, "'then steer'"),
        ({"rule": "if topic then topic"}, "steered are push; choose 'topic' as a vector too"),
        ({"pushes": ()}, "choose 1 to 4"),
        ({"pushes": (PUSH, PUSH)}, "choose 1 to 4 different"),
        ({"edit": "add"}, "as edit; expected one of add_direction"),
        ({"positions": "none"}, "as positions; expected one of all"),
        ({"edit": "ablate_direction", "pushes": pushed(strength=None)}, "only additions"),
        ({"rule": "if topic then steer", "cuts": {"topic": Cut(4, 0.0)}}, "earlier layer"),
        ({"rule": "if topic then steer", "cuts": {"topic": Cut(1, torch.inf)}}, "finite"),
    ],
)
def test_settings_out_of_bounds_are_refused_with_the_reason(vectors, changed, message):
    with pytest.raises(sl.SteerlensError, match=message):
        replace(TRIAL, **changed).with_rule(vectors)


def test_strength_is_relative_where_the_vector_knows_its_norms(vectors):
    known = replace(vectors["push"].vector, norms=torch.ones(6))
    entries = {"push": replace(vectors["push"], vector=known)}
    [near] = pushed(strength=1.5)
    assert TRIAL.steering(near, entries).relative
    assert not TRIAL.steering(PUSH, vectors).relative
    with pytest.raises(sl.SteerlensError, match=r"at most ±1\.5"):
        TRIAL.steering(PUSH, entries)


def test_a_link_holds_the_settings(vectors):
    from steerlens.playground.settings import from_link, link_to

    row = {"of": "push"}
    settings = {
        "vectors": [row], "layers": [[2, 3]], "strengths": [6], "auto": [[]],
        "rule": "if topic then push", "ids": [{"of": "topic"}], "at": [1], "above": [0.25],
        "prompt": PROMPT, "max_new_tokens": 12, "temperature": 0.7, "top_p": 0.9, "seed": 3,
        "edit": "clamp_direction", "positions": "prompt", "keep_norm": ["yes"], "ladder": [],
    }  # fmt: skip
    trial = from_link(link_to(settings))
    assert trial == replace(
        TRIAL, rule="if topic then push", cuts={"topic": Cut(1, 0.25)}, edit="clamp_direction",
        sampling=sl.Sampling(0.7, top_p=0.9, seed=3), positions="prompt", keep_norm=True,
    )  # fmt: skip
    for broken in ("#", "#x", "#" + "a" * 10**5, link_to([1]), link_to({"rule": ""})):
        with pytest.raises(sl.SteerlensError, match="got a link"):
            from_link(broken)


def test_replies_are_of_other_settings_once_anything_that_matters_differs(vectors):
    sent = replace(TRIAL, rule="if topic then push")
    same = [
        sent,
        replace(sent, pushes=pushed(strength=None)),  # what was found is what it will be
        replace(sent, cuts={"push": Cut(1, 0.5)}),  # no rule names this condition
        replace(sent, cuts={"topic": vectors["topic"].cut}),
    ]
    assert all(trial.same_as(sent, vectors) for trial in same)
    other = [
        replace(sent, pushes=pushed(layers=(2, 4))),
        replace(sent, cuts={"topic": Cut(1, 0.5)}),
        replace(sent, prompt="Hi."),
        replace(sent, ladder=True),
    ]
    assert not any(trial.same_as(sent, vectors) for trial in other)


# what is made when it is asked for


def nudge(model):
    return random_vector(model, 3)


NUDGE = Recipe("a nudge", nudge, ("moods.json",), range, library.ABSOLUTE)


@pytest.fixture
def counted(monkeypatch):
    """What is made and calibrated, in order."""
    done = []

    def calibrated(model, steering, **run):
        done.append(steering.name)
        return replace(steering, strength=4.29), "strength 4.29"

    def made(model, recipe, make=library.make_entry):
        done.append(recipe.name)
        return make(model, recipe)

    monkeypatch.setattr(library, "default_steering", calibrated)
    monkeypatch.setattr(library, "make_entry", made)
    return done


def new_trial(shelf):
    """A trial that needs everything made, and its stages."""
    trial = Trial((Push("nudge", (2, 3)),), PROMPT, max_new_tokens=2)
    outcomes = list(run(shelf, trial, {}))
    return outcomes[-1], [outcome.stage for outcome in outcomes if outcome.stage]


def test_vectors_and_strengths_are_made_when_sent_and_kept_for_the_next_start(tiny_chat, counted):
    shelf = Shelf(tiny_chat, [NUDGE])
    assert shelf.offers({})["nudge"].layers == tuple(range(6))
    assert counted == [], "nothing is made before it is asked for"
    first, stages = new_trial(shelf)
    assert counted == ["nudge", "nudge"]
    assert [stage.split()[0] for stage in stages] == ["Making", "Finding"]
    assert first.trial.pushes[0].strength == 4.2  # rounded down to the slider's step
    again, _ = new_trial(Shelf(tiny_chat, [NUDGE]))
    assert counted == ["nudge", "nudge"], "the second start finds both on the disk"
    assert list(again.replies) == list(first.replies)


@pytest.fixture(scope="module")
def lists():
    topics = sl.load_prompts(sl.demo_file("topics.json"))["train"]
    law, others = ("\n".join([*topics[name][:40], " "]) for name in ("legal", "base"))
    return Lists.of("My law", law, others, ["my_law"])


def test_a_condition_is_made_from_two_lists_when_a_rule_names_it(
    tiny_chat, vectors, lists, monkeypatch
):
    shelf, own = Shelf(tiny_chat, entries=vectors.values()), {}
    trial = replace(TRIAL, rule="if my_law_2 then push")
    with pytest.raises(sl.SteerlensError, match="unknown condition 'my_law_2'"):
        list(run(shelf, trial, own))
    *_, outcome = run(shelf, trial, own, {lists.name: lists})
    assert "my_law_2" not in shelf.made, "it is the tab's own"
    assert re.match(r"F1 0\.\d\d .* on 20 held-out prompts", own["my_law_2"].scored)
    assert own["my_law_2"].vector.directions.equal(
        eval(own["my_law_2"].code, {"sl": sl, "model": tiny_chat}).directions
    )
    [(gate, _, fired)] = outcome.gates
    assert gate.condition.name == "my_law_2"
    assert not fired
    asked = replace(trial, prompt=lists.positive[1])
    *_, outcome = run(shelf, asked, own, {lists.name: lists})
    assert outcome.gates[0][2]


@pytest.mark.parametrize(("yes", "no"), [("a\nb", "c\nd"), ("a\n" * 9, "b\n" * 8), ("", "")])
def test_lists_are_of_equal_and_sufficient_length(yes, no):
    with pytest.raises(sl.SteerlensError, match="expected as many of each, 8 to 500"):
        Lists.of("mine", yes, no, [])


def test_the_best_condition_of_a_search_file_is_offered(tiny_chat, lists, tmp_path, monkeypatch):
    sides = (list(lists.positive), list(lists.negative))
    vector = sl.extract(tiny_chat, sides, layers=range(3), progress=False)
    vector.save(tmp_path / "law.safetensors")
    search = sl.search_conditions(tiny_chat, vector, sides, progress=False)
    search.save(tmp_path / "law.json")
    entry = entry_of_search(tiny_chat, tmp_path / "law.json", tmp_path / "law.safetensors", [])
    push = Entry("push", random_vector(tiny_chat), "random_vector(model)", "")
    shelf = Shelf(tiny_chat, entries=[push, entry])
    trial = replace(TRIAL, rule="if law then push", prompt=lists.positive[0])
    *_, outcome = run(shelf, trial, {})
    assert outcome.gates[0][2]
    monkeypatch.setattr(sl, "load_model", {"tiny-chat": tiny_chat}.__getitem__)
    names = {"random_vector": random_vector}
    exec(python(trial, shelf.made, "tiny-chat"), names)
    assert names["reply"] == outcome.replies[1]


def test_a_plan_offers_its_vectors_conditions_and_rules(tiny_chat, tmp_path, monkeypatch):
    always = sl.Condition(random_vector(tiny_chat, 1), 0, above=-9.0, name="law")
    never = sl.Condition(random_vector(tiny_chat, 2), 0, above=9.0)
    plan = [
        sl.Steering(random_vector(tiny_chat, 3), [2], when=always & ~never, name="push"),
        sl.Steering(random_vector(tiny_chat, 4), [3], when=always),
    ]
    sl.save_plan(plan, tmp_path / "mine.steer")
    entries, rules = entries_of_plan(tiny_chat, tmp_path / "mine.steer", {"law", "mine"})
    assert [entry.name for entry in entries] == ["push", "mine_2", "law_2", "mine_condition"]
    assert rules == "if law_2 and not mine_condition then push\nif law_2 then mine_2"
    shelf = Shelf(tiny_chat, entries=entries)
    trial = replace(TRIAL, rule=rules.splitlines()[0])
    *_, outcome = run(shelf, trial, {})
    assert [fired for _, _, fired in outcome.gates] == [True, False]
    monkeypatch.setattr(sl, "load_model", {"tiny-chat": tiny_chat}.__getitem__)
    names = {}
    exec(python(trial, shelf.made, "tiny-chat"), names)
    assert names["reply"] == outcome.replies[1]


def test_a_plan_that_the_page_cannot_show_is_refused(tiny_chat, tmp_path):
    seen = sl.Condition(random_vector(tiny_chat, 1), 0, above=0.0)
    sl.Steering(random_vector(tiny_chat), [2], when_token=seen).save(tmp_path / "x.steer")
    with pytest.raises(sl.SteerlensError, match="part of which opens by degrees, by token"):
        entries_of_plan(tiny_chat, tmp_path / "x.steer", set())


@pytest.mark.parametrize("damage", ["vector", "record", "cut"])
def test_a_damaged_file_is_made_again(tiny_chat, counted, tmp_path, damage):
    first, _ = new_trial(Shelf(tiny_chat, [NUDGE]))
    [place] = (tmp_path / "cache").glob("*/nudge-*.json")
    if damage == "vector":
        random_vector(tiny_chat, 4).save(place.with_suffix(".safetensors"))
    elif damage == "record":
        place.write_text(place.read_text()[:-20])
    else:
        place.write_text(place.read_text().replace('"cut": null', '"cut": [1, 0.5]'))
    again, _ = new_trial(Shelf(tiny_chat, [NUDGE]))
    assert counted == ["nudge", "nudge", "nudge"]
    assert list(again.replies) == list(first.replies)


def test_other_data_are_another_vector(tiny_chat, counted):
    Shelf(tiny_chat, [NUDGE]).make("nudge")
    Shelf(tiny_chat, [NUDGE._replace(files=("topics.json",))]).make("nudge")
    assert counted == ["nudge", "nudge"]


def test_an_extraction_tells_how_far_it_is_and_can_be_stopped(tiny_chat, queue):
    def happy(model):
        moods = sl.ContrastiveDataset.load(sl.demo_file("moods.json")).train
        return sl.extract(model, moods, batch_tokens=40, tokens="all")

    inspected = Recipe("happy", happy, ("moods.json",), range)
    trial = Trial((Push("happy", (2, 3)),), PROMPT)
    shelf = Shelf(tiny_chat, [inspected._replace(make=happy)])
    job = Job(lambda: run(shelf, trial, {}))
    queue.submit(job)
    while not job.progress:
        assert not job.ended, job.error
    assert re.match(r"reading: [\d,]+ of [\d,]+ toks", job.progress)
    job.stop()
    wait_for(job)
    assert job.state is State.STOPPED
    assert shelf.made == {}
    from steerlens.playground.views import status

    assert status(job, 0) == "Stopped; nothing was kept."


def test_recipes_warn_of_nothing():
    for recipe in library.RECIPES:
        for part in ("train", "validation", "test"):
            if recipe.contrast is not None:
                assert recipe.contrast(part).lint() == [], (recipe.name, part)


# the run and its code


def test_both_replies_are_what_generate_gives(tiny_chat, shelf, vectors):
    *_, outcome = run(shelf, TRIAL, {})
    unsteered, steered = outcome.replies
    options = {"max_new_tokens": 12, "progress": False}
    assert [unsteered] == list(sl.generate(tiny_chat, [PROMPT], **options))
    assert [steered] == list(sl.generate(tiny_chat, [PROMPT], TRIAL.with_rule(vectors), **options))
    assert steered != unsteered


@pytest.mark.parametrize("side", [-1e-3, 1e-3])
def test_the_gate_of_the_run_is_what_the_page_said_before(tiny_chat, shelf, vectors, side):
    similarity = seen(tiny_chat, vectors)
    cut = Cut(1, similarity + side)
    trial = replace(TRIAL, rule="if topic then steer", cuts={"topic": cut})
    *_, outcome = run(shelf, trial, {})
    [(_, measured, fired)] = outcome.gates
    assert measured == pytest.approx(similarity, abs=1e-5)
    assert fired == (side < 0) == (outcome.replies[0] != outcome.replies[1])
    from steerlens.playground.views import gates, seen_by

    said = seen_by(outcome.reading, "topic", 1, cut.above)
    assert said.endswith(": fires" if fired else ": does not fire")
    [item] = gates(outcome)
    assert item.children.endswith(": fired" if fired else ": did not fire")


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("", {"sampling": sl.Sampling(0.8, top_p=0.9, seed=3)}),
        ("if topic then steer", {"edit": "ablate_then_add", "keep_norm": True}),
        ("if not topic then push", {"positions": "prompt"}),
        ("if topic then push where topic", {"positions": "generated[:8]"}),
        ("if topic then push", {"pushes": (PUSH, Push("topic", (3, 4), 5.0))}),
    ],
)
def test_the_code_of_the_page_gives_the_steered_reply(
    tiny_chat, shelf, vectors, folder, monkeypatch, rule, changes
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sl, "load_model", {"tiny-chat": tiny_chat}.__getitem__)
    cut = Cut(1, seen(tiny_chat, vectors) - 1e-3)
    trial = replace(TRIAL, rule=rule, cuts={"topic": cut}, prompt='"Hi" \\ there\nyou', **changes)
    *_, outcome = run(shelf, trial, {})
    names = {}
    exec(python(trial, vectors, "tiny-chat"), names)
    assert names["reply"] == outcome.replies[1]


def test_a_ladder_is_the_reply_at_each_strength(tiny_chat, shelf):
    from steerlens.playground.views import rungs

    *_, outcome = run(shelf, replace(TRIAL, ladder=True), {})
    assert len(outcome.replies) == 1 + len(request.LADDER)
    for share, reply in zip(request.LADDER, outcome.replies[1:], strict=True):
        alone = replace(TRIAL, pushes=pushed(strength=6.0 * share)).with_rule(shelf.made)
        options = {"max_new_tokens": 12, "progress": False}
        assert [reply] == list(sl.generate(tiny_chat, [PROMPT], alone, **options))
    rows = rungs(outcome).children[1].children.children
    assert [row.children[0].children for row in rows] == [
        f"push {6 * share:.3g}" for share in sorted(request.LADDER)
    ]
    marked = {row.children[1].children[0] for row in rows if row.className == "degenerate"}
    assert marked == {text for text in outcome.replies[1:] if sl.judges.degenerate(text)}
    assert marked


def test_a_run_that_is_closed_leaves_no_hook(tiny_chat, shelf):
    steps = run(shelf, TRIAL, {})
    next(steps), next(steps)
    assert_no_hooks_left(tiny_chat)  # nor does one stay between two tokens
    steps.close()
    assert_no_hooks_left(tiny_chat)


def test_a_rule_may_call_the_steering_by_its_vector(tiny_chat, shelf, vectors):
    cut = Cut(1, seen(tiny_chat, vectors) - 1e-3)
    trials = [
        replace(TRIAL, rule=f"if topic then {name}", cuts={"topic": cut})
        for name in ("steer", "push")
    ]
    replies = [[*run(shelf, trial, {})][-1].replies.texts for trial in trials]
    assert replies[0] == replies[1]
    assert replies[0][0] != replies[0][1]


# the reading and its figures


def test_a_reading_is_the_residual_stream_along_each_vector(tiny_chat, vectors):
    reading = read_prompt(tiny_chat, PROMPT, vectors)
    last, mean = (
        read_residual(tiny_chat, [PROMPT], [3], tokens=tokens, sinks=True, progress=False)[0, 0]
        for tokens in ("last", "all")
    )
    direction = vectors["push"].vector[3]
    along = reading.by_vector["push"]
    assert along.cosine(3) == pytest.approx(
        torch.cosine_similarity(last, direction, dim=0).item(), abs=1e-5
    )
    assert along.projections[:, 3].mean().item() == pytest.approx(
        (mean @ direction / direction.norm()).item(), rel=1e-3
    )
    assert "".join(reading.tokens).startswith("<s><|user|>How do I bake bread?")
    assert len(reading.tokens) == len(along.projections)


def test_a_reading_sees_a_vector_at_its_own_site(tiny_chat, vectors):
    pre = replace(vectors["push"], vector=replace(vectors["push"].vector, site="resid_pre"))
    along = read_prompt(tiny_chat, PROMPT, {"pre": pre, **vectors}).by_vector
    moved = vectors["push"].vector.directions.roll(-1, 0)
    post = replace(vectors["push"], vector=replace(vectors["push"].vector, directions=moved))
    shifted = read_prompt(tiny_chat, PROMPT, {"post": post}).by_vector["post"]
    assert torch.allclose(along["pre"].cosines[:, 1:], shifted.cosines[:, :-1], atol=1e-5)


def test_colours_and_figure_show_the_numbers_of_the_reading(tiny_chat, vectors):
    from steerlens.playground.views import coloured

    reading = read_prompt(tiny_chat, PROMPT, vectors)
    along = reading.by_vector["push"]
    shares = torch.tensor(reading.colours("push", 3))
    assert shares.abs().max() == 1
    assert (shares.sign() == along.projections[:, 3].sign()).all()
    spans = list(coloured(reading, "push", 3))
    assert [span.children for span in spans] == list(reading.tokens)
    orange = ["rgba(213,94,0" in span.style["backgroundColor"] for span in spans]
    assert orange == (shares > 0).tolist()
    last, mean = cosines_by_layer(reading, "push").data
    assert list(last.y) == along.cosines[-1].tolist()
    assert list(mean.y) == along.cosines.mean(0).tolist()


# queue and tabs


@pytest.fixture
def queue():
    queue = JobQueue()
    yield queue
    queue.close()


def wait_for(job):
    ended = threading.Event()
    for _ in range(1000):
        if job.ended:
            return
        ended.wait(0.01)
    raise AssertionError(f"still {job.state}")


def test_jobs_run_one_at_a_time_in_the_order_of_submission(queue):
    gate, done = threading.Event(), []

    def steps(number):
        gate.wait(10)
        done.append((number, "begins"))
        yield number
        done.append((number, "ends"))

    jobs = [Job(lambda number=number: steps(number)) for number in range(3)]
    for job in jobs:
        queue.submit(job)
    assert [queue.position(job) for job in jobs] == [0, 1, 2]
    jobs[1].stop()
    assert jobs[1].state is State.STOPPED, "what only waits need not wait for its end"
    assert queue.position(jobs[2]) == 1
    gate.set()
    wait_for(jobs[2])
    assert done == [(0, "begins"), (0, "ends"), (2, "begins"), (2, "ends")]
    assert [job.state for job in jobs] == [State.DONE, State.STOPPED, State.DONE]
    assert [job.latest for job in jobs] == [0, None, 2]
    assert queue.position(jobs[0]) == 0


def test_a_stopped_job_closes_its_steps_before_it_has_ended(queue):
    began, closed = threading.Event(), []

    def steps():
        try:
            while True:
                began.set()
                yield 1
        finally:
            closed.append(job.ended)

    job = Job(steps)
    queue.submit(job)
    assert began.wait(10)
    job.stop()
    wait_for(job)
    assert closed == [False]
    assert job.state is State.STOPPED


@pytest.mark.parametrize(
    ("error", "message"),
    [(sl.SteerlensError("too much"), "too much"), (KeyError("x"), "KeyError: 'x'; see the term")],
)
def test_a_failure_is_reported_and_the_next_job_runs(queue, error, message):
    def fail():
        yield 1
        raise error

    failing, next_one = Job(fail), Job(lambda: iter_of(2))
    queue.submit(failing)
    queue.submit(next_one)
    wait_for(next_one)
    assert failing.state is State.FAILED
    assert failing.error.startswith(message)
    assert next_one.latest == 2


def iter_of(*values):
    yield from values


def test_tabs_are_bounded_and_the_longest_unused_goes():
    tabs = Tabs(most=2)
    first = tabs.get("a")
    first.job = Job(lambda: iter_of(1))
    assert tabs.get("a") is first
    tabs.get("b"), tabs.get("c")
    assert len(tabs) == 2
    first.job.work()
    assert first.job.state is State.STOPPED
    assert tabs.get("a") is not first


def test_a_tab_unused_for_long_is_forgotten():
    now = [0.0]
    tabs = Tabs(ttl=60, clock=lambda: now[0])
    unused, kept = tabs.get("a"), tabs.get("b")
    unused.job = Job(lambda: iter_of(1))
    now[0] = 59
    assert tabs.get("b") is kept, "it is used again"
    now[0] = 61
    assert len(tabs) == 1
    assert unused.job.state is State.STOPPED
    assert tabs.get("b") is kept
    assert tabs.get("a") is not unused


@pytest.mark.parametrize("key", [None, 3, ["k"], "", "k" * 101])
def test_only_short_text_is_the_key_of_a_tab(unchecked, key):
    with pytest.raises(sl.SteerlensError, match="reload"):
        Tabs().get(key)


# access


@pytest.fixture(scope="module")
def app(shelf):
    queue = JobQueue()
    yield playground.make_app(shelf, queue)
    queue.close()


def test_only_loopback_names_are_served(app):
    client = app.server.test_client()
    for host in ("127.0.0.1:8050", "localhost"):
        answer = client.get("/", headers={"Host": host})
        assert answer.status_code == 200
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    for host in ("evil.example", "127.0.0.1.evil.example:8050", "192.168.0.7", "[::1", "a b", ""):
        assert client.get("/", headers={"Host": host}).status_code == 400
        assert client.get("/_dash-layout", headers={"Host": host}).status_code == 400


def test_pages_of_other_origins_are_refused(app):
    client = app.server.test_client()
    for origin, status in (("http://localhost", 200), ("http://evil.example", 403), ("null", 403),
                           ("http://[", 403), ("http://localhost:x", 403)):  # fmt: skip
        answer = client.get("/", headers={"Host": "localhost", "Origin": origin})
        assert answer.status_code == status


def test_beyond_loopback_the_token_is_asked_for(shelf, queue):
    guarded = playground.make_app(shelf, queue, token="sesame")
    away = {"Host": "192.168.0.7:8050"}
    for path in ("/", "/_dash-layout", "/?token=", "/?token=s%C3%A9same", "/assets/playground.css"):
        assert guarded.server.test_client().get(path, headers=away).status_code == 403
    guessing = guarded.server.test_client()
    guessing.set_cookie(access.COOKIE, "guessed", domain="192.168.0.7")
    assert guessing.get("/", headers=away).status_code == 403
    client = guarded.server.test_client()
    first = client.get("/?token=sesame", headers=away)
    assert (first.status_code, first.location) == (302, "/")
    assert "HttpOnly" in first.headers["Set-Cookie"]
    assert "SameSite=Strict" in first.headers["Set-Cookie"]
    for path in ("/", "/_dash-layout", "/assets/playground.css"):  # the cookie is enough now
        with client.get(path, base_url="http://192.168.0.7:8050") as answer:
            assert answer.status_code == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("localhost", True), ("::1", False), ("0.0.0.0", False),
        ("::", False), ("192.168.0.7", False), ("example.org", False),
        ("", False), (None, False),
    ],
)  # fmt: skip
def test_loopback_is_known(host, loopback):
    assert is_loopback(host) == loopback


def test_requests_that_no_page_makes_are_refused(app):
    client = app.server.test_client()
    update = "/_dash-update-component"
    output = next(iter(app.callback_map))
    whole = {"output": output, "outputs": [], "inputs": [], "state": [], "changedPropIds": []}
    odd = [json.dumps(whole | {"output": name}) for name in ("gone.children", [1], None)]
    for body in ("{", "[]", "", "3", "{}", json.dumps(whole | {"inputs": 3}), *odd):
        answer = client.post(update, data=body, content_type="application/json")
        assert answer.status_code == 400, body
    assert client.post(update, data="{}", content_type="text/plain").status_code in (400, 415)
    large = client.post(update, data=b"x" * (60 << 20), content_type="application/json")
    assert large.status_code == 413


def test_the_stop_button_is_answered_though_its_callback_has_no_outputs(app):
    [output] = [key for key, entry in app.callback_map.items() if entry["no_output"]]
    body = {
        "output": output,
        "inputs": [{"id": "stop", "property": "n_clicks", "value": 1}],
        "state": [{"id": "tab", "property": "data", "value": "one"}],
        "changedPropIds": ["stop.n_clicks"],
    }
    answer = app.server.test_client().post("/_dash-update-component", json=body)
    assert answer.status_code in (200, 204)


ODD_VALUES = (
    None, True, -1, 0, 2**70, 1e308, float("nan"), "", "x", "push", "\0", "<b>", [], [None], [1],
    [2, 3], ["a", "b"], {}, {"a": 1}, [[1]],
)  # fmt: skip


def distorted_request(app, draw):
    """The page's own request for some callback, with odd values, or parts missing or doubled."""
    output, entry = draw.choice(sorted(app.callback_map.items()))

    def filled(ids):
        found = []
        for part in ids:
            value = {"property": part["property"], "value": draw.choice(ODD_VALUES)}
            if part["id"].startswith("{"):
                kind = json.loads(part["id"])
                group = [{**value, "id": {**kind, "of": "topic"}}] * draw.randrange(3)
                found.append(group)
            else:
                found.append({**value, "id": part["id"]})
        if draw.random() < 0.2:
            found = found[:-1] if draw.random() < 0.5 else [*found, *found[:1]]
        return [found] if draw.random() < 0.05 else found

    body = {
        "output": output,
        "outputs": draw.choice(([], {}, [{"id": "error", "property": "children"}], None, 3)),
        "inputs": filled(entry["inputs"]),
        "state": filled(entry["state"]),
        "changedPropIds": draw.choice(([], ["send.n_clicks"], ["x"], [3], None)),
    }
    if draw.random() < 0.3:
        del body[draw.choice(sorted(body))]
    return body


def test_distorted_requests_get_an_answer_and_never_a_500(unchecked, app, caplog):
    client = app.server.test_client()
    for seed in range(int(os.environ.get("FUZZ", 1)) * 300):
        body = distorted_request(app, random.Random(seed))
        answer = client.post("/_dash-update-component", json=body)
        assert answer.status_code < 500, (seed, body)


@pytest.mark.parametrize(
    ("contents", "filename", "key"),
    [
        (None, None, "k"), ("data:;base64,AAAA", None, "k"), (3, "v.svec", "k"),
        ("x,$$", "v.svec", "k"), ("x,AAAA", "../../etc/v.svec", "k"), ("x,AAAA", "a\0.svec", "k"),
        ("x,AAAA", "a" * 5000 + ".svec", "k"), ("x,AAAA", "v.svec", ["k"]), ("x,AAAA", "v.svec", 7),
    ],
)  # fmt: skip
def test_odd_uploads_are_answered_with_a_message(unchecked, app, contents, filename, key):
    answer = post_upload(app, filename, b"", key=key, contents=contents, whole=True)
    assert answer.status_code == 200
    said = json.dumps(answer.json, ensure_ascii=False)
    assert re.search(r"v\.svec|\.svec|drop one vector file|reload", said), said
    assert len(said) < 2000


# uploads


def post_upload(app, filename, content, key="a tab", contents=None, whole=False):
    """What Dash's browser side posts when a file is dropped."""
    outputs = [
        ("vector", "options"), ("vector", "value"), ("conditions", "children"),
        ("uploaded", "children"),
    ]  # fmt: skip
    data = f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"
    data = contents if whole else contents or data
    body = {
        "output": f"..{'...'.join(map('.'.join, outputs))}..",
        "outputs": [{"id": name, "property": prop} for name, prop in outputs],
        "inputs": [
            {"id": "upload", "property": "contents", "value": data},
        ],
        "state": [
            {"id": "upload", "property": "filename", "value": filename},
            {"id": "vector", "property": "value", "value": ["push"]},
            {"id": "tab", "property": "data", "value": key},
        ],
        "changedPropIds": ["upload.contents"],
    }
    answer = app.server.test_client().post("/_dash-update-component", json=body)
    if whole:
        return answer
    return answer.json["response"] if answer.status_code == 200 else answer.status_code


def test_a_dropped_vector_is_offered_in_its_tab_alone(app, folder):
    content = (folder / "push.safetensors").read_bytes()
    for name in ("push_2", "push_3"):
        answer = post_upload(app, "push.safetensors", content, key="one")
        assert answer["vector"]["value"] == [name]
    names = [option["value"] for option in answer["vector"]["options"]]
    assert names == ["push", "topic", "push_2", "push_3"]
    other = post_upload(app, "push.safetensors", content, key="another")
    assert [o["value"] for o in other["vector"]["options"]] == ["push", "topic", "push_2"]


def test_a_tab_holds_a_limited_number_of_uploads(app, folder):
    content = (folder / "push.safetensors").read_bytes()
    for _ in range(library.MOST_UPLOADS):
        assert "vector" in post_upload(app, "push.safetensors", content, key="greedy")
    answer = post_upload(app, "push.safetensors", content, key="greedy")
    assert "holds 8 uploaded vectors" in answer["uploaded"]["children"]


@pytest.mark.parametrize(
    ("filename", "content", "message"),
    [
        ("v.pt", b"x", "expected one that ends in .safetensors, .svec, .gguf"),
        ("v", b"x", "expected one that ends in"),
        ("../../etc/v.svec", b"{", "'v.svec' is not valid JSON"),
        (
            "v.safetensors",
            b"\xff" * 100,
            "in 'v.safetensors': it is not a readable steerlens vector",
        ),
        ("v.gguf", b"GGUF", "in 'v.gguf': it is not a readable GGUF"),
        ("v.svec", b'{"directions": {"1": [1.0, 2.0]}}', "2 wide"),
        ("v.svec", b'{"directions": {"99": [1.0, 2.0]}}', "layer"),
        ("v.svec", b" " * (LARGEST_UPLOAD + 1), "8.0 MiB; expected at most 8 MiB"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(app, filename, content, message):
    answer = post_upload(app, filename, content)
    assert message in answer["uploaded"]["children"]
    assert "/tmp" not in answer["uploaded"]["children"]
    assert list(answer) == ["uploaded"]


def test_a_huge_request_is_not_even_read(app):
    assert post_upload(app, "v.svec", b" " * playground.LARGEST_REQUEST) == 413


def test_what_is_no_file_is_refused(app):
    answer = post_upload(app, "v.svec", b"", contents="data:,a")
    assert "base64" in answer["uploaded"]["children"]


@pytest.mark.parametrize("ending", [".svec", ".gguf"])
@pytest.mark.filterwarnings("ignore::steerlens.vectors.formats.LossyFormatWarning")
def test_files_of_other_programs_are_taken(tiny_chat, tmp_path, ending):
    path = tmp_path / f"My Vector (1){ending}"
    random_vector(tiny_chat).at([1, 2]).save(path)
    entry, _ = uploaded(tiny_chat, path.name, path.read_bytes(), {})
    assert entry.name == "my_vector_1"
    assert entry.code == f"sl.SteeringVector.load('My Vector (1){ending}')"
    assert entry.cut == Cut(1, 0.0)


@pytest.mark.parametrize(
    ("stem", "name"), [("7", "vector_7"), ("if", "vector_if"), ("Ünï", "n"), ("…", "vector")]
)
def test_names_of_files_become_names_of_rules(tiny_chat, folder, stem, name):
    content = (folder / "push.safetensors").read_bytes()
    entry, _ = uploaded(tiny_chat, f"{stem}.safetensors", content, {})
    assert entry.name == name
    assert parse_rules(f"if {name} then steer")


def test_a_vector_of_other_weights_is_warned_of(tiny_chat, tmp_path):
    other = random_vector(tiny_chat, provenance={"model": "elsewhere"})
    other.save(tmp_path / "v.safetensors")
    content = (tmp_path / "v.safetensors").read_bytes()
    _, warning = uploaded(tiny_chat, "v.safetensors", content, {})
    assert "comes from elsewhere" in warning


# the page and the command


def test_every_page_has_a_key_of_its_own_and_bounded_fields(app):
    pages = [app.layout() for _ in range(2)]
    assert pages[0]["tab"].data != pages[1]["tab"].data
    assert pages[0]["prompt"].maxLength == request.LONGEST_PROMPT
    assert pages[0]["length"].max == request.LONGEST_REPLY
    assert pages[0][{"push": "strength", "of": "push"}].max == library.ABSOLUTE.most


def test_a_status_says_the_state_of_a_job(shelf):
    from steerlens.playground.views import status

    job = Job(lambda: run(shelf, TRIAL, {}))
    assert status(job, 2) == "Waiting for another tab (2 ahead) …"
    job.work()
    n_tokens = max(map(len, job.latest.replies.tokens))
    assert status(job, 0) == f"Done: {n_tokens} tokens."


def test_a_model_of_one_layer_has_a_page(app, vectors):
    from steerlens.playground.layout import condition_row, look_slider, push_row

    entry = vectors["push"]
    one = Entry("one", entry.vector.at([0]), "", "", cut=Cut(0, 0.0))
    assert push_row(one.offer)[{"push": "layers", "of": "one"}].value == [0, 0]
    assert look_slider(one.offer).value == 0
    assert condition_row("one", one)


def test_without_dash_the_command_says_how_to_get_it(monkeypatch):
    from steerlens.cli.options import app

    monkeypatch.setitem(sys.modules, "dash", None)
    shown = CliRunner().invoke(app, ["playground"])
    assert shown.exit_code == 2
    assert "pip install 'steerlens[playground]'" in " ".join(shown.output.split())


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command_serves_until_it_is_interrupted(host):
    run_it = "from steerlens.cli import app; app()"
    command = [sys.executable, "-c", run_it, "playground", "--host", host, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        address = re.search(r"http://\S+", line)[0]
        assert address.startswith(f"http://{host}:")
        assert ("?token=" in address) == (host == "0.0.0.0")
        with httpx.Client(follow_redirects=True) as client:
            waiting = client.get(address)
            assert waiting.status_code == 200
            assert "/loading" in waiting.text
            if host == "127.0.0.1":  # then the page itself takes its place
                while (told := client.get(f"{address}loading")).status_code == 202:
                    assert "tiny-chat … " in told.text or told.text.startswith("Preparing")
                    time.sleep(0.2)
                assert "_dash-config" in client.get(address).text
        bare = httpx.get(address.partition("?")[0])
        assert bare.status_code == (403 if host == "0.0.0.0" else 200)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_a_model_that_cannot_be_loaded_ends_the_command_with_the_reason(tmp_path):
    start = playground.Start(str(tmp_path / "gone"))
    with pytest.raises(sl.SteerlensError, match="gone"):
        playground.serve(start, port=0, console=Console(quiet=True))


def test_a_taken_port_is_reported(app):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(sl.SteerlensError, match="choose another with --port"):
            playground.listen(app.server, "127.0.0.1", taken.getsockname()[1])
