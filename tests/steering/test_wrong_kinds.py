"""Arguments of another kind are refused by name: none fails later, or does nothing in silence."""

import math

import numpy as np
import pytest
import torch
from helpers import PROMPTS, random_vector

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.interpret import scan_tokens

pytestmark = pytest.mark.usefixtures("unchecked")
QUIET = {"max_new_tokens": 2, "progress": False}
SIDES = (PROMPTS[:2], PROMPTS[2:4])
OTHERS = (["What is that?", "Who was here?"], ["A ship.", "The sea."])


@pytest.fixture(scope="module")
def vector(model):
    return random_vector(model)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", "2"),
        ("layers", 2),
        ("layers", [1.5]),
        ("layers", [True]),
        ("edit", "add"),
        ("edit", None),
        ("when", "harmful"),
        ("when", True),
        ("keep_norm", "yes"),
        ("keep_norm", 1),
        ("reference", 3),
        ("strength", "1"),
        ("strength", math.nan),
    ],
)
def test_a_steering_is_refused_with_the_name_of_what_is_wrong(vector, field, value):
    with pytest.raises(sl.SteerlensError, match=rf"got {field}=.*expected "):
        sl.Steering(vector, **{field: value})


@pytest.mark.parametrize("value", ["0.5", [0.5], 1j, math.nan, math.inf, True])
def test_a_threshold_is_one_finite_number(vector, value):
    with pytest.raises(sl.SteerlensError, match=r"got above=.*finite number"):
        sl.Condition(vector, 0, above=value)


def test_numbers_of_numpy_and_torch_are_numbers(model, vector):
    for one in (np.float32(0.5), torch.tensor(0.5)):
        condition = sl.Condition(vector, np.int64(0), above=one)
        steering = sl.Steering(vector, [np.int64(2)], one, when=condition)
        assert len(sl.generate(model, PROMPTS[:1], steering, **QUIET)) == 1


@pytest.mark.parametrize("given", ["vector", ["vector"], {"a": 1}, "text", 3, [None]], ids=str)
def test_what_is_no_steering_is_refused(model, vector, given):
    plan = {"vector": vector}.get(given, given) if isinstance(given, str) else given
    plan = [vector] if given == ["vector"] else plan
    for run in (sl.generate, lambda *a, **k: next(sl.stream(*a, max_new_tokens=2))):
        with pytest.raises(sl.SteerlensError, match=r"as a steering; expected a Steering, such"):
            run(model, PROMPTS[:1], plan, **QUIET)
    for run in (sl.evaluate, lambda *a: sl.calibrate_strength(*a[:2])):
        with pytest.raises(sl.SteerlensError, match=r"as a steering; expected a Steering, such"):
            run(model, plan, PROMPTS[:1])


@pytest.mark.parametrize("given", ["tiny-chat", None, torch.nn.Linear(2, 2)], ids=str)
def test_what_is_no_model_is_refused(given):
    with pytest.raises(sl.SteerlensError, match=r"as the model; expected what load_model\(\)"):
        sl.generate(given, ["Hi."], **QUIET)


@pytest.mark.parametrize("value", ["3", 2.5, None, True, 0, -1], ids=str)
@pytest.mark.parametrize("name", ["max_new_tokens", "batch_size"])
def test_counts_are_whole_numbers_of_at_least_one(model, name, value):
    with pytest.raises(sl.SteerlensError, match=rf"got {name}=.*expected (a whole|at least 1)"):
        sl.generate(model, ["Hi."], **QUIET | {name: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": "1"},
        {"temperature": math.inf},
        {"temperature": None},
        {"seed": None},
        {"seed": 1.5},
        {"seed": 2**70},
        {"top_p": "0.5"},
    ],
    ids=str,
)
def test_a_sampling_is_refused_with_what_is_wrong(fields):
    with pytest.raises(sl.SteerlensError, match=r"got .*expected"):
        sl.Sampling(**{"temperature": 1.0} | fields)


def test_the_largest_seed_still_draws(model):
    sampling = sl.Sampling(temperature=1.0, seed=2**40)
    assert len(sl.generate(model, ["Hi."], sampling=sampling, **QUIET)) == 1


def dot(pooled, direction):
    return pooled @ direction


WRONG_SIMILARITIES = {
    "None": lambda pooled, direction: None,
    "a list": lambda pooled, direction: dot(pooled, direction).tolist(),
    "text": lambda pooled, direction: "high",
    "one row": lambda pooled, direction: dot(pooled, direction)[:1],
    "a column": lambda pooled, direction: dot(pooled, direction)[:, None],
    "one number": lambda pooled, direction: dot(pooled, direction).mean(),
    "complex numbers": lambda pooled, direction: dot(pooled, direction) + 1j,
}


@pytest.mark.parametrize("returned", WRONG_SIMILARITIES)
def test_similarities_are_checked_wherever_they_are_called(model, vector, returned):
    similarity = WRONG_SIMILARITIES[returned]
    steering = sl.Steering(
        vector, [2], when=sl.Condition(vector, 0, above=0, similarity=similarity)
    )
    calls = [
        lambda: sl.generate(model, PROMPTS[:2], steering, **QUIET),
        lambda: sl.search_conditions(
            model, vector, SIDES, held_out=OTHERS, layers=[0], similarity=similarity, progress=False
        ),
        lambda: scan_tokens(model, PROMPTS[0], vector, similarity=similarity),
    ]
    for call in calls:
        with pytest.raises(sl.SteerlensError, match=r"similarity.* returned .*one real number for"):
            call()


def zeroing(pooled, direction):
    result = dot(pooled, direction)
    pooled.zero_()
    direction.zero_()
    return result


@pytest.mark.parametrize(
    "similarity",
    [lambda pooled, direction: dot(pooled, direction).numpy(), zeroing],
    ids=["numpy", "in place"],
)
def test_similarities_in_numpy_or_in_place_are_as_any_other(model, vector, similarity):
    def found(by):
        search = sl.search_conditions(
            model, vector, SIDES, held_out=OTHERS, layers=[0, 1], similarity=by, progress=False
        )
        scan = scan_tokens(model, PROMPTS[0], vector, similarity=by).values
        return search.best.threshold, scan.tolist()

    assert found(similarity) == found(dot)


@pytest.mark.parametrize(
    "returned", [None, 1, "ab", [1.0], [math.nan], ["a"], [True], {0: 1}, 1.5], ids=str
)
def test_tokens_chosen_by_a_function_are_positions(model, returned):
    with pytest.raises(
        sl.SteerlensError, match=r"<lambda> returned .*expected a list of positions"
    ):
        read_residual(model, PROMPTS[:1], [0], tokens=lambda pieces: returned, progress=False)


@pytest.mark.parametrize(
    "choose",
    [
        lambda pieces: np.array([1, 2]),
        lambda pieces: torch.tensor([1, 2]),
        lambda pieces: [at in (1, 2) for at in range(len(pieces))],
        lambda pieces: np.isin(np.arange(len(pieces)), (1, 2)),
        lambda pieces: (pieces.clear(), [1, 2])[1],
    ],
    ids=["NumPy", "tensor", "mask", "NumPy mask", "in place"],
)
def test_positions_come_as_arrays_and_masks(model, choose):
    def read(tokens):
        return read_residual(model, PROMPTS[:2], [0], tokens=tokens, progress=False)

    torch.testing.assert_close(read(choose), read(slice(1, 3)))


@pytest.mark.parametrize("layers", ["2-3", 2, [0.5], [None], [True]], ids=str)
def test_layers_are_whole_numbers(model, layers):
    with pytest.raises(sl.SteerlensError, match=r"got layers=.*such as"):
        sl.extract(model, SIDES, layers=layers, progress=False)


@pytest.mark.parametrize("estimator", ["pca", 3], ids=str)
def test_an_estimator_is_a_function(model, estimator):
    with pytest.raises(sl.SteerlensError, match=r"got estimator=.*such as estimators"):
        sl.extract(model, SIDES, estimator, progress=False)


@pytest.mark.parametrize(
    "data", [[("a", "b"), ("c", "d")], [["a"], ["b"]], "ab", {"positive": ["a"]}, ("a",)], ids=str
)
def test_two_pairs_are_not_taken_for_two_sides(model, data):
    with pytest.raises(sl.SteerlensError, match=r"expected two lists of prompts, as the tuple"):
        sl.extract(model, data, progress=False)
