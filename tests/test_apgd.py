"""APGD and APGD-T: the published schedule, a plain version, closed forms. The promises: test_autoattack.py."""

import math

import pytest
import torch
from known import linear, worst_gap
from torch import nn

from margins import losses, models
from margins.attacks.apgd import apgd, apgd_t, checkpoints
from margins.attacks.geometry import into_both
from margins.errors import MarginsError

BOTH = pytest.mark.parametrize("norm", [2, math.inf])
ATTACKS = pytest.mark.parametrize("attack", [apgd, apgd_t])


def network(seed=0, inputs=12, classes=5, dtype=torch.float64, batch=40):
    g = torch.Generator().manual_seed(seed)
    model = models.build("mlp", inputs=inputs, hidden=(24,), classes=classes, generator=g).to(dtype)
    x = torch.rand(batch, inputs, generator=g, dtype=dtype)
    return model, x, model(x).argmax(1)


def seed(number=0):
    return torch.Generator().manual_seed(number)


class Spy(nn.Module):
    """A model that remembers what it was asked."""

    def __init__(self, model):
        super().__init__()
        self.model, self.asked = model, []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        return self.model(x)


# The schedule and the algorithm


def test_the_checkpoints_are_the_published_ones():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1000) == [220, 410, 570, 700, 800, 870, 930, 990]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9, 10]
    assert checkpoints(1) == [1]


def plain_apgd(score, x, start, norm, eps, steps, bounds):
    """Algorithm 1 of the paper for one sample, word by word; `score(point)` -> (loss, gradient)."""

    def project(point):
        return into_both(point[None], x[None], norm, eps, bounds)[0]

    def ascent(gradient):
        return gradient.sign() if norm == math.inf else gradient / gradient.norm()

    def step(point, gradient):
        return project(point + eta * ascent(gradient))

    p = [0, 0.22]
    while p[-1] < 1:
        p.append(round(p[-1] + max(round(p[-1] - p[-2] - 0.03, 2), 0.06), 2))
    marks = [math.ceil(round(q * steps, 6)) for q in p]

    eta, before, here = 2 * eps, start, start
    value, gradient = score(start)
    path, values = [start], [value]
    top, best, slope = value, start, gradient
    rises, etas, tops = 0, [], []
    for k in range(steps):
        aim = step(here, gradient)
        moved = project(here + (0.75 if k else 1) * (aim - here) + (0.25 if k else 0) * (here - before))
        before, here = here, moved
        value, gradient = score(here)
        path.append(here)
        rises += value > values[-1]
        values.append(value)
        if value > top:
            top, best, slope = value, here, gradient
        if k + 1 in marks:
            since = k + 1 - marks[marks.index(k + 1) - 1]
            same = bool(tops) and etas[-1] == eta and tops[-1] >= top
            etas.append(eta)
            tops.append(top)
            if rises < 0.75 * since or same:
                eta, here, gradient, values[-1] = eta / 2, best, slope, top
            rises = 0
    return path, best, top


class Push(nn.Module):
    """Adds 100 to the logit of the label, so that no sample of this one batch is ever solved."""

    def __init__(self, model, y):
        super().__init__()
        self.model, self.y = model, y

    def forward(self, x):
        return self.model(x) + 100 * nn.functional.one_hot(self.y, 5)


@BOTH
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_each_sample_goes_the_way_of_the_papers_algorithm(norm, bounds):
    model, x, y = network(batch=5)
    spy = Spy(Push(model, y))
    found = apgd(spy, x, y, norm=norm, eps=0.4, steps=50, loss=losses.margin, bounds=bounds)
    paths = torch.stack(spy.asked[1:])
    assert len(paths) == 51 and not found.success.any()
    for i in range(len(x)):

        def score(point, i=i):
            point = point[None].requires_grad_()
            value = losses.margin(Push(model, y[i : i + 1])(point), y[i : i + 1])
            (gradient,) = torch.autograd.grad(value.sum(), point)
            return value.item(), gradient[0]

        path, best, top = plain_apgd(score, x[i], paths[0, i], norm, 0.4, 50, bounds)
        assert torch.allclose(paths[:, i], torch.stack(path), atol=1e-6)
        if top > score(x[i])[0]:
            assert torch.allclose(found.x_adv[i], best, atol=1e-6)


class Valley(nn.Module):
    """Logits (10, x_0): never misclassified near 0."""

    def forward(self, x):
        return torch.stack([torch.full_like(x[:, 0], 10.0), x[:, 0]], 1)


@BOTH
def test_the_step_shrinks_onto_a_maximum_inside_the_ball(norm):
    x, y = torch.zeros(20, 1), torch.zeros(20, dtype=torch.int64)
    goal = torch.linspace(-0.9, 0.9, 20)
    found = apgd(Valley(), x, y, norm=norm, eps=1, loss=lambda z, y: -((z[:, 1] - goal) ** 2), bounds=None)
    assert (found.x_adv[:, 0] - goal).abs().max() < 2 * 1 / 2**6


def test_starts_are_random_and_a_samples_own():
    model, x, y = network()
    spies = []
    for number in (0, 0, 1):
        spies.append(Spy(model))
        apgd_t(spies[-1], x, y, norm=2, eps=1e-5, steps=1, targets=2, generator=seed(number))
    first, again, other = (spy.asked for spy in spies)
    assert torch.equal(first[1], again[1]) and not torch.allclose(first[1], other[1], atol=1e-8)
    assert not torch.allclose(first[1], first[3], atol=1e-8)  # the next target
    directions = nn.functional.normalize(first[1] - x)
    assert (directions @ directions.T - torch.eye(len(x))).abs().max() < 0.95


# What is exactly known


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.5, 5.0])
def test_the_projection_is_the_nearest_point_of_ball_and_box(eps):
    g = seed()
    x = torch.rand(50, 20, generator=g, dtype=torch.float64)
    x[:25] = x[:25].round()  # corners of the box: most of the way out is closed
    far = x + torch.randn(50, 20, generator=g, dtype=torch.float64)
    low, high = torch.zeros(50, dtype=torch.float64), torch.ones(50, dtype=torch.float64)
    for _ in range(80):  # the nearest point is x + clip(t (far - x)) for the largest t <= 1 within the ball
        t = (low + high) / 2
        inside = ((x + t[:, None] * (far - x)).clamp(0, 1) - x).norm(dim=1) <= eps
        low, high = torch.where(inside, t, low), torch.where(inside, high, t)
    found = into_both(far, x, 2, eps, (0.0, 1.0))
    assert torch.allclose(found, (x + low[:, None] * (far - x)).clamp(0, 1), atol=1e-6)
    assert torch.equal(into_both(found, x, 2, eps * 1.001, (0.0, 1.0)), found)


@BOTH
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_on_linear_models_apgd_t_finds_the_exact_worst_case(norm, bounds, classes):
    model, x, y = linear(classes, inputs=8, classes=classes)
    eps = {2: 0.3, math.inf: 0.15}[norm]
    worst = worst_gap(model, x, y, norm, eps, bounds)
    clear = worst.abs() > 1e-5 * model(x).detach().abs().amax(1)
    found = apgd_t(model, x, y, norm=norm, eps=eps, bounds=bounds)
    assert 10 < (worst < 0).sum() < 55  # the test sees both
    assert torch.equal(found.success[clear], (worst < 0)[clear])
    if bounds is not None:
        assert ((found.x_adv == 0) | (found.x_adv == 1)).any(1)[found.success].any()


@BOTH
@pytest.mark.parametrize("loss", ["cross-entropy", losses.margin])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_on_linear_models_of_two_classes_apgd_finds_the_exact_worst_case(norm, loss, bounds):
    model, x, y = linear(3, inputs=8, classes=2)
    eps = {2: 0.3, math.inf: 0.15}[norm]
    worst = worst_gap(model, x, y, norm, eps, bounds)
    found = apgd(model, x, y, norm=norm, eps=eps, loss=loss, bounds=bounds)
    clear = worst.abs() > 1e-5 * model(x).detach().abs().amax(1)
    assert torch.equal(found.success[clear], (worst < 0)[clear])
    gap = -losses.margin(model(found.x_adv), y).detach()
    assert torch.allclose(gap[~found.success], worst[~found.success], rtol=1e-4)


def test_in_float32_the_worst_case_is_met_to_a_hundredth_of_a_percent():
    model, x, y = linear(3, inputs=8, classes=2)
    worst = worst_gap(model, x, y, 2, 0.3)
    found = apgd(model.float(), x.float(), y, norm=2, eps=0.3)
    clear = worst.abs() > 1e-4 * model(x.float()).detach().abs().amax(1)
    assert torch.equal(found.success[clear], (worst < 0)[clear])


class Decoy(nn.Module):
    """Class 1 seems near and saturates short of the boundary; class 2, the other way, is beyond it."""

    def forward(self, x):
        mean = x.mean(1)
        logits = [1 + 0 * mean, 0.9 + 0.09 * torch.tanh(1 - 3 * mean), 2.1 * mean, 0 * mean - 9, 0 * mean - 9]
        return 50 * torch.stack(logits, 1)


@BOTH
def test_a_target_breaks_what_the_untargeted_losses_can_not(norm):
    x, y = 0.1 + 0.01 * torch.rand(30, 16, generator=seed()), torch.zeros(30, dtype=torch.int64)
    given = {"norm": norm, "eps": {2: 1.6, math.inf: 0.4}[norm], "steps": 20}
    assert not apgd(Decoy(), x, y, **given).success.any()
    assert not apgd(Decoy(), x, y, **given, loss="dlr", restarts=3).success.any()
    assert not apgd_t(Decoy(), x, y, **given, targets=1).success.any()
    assert apgd_t(Decoy(), x, y, **given, targets=2).success.all()


def test_restarts_go_on_where_the_first_failed():
    model, x, y = network(seed=4, batch=60)
    counts = [apgd(model, x, y, norm=2, eps=0.3, steps=2, restarts=r).success.sum() for r in (1, 8)]
    assert counts[0] < counts[1]
    once, more = (apgd(model, x, y, norm=2, eps=0.2, steps=2, restarts=r) for r in (1, 5))
    loss = [losses.log_odds(model(found.x_adv), y).detach()[~more.success] for found in (once, more)]
    assert (loss[0] <= loss[1] + 1e-12).all() and (loss[0] < loss[1]).any()


def test_the_ascent_does_not_freeze_where_the_cross_entropy_underflows():
    model, x, y = network(dtype=torch.float32)
    plain = apgd(model, x, y, norm=2, eps=0.3, steps=20)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(1e5)
    assert (losses.cross_entropy(model(x), y) == 0).float().mean() > 0.9
    confident = apgd(model, x, y, norm=2, eps=0.3, steps=20)
    assert confident.success.sum() >= 0.9 * plain.success.sum() > 5
    stuck = apgd(model, x, y, norm=2, eps=0.3, steps=20, loss=losses.cross_entropy)
    assert stuck.success.sum() < 0.5 * plain.success.sum()


@pytest.mark.parametrize(
    ("attack", "wrong", "message"),
    [
        (apgd, {"loss": "hinge"}, "loss must be one of 'cross-entropy', 'margin', 'cw', 'dlr'"),
        (apgd, {"loss": lambda logits, y: logits.sum()}, "loss"),
        (apgd, {"loss": "dlr"}, "at least 3 classes"),
        (apgd, {"restarts": 0}, "restarts"),
        (apgd_t, {"targets": 0}, "targets"),
    ],
)
def test_bad_arguments_of_their_own_are_named(attack, wrong, message):
    model, x, y = network(classes=2)
    with pytest.raises(MarginsError, match=message):
        attack(model, x, y, norm=2, eps=0.1, **wrong)
