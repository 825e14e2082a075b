"""The minimum-norm attack: what is exactly known, strength, failing gradients, and what every attack promises."""

import math

import pytest
import torch
from real import needs
from test_deepfool import BOTH, BOX, network
from test_untouched import Fails
from torch import nn

from margins import datasets, models, planar, training
from margins.attacks import race as exported
from margins.attacks.deepfool import deepfool
from margins.attacks.fab import fab_t
from margins.attacks.race import race
from margins.errors import MarginsError

# What is exactly known


def test_small_networks_give_the_exact_distance_of_the_plane():
    met, samples = 0, 0
    for seed in range(4):
        model, x, _ = network(seed, inputs=2, classes=3, batch=60)
        y = model(x).argmax(1)
        exact = planar.planar_margin(model, x, y, (-19.0, 20.0, -19.0, 20.0))
        found = race(model, x, y, bounds=None)
        assert found.success.all()
        assert (found.distance >= exact * (1 - 1e-9)).all()
        met, samples = met + (found.distance <= exact * (1 + 1e-4)).sum().item(), samples + len(x)
    assert met / samples >= 0.8, met / samples  # others end in a local minimum, or slowly near a corner


# Strength


@BOTH
def test_it_is_stronger_than_deepfool_and_no_weaker_than_fab_with_every_class(norm):
    model, x, y = network(batch=60, inputs=20, classes=8)
    found = race(model, x, y, norm=norm)
    wrong = found.distance == 0
    assert found.success.all()
    others = deepfool(model, x, y, norm=norm, bounds=BOX), fab_t(model, x, y, norm=norm, targets=7)
    shorter = [(found.distance / other.distance)[~wrong] for other in others]
    assert shorter[0].median() < 0.99
    assert shorter[0].max() < 1.01
    assert shorter[1].median() <= 1.0001
    assert shorter[1].mean() < 1.003
    assert (model(x + 0.999 * (found.x_adv - x)).argmax(1) == y)[~wrong].double().mean() > 0.9  # at the boundary


def test_more_steps_find_nearer_points_and_few_do_find_some():
    model, x, y = network(batch=60, inputs=20, classes=8)
    means = [race(model, x, y, steps=steps).distance.mean().item() for steps in (8, 20, 100)]
    assert means[0] > means[1] > means[2]
    assert means[0] < 1.2 * means[2]
    assert race(model, x, y, steps=1).success.all()


def test_a_confident_network_is_no_harder():
    model, x, y = network()
    plain = race(model, x, y)
    with torch.no_grad():
        model.head.weight *= 1e5  # cross-entropy and its gradient are exactly 0 there
        model.head.bias *= 1e5
    assert torch.allclose(race(model, x, y).distance, plain.distance, rtol=1e-6)
    with torch.no_grad():
        model.head.weight *= 1e-30
        model.head.bias *= 1e-30
    assert torch.allclose(race(model, x, y).distance, plain.distance, rtol=1e-6)


@needs("mnist")
@BOTH
def test_on_real_images_it_beats_deepfool_within_the_box(norm):
    train, test = datasets.load("mnist", "train"), datasets.load("mnist", "test")
    model = models.build("mlp", inputs=784, hidden=(64,), classes=10, generator=torch.Generator().manual_seed(0))
    training.fit(model, train.x[:5000], train.y[:5000], epochs=3)
    x, y = test.x[:60], test.y[:60]
    found, other = race(model, x, y, norm=norm), deepfool(model, x, y, norm=norm, bounds=BOX)
    assert found.success.all()
    assert found.distance.mean() < 0.98 * other.distance.mean()
    assert (found.distance <= other.distance * 1.001).all()
    assert (found.x_adv.min(), found.x_adv.max()) == (0, 1)


# Where gradients fail


class Steps(nn.Module):
    """A network that sees x rounded: its gradient is zero everywhere."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body((x * 20).round() / 20)


@BOTH
def test_where_gradients_vanish_something_is_found_all_the_same(norm):
    model, x, y = network()
    found = race(Steps(model), x, y, norm=norm)
    assert found.success.all()
    assert torch.equal(Steps(model)(found.x_adv).argmax(1) == y, torch.zeros(40, dtype=torch.bool))
    assert found.distance.median() < 5 * race(model, x, y, norm=norm).distance.median()
    assert found.calls.forward < 40 * 150
    other = race(Steps(model), x, y, norm=norm, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(other.x_adv, found.x_adv)


class Flat(nn.Module):
    """No gradient at x[0] < 0.5, where it starts; beyond it a network in which another class is near."""

    def forward(self, x):
        gap = (0.6 - x[:, 0]).clamp(max=0.1) + 0.01 * x[:, 1:].sum(1) * (x[:, 0] > 0.5)
        return torch.stack((gap, 0 * gap), 1)


def test_a_flat_start_is_left_and_gradients_take_over():
    x = torch.full((6, 5), 0.2, dtype=torch.float64) + torch.arange(6)[:, None] / 100
    found = race(Flat(), x, torch.zeros(6, dtype=torch.int64))
    assert found.success.all()
    assert (found.distance < 0.45).all()  # 0.4 is near the optimum; a random direction would be farther


class Broken(nn.Module):
    """A gradient that is nan in half of the box."""

    def forward(self, x):
        bad = torch.where(x[:, :1] > 0.5, x[:, :1] * math.inf * 0, 0)
        gap = 1 - x.sum(1, keepdim=True) / 3 + bad.detach() * 0 + (bad - bad.detach()).nan_to_num(0.0)
        return torch.cat((gap, gap * 0), 1)


def test_gradients_that_are_not_finite_do_no_harm():
    x = torch.rand(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 3
    found = race(Broken(), x, torch.zeros(8, dtype=torch.int64))
    assert found.x_adv.isfinite().all()


def test_where_nothing_is_misclassified_it_fails():
    model = models.build("linear", inputs=3, classes=3).double()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([1.0, 0, 0]))
    x = torch.rand(4, 3, dtype=torch.float64)
    for bounds in (None, BOX):
        found = race(model, x, torch.tensor([0, 0, 1, 0]), bounds=bounds)
        assert found.success.tolist() == [False, False, True, False]
        assert found.distance.tolist() == [math.inf, math.inf, 0, math.inf]
        assert torch.equal(found.x_adv, x)


# What every attack promises


@BOTH
@pytest.mark.parametrize("classes", [3, 8])
def test_samples_do_not_see_each_other_and_a_generator_decides(norm, classes):
    model, x, y = network(batch=300, classes=classes)
    run = lambda x, y: race(model, x, y, norm=norm, steps=30, generator=torch.Generator().manual_seed(3))  # noqa: E731
    whole = run(x, y)
    assert torch.equal(whole.x_adv, run(x, y).x_adv)
    for part in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(70):
        found = run(x[part], y[part])
        assert torch.allclose(found.x_adv, whole.x_adv[part], atol=1e-6)
        assert torch.allclose(found.distance, whole.distance[part], atol=1e-6)
        assert torch.equal(found.success, whole.success[part])


@BOTH
def test_shapes_types_and_counts(norm):
    model, x, y = network(dtype=torch.float32, classes=12)
    image = nn.Sequential(nn.Flatten(), model)
    found = exported(image, x.reshape(-1, 2, 5), y, norm=norm)
    assert found.x_adv.shape == (40, 2, 5)
    assert found.x_adv.dtype == found.distance.dtype == torch.float32
    assert not found.x_adv.requires_grad
    assert torch.equal(found.success, image(found.x_adv).argmax(1) != y)
    assert torch.equal(found.distance, torch.linalg.vector_norm((found.x_adv.flatten(1) - x), norm, dim=1))
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    wrong = model(x).argmax(1) != y
    assert wrong.sum() == 5
    assert torch.equal(found.x_adv.flatten(1)[wrong], x[wrong])
    assert not found.distance[wrong].any()
    for steps in (10, 50, 100):  # a forward and a backward a step, the ranking of 9 classes and two looks among them
        calls = race(model, x, y, norm=norm, steps=steps).calls
        assert calls.forward + calls.backward <= 2 * 35 * steps + 5
        assert calls.forward + calls.backward >= 2 * 35 * (steps - 1)
    empty = race(model, x[:0], y[:0])
    assert (empty.x_adv.shape, empty.distance.shape) == ((0, 10), (0,))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"norm": 1}, "norm must be one of 2, inf"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"targets": 0}, "targets must be a whole number of at least 1"),
        ({"bounds": (1, 0)}, "bounds must be"),
        ({"bounds": (0.0, 0.5)}, "x must lie in the box"),
    ],
)
def test_bad_arguments_are_named_before_any_work(given, words):
    model = Fails(1)
    with pytest.raises(MarginsError, match=words):
        race(model, torch.rand(3, 4), torch.tensor([0, 1, 2]), **given)
    assert model.asked == 0
