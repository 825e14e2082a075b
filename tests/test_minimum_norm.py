"""The minimum-norm attacks against exact distances, and what every attack promises."""

import math
from functools import partial

import pytest
import torch
from known import linear, nearest
from sklearn.datasets import make_moons
from torch import nn

from margins import models, planar, training
from margins.attacks import deepfool, race

BOXES = [None, (0.0, 1.0)]
ATTACKS = {"race": partial(race, targets=20), "deepfool": partial(deepfool, overshoot=1e-6)}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("bounds", BOXES)
@pytest.mark.parametrize("classes", [2, 3, 6, 12])
def test_on_linear_models_the_distance_is_exact_in_an_active_box_too(name, norm, bounds, classes):
    model, x, y = linear(classes, classes=classes)
    exact, found = nearest(model, x, y, norm, bounds), ATTACKS[name](model, x, y, norm=norm, bounds=bounds)
    reachable = exact.isfinite()
    assert torch.equal(found.success, reachable)
    torch.testing.assert_close(found.distance[reachable], exact[reachable], rtol=2e-5, atol=1e-9)
    assert found.distance[~reachable].isinf().all() and torch.equal(found.x_adv[~reachable], x[~reachable])
    assert (found.distance > 0).sum() > 40
    measured = torch.linalg.vector_norm(found.x_adv - x, norm, dim=1)[reachable]
    torch.testing.assert_close(measured, found.distance[reachable], rtol=1e-9, atol=1e-12)
    assert (model(found.x_adv).argmax(1) != y)[reachable].double().mean() > 0.9  # but for rounding at the boundary
    if bounds:
        assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1
        free = nearest(model, x, y, norm, None)
        assert (exact[reachable] > 1.001 * free[reachable]).sum() > 5  # the box was active
    elif name == "deepfool":
        torch.testing.assert_close(deepfool(model, x, y, norm=norm).distance, 1.02 * exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("attack", [race, partial(deepfool, overshoot=1e-3, bounds=(0.0, 1.0))], ids=[*ATTACKS])
@pytest.mark.parametrize("norm", [2, math.inf])
def test_float32_gives_the_distance_to_its_rounding(attack, norm):
    model, x, y = linear(3, inputs=40)
    exact = nearest(model, x, y, norm)
    found = attack(model.float(), x.float(), y, norm=norm)
    far = exact.isfinite() & (exact > 1e-3)
    assert far.sum() > 40
    rtol = 1e-3 if attack is race else 1.1e-3  # DeepFool's overshoot, and rounding
    torch.testing.assert_close(found.distance[far].double(), exact[far], rtol=rtol, atol=0)


@pytest.mark.parametrize("name", ATTACKS)
def test_in_the_plane_it_is_never_below_the_exact_distance_and_mostly_at_it(name):
    spots, labels = make_moons(60, noise=0.1, random_state=3)
    x, y = torch.from_numpy(spots), torch.from_numpy(labels).long()
    model = models.build("mlp", inputs=2, hidden=(16,), classes=2).double()
    training.fit(model, x, y, epochs=200, batch_size=60, lr=0.03)
    exact = planar.planar_margin(model, x, y, (-30, 30, -30, 30))
    x, y, exact = x[exact > 0], y[exact > 0], exact[exact > 0]
    found = ATTACKS[name](model, x, y, norm=2, bounds=None)
    ratio = (found.distance / exact)[found.success]
    assert (ratio >= 1 - 1e-9).all()
    assert (ratio < 1 + 1e-4).double().mean() > {"race": 0.8, "deepfool": 0.3}[name]


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", [2, math.inf])
def test_it_does_not_depend_on_the_batch_and_leaves_the_model_as_it_was(name, norm):
    g = torch.Generator().manual_seed(4)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)).double().train()
    x, y = torch.rand(20, 8, generator=g, dtype=torch.float64), torch.arange(20) % 4
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attack = partial(ATTACKS[name], norm=norm, bounds=(0.0, 1.0))
    whole, order = attack(model, x, y), torch.randperm(20, generator=g)
    parts = [attack(model, x[part], y[part]) for part in order.split(7)]
    torch.testing.assert_close(
        torch.cat([part.distance for part in parts]), whole.distance[order], rtol=1e-6, atol=1e-9
    )
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_deepfool_traces_a_path_that_leads_to_its_result():
    g = torch.Generator().manual_seed(5)
    model = models.build("mlp", inputs=6, hidden=(12,), classes=4, generator=g).double()
    x, y = torch.rand(30, 6, generator=g, dtype=torch.float64), torch.arange(30) % 4
    found = deepfool(model, x, y, reference="correction", trace=True, overshoot=0.02)
    moved = torch.zeros_like(x)
    for step in found.path:
        moved[step.samples] += step.move
        assert (step.reference != step.chosen).all()
    done = found.success
    torch.testing.assert_close(found.x_adv[done], (x + 1.02 * moved)[done])
    wrong = model(x).argmax(1) != y
    assert (model(found.x_adv).argmax(1) == y)[wrong & done].all() and (wrong & done).any()
