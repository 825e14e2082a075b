"""Losses per sample against their formulas, and what attacks rely on: directions, scales, no underflow."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional

from margins import losses

LABELLED = [losses.cross_entropy, losses.log_odds, losses.margin, losses.cw, losses.dlr]
TRAINED = {
    "BCE": losses.boosted_cross_entropy,
    "BCE of the paper": partial(losses.boosted_cross_entropy, guarded=False),
    "L'": losses.multi_margin,
    "literal L'": partial(losses.multi_margin, delta=2.5, divided=False),
    "CE + L'": losses.margin_cross_entropy,
    "shifted": partial(losses.shifted, margin=0.2, scale=10.0),
}
PAIRED = {
    "pairing": losses.pairing,
    "KL": losses.pair_kl,
    "MART": losses.mart_kl,
    "MART of the paper": partial(losses.mart_kl, guarded=False),
}


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


def probabilities(row):
    return [math.exp(f) / sum(map(math.exp, row)) for f in row]


def trained_by_hand(name, row, y):
    p, others = probabilities(row), [j for j in range(len(row)) if j != y]
    worst = max(p[j] for j in others)
    hinges = {delta: sum(max(0.0, delta - row[y] + row[j]) ** 2 for j in others) for delta in (0.9, 2.5)}
    lowered = [f - 2.0 * (j == y) for j, f in enumerate(row)]
    return {
        "BCE": -math.log(p[y]) - math.log(1.0001 - worst + 1e-12),
        "BCE of the paper": -math.log(p[y]) - math.log(1 - worst),
        "L'": hinges[0.9] / len(row),
        "literal L'": hinges[2.5],
        "CE + L'": -math.log(p[y]) + hinges[0.9] / len(row),
        "shifted": -math.log(probabilities(lowered)[y]),
    }[name]


def paired_by_hand(name, adversarial, clean, y):
    p, q = probabilities(adversarial), probabilities(clean)
    divergence = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    guarded = sum(b * (math.log(b) - math.log(a + 1e-12)) for a, b in zip(p, q, strict=True))
    return {
        "pairing": sum((a - b) ** 2 for a, b in zip(adversarial, clean, strict=True)) / len(clean),
        "KL": divergence,
        "MART": guarded * (1.0000001 - q[y]),
        "MART of the paper": divergence * (1 - q[y]),
    }[name]


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", TRAINED)
def test_each_training_loss_is_its_formula_row_by_row(name, classes):
    logits, y = drawn(classes)
    found = TRAINED[name](logits, y)
    expected = [trained_by_hand(name, *row) for row in zip(logits.tolist(), y.tolist(), strict=True)]
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    single = logits.detach().float()
    torch.testing.assert_close(TRAINED[name](single, y), found.detach().float(), rtol=1e-3, atol=1e-5)
    assert torch.equal(TRAINED[name](logits[3:4], y[3:4])[0], found[3])
    assert torch.autograd.gradcheck(lambda z: TRAINED[name](z, y[:6]), logits[:6].detach().requires_grad_())


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", PAIRED)
def test_each_loss_of_a_pair_is_its_formula_with_gradient_through_both(name, classes):
    adversarial, y = drawn(classes)
    clean = drawn(classes, batch=41)[0][1:].detach().requires_grad_()
    found = PAIRED[name](adversarial, clean, y)
    rows = zip(adversarial.tolist(), clean.tolist(), y.tolist(), strict=True)
    expected = [paired_by_hand(name, *row) for row in rows]
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    pair = [one[:6].detach().requires_grad_() for one in (adversarial, clean)]
    assert torch.autograd.gradcheck(lambda a, c: PAIRED[name](a, c, y[:6]), pair)
    assert all(one.any() for one in torch.autograd.grad(found.sum(), (adversarial, clean)))


@pytest.mark.parametrize("size", [100.0, 900.0, 1e6])
def test_training_losses_stay_finite_at_extreme_logits_of_float32(size):
    rows = torch.tensor([[size, 0.0, -size], [-size, 0.0, size], [size, size, size], [0.0, 0.0, -size]])
    for y in (torch.zeros(4).long(), torch.tensor([2, 0, 1, 2])):
        for loss in TRAINED.values():
            logits = rows.clone().requires_grad_()
            value = loss(logits, y)
            assert value.isfinite().all() and gradient(loss, logits, y).isfinite().all()
        for loss in PAIRED.values():
            pair = rows.clone().requires_grad_(), rows.roll(1, 0).requires_grad_()
            value = loss(*pair, y)
            assert value.isfinite().all()
            assert all(one.isfinite().all() for one in torch.autograd.grad(value.sum(), pair))


def test_where_the_clean_probabilities_underflow_the_plain_formula_has_no_gradient_and_ours_has():
    clean, adversarial, y = torch.tensor([[120.0, 0.0, 1.0]]), torch.tensor([[3.0, 0.0, 1.0]]), torch.tensor([0])
    for loss in (losses.pair_kl, losses.mart_kl):
        assert gradient(lambda c, y, loss=loss: loss(adversarial, c, y), clean.requires_grad_(), y).isfinite().all()
    plain = functional.kl_div(adversarial.log_softmax(1), clean.softmax(1), reduction="sum")
    assert torch.autograd.grad(plain, clean)[0].isnan().all()


def test_a_certain_wrong_class_leaves_the_guarded_loss_bounded_and_the_papers_not():
    sure, y = torch.tensor([[0.0, 1000.0]]), torch.tensor([0])
    assert losses.boosted_cross_entropy(sure, y).item() == pytest.approx(1000 - math.log(1e-4), abs=1e-2)
    assert losses.boosted_cross_entropy(sure, y, guarded=False).item() == 2000


def test_the_multi_margin_is_torchs_when_divided_and_k_times_it_when_literal():
    logits, y = drawn()
    torchs = functional.multi_margin_loss(logits, y, p=2, margin=0.9, reduction="none")
    torch.testing.assert_close(losses.multi_margin(logits, y), torchs)
    torch.testing.assert_close(losses.multi_margin(logits, y, divided=False), 5 * torchs)
    apart = torch.tensor([[0.9, 0.0, -3.0]])
    assert losses.multi_margin(apart, torch.tensor([0])).item() == 0


def test_equal_logits_pay_nothing_in_a_pair_and_the_shift_alone_in_the_margin():
    logits, y = drawn()
    for name in ("pairing", "KL", "MART of the paper"):
        torch.testing.assert_close(PAIRED[name](logits, logits, y), torch.zeros(40).double(), rtol=0, atol=1e-15)
    torch.testing.assert_close(losses.shifted(logits, y, 0.0, 10.0), losses.cross_entropy(logits, y))
    lowered = logits - 2.0 * functional.one_hot(y, 5)
    torch.testing.assert_close(losses.shifted(logits, y, 0.2, 10.0), losses.cross_entropy(lowered, y))


@pytest.mark.parametrize("alpha", [0.5, 1.345, 5.345])
def test_mhuber_is_its_formula_and_joins_in_value_slope_and_curvature(alpha):
    knot = alpha * math.pi / 2
    d = torch.linspace(-4 * alpha, 4 * alpha, 81, dtype=torch.float64, requires_grad=True)
    expected = [
        alpha**2 * (1 - math.cos(u / alpha)) if abs(u) <= knot else alpha * abs(u) + (1 - math.pi / 2) * alpha**2
        for u in d.tolist()
    ]
    torch.testing.assert_close(losses.mhuber(d, alpha).detach(), torch.tensor(expected, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda u: losses.mhuber(u, alpha), d)
    sides = torch.tensor([knot * (1 - 1e-9), knot * (1 + 1e-9)], dtype=torch.float64, requires_grad=True)
    value = losses.mhuber(sides, alpha)
    (slope,) = torch.autograd.grad(value.sum(), sides, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), sides)
    torch.testing.assert_close(value, torch.full_like(value, alpha**2))
    torch.testing.assert_close(slope, torch.full_like(value, alpha))
    torch.testing.assert_close(curvature, torch.zeros_like(value), rtol=0, atol=1e-8)


def test_mhuber_counts_differences_that_float32_would_round_away():
    small = torch.tensor([1e-4, -1e-3, 0.0], requires_grad=True)
    value = losses.mhuber(small, 5.345)
    torch.testing.assert_close(value, small.detach().square() / 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), small)[0], small.detach(), rtol=1e-6, atol=0)
