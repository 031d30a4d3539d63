"""Seeds, the forecast, and the figure."""

import pytest
import torch

import steerlens as sl
from steerlens.dashboards import learning_curve
from steerlens.learning.forecast import forecast
from steerlens.learning.seeds import learn_seeds

LESSONS = [(f"What is {n}?", "No, I will not.") for n in range(10)]
FEW = sl.Training(steps=6, batch_size=4, check_every=2, learning_rate=0.02)


@pytest.fixture(scope="module")
def seeds(model):
    return learn_seeds(model, LESSONS, (0, 3), training=FEW, layers=[1, 2], progress=False)


def test_each_seed_is_the_vector_that_learn_gives(model, seeds):
    alone = sl.learn(
        model, LESSONS, layers=[1, 2], progress=False,
        training=sl.Training(**{**vars(FEW), "seed": 3}),
    )  # fmt: skip
    assert torch.equal(seeds.vectors[1].directions, alone.directions)


def test_cosines_gains_and_mean_are_those_of_the_vectors(seeds):
    one, other = seeds.vectors
    assert seeds.cosines.shape == (2, 2, 2)
    torch.testing.assert_close(seeds.cosines[:, 0, 1], one.cosine(other))
    torch.testing.assert_close(seeds.cosines.diagonal(dim1=1, dim2=2), torch.ones(2, 2))
    assert seeds.gains == tuple(v.provenance["gain"]["held_out"] for v in seeds.vectors)
    torch.testing.assert_close(seeds.mean.directions, (one.directions + other.directions) / 2)
    assert str(seeds).startswith("2 seeds: cosine ")


def test_one_seed_tells_nothing_of_chance(model):
    with pytest.raises(sl.SteerlensError, match="at least two"):
        learn_seeds(model, LESSONS, [1, 1])


def test_the_forecast_counts_what_is_run(model):
    told = forecast(model, LESSONS, training=FEW)
    assert (told.prompts, told.held_out, told.texts, told.steps) == (9, 1, 10, 6)
    assert told.layers == (1,)
    assert told.seconds > 0
    ids = [model.tokenizer(f"{n}")["input_ids"] for n in range(10)]
    assert told.tokens > sum(map(len, ids))


def test_the_figure_shows_losses_and_checks(seeds):
    [vector, _] = seeds.vectors
    figure = learning_curve(vector)
    loss, held_out, gain = figure.data
    assert list(loss.y) == vector.provenance["loss"]
    checks = vector.provenance["checks"]
    assert list(held_out.x) == list(gain.x) == [2, 4, 6]
    assert list(held_out.y) == [check["loss"] for check in checks]
    assert list(gain.y) == [check["gain"] for check in checks]


def test_the_figure_refuses_vectors_that_were_not_learned():
    with pytest.raises(sl.SteerlensError, match="no losses"):
        learning_curve(sl.SteeringVector(torch.eye(2), (0, 1)))
