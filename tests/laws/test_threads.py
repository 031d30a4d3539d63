"""Two threads that use one model do not see each other's hooks."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from helpers import PROMPTS, assert_no_hooks_left, random_vector, splitting_condition

import steerlens as sl
from steerlens.activations.reading import read_residual

OPTIONS = {"max_new_tokens": 12, "progress": False, "batch_size": 2}


def at_once(*jobs):
    """Each job's results of three runs, all jobs begun at the same moment."""
    together = Barrier(len(jobs))

    def run(job):
        together.wait()
        return [job() for _ in range(3)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def test_plans_of_several_threads_do_not_mix(model):
    plans = [
        None,
        sl.Steering(random_vector(model, 1), layers=[1]),
        sl.Steering(random_vector(model, 2), layers=[2, 3]),
        sl.Steering(random_vector(model, 3), layers=[3], when=splitting_condition(model)),
    ]
    alone = [sl.generate(model, PROMPTS, plan, **OPTIONS) for plan in plans]
    assert len({replies.tokens for replies in alone}) == len(plans)
    jobs = [lambda plan=plan: sl.generate(model, PROMPTS, plan, **OPTIONS) for plan in plans]
    for expected, found in zip(alone, at_once(*jobs), strict=True):
        assert [replies.tokens for replies in found] == [expected.tokens] * 3
        for gates in (replies.gates for replies in found):
            for gate, other in zip(gates, expected.gates, strict=True):
                assert torch.equal(gate.open, other.open)
    assert_no_hooks_left(model)


def test_reading_is_not_steered_by_another_thread(model):
    plan = sl.Steering(random_vector(model, 1), layers=[0])
    alone = read_residual(model, PROMPTS, progress=False)
    found, _ = at_once(
        lambda: read_residual(model, PROMPTS, progress=False),
        lambda: sl.generate(model, PROMPTS, plan, **OPTIONS),
    )
    for pooled in found:
        torch.testing.assert_close(pooled, alone)


def test_a_thread_may_generate_while_it_generates(model):
    """A steering's own edit that uses the model: the lock lets its holder in again."""

    def nosy(resid, direction, strength):
        read_residual(model, ["Hi."], [0], progress=False)
        return resid + strength * direction

    plan = sl.Steering(random_vector(model), layers=[2], edit=nosy)
    plain = sl.Steering(random_vector(model), layers=[2])
    options = {"max_new_tokens": 2, "progress": False}
    found = sl.generate(model, ["Hi."], plan, **options)
    assert found.tokens == sl.generate(model, ["Hi."], plain, **options).tokens


def test_an_exception_lets_the_next_thread_in(model):
    def failing(resid, direction, strength):
        raise RuntimeError("stop")

    plan = sl.Steering(random_vector(model), edit=failing)
    with pytest.raises(RuntimeError, match="stop"):
        sl.generate(model, PROMPTS, plan, **OPTIONS)
    [[replies, *_]] = at_once(lambda: sl.generate(model, PROMPTS, **OPTIONS))
    assert len(replies) == len(PROMPTS)
