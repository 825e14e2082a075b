"""AutoAttack: its stages, and the promises of every attack for it, APGD and APGD-T."""

import math
from functools import partial
from importlib import import_module

import pytest
import torch
from known import linear, worst_gap
from test_apgd import network, seed
from torch import nn

from margins import models
from margins.attacks.apgd import apgd, apgd_t
from margins.attacks.autoattack import autoattack
from margins.attacks.fab import fab_t
from margins.attacks.found import Calls
from margins.errors import MarginsError

BOTH = pytest.mark.parametrize("norm", [2, math.inf])
EACH = pytest.mark.parametrize("attack", [apgd, apgd_t, partial(autoattack, queries=30)], ids=["ce", "t", "auto"])


class Spy(nn.Module):
    """A model that counts the samples that it was asked for, and refuses after so many calls."""

    def __init__(self, model, patience=math.inf):
        super().__init__()
        self.model, self.calls, self.samples, self.patience = model, 0, 0, patience

    def forward(self, x):
        self.calls, self.samples = self.calls + 1, self.samples + len(x)
        if self.calls > self.patience:
            raise ValueError("out of patience")
        return self.model(x)


# The stages


@BOTH
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("classes", [2, 5])
def test_on_linear_models_it_finds_the_exact_worst_case(norm, bounds, classes):
    model, x, y = linear(classes, inputs=8, classes=classes)
    eps = {2: 0.3, math.inf: 0.15}[norm]
    worst = worst_gap(model, x, y, norm, eps, bounds)
    clear = worst.abs() > 1e-5 * model(x).detach().abs().amax(1)
    found = autoattack(model, x, y, norm=norm, eps=eps, bounds=bounds, steps=60, queries=5)
    assert 10 < (worst < 0).sum() < 55
    assert torch.equal(found.success[clear], (worst < 0)[clear])


@BOTH
def test_each_stage_goes_on_with_what_is_left(norm):
    model, x, y = network(batch=60)
    y[::9] = (y[::9] + 1) % 5
    found = autoattack(model, x, y, norm=norm, eps={2: 0.3, math.inf: 0.08}[norm], steps=10, queries=10)
    assert [*found.stages] == [*found.spent] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert sum(found.spent.values(), Calls(forward=60)) == found.calls
    wrong = model(x).argmax(1) != y
    assert torch.equal(sum(stage.int() for stage in [wrong, *found.stages.values()]), found.success.int())
    left = int((~found.success).sum())
    assert left and found.stages["apgd-ce"].any()
    broken = int(found.stages["square"].sum())
    assert left * 11 + broken * 2 <= found.spent["square"].forward <= (left + broken) * 11
    assert found.spent["apgd-t"].backward >= left * 10 * 4


class Quantised(nn.Module):
    """A model whose inputs are rounded, so that it has no gradient."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model((x * 20).round() / 20)


@BOTH
def test_square_breaks_what_has_no_gradient(norm):
    g = seed(1)
    model = models.build("linear", inputs=48, classes=4, generator=g)
    x = torch.rand(40, 3, 4, 4, generator=g) * 0.8 + 0.1
    y = model(x).argmax(1)
    found = autoattack(Quantised(model), x, y, norm=norm, eps={2: 1.0, math.inf: 0.2}[norm], steps=10, queries=500)
    assert not found.stages["fab-t"].any()
    assert found.stages["square"].sum() > 20
    assert torch.equal(Quantised(model)(found.x_adv).argmax(1) != y, found.success)


def test_the_stages_start_from_different_random_numbers(monkeypatch):
    model, x, y = network()
    given = []
    for name in ("apgd", "apgd_t", "fab_t", "square"):

        def attack(model, x, y, *, name=name, **settings):
            given.append((name, settings))
            return apgd(model, x, y, norm=2, eps=0, generator=settings["generator"])

        monkeypatch.setattr(import_module("margins.attacks.autoattack"), name, attack)
    autoattack(model, x, y, norm=2, eps=0.25)
    common = {"norm": 2.0, "eps": 0.25, "bounds": (0.0, 1.0), "generator": given[0][1]["generator"]}
    gradient = common | {"steps": 100}
    assert given == [
        ("apgd", gradient),
        ("apgd_t", gradient | {"targets": 9}),
        ("fab_t", gradient | {"targets": 9}),
        ("square", common | {"queries": 5000}),
    ]
    assert isinstance(common["generator"], torch.Generator)


class NoEmptyBatch(Spy):
    def forward(self, x):
        return super().forward(x.view(len(x), -1))


def test_a_model_that_takes_no_empty_batch_is_not_given_one():
    model, x, y = network()
    found = autoattack(NoEmptyBatch(model), x, y, norm=2, eps=2.0, steps=20, queries=5)
    assert found.success.all() and found.spent["square"] == Calls() and not found.stages["square"].any()


def test_what_fab_finds_outside_the_ball_is_no_success():
    model, x, y = network()
    weak = autoattack(model, x, y, norm=2, eps=1e-5, steps=3, queries=3)
    assert fab_t(model, x, y, norm=2, steps=3).success.all()
    assert not weak.success.any() and (weak.distance == 0).all() and torch.equal(weak.x_adv, x)


# What every attack promises


@EACH
@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_are_in_ball_and_box_and_success_is_true(attack, norm, dtype):
    model, x, y = network(dtype=dtype)
    y[::9] = (y[::9] + 1) % 5
    eps = {2: 0.15, math.inf: 0.05}[norm]
    found = attack(model, x, y, norm=norm, eps=eps, steps=25)
    wrong = model(x).argmax(1) != y
    assert found.x_adv.dtype == dtype and found.distance.dtype == dtype and found.eps == eps and found.norm == norm
    assert torch.equal(model(found.x_adv).argmax(1) != y, found.success)
    assert found.success.any() and not found.success.all()
    assert found.success[wrong].all() and torch.equal(found.x_adv[wrong], x[wrong]) and not found.distance[wrong].any()
    delta = (found.x_adv - x).detach()
    size = delta.norm(dim=1) if norm == 2 else delta.abs().amax(1)
    assert torch.allclose(size, found.distance) and (size <= eps * (1 + 1e-6)).all()
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1 and not found.x_adv.requires_grad
    loose = attack(model, x + 3, y, norm=norm, eps=eps, steps=3, bounds=None)
    assert (loose.x_adv > 1).all()


@EACH
@BOTH
def test_the_batch_and_the_order_make_no_difference(attack, norm, monkeypatch):
    model, x, y = network(batch=30)
    given = {"norm": norm, "eps": {2: 0.3, math.inf: 0.08}[norm], "steps": 12}
    whole = attack(model, x, y, **given)
    assert torch.equal(whole.x_adv, attack(model, x, y, **given).x_adv)
    order = torch.randperm(30, generator=seed())
    mixed = attack(model, x[order], y[order], **given).x_adv[order.argsort()]
    parts = torch.cat([attack(model, a, b, **given).x_adv for a, b in zip(x.split(13), y.split(13), strict=True)])
    monkeypatch.setattr("margins.attacks.found.CHUNK", 7)
    monkeypatch.setattr(import_module("margins.attacks.apgd"), "SOLVED", 1)  # the package has a function of that name
    cut = attack(model, x, y, **given).x_adv
    assert all(torch.allclose(whole.x_adv, other, atol=1e-6) for other in (mixed, parts, cut))


@EACH
def test_solved_samples_leave_and_calls_are_counted(attack):
    model, x, y = network()
    spy = Spy(model)
    found = attack(spy, x, y, norm=2, eps=0.4, steps=20)
    assert spy.samples == found.calls.forward
    assert found.success.sum() > 20 and found.calls.backward < 0.7 * 40 * 20 * {apgd: 1, apgd_t: 4}.get(attack, 9)


@pytest.mark.parametrize(("attack", "runs"), [(apgd, 1), (apgd_t, 4)])
def test_what_is_never_solved_costs_steps_gradients_a_run(attack, runs):
    model, x, y = network()
    found = attack(model, x, y, norm=2, eps=0, steps=20)
    assert torch.equal(found.x_adv, x)
    assert found.calls == Calls(forward=40 * (21 * runs + 1), backward=40 * 20 * runs)


class Spoilt(nn.Module):
    """Its logit of class 0 is nan, or infinite, but for the very points that it was made with."""

    def __init__(self, model, x, value):
        super().__init__()
        self.model, self.x, self.value = model, x, value

    def forward(self, x):
        known = (x[:, None] == self.x).all(2).any(1)
        logits = self.model(x)
        return torch.cat([torch.where(known, logits[:, 0], self.value)[:, None], logits[:, 1:]], 1)


@EACH
def test_logits_that_are_no_numbers_are_no_correct_answer(attack):
    model, x, y = network()
    assert attack(Spoilt(model, x, math.nan), x, y, norm=2, eps=0.1, steps=3).success.all()
    assert attack(Spoilt(model, x, math.inf), x, y, norm=2, eps=0.1, steps=3).success[y != 0].all()


@EACH
@BOTH
def test_an_empty_batch_images_and_few_classes(attack, norm):
    model, x, y = network()
    empty = attack(model, x[:0], y[:0], norm=norm, eps=0.1)
    assert empty.x_adv.shape == (0, 12) and empty.success.shape == empty.distance.shape == (0,)
    images = attack(nn.Sequential(nn.Flatten(), model), x.reshape(-1, 1, 3, 4), y, norm=norm, eps=0.3, steps=5)
    assert images.x_adv.shape == (40, 1, 3, 4) and images.success.any()
    for classes in (2, 3):
        model, x, y = network(classes=classes)
        assert attack(model, x, y, norm=norm, eps=0.3, steps=5).success.any()


@EACH
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": 1}, "norm"),
        ({"eps": -0.1}, "eps"),
        ({"eps": math.nan}, "eps"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"bounds": (1, 0)}, "bounds"),
        ({"bounds": (0.5, 1)}, "x must lie in the box"),
        ({"generator": 3}, "generator"),
    ],
)
def test_bad_arguments_are_named_before_any_work(attack, wrong, message):
    model, x, y = network()
    spy = Spy(model)
    with pytest.raises(MarginsError, match=message):
        attack(spy, x, y, **({"norm": 2, "eps": 0.1} | wrong))
    assert not spy.calls


def test_queries_must_be_a_number():
    model, x, y = network()
    with pytest.raises(MarginsError, match="queries"):
        autoattack(model, x, y, norm=2, eps=0.1, queries=0)
