"""Losses per sample against their formulas, and what attacks rely on: directions, scales, no underflow."""

import math

import pytest
import torch

from margins import losses

LABELLED = [losses.cross_entropy, losses.log_odds, losses.margin, losses.cw, losses.dlr]


def drawn(classes=5, batch=40, scale=3.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(classes)
    logits = torch.randn(batch, classes, generator=g, dtype=torch.float64) * scale
    return logits.to(dtype).requires_grad_(), torch.randint(classes, (batch,), generator=g)


def gradient(loss, logits, y):
    return torch.autograd.grad(loss(logits, y).sum(), logits)[0]


def by_hand(logits, y):
    """(own logit, the others sorted downwards, all sorted downwards, p_y) of each row, as lists of numbers."""
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        others = sorted((f for j, f in enumerate(row) if j != label), reverse=True)
        yield row[label], others, sorted(row, reverse=True), math.exp(row[label]) / sum(map(math.exp, row))


FORMULAS = {
    losses.cross_entropy: lambda own, others, top, p: -math.log(p),
    losses.log_odds: lambda own, others, top, p: math.log((1 - p) / p),
    losses.margin: lambda own, others, top, p: others[0] - own,
    losses.cw: lambda own, others, top, p: -max(own - others[0], 0),
    losses.dlr: lambda own, others, top, p: -(own - others[0]) / (top[0] - top[2]),
}


@pytest.mark.parametrize("loss", LABELLED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_is_its_formula_and_leaves_the_logits_alone(loss, dtype):
    logits, y = drawn(dtype=dtype)
    before = logits.detach().clone()
    found = loss(logits, y)
    assert found.shape == (40,) and found.dtype == dtype and found.requires_grad
    expected = torch.tensor([FORMULAS[loss](*row) for row in by_hand(logits, y)], dtype=dtype)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits, before)
    assert loss(logits[:0], y[:0]).shape == (0,)


@pytest.mark.parametrize("loss", LABELLED)
def test_each_row_stands_alone(loss):
    logits, y = drawn()
    whole = gradient(loss, logits, y)
    for i in (0, 7, 39):
        assert torch.equal(gradient(loss, logits[i : i + 1], y[i : i + 1])[0], whole[i])


@pytest.mark.parametrize("classes", [2, 5])
def test_log_odds_orders_and_points_as_cross_entropy(classes):
    logits, y = drawn(classes)
    ce, odds = gradient(losses.cross_entropy, logits, y), gradient(losses.log_odds, logits, y)
    p = logits.detach().softmax(1).gather(1, y[:, None])
    torch.testing.assert_close(odds * (1 - p), ce, rtol=1e-10, atol=1e-12)
    assert torch.equal(losses.log_odds(logits, y).argsort(), losses.cross_entropy(logits, y).argsort())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_underflows_and_log_odds_does_not(dtype):
    logits = torch.tensor([[2000.0, 3.0, 0.0], [-2000.0, 0.0, -9000.0]], dtype=dtype, requires_grad=True)
    y = torch.tensor([0, 1])
    assert not gradient(losses.cross_entropy, logits, y).any()
    odds = gradient(losses.log_odds, logits, y)
    assert odds[:, :2].abs().min() > 0.9 and odds.isfinite().all()
    expected = torch.tensor([-1997 + math.log1p(math.exp(-3)), -2000.0], dtype=dtype)
    torch.testing.assert_close(losses.log_odds(logits, y).detach(), expected)


def test_the_margin_is_above_zero_where_misclassified():
    logits, y = drawn()
    assert torch.equal(losses.margin(logits, y) > 0, logits.argmax(1) != y)
    assert torch.equal(losses.margin(logits, logits.argmax(1)) < 0, torch.ones(40, dtype=torch.bool))


@pytest.mark.parametrize("kappa", [0.0, 1.5, 50.0])
def test_cw_is_the_margin_up_to_kappa_and_flat_beyond(kappa):
    logits, y = drawn()
    margin, found = losses.margin(logits, y), losses.cw(logits, y, kappa)
    torch.testing.assert_close(found, margin.clamp(max=kappa) - kappa)
    flat = ~gradient(lambda z, y: losses.cw(z, y, kappa), logits, y).any(1)
    assert torch.equal(flat, margin > kappa) and (kappa == 50) == (not flat.any())


def test_dlr_does_not_change_with_the_scale_of_the_logits():
    logits, y = drawn()
    target = (y + 1) % 5
    for scale in (1e-3, 1e3):
        torch.testing.assert_close(losses.dlr(logits * scale, y), losses.dlr(logits, y), rtol=1e-6, atol=0)
        moved = losses.targeted_dlr(logits * scale, y, target)
        torch.testing.assert_close(moved, losses.targeted_dlr(logits, y, target), rtol=1e-6, atol=0)
    equal = torch.zeros(1, 5, requires_grad=True)
    assert losses.dlr(equal, y[:1]).isfinite().all() and gradient(losses.dlr, equal, y[:1]).isfinite().all()


def test_targeted_dlr_is_its_formula():
    logits, y = drawn()
    target = (y + 2) % 5
    found = losses.targeted_dlr(logits, y, target)
    for row, own, aim, value in zip(logits.tolist(), y.tolist(), target.tolist(), found.tolist(), strict=True):
        top = sorted(row, reverse=True)
        assert value == pytest.approx(-(row[own] - row[aim]) / (top[0] - (top[2] + top[3]) / 2))


def test_kl_is_its_formula_and_is_zero_at_the_reference_only():
    logits, _ = drawn()
    reference = drawn(batch=41)[0][1:].detach()
    p, q = logits.softmax(1), reference.softmax(1)
    torch.testing.assert_close(losses.kl(logits, reference), (q * (q / p).log()).sum(1))
    assert (losses.kl(logits, reference) > 0).all()
    torch.testing.assert_close(losses.kl(logits, logits.detach()), torch.zeros(40).double(), rtol=0, atol=1e-15)
    (found,) = torch.autograd.grad(losses.kl(logits, reference).sum(), logits)
    torch.testing.assert_close(found, (p - q).detach())
    torch.testing.assert_close(losses.kl(logits + 700, reference), losses.kl(logits, reference))  # shifts cancel
