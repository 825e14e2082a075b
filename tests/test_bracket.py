"""The bracket against exact distances: linear models, the plane; and a small network trained on the digits."""

import math

import known
import pytest
import torch
from torch import nn

from margins import datasets, margin, planar, training
from margins.errors import MarginsError
from margins.models import MLP, Linear, build


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_mlp(seed, hidden=(10, 6), classes=3):
    model = MLP(2, hidden, classes, generator=generator(seed)).double()
    with torch.no_grad():
        for layer in [*model.hidden, model.head]:
            layer.weight.mul_(3)
        model.head.bias.sub_(model(torch.rand(500, 2, generator=generator(0)).double()).mean(0))
    return model


@pytest.fixture(scope="module")
def digits():
    train, test = datasets.load("digits", "train"), datasets.load("digits", "test")
    models = {
        "mlp": build("mlp", inputs=64, hidden=(40, 30), classes=10),
        "cnn": build("cnn", shape=(1, 8, 8), blocks=((6, 10),), hidden=(20,), classes=10),
    }
    for model in models.values():
        training.fit(model, train.x, train.y, epochs=30, lr=0.01)
    return models, test.x[:60], test.y[:60]


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_on_linear_models_both_ends_are_the_distance(norm, bounds):
    model, x, y = known.linear(4, classes=3)
    prediction = model(x).argmax(1)
    exact = known.nearest(model, x, prediction, norm, bounds) * (2 * (prediction == y) - 1)
    found = margin.bracket(model, x, y, norm=norm, bounds=bounds)
    assert (exact < 0).any()
    for end in (found.lower, found.upper):
        torch.testing.assert_close(end, exact, rtol=1e-4, atol=1e-9)
    assert (found.lower <= found.upper).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_exact_distance_lies_between(seed):
    model = random_mlp(seed)
    x = torch.rand(80, 2, generator=generator(seed + 10), dtype=torch.float64)
    y = torch.arange(80) % 3
    exact = planar.planar_margin(model, x, y, (-30, 31, -30, 31))
    found = margin.bracket(model, x, y, bounds=None)
    slack = 1e-9 * exact.abs()
    assert (found.lower <= exact + slack).all()
    assert (found.upper >= exact - slack).all()
    assert ((found.lower > 0) == (exact > 0)).all()
    assert ((found.upper > 0) == (exact > 0)).all()
    assert 20 < (exact > 0).sum() < 60
    right = exact > 0
    assert (found.upper / exact)[right].median() < 1.001  # the attack mostly finds the nearest point
    assert (found.lower / exact)[~right].median() < 1.001


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_trained_networks_have_a_bracket_worth_its_name(digits, name, norm):
    models, x, y = digits
    model = models[name]
    right = model(x).argmax(1) == y
    assert right.double().mean() > 0.85
    found = margin.bracket(model, x, y, norm=norm)
    assert (found.lower <= found.upper).all()
    assert (found.lower[right] > 0).all()
    assert (found.upper[~right] <= 0).all()
    assert (found.lower / found.upper)[right].median() > 0.2
    assert found.calls.forward > 100 * len(x)
    # Robust accuracy at any eps lies between two curves that fall.
    radii, ends = (0, 0.01, 0.1, 0.5, 8), (found.lower, found.upper)
    curves = torch.tensor([[margin.accuracy_at(end, eps).estimate for eps in radii] for end in ends])
    assert (curves.diff(dim=1) <= 0).all()
    assert (curves[0] <= curves[1]).all()
    assert curves[:, 0].tolist() == pytest.approx([right.double().mean().item()] * 2)
    assert curves[:, -1].tolist() == [0, 0]


def test_one_sample_does_not_see_the_others_and_nothing_is_left_behind(digits):
    models, x, y = digits
    model = models["mlp"].train()
    state, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    gradients = [p.grad for p in model.parameters()]
    found = margin.bracket(model, x[:12], y[:12], steps=30)
    order = torch.randperm(12, generator=generator(20))
    shuffled = margin.bracket(model, x[:12][order], y[:12][order], steps=30)
    part = margin.bracket(model, x[3:7], y[3:7], steps=30)
    for end in ("lower", "upper"):
        torch.testing.assert_close(getattr(shuffled, end), getattr(found, end)[order], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(getattr(part, end), getattr(found, end)[3:7], rtol=1e-4, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is before for p, before in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    empty = margin.bracket(model, x[:0], y[:0])
    assert empty.lower.shape == empty.upper.shape == (0,)


def test_a_model_without_a_boundary_in_the_box():
    model = Linear(2, 2)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([1.0, 0]))
    found = margin.bracket(model, torch.full((2, 2), 0.5), torch.tensor([0, 1]))
    assert found.lower.tolist() == found.upper.tolist() == [math.inf, -math.inf]


def test_a_model_that_is_not_the_same_each_time_is_found_out():
    class Moody(nn.Flatten):  # as it should be at first, and then with everything reversed
        calls = 0

        def forward(self, x):
            Moody.calls += 1
            return super().forward(x) * (1 if Moody.calls < 4 else -1)

    model = nn.Sequential(nn.Flatten(), Linear(2, 2, generator=generator(21)).head)
    moody = Moody()
    model.register_forward_pre_hook(lambda module, args: (moody(args[0]),))
    x = torch.rand(20, 2, generator=generator(22)) - 0.5
    with pytest.raises(MarginsError, match=r"has another class at distance .* within its certified radius"):
        margin.bracket(model, x, torch.arange(20) % 2, bounds=None)


X, Y = torch.full((2, 3), 0.5), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm": 1}, "norm must be one of 2, inf"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"y": Y + 2}, "y must lie in 0..1"),
        ({"x": X + 1}, "x must lie in the box"),
        ({"model": nn.Sequential(nn.Linear(3, 2), nn.Sigmoid())}, "does not end in a Linear|the layer Sigmoid"),
    ],
)
def test_bad_input_is_named(settings, words):
    with pytest.raises(MarginsError, match=words):
        margin.bracket(**{"model": Linear(3, 2), "x": X, "y": Y} | settings)
