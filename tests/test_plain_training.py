"""Plain training: it fits what can be fitted, the same every time, and refuses bad arguments."""

import pytest
import torch

from margins import datasets, models, training
from margins.errors import MarginsError


def trained(seed=0, **settings):
    data = datasets.load("toy2d", size=50, seed=1)
    model = models.build("mlp", inputs=2, hidden=(8,), classes=2)
    return training.fit(model, data.x, data.y, **{"epochs": 20, "batch_size": 10, "lr": 0.05, "seed": seed, **settings})


def test_separable_points_are_learned_and_the_model_is_ready_to_be_evaluated():
    model, test = trained(), datasets.load("toy2d", "test", size=200, seed=1)
    assert not model.training
    assert (model(test.x).argmax(1) == test.y).float().mean() > 0.99


def test_the_seed_decides_the_order_and_nothing_else_does():
    torch.manual_seed(1)
    first = trained().state_dict()
    torch.manual_seed(2)
    again, other = trained().state_dict(), trained(seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"seed": -1}, {"epochs": 1.5}]
)
def test_bad_arguments_are_named(settings):
    with pytest.raises(MarginsError, match=next(iter(settings))):
        trained(**settings)
