"""The nearest point of a halfspace within a box: against bisection and general solvers, and where it is not."""

import math

import pytest
import torch
from scipy import optimize

from margins.attacks.halfspace import nearest_in_halfspace

BOTH = pytest.mark.parametrize("norm", [2, math.inf])
BOX = (-0.5, 2.0)


def case(seed=0, batch=100, inputs=30, dtype=torch.float64, reach=1.0):
    """Points of the box, some in corners, very uneven gradients with zeros, gaps up to `reach` of what can be had."""
    g = torch.Generator().manual_seed(seed)
    low, high = BOX
    x = low + (high - low) * torch.rand(batch, inputs, generator=g, dtype=dtype)
    x[::4] = torch.where(x[::4] > (low + high) / 2, high, low)
    w = torch.randn(batch, inputs, generator=g, dtype=dtype) * torch.logspace(-5, 2, inputs, dtype=dtype)
    w[::3, ::5] = 0
    gap = furthest(x, w) * reach * torch.rand(batch, generator=g, dtype=dtype)
    gap[::10] *= 1e-4
    return x, w, gap


def furthest(x, w):
    """The largest fall of w . r in the box."""
    return (w.abs() * room(x, w)).sum(1)


def room(x, w):
    return torch.where(w > 0, x - BOX[0], BOX[1] - x)


def by_bisection(x, w, gap, norm, bounds):
    low, high = torch.zeros(len(x), 1, dtype=x.dtype), torch.full((len(x), 1), 1e15, dtype=x.dtype)

    def move(t):
        point = x - t * (w if norm == 2 else w.sign())
        return (point if bounds is None else point.clamp(*bounds)) - x

    for _ in range(300):
        middle = (low + high) / 2
        short = gap[:, None] + (w * move(middle)).sum(1, keepdim=True) > 0
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return move(high)


@BOTH
@pytest.mark.parametrize("bounds", [BOX, None])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_bisection_finds(norm, bounds, seed):
    x, w, gap = case(seed)
    step = nearest_in_halfspace(x, w, gap, norm, bounds)
    assert torch.allclose(step, by_bisection(x, w, gap, norm, bounds), rtol=1e-9, atol=1e-12)
    assert ((gap + (w * step).sum(1)).abs() <= 1e-13 * gap).all()
    if bounds:
        at_face = (step.abs() >= room(x, w)) & (room(x, w) > 0) & (w != 0)
        assert at_face.any(1).sum() > 20  # the box was active
        assert ((x + step >= BOX[0] - 1e-15) & (x + step <= BOX[1] + 1e-15)).all()


@pytest.mark.parametrize("seed", range(6))
def test_no_general_solver_finds_a_shorter_step(seed):
    x, w, gap = case(seed, batch=1, inputs=6, reach=0.7)
    w = w.clamp(-3, 3)
    gap = gap.minimum(0.8 * furthest(x, w))
    corners = list(zip((BOX[0] - x[0]).tolist(), (BOX[1] - x[0]).tolist(), strict=True))
    constraint = {"type": "ineq", "fun": lambda r: -(gap.item() + w[0].numpy() @ r)}
    found = optimize.minimize(
        lambda r: r @ r, [0.0] * 6, bounds=corners, constraints=[constraint], tol=1e-14, method="SLSQP"
    )
    step = nearest_in_halfspace(x, w, gap, 2, BOX)
    assert found.success
    assert step.norm().item() == pytest.approx(math.sqrt(found.fun), rel=1e-5)
    # linf: the least t with -t <= r_i <= t, a linear program in (r, t)
    ones = torch.ones(6, 1, dtype=torch.float64)
    above, below = torch.cat((torch.eye(6), -ones), 1), torch.cat((-torch.eye(6), -ones), 1)
    rows = torch.cat((above, below, torch.cat((w[0], torch.zeros(1)))[None]))
    limits = torch.cat((torch.zeros(12), -gap))
    found = optimize.linprog([0] * 6 + [1], rows.numpy(), limits.numpy(), bounds=[*corners, (0, None)])
    step = nearest_in_halfspace(x, w, gap, math.inf, BOX)
    assert step.abs().max().item() == pytest.approx(found.fun, rel=1e-8)


@BOTH
def test_without_a_box_it_is_the_known_formula(norm):
    x, w, gap = case(1)
    step = nearest_in_halfspace(x, w, gap, norm, None)
    dual = torch.linalg.vector_norm(w, 2 if norm == 2 else 1, dim=1)
    assert torch.allclose(torch.linalg.vector_norm(step, norm, dim=1), gap / dual, rtol=1e-12)


@BOTH
def test_where_the_box_has_no_such_point_it_goes_to_the_corner(norm):
    x, w, gap = case(2)
    step = nearest_in_halfspace(x, w, furthest(x, w) * 1.001 + 1e-9, norm, BOX)
    assert torch.equal(step, torch.where(w == 0, 0, -w.sign() * room(x, w)))
    assert torch.equal(step, nearest_in_halfspace(x, w, torch.full_like(gap, math.inf), norm, BOX))


@BOTH
@pytest.mark.parametrize("bounds", [BOX, None])
def test_nothing_moves_without_a_gap_or_a_gradient(norm, bounds):
    x, w, gap = case(3)
    gap[:30], gap[30:40], gap[40:50] = -gap[:30], 0, math.nan
    w[50:60] = 0
    step = nearest_in_halfspace(x, w, gap, norm, bounds)
    assert not step[:60].any()
    assert step[60:].any(1).all()
    assert not step[60:][w[60:] == 0].any()
    assert nearest_in_halfspace(x[:0], w[:0], gap[:0], norm, bounds).shape == (0, 30)


@BOTH
@pytest.mark.parametrize("bounds", [BOX, None])
@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_the_size_of_the_gradient_does_not_matter(norm, bounds, scale):
    x, w, gap = case(4, dtype=torch.float32)
    step = nearest_in_halfspace(x, w, gap, norm, bounds)
    other = nearest_in_halfspace(x, w * scale, gap * scale, norm, bounds)
    assert torch.allclose(step, other, rtol=1e-4, atol=1e-6)
    assert other.any(1).all()


@BOTH
def test_float32_is_exact_to_its_rounding(norm):
    x, w, gap = case(5, inputs=784, dtype=torch.float32)
    step = nearest_in_halfspace(x, w, gap, norm, BOX)
    assert ((gap + (w * step).double().sum(1)).abs() <= 1e-6 * gap).all()
    exact = nearest_in_halfspace(x.double(), w.double(), gap.double(), norm, BOX)
    near, far = (torch.linalg.vector_norm(each.double(), norm, dim=1) for each in (step, exact))
    assert torch.allclose(near, far, rtol=1e-5)


@BOTH
def test_each_sample_is_by_itself_and_keeps_its_shape(norm):
    x, w, gap = case(6)
    whole = nearest_in_halfspace(x, w, gap, norm, BOX)
    shaped = nearest_in_halfspace(x.reshape(-1, 2, 3, 5), w.reshape(-1, 2, 3, 5), gap, norm, BOX)
    assert torch.equal(shaped, whole.reshape(-1, 2, 3, 5))
    for part in torch.randperm(100, generator=torch.Generator().manual_seed(0)).split(7):
        assert torch.allclose(nearest_in_halfspace(x[part], w[part], gap[part], norm, BOX), whole[part], atol=1e-14)
