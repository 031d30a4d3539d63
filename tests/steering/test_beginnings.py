import pytest
import torch
from helpers import random_vector, splitting_condition
from small_models import save_random

import steerlens as sl
from steerlens.models import fast_forward
from steerlens.steering import hooks
from steerlens.steering.batch_plans import BatchPlan

COMMON = tuple(range(40, 60))
PROMPTS = [(*COMMON, *range(70, 70 + n)) for n in range(8)]
"""Token ids; the first prompt is what all begin with."""
SHARED = len(COMMON) - 1
"""The last token of every prompt is run with the batch."""

every_host = pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "gpt_neox", "llama"])


@pytest.fixture
def tokens_run(monkeypatch):
    """What every forward pass of the first block runs: (rows, tokens)."""
    seen = []

    def watch(model):
        block = model.blocks[0]
        forward = type(block).forward
        monkeypatch.setattr(
            block, "forward",
            lambda resid, *args, **options: (
                seen.append(tuple(resid.shape[:2])), forward(block, resid, *args, **options)
            )[1],
        )  # fmt: skip
        return seen

    return watch


def replied(model, plan=None, prompts=PROMPTS, n_new=6):
    return sl.generate(model, prompts, plan, max_new_tokens=n_new, progress=False).tokens


def plans_for(model):
    vector = random_vector(model, scale=1)
    strengths = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1])[:, None].repeat(1, 2)
    return {
        "unsteered": (None, 1),
        "all": (sl.Steering(vector, [0, 1]), 1),
        "kept norm": (sl.Steering(vector, [1], keep_norm=True, skip_bos=True), 1),
        "prompt": (sl.Steering(vector, [1], edit=hooks.ablate_direction, positions="prompt"), 1),
        "generated": (sl.Steering(vector, [0, 1], positions="generated"), 1),
        "first three": (sl.Steering(vector, [0], positions=sl.places.generated(stop=3)), 1),
        "decay": (sl.Steering(vector, [0, 1], schedule=sl.schedules.Decay(2)), 1),
        "by row": (BatchPlan(sl.Steering(vector, [0, 1]), strengths), 2),
    }


@every_host
def test_a_common_beginning_is_run_once_and_replies_are_as_alone(name, model, tmp_path, tokens_run):
    save_random(name, tmp_path, model.tokenizer)
    host = sl.load_model(str(tmp_path))
    seen = tokens_run(host)
    for plan, n_ways in plans_for(host).values():
        seen.clear()
        together = replied(host, plan)
        assert seen[:2] == [(n_ways, SHARED), (len(PROMPTS), len(PROMPTS[-1]) - SHARED)]
        with fast_forward.disabled():
            assert replied(host, plan) == together
        for row, prompt in enumerate(PROMPTS):
            alone = plan.of_rows([row]) if isinstance(plan, BatchPlan) else plan
            assert replied(host, alone, [prompt]) == (together[row],)


def test_what_depends_on_the_whole_prompt_runs_with_every_row(model, tokens_run):
    vector = random_vector(model)

    def mine(resid, direction, strength):
        return resid + strength * direction

    seen = tokens_run(model)
    own_places = torch.ones(len(PROMPTS), len(PROMPTS[-1]), dtype=torch.bool)
    for plan in (
        sl.Steering(vector, [2], when=splitting_condition(model)),
        sl.Steering(vector, [2], positions=slice(-3, None)),
        sl.Steering(vector, [2], positions="last"),
        sl.Steering(vector, [2], edit=mine),
        sl.Steering(vector, [2], keep_norm=hooks.restore_grown_norm),
        BatchPlan(sl.Steering(vector, [2]), torch.ones(len(PROMPTS), 1), own_places),
    ):
        seen.clear()
        replied(model, plan, n_new=1)
        assert seen == [(len(PROMPTS), len(PROMPTS[-1]))]


def test_hooks_of_the_users_see_whole_prompts(model):
    widths = []
    watching = ("blocks.0.hook_resid_pre", lambda resid, hook: widths.append(resid.shape[1]))
    with model.hooks(fwd_hooks=[watching]):
        replied(model, n_new=1)
    assert widths == [len(PROMPTS[-1])]


def test_short_beginnings_and_few_rows_are_not_worth_it(model, tokens_run):
    seen = tokens_run(model)
    replied(model, prompts=PROMPTS[-3:], n_new=1)
    replied(model, prompts=[prompt[14:] for prompt in PROMPTS], n_new=1)
    assert [rows for rows, _ in seen] == [3, 8]
