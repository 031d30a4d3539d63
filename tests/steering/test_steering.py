from dataclasses import replace

import pytest
import torch
from helpers import (
    PROMPTS,
    assert_no_hooks_left,
    host_reply,
    plain_generate,
    random_vector,
    splitting_condition,
    stream,
)

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.models.host import is_hooked
from steerlens.models.tokenizing import left_padded, right_padded, tokenize
from steerlens.steering import hooks
from steerlens.steering.batch_plans import BatchPlan
from steerlens.steering.rules import parse_rules

EYE = sl.SteeringVector(torch.eye(4), (0, 1, 2, 3))
POSITIONS = ["all", "prompt", "generated", "last", slice(2, None), slice(-2, None), slice(0, -1)]
both_ways = pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])


@pytest.fixture(scope="module")
def rows(model):
    return [row.ids for row in tokenize(model, PROMPTS)]


@pytest.fixture(scope="module")
def vector(model):
    return random_vector(model)


@pytest.fixture(scope="module")
def condition(model):
    return splitting_condition(model)


def shift(model, ids, steering, layer):
    """What a steering changes in the stream at the layer of its edit."""
    options = {"site": steering.site_written, "layer": layer}
    return stream(model, ids, **options, hooks=steering.hooks()) - stream(model, ids, **options)


# Theorems about the stream


def test_adding_shifts_every_token_by_the_strength(model, rows, vector):
    found = shift(model, rows[1], sl.Steering(vector, layers=[2], strength=1.5), 2)
    expected = (1.5 * vector[2]).expand_as(found)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post"])
def test_an_ablated_stream_has_no_projection_left(model, rows, vector, site):
    if site == "resid_mid" and not is_hooked(model):
        pytest.skip("bridges do not write it")
    steering = sl.Steering(vector, edit=hooks.ablate_direction, site=site)
    for layer in steering.layers_steered:
        seen = stream(model, rows[1], site, layer, steering.hooks(model=model))
        unit = vector[layer] / vector[layer].norm()
        torch.testing.assert_close(seen @ unit, torch.zeros(len(seen)), atol=1e-4, rtol=0)


def test_ablating_then_adding_sets_the_projection(model, rows, vector):
    steering = sl.Steering(vector, layers=[1], edit=hooks.ablate_then_add, strength=2)
    seen = stream(model, rows[1], layer=1, hooks=steering.hooks())
    length = vector[1].norm()
    torch.testing.assert_close(
        seen @ vector[1] / length, (2 * length).expand(len(seen)), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("edit", [hooks.add_direction, hooks.ablate_direction])
def test_kept_norms_are_kept(model, rows, vector, edit):
    steering = sl.Steering(vector, layers=[2], edit=edit, strength=3, keep_norm=True)
    before = stream(model, rows[1], layer=2)
    after = stream(model, rows[1], layer=2, hooks=steering.hooks())
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1), atol=1e-4, rtol=1e-4)


def test_a_relative_strength_is_a_fraction_of_the_streams_length(model, rows):
    vector = random_vector(model, norms=torch.tensor([10.0, 20.0, 30.0, 40.0]))
    steering = sl.Steering(vector, layers=[1], strength=0.25, relative=True)
    found = shift(model, rows[1], steering, 1)
    torch.testing.assert_close(found.norm(dim=1), torch.full((len(found),), 5.0))
    rescaled = replace(steering, vector=7 * vector)
    torch.testing.assert_close(rescaled.direction(1), steering.direction(1))


@pytest.mark.parametrize("edit", [hooks.add_direction, hooks.ablate_direction])
def test_a_vector_minus_itself_steers_nothing(model, rows, vector, edit):
    steering = sl.Steering(vector - vector, edit=edit)
    assert not shift(model, rows[1], steering, 3).any()


def test_zero_in_a_matrix_leaves_the_row_alone_but_as_a_number_it_is_a_strength(
    model, rows, vector
):
    ablating = sl.Steering(vector, edit=hooks.ablate_then_add, strength=0)
    off = BatchPlan(ablating, torch.zeros(1, len(vector))).hooks()
    assert torch.equal(stream(model, rows[1], layer=3, hooks=off), stream(model, rows[1], layer=3))
    assert shift(model, rows[1], ablating, 3).any()


def test_only_the_chosen_sites_and_layers_change(model, rows, vector):
    steering = sl.Steering(vector, layers=[2])
    for layer in (0, 1):
        assert not shift(model, rows[1], steering, layer).any()
    assert shift(model, rows[1], steering, 3).any()


def test_several_steerings_add_up(model, rows, vector):
    other = random_vector(model, seed=1)
    plan = [sl.Steering(vector, layers=[1, 2]), sl.Steering(other, layers=[1, 2], strength=-0.5)]
    together = stream(model, rows[1], layer=3, hooks=sl.steering_hooks(*plan))
    summed = sl.Steering(vector + -0.5 * other, layers=[1, 2])
    expected = stream(model, rows[1], layer=3, hooks=summed.hooks())
    torch.testing.assert_close(together, expected, atol=1e-3, rtol=1e-4)


# Positions


@pytest.mark.parametrize(
    ("positions", "chosen"),
    [
        ("all", range(9)),
        ("prompt", range(9)),
        ("generated", []),
        ("last", [8]),
        (slice(2, 5), [2, 3, 4]),
        (slice(-3, None), [6, 7, 8]),
        (slice(None, None, 3), [0, 3, 6]),
        (slice(1, -6), [1, 2]),
    ],
)
@pytest.mark.parametrize("skip_bos", [True, False])
def test_positions_in_a_prompt(model, vector, positions, chosen, skip_bos):
    ids = list(range(1, 10))
    steering = sl.Steering(vector, layers=[1], positions=positions, skip_bos=skip_bos)
    changed = shift(model, ids, steering, 1).norm(dim=1) > 0.1
    assert changed.nonzero().flatten().tolist() == [p for p in chosen if p or not skip_bos]


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_the_hosts_generate_with_and_without_cache_is_ours(model, rows, vector, positions):
    steering = sl.Steering(vector, layers=[1, 2], positions=positions, skip_bos=True)
    ours = sl.generate(model, [rows[1]], steering, max_new_tokens=6, progress=False).tokens[0]
    for use_cache in (True, False):
        theirs = plain_generate(model, rows[1], [steering], use_cache=use_cache)
        assert theirs[: len(ours)] == ours


# Conditions and gates


def rows_changed(model, rows, steering, use_cache=True):
    """Under one set of hooks, one prompt after the other."""
    unsteered = [host_reply(model, ids) for ids in rows]
    with model.hooks(fwd_hooks=steering.hooks()):
        steered = [host_reply(model, ids, use_cache=use_cache) for ids in rows]
    return [a != b for a, b in zip(steered, unsteered, strict=True)]


def holds(model, condition, rows):
    read = read_residual(model, rows, condition.layers, tokens=condition.tokens, progress=False)
    return condition.fires(condition.measure(read[:, 0], condition.layers[0])[:, None]).tolist()


@both_ways
@pytest.mark.parametrize("tokens", ["all", "last", slice(1, 4)], ids=str)
def test_each_new_prompt_is_judged_afresh(model, rows, vector, tokens, use_cache):
    condition = splitting_condition(model, tokens=tokens)
    steering = sl.Steering(vector, layers=[2, 3], strength=4, when=condition)
    expected = holds(model, condition, rows)
    assert 0 < sum(expected) < len(rows)
    assert rows_changed(model, rows, steering, use_cache) == expected
    swapped = rows_changed(model, rows[::-1], steering, use_cache)
    assert swapped == expected[::-1]


@both_ways
def test_positions_count_from_each_new_prompt(model, rows, vector, use_cache):
    steering = sl.Steering(vector, layers=[1], positions="last", strength=4)
    alone = [plain_generate(model, ids, [steering]) for ids in rows]
    with model.hooks(fwd_hooks=steering.hooks()):
        assert [host_reply(model, ids, use_cache=use_cache) for ids in rows] == alone


def test_combined_conditions_hold_row_by_row(model, rows, vector, condition):
    other = splitting_condition(model, seed=11)
    a, b = holds(model, condition, rows), holds(model, other, rows)
    for when, expected in (
        (~condition, [not x for x in a]),
        (condition & other, [x and y for x, y in zip(a, b, strict=True)]),
        (condition | ~other, [x or not y for x, y in zip(a, b, strict=True)]),
    ):
        steering = sl.Steering(vector, layers=[2, 3], strength=4, when=when)
        assert rows_changed(model, rows, steering) == expected


def test_a_condition_reads_the_unsteered_stream_at_the_steered_site(model, rows, vector, condition):
    steering = sl.Steering(vector, layers=[1, 2], strength=4, when=condition)
    assert rows_changed(model, rows, steering) == holds(model, condition, rows)


def test_gates_are_fresh_for_each_use(model, rows, vector, condition):
    """What one use saw, another does not: neither of the same model nor of another one."""
    steering = sl.Steering(vector, layers=[2], strength=4, when=condition)
    expected = holds(model, condition, rows)
    yes, no = rows[expected.index(True)], rows[expected.index(False)]
    first, second = steering.hooks(), steering.hooks()
    plain = {ids: stream(model, ids, layer=2) for ids in (yes, no)}
    steered = stream(model, yes, layer=2, hooks=first)
    assert not torch.allclose(steered, plain[yes])
    assert torch.equal(stream(model, no, layer=2, hooks=second), plain[no])
    assert torch.equal(stream(model, yes, layer=2, hooks=first), steered)


def test_two_models_do_not_leak_into_each_other(model, model_folder, rows, vector, condition):
    twin = sl.load_model(str(model_folder))
    steering = sl.Steering(vector, layers=[2], strength=4, when=condition)
    expected = holds(model, condition, rows)
    yes, no = rows[expected.index(True)], rows[expected.index(False)]
    alone = plain_generate(model, yes, [steering]), plain_generate(twin, no, [steering])
    with model.hooks(fwd_hooks=steering.hooks()), twin.hooks(fwd_hooks=steering.hooks()):
        assert (host_reply(model, yes), host_reply(twin, no)) == alone
    assert_no_hooks_left(twin)


@pytest.mark.parametrize("padded", [left_padded, right_padded])
def test_a_mask_makes_a_batch_its_rows(model, rows, vector, condition, padded):
    steering = sl.Steering(vector, layers=[2], strength=4, when=condition, positions="last")
    tokens, mask = padded(rows, model.tokenizer.pad_token_id)
    seen = {}
    with (
        torch.no_grad(),
        model.hooks(
            fwd_hooks=[
                *steering.hooks(prompt_mask=mask),
                ("blocks.2.hook_resid_post", lambda resid, hook: seen.update(resid=resid)),
            ]
        ),
    ):
        model(tokens, attention_mask=mask.int())
    for row, ids in enumerate(rows):
        alone = stream(model, ids, layer=2, hooks=steering.hooks())
        torch.testing.assert_close(seen["resid"][row][mask[row]], alone, atol=1e-3, rtol=1e-3)


def test_a_batch_without_mask_is_refused(model, rows, vector, condition):
    steering = sl.Steering(vector, layers=[2], when=condition)
    tokens, _ = right_padded(rows, 0)
    with (
        pytest.raises(sl.SteerlensError, match=r"batch of 6 prompts.*prompt_mask"),
        model.hooks(fwd_hooks=steering.hooks()),
    ):
        model(tokens)
    assert_no_hooks_left(model)


def test_an_exception_leaves_no_hook(model, vector, condition):
    plan = sl.Steering(vector, layers=[2, 3], when=condition)

    def interrupted():
        with model.hooks(fwd_hooks=plan.hooks()):
            model(torch.tensor([[1, 2]]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_no_hooks_left(model)


# The hooks themselves


def test_hooks_come_in_the_order_of_the_forward_pass_under_their_own_names(vector, condition):
    plan = [
        sl.Steering(vector, layers=[1, 2], when=replace(condition, layers=0)),
        sl.Steering(vector, layers=[1], edit=hooks.ablate_direction, site="attn_out"),
    ]
    named = [(name, hook.func.__name__) for name, hook in sl.steering_hooks(*plan)]
    assert named == [
        ("blocks.0.hook_resid_pre", "follow_text"),
        ("blocks.0.attn.hook_attn_scores", "follow_keys"),
        ("blocks.0.hook_resid_post", "read_condition"),
        ("blocks.1.hook_attn_out", "ablate_direction"),
        ("blocks.1.hook_resid_post", "add_direction"),
        ("blocks.2.hook_resid_post", "add_direction"),
    ]


def test_the_host_lists_hooks_by_their_names(model, vector, condition):
    steering = sl.Steering(vector, layers=[2], when=condition)
    with model.hooks(fwd_hooks=steering.hooks()):
        listed = str(model.list_hooks())
    for name in ("follow_text", "read_condition", "add_direction"):
        assert name in listed
    assert "<lambda>" not in listed


def test_hooks_of_no_steering_are_none():
    assert sl.steering_hooks() == []


def test_conditions_that_steerings_share_are_read_once(vector, condition):
    plan = [sl.Steering(vector, layers=[2], when=condition) for _ in range(3)]
    readers = [hook for _, hook in sl.steering_hooks(*plan) if hook.func is hooks.read_condition]
    assert len(readers) == 1


def test_a_steering_is_a_value():
    steering = sl.Steering(EYE, layers=[3, 1], strength=1.5)
    assert steering.layers == (1, 3)
    assert replace(steering, strength=2).layers == (1, 3)
    with pytest.raises(AttributeError):
        steering.strength = 2
    assert repr(replace(steering, skip_bos=True, keep_norm=True, when=named())) == (
        "Steering(add_direction 1.5 (0.75 each) × 'vector' at resid_post layers 1, 3, "
        "all positions, BOS skipped, norm kept, when harmful)"
    )


def named(**fields):
    return sl.Condition(EYE, **{"layers": 0, "above": 0.1, "name": "harmful"} | fields)


# Bad input


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"layers": [2, 9]}, "no direction for layer 9; it has 0–3"),
        ({"layers": []}, "no layer was asked for"),
        ({"site": "nowhere"}, "site 'nowhere' is unknown"),
        ({"positions": "first"}, "got positions='first'; expected one of"),
        ({"positions": slice(3, 3)}, "can never select a token"),
        ({"strength": torch.nan}, "got strength=nan; expected finite"),
        ({"strength": [1.0, torch.inf, 1.0, 1.0]}, "expected finite numbers"),
        ({"strength": torch.ones(3)}, "one number, or one for each of the 4 steered layers"),
        ({"relative": True}, "expected one with the activation norms that extract.. records"),
        (
            {"layers": [1, 2], "when": named(layers=[0, 3])},
            r"reads layer 3 \(resid_post\), but steering starts at layer 1 \(resid_post\)",
        ),
        (
            {"layers": [1], "site": "resid_pre", "when": named(layers=1)},
            r"reads layer 1 \(resid_post\), but steering starts at layer 1 \(resid_pre\)",
        ),
    ],
)
def test_what_could_not_work_is_refused_when_built(fields, told):
    with pytest.raises(sl.SteerlensError, match=told):
        sl.Steering(EYE, **fields)


def test_a_name_is_no_condition():
    (rule,) = parse_rules("if harmful then refuse")
    with pytest.raises(
        sl.SteerlensError, match="got the name 'harmful' in when=; expected a condition"
    ):
        sl.Steering(EYE, when=rule.when)


def test_a_condition_after_another_steering_is_refused():
    plan = sl.Steering(EYE, layers=[3], when=named(layers=2)), sl.Steering(EYE, layers=[1])
    with pytest.raises(sl.SteerlensError, match=r"reads layer 2 .* steering starts at layer 1"):
        sl.steering_hooks(*plan)


def test_a_vector_of_another_width_is_refused(unchecked, model, other_model):
    steering = sl.Steering(random_vector(other_model), layers=[1])
    with (
        pytest.raises(sl.SteerlensError, match=r"of width 32; expected 16.* another model"),
        model.hooks(fwd_hooks=steering.hooks()),
    ):
        model(torch.tensor([[1, 2]]))
    assert_no_hooks_left(model)


def test_a_strength_matrix_of_another_length_is_refused(model, vector):
    steering = BatchPlan(sl.Steering(vector, layers=[1]), torch.ones(3, 1))
    with (
        pytest.raises(sl.SteerlensError, match="got 3 rows of strength for a batch of 2"),
        model.hooks(fwd_hooks=steering.hooks()),
    ):
        model(torch.tensor([[1, 2], [1, 3]]))
