"""The same on a GPU as on the CPU; only where there is one."""

from functools import partial

import pytest
import torch
from helpers import PROMPTS, random_vector, splitting_condition
from torch.testing import assert_close

import steerlens as sl
from steerlens.interpret import logit_lens, weight_writers
from steerlens.learning.objectives import reft_r1

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

OPTIONS = {"max_new_tokens": 8, "progress": False}
LESSONS = [("Hello there.", "I will not."), ("What is it?", "No."), ("Say it.", "Never.")]


@pytest.fixture(scope="module")
def both(model_folder):
    """The same random Llama on the CPU and on the GPU."""
    return [sl.load_model(str(model_folder), device=device) for device in ("cpu", "cuda")]


def test_vectors_are_the_same(both):
    cpu, cuda = (
        sl.extract(model, (PROMPTS[::2], PROMPTS[1::2]), tokens="all", progress=False)
        for model in both
    )
    assert cuda.directions.device.type == "cpu"
    assert torch.cosine_similarity(cpu.directions, cuda.directions).min() > 0.9999


@pytest.mark.parametrize("gated", [False, True])
def test_replies_are_the_same_in_a_batch_and_alone(both, gated):
    vector = random_vector(both[0])
    when = splitting_condition(both[0]) if gated else None
    steering = sl.Steering(vector, layers=[2, 3], strength=2.0, when=when)
    cpu, cuda = (sl.generate(model, PROMPTS, steering, **OPTIONS) for model in both)
    alone = [sl.generate(both[1], [prompt], steering, **OPTIONS) for prompt in PROMPTS]
    assert list(cpu.tokens) == list(cuda.tokens) == [one.tokens[0] for one in alone]


@pytest.mark.parametrize("training", [{}, {"norm_budget": 0.1}])
@pytest.mark.parametrize("objective", [None, partial(reft_r1, k=2)], ids=["default", "reft_r1"])
def test_learned_vectors_are_the_same(both, training, objective):
    more = {} if objective is None else {"objective": objective}
    settings = sl.Training(steps=3, held_out=0, continued=0, **training)
    cpu, cuda = (
        sl.learn(model, LESSONS, layers=2, training=settings, progress=False, **more)
        for model in both
    )
    assert_close(cpu.directions, cuda.directions, atol=1e-3, rtol=1e-2)


def test_a_direction_on_the_gpu_is_explained(both):
    rows = torch.randn(1, both[1].cfg.d_model, device="cuda")
    vector = sl.SteeringVector(rows, layers=(2,))
    assert vector.directions.device.type == "cpu"
    cpu, cuda = (weight_writers(model, vector, 2) for model in both)
    assert_close(cpu.heads, cuda.heads)
    logit_lens(both[1], vector)
