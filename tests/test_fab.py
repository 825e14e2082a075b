"""FAB-T: exact distances of linear and piecewise-linear models, what it costs, and every attack's promises."""

import math
from functools import partial

import pytest
import torch
from known import crossing, linear, nearest
from torch import nn

from margins import planar
from margins.attacks import fab as module
from margins.attacks.fab import fab_t
from margins.attacks.halfspace import nearest_in_halfspace
from margins.errors import MarginsError

BOTH = pytest.mark.parametrize("norm", [2, math.inf])
network = partial(crossing, inputs=12, hidden=(24,), scale=3)


class Constant(nn.Module):
    """Class 0 wins everywhere, whatever the gradients say."""

    def forward(self, x):
        x = x.flatten(1)
        return torch.stack((x.sum(1) * 0.01 + 9, x[:, 0], x[:, 0] * 0), 1)


# What is exactly known


@BOTH
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_linear_models_give_the_exact_distance(norm, bounds, classes):
    model, x, y = linear(classes, classes=classes)
    exact = nearest(model, x, y, norm, bounds)
    found = fab_t(model, x, y, norm=norm, steps=10, bounds=bounds)
    finite = exact.isfinite()
    assert torch.equal(found.success, finite)
    assert torch.allclose(found.distance[finite], exact[finite], rtol=2e-5)
    assert (found.distance > 0).sum() > 40
    if bounds:
        assert (exact[finite] > 1.001 * nearest(model, x, y, norm, None)[finite]).sum() > 5  # the box was active
        assert found.x_adv.min() >= 0
        assert found.x_adv.max() <= 1


@BOTH
def test_float32_gives_the_distance_to_its_rounding(norm):
    model, x, y = linear(3, inputs=40)
    exact = nearest(model, x, y, norm)
    found = fab_t(model.float(), x.float(), y, norm=norm, steps=10)
    far = exact.isfinite() & (exact > 1e-3)
    assert far.sum() > 40
    assert torch.allclose(found.distance[far].double(), exact[far], rtol=1e-3)


@BOTH
def test_where_nothing_is_misclassified_in_the_box_it_fails(norm):
    x = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0))
    found = fab_t(Constant(), x, torch.zeros(5, dtype=torch.int64), norm=norm, steps=7)
    assert not found.success.any()
    assert torch.equal(found.x_adv, x)
    assert found.distance.isinf().all()
    assert (found.calls.forward, found.calls.backward) == (5 * (1 + 2 * 8), 5 * 2 * 7)
    free = fab_t(Constant(), x, torch.zeros(5, dtype=torch.int64), norm=norm, bounds=None)
    assert free.success.all()


def test_small_networks_give_the_exact_distance_of_the_plane():
    model, x, _ = network(3, inputs=2, classes=3, batch=60)
    y, box = model(x).argmax(1), (-9.0, 10.0, -9.0, 10.0)
    exact = planar.planar_margin(model, x, y, box)
    found = fab_t(model, x, y, norm=2, bounds=None)
    assert found.success.all()
    assert (found.distance >= exact * (1 - 1e-9)).all()
    assert (found.distance <= exact * (1 + 1e-4)).double().mean() >= 0.85  # others end in a local minimum
    assert (found.distance <= exact * 1.05).double().mean() >= 0.95


@BOTH
def test_what_is_found_is_misclassified_and_as_far_as_it_says(norm):
    model, x, y = network(dtype=torch.float32)
    found = fab_t(model, x, y, norm=norm, steps=20)
    wrong = model(x).argmax(1) != y
    assert wrong.sum() == 5
    assert torch.equal(found.x_adv[wrong], x[wrong])
    assert not found.distance[wrong].any()
    assert torch.equal(found.success, model(found.x_adv).argmax(1) != y)
    assert found.success.all()
    assert torch.allclose(torch.linalg.vector_norm(found.x_adv - x, norm, dim=1), found.distance)
    assert (found.norm, found.distance.dtype, found.x_adv.dtype) == (norm, torch.float32, torch.float32)
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    # A little nearer than that, in the same direction, it is not misclassified: it lies at the boundary.
    assert (model(x + 0.995 * (found.x_adv - x)).argmax(1)[~wrong] == y[~wrong]).double().mean() > 0.9


@BOTH
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_a_step_on_a_linear_model_is_the_papers(norm, bounds):
    model, x, _ = linear(2, classes=2)
    y = model(x).argmax(1)
    z = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    weight = model.head.weight.detach()
    w = weight[y] - weight[1 - y]

    def gap(point):
        logits = model(point).detach()
        return logits.gather(1, y[:, None])[:, 0] - logits.gather(1, 1 - y[:, None])[:, 0]

    def plane(point):
        """The step of length a onto the plane, from either side."""
        side = gap(point).sign()
        step = nearest_in_halfspace(point, w * side[:, None], gap(point) * side, norm, bounds)
        return step, torch.linalg.vector_norm(step, norm, dim=1)[:, None]

    wrong = gap(z) <= 0
    assert 10 < wrong.sum() < 50
    back = torch.where(wrong[:, None], x + 0.9 * (z - x), z)
    (here, a), (origin, b) = plane(back), plane(x)
    alpha = (a / (a + b)).clamp(max=0.1)
    expected = (1 - alpha) * (back + 1.05 * here) + alpha * (x + 1.05 * origin)
    expected = expected if bounds is None else expected.clamp(*bounds)
    found = module._step(x, z - x, w, gap(z), wrong, norm, bounds)
    assert torch.allclose(found, expected, atol=1e-12)
    assert (alpha < 0.0999).any()
    assert (alpha > 0.0999).any()


# A budget, targets, costs


@BOTH
def test_a_budget_finds_the_same_samples_for_less(norm):
    model, x, y = network()
    far = fab_t(model, x, y, norm=norm, steps=20)
    eps = far.distance.median().item() * 1.0001
    found = fab_t(model, x, y, norm=norm, steps=20, eps=eps)
    assert torch.equal(found.distance <= eps, far.distance <= eps)
    assert torch.allclose(found.distance[far.distance > eps], far.distance[far.distance > eps])
    assert found.success.all()
    assert found.calls.backward < 0.75 * far.calls.backward
    assert fab_t(model, x, y, norm=norm, steps=20, eps=100.0).calls.backward < 0.1 * far.calls.backward


def test_targets_are_the_classes_with_the_largest_logits():
    model, x, y = network(classes=8)
    distances, backward = [], []
    for targets in (1, 2, 7, 9):
        found = fab_t(model, x, y, norm=2, steps=10, targets=targets)
        distances.append(found.distance)
        backward.append(found.calls.backward)
    assert torch.equal(distances[2], distances[3])
    assert (distances[0] >= distances[1] - 1e-12).all()
    assert (distances[1] >= distances[2] - 1e-12).all()
    assert (distances[2] < distances[0] - 1e-6).any()
    assert 35 * 10 <= backward[0] <= 35 * 13
    assert backward[1] >= 2 * 35 * 10


def test_a_step_costs_a_forward_and_a_backward():
    model, x, y = network()
    found = fab_t(model, x, y, norm=2, steps=50)
    assert found.calls.backward <= 35 * 4 * (50 + 3)
    assert found.calls.forward <= 40 + 35 * 4 * (51 + 3 + 9)


# What every attack promises


@BOTH
@pytest.mark.parametrize("eps", [None, 0.15])
def test_samples_do_not_see_each_other(norm, eps):
    model, x, y = network()
    whole = fab_t(model, x, y, norm=norm, steps=10, eps=eps)
    for part in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(9):
        found = fab_t(model, x[part], y[part], norm=norm, steps=10, eps=eps)
        assert torch.allclose(found.x_adv, whole.x_adv[part], atol=1e-6)
        assert torch.allclose(found.distance, whole.distance[part], atol=1e-6)
        assert torch.equal(found.success, whole.success[part])


def test_it_is_deterministic_and_leaves_random_numbers_and_shapes_alone():
    model, x, y = network()
    image = nn.Sequential(nn.Flatten(), model)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = fab_t(model, x, y, norm=2, steps=5)
    two = fab_t(image, x.reshape(-1, 1, 3, 4), y, norm=2, steps=5, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.x_adv, two.x_adv.flatten(1))
    assert two.x_adv.shape == (40, 1, 3, 4)


@BOTH
def test_a_model_that_ends_in_nan_gives_points_of_the_box(norm):
    class Ends(nn.Module):
        def forward(self, x):
            value = x.sum(1)
            return torch.stack((1 - value, torch.where(value > 0.5, math.nan, value)), 1)

    x = torch.rand(10, 4, generator=torch.Generator().manual_seed(0)) * 0.05
    found = fab_t(Ends(), x, torch.zeros(10, dtype=torch.int64), norm=norm, steps=5)
    assert found.success.all()
    assert found.x_adv.isfinite().all()
    assert found.distance.isfinite().all()
    assert found.x_adv.min() >= 0


def test_no_samples_give_no_results():
    model, x, y = network()
    found = fab_t(model, x[:0], y[:0], norm=2)
    assert (found.x_adv.shape, found.success.shape, found.calls.forward) == ((0, 12), (0,), 0)


WRONG = {"norm": [1, "l2"], "steps": [0, 1.5], "targets": [0], "eps": [-0.1, math.nan], "bounds": [(1, 0), (0, 0.5)]}


@pytest.mark.parametrize("name, value", [(name, value) for name in WRONG for value in WRONG[name]])
def test_bad_input_is_told_before_any_work(name, value):
    class Untouched(nn.Module):
        def forward(self, x):
            raise AssertionError("asked")

    _, x, y = network()
    with pytest.raises(MarginsError, match="bounds|box" if name == "bounds" else name):
        fab_t(Untouched(), x, y, **({"norm": 2} | {name: value}))
