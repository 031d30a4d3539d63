"""Runs on one model do not meet: streams side by side, tasks, threads, processes, edits inside."""

import asyncio
import copy
import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event, Thread

import pytest
import torch
from helpers import PROMPTS, assert_no_hooks_left, random_vector, splitting_condition

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.export.weight_edits import ablated_weights, edited_biases
from steerlens.steering import hooks

NEW = {"max_new_tokens": 6}
IDS = torch.tensor([[1, 40, 7, 300, 22]])


@pytest.fixture(scope="module")
def steering(model):
    return sl.Steering(random_vector(model), [1, 2], when=splitting_condition(model, layer=0))


@pytest.fixture(scope="module")
def always(model):
    return sl.Steering(random_vector(model), [1, 2])


@pytest.fixture(autouse=True)
def nothing_stays(model):
    names = {name: set(vars(module)) for name, module in model.named_modules()}
    weights = {name: one.data_ptr() for name, one in model.named_parameters()}
    yield
    assert_no_hooks_left(model)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == names
    assert {name: one.data_ptr() for name, one in model.named_parameters()} == weights


def streams(model, *plans):
    return [sl.stream(model, PROMPTS, plan, **NEW) for plan in plans]


def alone(model, *plans):
    return [sl.generate(model, PROMPTS, plan, progress=False, **NEW).tokens for plan in plans]


# Streams


def test_streams_side_by_side_say_what_each_says_alone(model, steering, always):
    plans = None, steering, always
    expected = alone(model, *plans)
    assert len(set(expected)) == 3
    for together in zip(*streams(model, *plans), strict=True):
        last = [replies.tokens for replies in together]
    assert last == expected


def test_streams_of_asyncio_tasks(model, steering, always):
    async def reply(plan):
        last = None
        for replies in sl.stream(model, PROMPTS, plan, **NEW):
            last = replies.tokens
            await asyncio.sleep(0)
        return last

    async def all_of(*plans):
        return await asyncio.gather(*map(reply, plans))

    plans = None, steering, always
    assert asyncio.run(all_of(*plans)) == alone(model, *plans)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_unfinished_streams_steer_nothing_else(model, always, order):
    reading, logits = read_residual(model, PROMPTS, progress=False), model(IDS)
    begun = streams(model, always, None)
    for steps in begun:
        next(steps)
    assert torch.equal(read_residual(model, PROMPTS, progress=False), reading)
    assert torch.equal(model(IDS), logits)
    assert_no_hooks_left(model)
    other = copy.deepcopy(model)
    pickle.dumps(other.blocks[0].ln1)
    for index in order:
        begun[index].close()
    assert torch.equal(model(IDS), logits)


def test_a_stream_goes_on_in_whichever_thread_is_free(model, steering):
    [expected] = alone(model, steering)
    [steps] = streams(model, steering)
    end = object()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        for turn in range(20):
            found = (one, two)[turn % 2].submit(next, steps, end).result()
            if found is end:
                break
            last = found
    assert last.tokens == expected


# Within a pass


def test_an_edit_that_runs_the_model_sees_it_unsteered(model, always):
    right, [expected] = read_residual(model, ["Hi."], progress=False), alone(model, always)
    seen = []

    def nosy(resid, direction, strength):
        seen.append(read_residual(model, ["Hi."], progress=False))
        return resid + strength * direction

    nosy_plan = replace(always, strength=always.strengths, edit=nosy)
    assert alone(model, nosy_plan) == [expected]
    assert all(torch.equal(one, right) for one in seen)


def test_another_threads_own_pass_is_not_steered_meanwhile(model, always):
    """Not through us, so that nothing makes it wait."""
    with torch.no_grad():
        right, seen = model(IDS), []

    def look():
        with torch.no_grad():
            seen.append(model(IDS))

    def edit(resid, direction, strength):
        thread = Thread(target=look)
        thread.start()
        thread.join()
        return resid + strength * direction

    plan = replace(always, strength=always.strengths, edit=edit)
    assert alone(model, plan) == alone(model, always)
    assert all(torch.equal(one, right) for one in seen)


# Other threads' hooks and weights


def elsewhere(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_plain_hooks_are_for_the_thread_that_made_them(model, always):
    with (
        model.hooks(fwd_hooks=always.hooks()),
        pytest.raises(sl.SteerlensError, match=r"made in another thread.*steerlens\.generate"),
    ):
        elsewhere(lambda: alone(model, None))


def test_an_attachment_is_for_all_threads(model, always):
    attachment = always.attach(model)
    try:
        attached = elsewhere(lambda: alone(model, None))
    finally:
        attachment.remove()
    assert attached == alone(model, always)


@pytest.mark.parametrize("way", ["edited_biases", "ablated_weights"])
def test_weights_edited_in_another_thread_are_refused(model, always, way):
    def edit():
        if way == "edited_biases":
            return edited_biases(model, always)
        return ablated_weights(model, always.vector, layers=1)

    [right] = alone(model, None)
    told = rf"weights of .* are being edited \({way}\) by another thread or task"
    inside, leave = Event(), Event()

    def other():
        with edit():
            inside.set()
            leave.wait(30)
            return alone(model, None)

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(other)
        inside.wait(30)
        for use in (lambda: alone(model, None), lambda: edit().__enter__()):
            with pytest.raises(sl.SteerlensError, match=told):
                use()
        leave.set()
        assert job.result() != [right]
    assert alone(model, None) == [right]


def test_weights_edited_in_another_task_are_refused_but_not_its_own_threads(model, always):
    async def editing(inside, leave):
        with edited_biases(model, always):
            inside.set()
            mine = await asyncio.to_thread(alone, model, None)
            await leave.wait()
            return mine

    async def both():
        inside, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(editing(inside, leave))
        await inside.wait()
        with pytest.raises(sl.SteerlensError, match="by another thread or task"):
            alone(model, None)
        leave.set()
        return await task

    assert asyncio.run(both()) == alone(model, always)


def test_edits_within_edits_are_undone_in_any_order(model, always):
    plain = model(IDS)
    with edited_biases(model, always), edited_biases(model, always):
        twice = model(IDS)
    first, second = edited_biases(model, always), ablated_weights(model, always.vector, layers=1)
    first.__enter__()
    second.__enter__()
    with pytest.raises(sl.SteerlensError, match=r"left before an edit that began later"):
        first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert torch.equal(model(IDS), plain)
    assert not torch.equal(twice, plain)


# Processes


def in_a_child(work):
    """Whether `work` is true in a forked process, which has 60 seconds for it."""
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            os._exit(0 if work() else 3)
        except BaseException:
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def threads():
    """Sets how many torch has, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_waits_for_no_threads_of_its_parent(threads):
    """Of OpenMP, which torch would wait for forever once it has used them."""
    threads(2)
    large = torch.ones(1500, 1500)
    right = large @ large
    assert in_a_child(lambda: torch.equal(large @ large, right))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("busy", ["generating", "editing"])
def test_a_process_forked_while_the_model_is_busy_has_it_as_it_is(model, always, busy, threads):
    threads(1)  # as in the child, so that sums are bit-identical
    [right], plain = alone(model, None), model(IDS)
    inside, leave = Event(), Event()

    def slow(resid, direction, strength):
        inside.set()
        leave.wait(60)
        return resid + strength * direction

    def other():
        if busy == "generating":
            sl.generate(
                model, ["Hi."], sl.Steering(always.vector, [1], edit=slow), progress=False, **NEW
            )
            return
        with edited_biases(model, always):
            slow(0, 0, 0)

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(other)
        inside.wait(60)
        held = in_a_child(lambda: alone(model, None) == [right] and torch.equal(model(IDS), plain))
        leave.set()
        job.result()
    assert held


def test_hooks_module_is_named(model):
    """The named hook functions are what a run puts on the model."""
    names = [function.func.__name__ for _, function in sl.Steering(random_vector(model)).hooks()]
    assert names == ["follow_text", "follow_keys", *["add_direction"] * 4]
    assert all(hasattr(hooks, name) for name in names)
