"""A plan to read in one line, and to attach and remove without a `with`."""

from dataclasses import replace

import pytest
import torch
from helpers import PROMPTS, assert_no_hooks_left, random_vector, splitting_condition

import steerlens as sl
from steerlens.models.tokenizing import left_padded, pad_token, tokenize
from steerlens.steering import hooks

IDS = torch.tensor([[1, 40, 7, 300, 22]])
NAME = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def steering(model):
    return sl.Steering(random_vector(model), [1, 2])


@pytest.fixture(autouse=True)
def nothing_stays(model):
    yield
    assert_no_hooks_left(model)


@torch.no_grad()
def logits(model, ids=IDS, fwd_hooks=(), **options):
    with model.hooks(fwd_hooks=list(fwd_hooks)):
        return model(ids, **options)


# Attaching


def test_an_attached_steering_steers_until_it_is_removed(model, steering):
    before, steered = logits(model), logits(model, fwd_hooks=steering.hooks())
    handle = steering.attach(model)
    assert torch.equal(logits(model), steered)
    assert torch.equal(logits(model), steered)  # of every run, not of the next one
    handle.remove()
    assert torch.equal(logits(model), before)
    assert not torch.equal(before, steered)


def test_removing_twice_does_no_harm(model, steering):
    handle = steering.attach(model)
    handle.remove()
    other = steering.attach(model)
    steered = logits(model)
    handle.remove()  # and takes nothing off that is not its own
    assert torch.equal(logits(model), steered)
    other.remove()
    other.remove()


@pytest.mark.parametrize("first", [0, 1])
def test_two_attachments_come_off_in_any_order(model, steering, first):
    plans = [steering, sl.Steering(random_vector(model, seed=1), [1], 0.5)]
    both = logits(model, fwd_hooks=[hook for plan in plans for hook in plan.hooks()])
    one = logits(model, fwd_hooks=plans[1 - first].hooks())
    handles = [plan.attach(model) for plan in plans]
    assert torch.equal(logits(model), both)
    handles[first].remove()
    assert torch.equal(logits(model), one)
    handles[1 - first].remove()


def test_other_hooks_stay(model, steering):
    calls = []
    point = model.hook_dict[NAME]
    point.add_hook(lambda resid, hook: calls.append("older"))
    handle = steering.attach(model)
    point.add_hook(lambda resid, hook: calls.append("newer"))
    logits(model)
    handle.remove()
    logits(model)
    assert calls == ["older", "newer"] * 2
    point.remove_hooks()
    logits(model)
    assert len(calls) == 4  # the host's own way takes them off as before


def test_it_works_inside_and_around_a_with(model, steering):
    plain, steered = logits(model), logits(model, fwd_hooks=steering.hooks())
    handle = steering.attach(model)
    with model.hooks(fwd_hooks=[(NAME, lambda resid, hook: None)]):
        handle.remove()
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), plain)
    with model.hooks(fwd_hooks=[(NAME, lambda resid, hook: None)]):
        handle = steering.attach(model)
        assert torch.equal(logits(model), steered)
    handle.remove()


def test_it_is_removed_after_an_exception(model, steering):
    def fail(resid, hook):
        raise RuntimeError("of another hook")

    plain = logits(model)
    handle = steering.attach(model)
    with pytest.raises(RuntimeError, match="of another hook"):
        logits(model, fwd_hooks=[(NAME, fail)])
    steered = logits(model)  # it has stayed, and goes on with the next prompt
    handle.remove()
    assert not torch.equal(steered, plain)
    assert torch.equal(logits(model), plain)


def test_an_attachment_that_fails_leaves_nothing(model, steering):
    with pytest.raises(sl.SteerlensError, match="layer"):
        sl.Steering(sl.SteeringVector(torch.ones(2, 32), (1, 9)), [1, 9]).attach(model)


def test_each_prompt_is_judged_afresh(model):
    condition = splitting_condition(model)
    steering = sl.Steering(random_vector(model), [2], when=condition)
    rows = [row.ids for row in tokenize(model, PROMPTS)]
    plain = [logits(model, torch.tensor([ids])) for ids in rows]
    handle = steering.attach(model)
    attached = [logits(model, torch.tensor([ids])) for ids in rows]
    handle.remove()
    changed = [not torch.equal(a, b) for a, b in zip(attached, plain, strict=True)]
    gates = sl.generate(model, PROMPTS, steering, max_new_tokens=1, progress=False).gates
    assert changed == gates[0].open.tolist()
    assert sum(changed) == len(PROMPTS) // 2


def test_a_batch_is_attached_with_its_mask(model, steering):
    tokens, mask = left_padded([row.ids for row in tokenize(model, PROMPTS)], pad_token(model))
    plan = replace(steering, positions=[2, -1])
    options = {"attention_mask": mask.int()}
    expected = logits(model, tokens, plan.hooks(mask), **options)
    handle = plan.attach(model, prompt_mask=mask)
    found = logits(model, tokens, **options)
    handle.remove()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("site", ["ln1_out", "z"])
def test_every_site_can_be_attached(model, site):
    steering = sl.Steering(random_vector(model, site=site), [1])
    expected = logits(model, fwd_hooks=steering.hooks(model=model))
    handle = steering.attach(model)
    assert torch.equal(logits(model), expected)
    handle.remove()


def test_the_hosts_generate_is_steered(model, steering):
    options = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "return_type": "tokens"}
    plain = model.generate(IDS, **options).tolist()
    handle = steering.attach(model)
    steered = model.generate(IDS, **options).tolist()
    handle.remove()
    assert steered != plain
    assert model.generate(IDS, **options).tolist() == plain


# In one line

EYE = sl.SteeringVector(torch.eye(4), (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ("all", "all positions"),
        ("reply", "reply positions"),
        ("generated", "generated positions"),
        (slice(4, None), "positions 4:"),
        (slice(None, -1, 2), "positions :-1:2"),
        ([1, 3, -1], "positions [1, 3, -1]"),
        ((2,), "positions [2]"),
        (torch.tensor([True, False]), "masked positions"),
        (torch.ones(200, dtype=torch.bool), "masked positions"),
    ],
    ids=str,
)
def test_a_plan_prints_in_one_line(positions, words):
    steering = sl.Steering(EYE, [1, 2], 0.5, positions=positions)
    assert repr(steering) == (
        f"Steering(add_direction 0.5 (0.25 each) × 'vector' at resid_post layers 1, 2, {words})"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"strength": (1.0, 0.5)}, "add_direction by-layer strengths (1, 0.5) ×"),
        ({"edit": hooks.affine_direction, "reference": EYE}, "affine_direction 1 ×"),
        ({"name": "calm"}, "× 'calm' at"),
        ({"site": "ln2_out"}, "at ln2_out layers 1, 2"),
        ({"skip_bos": True, "keep_norm": True}, ", BOS skipped, norm kept)"),
        ({"keep_norm": hooks.restore_grown_norm}, ", norm kept)"),
        ({"when": sl.Condition(EYE, 0, above=0.1)}, "when Condition(cast similarity at layer 0"),
    ],
)
def test_every_setting_shows_in_that_line(fields, words):
    text = repr(sl.Steering(EYE, [1, 2], **fields))
    assert words in text
    assert "\n" not in text
    assert "tensor" not in text
    assert len(text) < 160


def test_long_lists_of_places_do_not_flood_the_line():
    """Many indices or layers."""
    many = sl.Steering(EYE, positions=list(range(500)))
    assert len(repr(many)) < 200
