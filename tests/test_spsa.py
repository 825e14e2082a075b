"""SPSA: its estimate against the gradient of a linear model, its results against the exact worst case."""

import math
from functools import partial

import known
import pytest
import torch
from torch import nn

from margins import losses, models
from margins.attacks.found import Calls, attacking
from margins.attacks.noise import Noise
from margins.attacks.spsa import AT_ONCE, _estimate, spsa
from margins.errors import MarginsError

NORMS = [2, math.inf]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def middling(exact):
    return 1.001 * exact[(exact > 0) & exact.isfinite()].median().item()


class NoGradient(nn.Module):
    """A model that has no gradient anywhere: it rounds its input to 1000 levels."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        assert not torch.is_grad_enabled()
        return self.model((x * 1000).round() / 1000)


@pytest.mark.parametrize("pairs", [7, 1000])
def test_the_estimate_is_the_gradient_of_a_linear_model_but_for_the_cross_terms(pairs):
    model, x, y = known.linear(1, inputs=8, classes=2)
    w = model.head.weight[1 - y] - model.head.weight[y]
    signs = Noise(x, generator(3)).signs(200, 8).double()
    expected = ((signs @ w[:, :, None]) * signs).mean(1)
    with attacking(model, x, y, (0.0, 1.0)) as (oracle, _, _):
        found = _estimate(oracle, x, y, Noise(x, generator(3)), 200, 0.01, pairs)
        assert oracle.calls == Calls(60 * 401, 0)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-9)
    assert (found - w).norm(dim=1).mean() < 0.3 * w.norm(dim=1).mean()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 4])
def test_it_succeeds_only_where_that_is_possible_and_mostly_there(norm, bounds, classes):
    model, x, y = known.linear(2, classes=classes)
    eps = middling(known.nearest(model, x, y, norm, bounds))
    possible = known.worst_gap(model, x, y, norm, eps, bounds) < 0
    wrong = known.gaps(model, x, y)[0].amin(1) <= 0
    found = spsa(model, x, y, norm=norm, eps=eps, steps=40, samples=128, lr=eps / 10, bounds=bounds)
    assert not (found.success & ~possible).any()
    within = known.worst_gap(model, x, y, norm, 0.95 * eps, bounds) < 0
    assert (possible & ~wrong).sum() > 15 and (found.success | ~within).double().mean() > 0.95
    assert torch.equal(found.success, losses.margin(model(found.x_adv), y) >= 0)
    assert torch.equal(found.x_adv[wrong], x[wrong])
    assert found.distance.max() <= eps + 1e-6 and found.distance[wrong].max() == 0
    assert bounds is None or (found.x_adv.min() >= 0 and found.x_adv.max() <= 1)
    assert found.calls.backward == 0 and found.calls.forward <= 60 + 60 * 40 * 257


def test_for_l2_the_first_step_has_the_direction_of_the_estimate():
    model, x, y = known.linear(2, classes=2)
    right = known.gaps(model, x, y)[0].amin(1) > 0
    found = spsa(model, x, y, norm=2, eps=5.0, steps=1, samples=16, lr=0.02, bounds=None, generator=generator(0))
    with attacking(model, x, y, None) as (oracle, _, _):
        gradient = _estimate(oracle, x, y, Noise(x, generator(0)), 16, 0.01, 16)
    step = 0.02 * math.sqrt(8) * gradient / gradient.norm(dim=1, keepdim=True)
    torch.testing.assert_close((found.x_adv - x)[right], step[right], rtol=1e-5, atol=0)


def test_the_first_step_is_adams():
    model, x, y = known.linear(2, classes=2)
    right = known.gaps(model, x, y)[0].amin(1) > 0
    found = spsa(model, x, y, eps=0.5, steps=1, samples=16, lr=0.02, bounds=None)
    delta = (found.x_adv - x)[right]
    torch.testing.assert_close(delta.abs(), torch.full_like(delta, 0.02), rtol=1e-2, atol=0)  # lr x the sign
    assert found.calls == Calls(60 + 33 * int(right.sum()), 0)


def test_it_needs_no_gradient():
    model, x, y = known.linear(2, classes=3)
    eps = 2 * middling(known.nearest(model, x, y, math.inf))
    stepped = spsa(NoGradient(model), x, y, eps=eps, lr=eps / 5)
    smooth = spsa(model, x, y, eps=eps, lr=eps / 5)
    assert smooth.success.sum() > 40 and (stepped.success == smooth.success).double().mean() > 0.95


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_order_and_neighbours_change_nothing(norm, dtype, monkeypatch):
    model, x, y = known.linear(4, classes=3)
    model, x = model.to(dtype), x.to(dtype)
    run = partial(spsa, model, norm=norm, eps=0.1, steps=8, samples=16, lr=0.02)
    whole = run(x, y, generator=generator(1))
    assert torch.equal(whole.x_adv, run(x, y, generator=generator(1)).x_adv)
    assert whole.x_adv.dtype == dtype and 10 < whole.success.sum() < 50
    order = torch.randperm(60, generator=generator(0))
    mixed = run(x[order], y[order], generator=generator(1)).x_adv[order.argsort()]
    parts = [run(x[i], y[i], generator=generator(1)).x_adv for i in torch.arange(60).split(11)]
    monkeypatch.setitem(AT_ONCE, "cpu", 200)
    for other in (mixed, torch.cat(parts), run(x, y, generator=generator(1)).x_adv):
        torch.testing.assert_close(other, whole.x_adv, rtol=0, atol=1e-6)
    assert not torch.equal(run(x, y, generator=generator(2)).x_adv, whole.x_adv)


def test_images_and_nothing_at_all():
    model = models.build("cnn", shape=(2, 8, 8), blocks=((4,),), hidden=(8,), classes=3, generator=generator(0))
    x = torch.rand(5, 2, 8, 8, generator=generator(1), requires_grad=True)
    y = model(x).argmax(1)
    found = spsa(model, x, y, eps=0.1, steps=2, samples=4)
    assert found.x_adv.shape == x.shape and not found.x_adv.requires_grad and not found.distance.requires_grad
    empty = spsa(model, x[:0], y[:0], eps=0.1)
    assert empty.x_adv.shape == (0, 2, 8, 8) and empty.success.shape == (0,)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": 1}, "norm"),
        ({"eps": math.nan}, "eps"),
        ({"steps": 0}, "steps"),
        ({"samples": 2.0}, "samples"),
        ({"delta": 0.0}, "delta"),
        ({"lr": -1.0}, "lr"),
        ({"generator": 3}, "generator"),
        ({"bounds": (0,)}, "bounds"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_is_asked(wrong, message):
    model, x, y = known.linear(0)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was asked"))
    with pytest.raises(MarginsError, match=f"{message} must be"):
        spsa(model, x, y, **({"eps": 0.1} | wrong))
