"""One file for a plan: all of it comes back, byte by byte; nothing of it is code."""

import random
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from helpers import PROMPTS, random_vector, splitting_condition
from hypothesis import given, settings
from hypothesis import strategies as st
from random_predicates import NAMES, combinations

import steerlens as sl
from steerlens.activations.provenance import ProvenanceWarning
from steerlens.models.fingerprint import model_provenance
from steerlens.steering import hooks, places, plan_format, with_evidence
from steerlens.steering.condition_search import search_similarities
from steerlens.steering.plan_format import FUNCTIONS
from steerlens.steering.predicates import Named
from steerlens.steering.schedules import Decay, Ramp
from steerlens.steering.similarities import SIMILARITIES, Standard, cosine
from steerlens.steering.soft_gates import Linear, Logistic, Relu, SoftGate
from steerlens.steering.thresholds import Similarities
from steerlens.steering.topics import Topics
from steerlens.vectors.discriminants import Discriminant
from steerlens.vectors.tensor_files import read_tensors, write_tensors

WIDTH, LAYERS = 6, (0, 1, 2, 3)
OPTIONS = {"max_new_tokens": 3, "progress": False}


def vector(seed=0, **given):
    generator = torch.Generator().manual_seed(seed)
    norms = torch.rand(len(LAYERS), generator=generator) + 1
    directions = torch.randn(len(LAYERS), WIDTH, generator=generator)
    provenance = {"name": f"v{seed}", "seed": seed, "history": ["a", ["b"]], "pairs": None}
    return sl.SteeringVector(
        directions, LAYERS, **{"norms": norms, "provenance": provenance} | given
    )


def condition(seed=1, **given):
    return sl.Condition(vector(seed), **{"layers": 0, "above": 0.25} | given)


def topics(n=3):
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(n, 2, WIDTH, generator=generator)
    discriminant = Discriminant(weights, torch.randn(n, 2, generator=generator))
    names = tuple(f"t{i}" for i in range(n))
    return Topics(names, (0, 1), discriminant, (0.0, 0.5, -1.5)[:n], norms=torch.ones(2))


def soften(resid, direction, strength):
    return resid * 0.5 + strength * direction


@hooks.steering_hook
def shift(resid, direction, strength):
    return resid + strength * direction


def overlap(pooled, direction):
    return pooled @ direction


def to_half(before, after):
    return after / 2


def double(margin):
    return 2 * margin


OWN = {one.__name__: one for one in (soften, shift, overlap, to_half, double)}

FIELDS = {
    "vector": [vector(3, explained=torch.rand(4)), vector(4, norms=None, provenance={})],
    "layers": [[1, 3]],
    "strength": [2, -0.1, 1 / 3, [0.1, 1, 2, 3], torch.ones(4)],
    "when": [
        condition(),
        ~condition() | (condition(2, name="b") & ~condition(3)),
        topics().conditions["t1"] & condition(layers=[0], above=None, below=-1),
        condition(layers=[0], standard=Standard((0.1,), (2.5,)), tokens="user", site="resid_pre"),
        condition(tokens=slice(-3, None, 2), sinks=True, similarity=cosine, above=0.1),
        condition(similarity=overlap),
        SoftGate(condition(), Logistic(2.5)),
    ],
    "when_token": [
        condition() & ~places.generated(stop=3),
        SoftGate(condition(2), Linear(0.5, 0.25)),
        SoftGate(condition(3), Relu(7)),
        SoftGate(condition(3), double),
    ],
    "schedule": [Decay(3), Ramp(2.5), double],
    "edit": [hooks.ablate_direction, hooks.clamp_direction, soften, shift],
    "positions": [
        "last",
        slice(2, None),
        slice(-4, -1, 2),
        [1, -1],
        (0,),
        torch.tensor([True]),
        places.generated(2, 9, 3) | ~places.at(slice(-2, None)),
        places.tokens([4, 5]) & places.Between((1, 2), (3,), "thoughts"),
        places.at([0, 2]),
    ],
    "skip_bos": [True],
    "keep_norm": [True, hooks.restore_norm, hooks.restore_grown_norm, to_half],
    "relative": [True],
    "site": ["resid_mid", "z"],
    "reference": [vector(9)],
    "name": ["refuse ½ \u2028"],
    "evidence": [{"verdict": ["raises refusal"], "f1": [0.5, 0.25, 1], "n": None}],
}
"""Values of each field of a steering, none of them the default."""


def steering_with(name, value):
    more = {
        "reference": {"edit": hooks.affine_direction},
        "when": {"layers": [2, 3]},
        "when_token": {"layers": [2, 3]},
    }.get(name, {})
    if name == "evidence":
        return with_evidence(sl.Steering(vector()), value)
    return sl.Steering(**{"vector": vector()} | more | {name: value})


def resaved(plan, folder):
    """The plan from its file, which gives the same bytes when saved again."""
    sl.save_plan(plan, folder / "a.steer")
    loaded = sl.load_plan(folder / "a.steer", functions=OWN)
    sl.save_plan(loaded, folder / "b.steer")
    assert (folder / "a.steer").read_bytes() == (folder / "b.steer").read_bytes()
    return loaded


def assert_equal(one, other):
    """All fields of two values of a plan, all the way down; functions are the very same."""
    if isinstance(one, list):
        one = tuple(one)
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    elif type(one) in (sl.Steering, *plan_format.CLASSES):
        for field in plan_format._fields_of(type(one)):
            assert_equal(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple):
        for part, again in zip(one, other, strict=True):
            assert_equal(part, again)
    elif callable(one):
        assert getattr(one, "edit", one) is getattr(other, "edit", other)
    else:
        assert one == other


# There and back


def test_every_field_of_a_steering_is_tried_here():
    assert FIELDS.keys() == {field.name for field in fields(sl.Steering)}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in FIELDS.items() for value in values]
)
def test_every_field_comes_back(tmp_path, name, value):
    saved = steering_with(name, value)
    [loaded] = resaved(saved, tmp_path)
    assert_equal(saved, loaded)


def test_numbers_of_numpy_come_back_as_numbers(tmp_path, unchecked):
    fires = condition(above=np.float32(0.1))
    [loaded] = resaved(sl.Steering(vector(), [2], when=fires), tmp_path)
    assert loaded.when.threshold == fires.threshold
    assert type(loaded.when.threshold) is float


def test_every_edit_rule_and_similarity_of_the_package_has_a_name():
    named = {name for name, value in vars(hooks).items() if hasattr(value, "edit")}
    assert named | {one.__name__ for one in SIMILARITIES.values()} <= FUNCTIONS.keys()


@given(st.lists(combinations, min_size=1, max_size=3), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_plans_of_rules_come_back_and_share_their_conditions(tmp_path_factory, rules, draw):
    known = {name: condition(seed, name=name) for seed, name in enumerate(NAMES)}
    for name in NAMES[1:]:
        known[name] = (
            topics().conditions[draw.choice(["t0", "t1"])] if draw.random() < 0.3 else (known[name])
        )
    plan = [
        sl.Steering(vector(seed), [2, 3], when=built_of(rule, known))
        for seed, rule in enumerate(rules)
    ]
    loaded = resaved(plan, tmp_path_factory.mktemp("rules"))
    assert [str(step.when) for step in loaded] == [str(step.when) for step in plan]
    distinct = {one for step in plan for one in step.conditions}
    assert len({one for step in loaded for one in step.conditions}) == len(distinct)


def built_of(combination, known):
    match combination:
        case str(name):
            return known[name]
        case ("not", part):
            return ~built_of(part, known)
        case (word, one, other):
            one, other = built_of(one, known), built_of(other, known)
            return one & other if word == "and" else one | other


@pytest.mark.parametrize("seed", range(4))
def test_a_loaded_plan_steers_as_the_saved_one_did(model, tmp_path, seed):
    draw = random.Random(seed)
    harmful = splitting_condition(model, layer=0, name="harmful")
    plan = sl.apply_rules(
        "if harmful then push\nif not harmful then turn",
        {"harmful": harmful},
        {
            "push": sl.Steering(random_vector(model, 1), [1, 2], draw.uniform(0.5, 2)),
            "turn": sl.Steering(
                random_vector(model, 2), [2], 0.5, edit=hooks.rotate_to_direction,
                reference=random_vector(model, 3), positions=draw.choice(["last", slice(1, None)]),
                skip_bos=True,
            ),
        },
    )  # fmt: skip
    loaded = resaved(plan, tmp_path)
    one, other = (sl.generate(model, PROMPTS, each, **OPTIONS) for each in (plan, loaded))
    assert one.tokens == other.tokens
    assert len(other.gates) == 1
    assert torch.equal(one.gates[0].similarity, other.gates[0].similarity)


def test_a_steering_saves_itself(tmp_path):
    saved = sl.Steering(vector(), [1], 2.0, name="one")
    saved.save(tmp_path / "one.steer")
    assert repr(sl.Steering.load(tmp_path / "one.steer")) == repr(saved)
    sl.save_plan([saved, saved], tmp_path / "two.steer")
    first, second = sl.load_plan(tmp_path / "two.steer")
    assert first is second
    with pytest.raises(sl.SteerlensError, match=r"holds 2 steerings; expected one.*load_plan"):
        sl.Steering.load(tmp_path / "two.steer")


def test_a_plan_of_another_model_is_told_where_it_is_used(model, other_model, tmp_path):
    steering = sl.Steering(random_vector(model, provenance=model_provenance(model)), [1])
    steering.save(tmp_path / "v.steer")
    loaded = sl.Steering.load(tmp_path / "v.steer")
    sl.generate(model, ["Hi."], loaded, **OPTIONS)
    provenance = model_provenance(model) | {"weights": "0" * 16}
    elsewhere = replace(steering, vector=replace(steering.vector, provenance=provenance))
    elsewhere.save(tmp_path / "other.steer")
    with pytest.warns(ProvenanceWarning, match="another model"):
        sl.generate(model, ["Hi."], sl.load_plan(tmp_path / "other.steer"), **OPTIONS)


# What was measured


def test_a_search_tells_its_condition_what_was_measured(tmp_path):
    numbers = np.random.default_rng(0)
    sides = Similarities(numbers.normal(2, 1, (30, 2)), numbers.normal(0, 1, (20, 2)))
    best = search_similarities(vector(), (0, 1), sides, sides, combine=None).best
    assert best.evidence["prompts"] == [30, 20]
    value, low, high = best.evidence["f1"]
    assert 0.5 < low <= value <= high <= 1
    [loaded] = resaved(sl.Steering(vector(), [2], when=best), tmp_path)
    assert loaded.when.evidence == best.evidence
    assert loaded.when.standard == best.standard
    assert replace(loaded.when, above=0.0).evidence == {}


def test_evidence_is_of_the_steering_as_it_was_measured(tmp_path):
    measured = with_evidence(sl.Steering(vector()), {"verdict": ["it works"]})
    [loaded] = resaved(measured, tmp_path)
    assert loaded.evidence == {"verdict": ["it works"]}
    assert replace(loaded, strength=2.0).evidence == {}
    with pytest.raises(sl.SteerlensError, match="expected what JSON can hold"):
        sl.save_plan(with_evidence(measured, {"table": np.ones(2)}), tmp_path / "x.steer")


# The user's own functions


@pytest.mark.parametrize(
    "steering",
    [
        sl.Steering(vector(), edit=soften),
        sl.Steering(vector(), [1], when=condition(similarity=overlap)),
        sl.Steering(vector(), keep_norm=to_half),
    ],
    ids=["edit", "similarity", "norm"],
)
def test_own_functions_are_named_and_must_be_given(tmp_path, steering, unchecked):
    sl.save_plan(steering, tmp_path / "own.steer")
    name = next(name for name in OWN if name.encode() in (tmp_path / "own.steer").read_bytes())
    with pytest.raises(sl.SteerlensError, match=rf"uses '{name}'.*functions=\{{'{name}': …\}}"):
        sl.load_plan(tmp_path / "own.steer")
    with pytest.raises(sl.SteerlensError, match=name):
        sl.load_plan(tmp_path / "own.steer", functions={name: "import os"})
    [loaded] = sl.load_plan(tmp_path / "own.steer", functions={name: OWN[name]})
    assert repr(loaded) == repr(steering)


def test_an_own_function_of_a_known_name_is_not_the_packages(tmp_path):
    def add_direction(resid, direction, strength):
        return resid - strength * direction

    sl.save_plan(sl.Steering(vector(), edit=add_direction), tmp_path / "p.steer")
    with pytest.raises(sl.SteerlensError, match="a function of its author's own"):
        sl.load_plan(tmp_path / "p.steer")
    [loaded] = sl.load_plan(tmp_path / "p.steer", functions={"add_direction": add_direction})
    assert loaded.edit.edit is add_direction


def test_whether_an_own_edit_adds_up_is_part_of_the_plan(tmp_path):
    adding = hooks.steering_hook(soften, adds_up=True)
    sl.save_plan(sl.Steering(vector(), [0, 1], 1.0, edit=adding), tmp_path / "p.steer")
    with pytest.raises(sl.SteerlensError, match="steering_hook\\(soften, adds_up=True\\)"):
        sl.load_plan(tmp_path / "p.steer", functions={"soften": soften})
    [loaded] = sl.load_plan(tmp_path / "p.steer", functions={"soften": adding})
    assert loaded.strengths == (0.5, 0.5)


class _Callable:
    def __call__(self, resid, direction, strength):
        return resid


def test_what_no_file_can_hold_is_refused_before_anything_is_written(tmp_path, unchecked):
    cases = {
        "expected the name of a plan, which ends in .steer": (
            sl.Steering(vector()), tmp_path / "p.safetensors"
        ),
        "as a steering; expected a Steering": (vector(), tmp_path / "p.steer"),
        "got no steering": ([], tmp_path / "p.steer"),
    }  # fmt: skip
    for why, (plan, path) in cases.items():
        with pytest.raises(sl.SteerlensError, match=why):
            sl.save_plan(plan, path)
    with pytest.raises(sl.SteerlensError, match="has no name"):
        plan_format._named(_Callable())
    assert not list(tmp_path.iterdir())


# Broken and hostile files (byte by byte: tests/laws/test_fuzz.py)


def written(path, change):
    """A valid file whose JSON was changed."""
    steering = sl.Steering(vector(), [2], when=condition() & condition(2))
    sl.save_plan(steering, path)
    tensors, content, _ = read_tensors(path)
    change(content)
    write_tensors(path, tensors, content)
    return path


def last(content):
    return content["values"][-1]


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("expected the format 'steerlens.plan/1'", lambda c: c.update(format="steerlens.plan/2")),
        ("at steps: got \\[\\]; expected at least 1", lambda c: c.update(steps=[])),
        ("as a step; expected a Steering", lambda c: c.update(steps=[0])),
        ("got 99 as the number of a value", lambda c: c.update(steps=[99])),
        ("got -1 as the number of a value", lambda c: c.update(steps=[-1])),
        ("as a class; expected one of Steering", lambda c: last(c).update({"class": "Popen"})),
        ("Steering 6', at gate: got the unknown key 'gate'", lambda c: last(c).update(gate=1)),
        (
            "at skip_bos: got 'no'; expected a valid boolean",
            lambda c: last(c).update(skip_bos="no"),
        ),
        ("Steering 6', on the whole: got no 'vector'", lambda c: last(c).pop("vector")),
        ("got 6 as the number of a value", lambda c: last(c).update(when={"value": 6})),
        ("names nothing", lambda c: last(c).update(edit={"function": "system"})),
        ("names nothing", lambda c: last(c).update(positions={"tensor": "elsewhere"})),
        ("names nothing", lambda c: last(c).update(positions={"slice": [0, 1, "x"]})),
        ("names nothing", lambda c: last(c).update(positions={})),
        ("expected one that can be called", lambda c: last(c).update(edit={"function": "cosine"})),
        ("the vector has no direction for layer 7", lambda c: last(c).update(layers=[7])),
        ("combination of no conditions", lambda c: c["values"][5].update(parts=[])),
    ],
)
def test_wrong_files_are_refused_by_place_and_reason(tmp_path, why, change):
    path = written(tmp_path / "p.steer", change)
    with pytest.raises(sl.SteerlensError, match=why) as caught:
        sl.load_plan(path)
    assert path.name in str(caught.value)


def test_a_file_that_unfolds_without_end_is_refused(tmp_path):
    """Each combination holds the one before twice: 2⁴⁰ conditions in a few kilobytes."""

    def laugh(content):
        step = content["values"].pop()
        for _ in range(40):
            before = {"value": len(content["values"]) - 1}
            content["values"].append({"class": "AllOf", "parts": [before, before]})
        step["when"] = {"value": len(content["values"]) - 1}
        content["values"].append(step)
        content["steps"] = [len(content["values"]) - 1]

    with pytest.raises(sl.SteerlensError, match="unfolds to more than"):
        sl.load_plan(written(tmp_path / "p.steer", laugh))


def test_other_safetensors_and_missing_files_are_told(tmp_path):
    vector().save(tmp_path / "v.safetensors")
    (tmp_path / "v.safetensors").rename(tmp_path / "v.steer")
    with pytest.raises(sl.SteerlensError, match="is not a plan"):
        sl.load_plan(tmp_path / "v.steer")
    with pytest.raises(sl.SteerlensError, match="there is no file"):
        sl.load_plan(tmp_path / "w.steer")
    with pytest.raises(sl.SteerlensError, match=r"ends in \.steer"):
        sl.load_plan(tmp_path / "v.safetensors")


def test_names_are_no_conditions(tmp_path):
    with pytest.raises(sl.SteerlensError, match="apply_rules binds names"):
        sl.Steering(vector(), when=Named("harmful"))
