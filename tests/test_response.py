"""How a network responds to an attack, where it is known: a linear one of two classes, in linf, far from the box."""

import pytest
import torch
from torch import nn

from margins.errors import MarginsError
from margins.tables.along import MEASURES
from margins.tables.response import BETWEEN, CONFIDENCE, THERE, confident, response

EPS = 0.1
BALL = {"norm": float("inf"), "eps": EPS, "step_size": 0.05}


def linear(scale: float = 1.0) -> nn.Linear:
    model = nn.Linear(12, 2).double()
    with torch.no_grad():
        drawn = torch.randn(2, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        model.weight.copy_(scale * drawn[:, :12])
        model.bias.copy_(scale * (drawn[:, 12] - drawn[:, :12].sum(1) / 2))  # a boundary amid the points
    return model


@pytest.fixture
def points():
    x = 0.3 + 0.4 * torch.rand(50, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        logits = linear()(x)
    y = logits.argmax(1)
    y[::5] = 1 - y[::5]
    return x, y, logits


def test_at_the_adversary_the_margin_is_smaller_by_eps_but_of_images_that_are_wrong(points):
    x, y, logits = points
    model, right = linear(), logits.argmax(1) == y
    gap = (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None]))[:, 0]
    slope = (model.weight[0] - model.weight[1]).abs().sum().item()
    after = gap - right * EPS * slope
    torch.testing.assert_close(response(model, x, y, of="effective margin", **BALL), after / slope)
    expected = (after / 2).tanh()  # p_y - (1 - p_y) of two classes
    torch.testing.assert_close(response(model, x, y, of="probability gap", **BALL), expected)
    assert right.any() and not right.all()


def test_from_image_to_adversary_every_image_moves(points):
    x, y, logits = points
    model = linear()
    label = logits.argmax(1)
    way = torch.where(label[:, None] == 0, -1.0, 1.0) * (model.weight[0] - model.weight[1]).sign()
    with torch.no_grad():
        after = model(x + EPS * way)
    change = (after - logits).square().mean(1)
    torch.testing.assert_close(response(model, x, y, of="logits", **BALL), change)
    relative = change / logits.var(1, correction=0)
    torch.testing.assert_close(response(model, x, y, of="logits, relative", **BALL), relative)
    scale = confident(logits)
    apart = ((scale * after).softmax(1) - (scale * logits).softmax(1)).abs().sum(1)
    torch.testing.assert_close(response(model, x, y, of="probabilities", **BALL), apart)
    z = x.clone().requires_grad_()
    here = nn.functional.cross_entropy(scale * model(z), label, reduction="none")
    (slope,) = torch.autograd.grad(here.sum(), z)
    there = nn.functional.cross_entropy(scale * after, label, reduction="none")
    bend = (there - here - (slope * EPS * way).sum(1)).abs().detach()
    torch.testing.assert_close(response(model, x, y, of="linearity", **BALL), bend)
    assert (bend > 1e-6).all()


def test_what_no_scale_of_the_logits_changes(points):
    x, y, _ = points
    one, large = ({of: response(linear(s), x, y, of=of, **BALL) for of in THERE + BETWEEN} for s in (1.0, 7.0))
    for of in ("effective margin", "logits, relative", "probabilities", "linearity"):
        torch.testing.assert_close(one[of], large[of], msg=of)
    torch.testing.assert_close(49 * one["logits"], large["logits"])
    assert (one["probability gap"].abs() < large["probability gap"].abs()).all()


def test_logits_are_scaled_to_the_mean_confidence():
    logits = torch.randn(30, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for factor in (1e-3, 1.0, 1e3):
        scale = confident(factor * logits)
        assert (scale * factor * logits).softmax(1).amax(1).mean().item() == pytest.approx(CONFIDENCE)


def test_a_measure_of_another_name_is_refused(points):
    x, y, _ = points
    assert MEASURES["response"] is response
    with pytest.raises(MarginsError, match=r"of must be one of 'probability gap', .* but is 'logit'"):
        response(linear(), x, y, of="logit", **BALL)
