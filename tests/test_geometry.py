"""Balls and boxes, sample by sample: lengths, directions, projections, random starts."""

import math

import pytest
import torch

from margins.attacks import geometry
from margins.attacks.geometry import column, direction, into_ball, into_both, length, random_start
from margins.attacks.noise import Noise

NORMS = [2, math.inf]
SHAPES = [(6,), (2, 3, 4)]


def drawn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", NORMS)
def test_length_is_of_each_sample(norm, shape):
    delta = drawn(0, 5, *shape) * torch.logspace(-3, 3, 5, dtype=torch.float64).reshape(-1, *[1] * len(shape))
    expected = [
        max(map(abs, d)) if norm == math.inf else math.sqrt(sum(v * v for v in d)) for d in delta.flatten(1).tolist()
    ]
    assert length(delta, norm).tolist() == pytest.approx(expected, rel=1e-12)
    assert length(delta[:0], norm).shape == (0,)
    assert column(torch.arange(5), delta).shape == (5, *[1] * len(shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", NORMS)
def test_direction_is_the_steepest_ascent_of_length_one(norm, shape):
    gradient = drawn(1, 20, *shape)
    gradient[3] = 0
    unit = direction(gradient, norm)
    assert length(unit, norm).tolist() == pytest.approx([1.0] * 3 + [0.0] + [1.0] * 16)
    gain = (unit * gradient).flatten(1).sum(1)
    dual = length(gradient, 2) if norm == 2 else gradient.flatten(1).abs().sum(1)
    torch.testing.assert_close(gain, dual)  # the dual norm: no other step of length 1 gains more
    for seed in range(20):
        other = drawn(100 + seed, 20, *shape)
        other = other / column(length(other, norm), other)
        assert ((other * gradient).flatten(1).sum(1) <= gain).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_direction_of_tiny_and_huge_gradients(dtype):
    gradient, info = drawn(2, 8, 30, dtype=dtype), torch.finfo(dtype)
    expected = direction(gradient, 2)
    sizes = [1.0, 1e-12, info.tiny**0.5, info.tiny * 1e6, info.max**0.5, info.max / 10, info.tiny**0.5 * 1e3, 1e5]
    found = direction(gradient * column(torch.tensor(sizes, dtype=dtype), gradient), 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    denormal = torch.zeros(1, 30, dtype=dtype)
    denormal[0, :3] = info.smallest_normal / 1000
    assert length(direction(denormal, 2), 2).item() == pytest.approx(1, rel=1e-3)


def test_the_floor_divides_short_gradients_and_no_others():
    gradient = torch.tensor([[3.0, 4.0], [3e-3, 4e-3], [0.0, 0.0]])
    assert direction(gradient, 2, floor=0.1).flatten().tolist() == pytest.approx([0.6, 0.8, 0.03, 0.04, 0, 0])
    assert direction(gradient, 2).flatten().tolist() == pytest.approx([0.6, 0.8, 0.6, 0.8, 0, 0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", NORMS)
def test_into_ball_is_the_nearest_point_of_the_ball(norm, shape):
    x, away = drawn(3, 30, *shape), drawn(4, 30, *shape)
    x_adv = x + away * torch.logspace(-2, 1, 30, dtype=torch.float64).reshape(-1, *[1] * len(shape))
    found = into_ball(x_adv, x, norm, 0.7)
    assert length(found - x, norm).max() <= 0.7 * (1 + 1e-12)
    inside = length(x_adv - x, norm) <= 0.7
    assert 0 < inside.sum() < 30
    torch.testing.assert_close(found[inside], x_adv[inside], rtol=0, atol=1e-12)
    for seed in range(20):  # obtuse angle: what a projection onto a convex set is
        inner = x + 0.7 * drawn(200 + seed, 30, *shape) / column(length(drawn(200 + seed, 30, *shape), norm), x)
        assert ((x_adv - found) * (inner - found)).flatten(1).sum(1).max() <= 1e-9
    torch.testing.assert_close(into_ball(x_adv, x, norm, 0.0), x, rtol=0, atol=1e-12)
    assert torch.equal(into_ball(x, x, norm, 0.7), x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 3.0), None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_into_both_is_the_nearest_point_of_ball_and_box(norm, bounds, dtype):
    low, high = bounds or (-5.0, 5.0)
    x = (torch.rand(60, 12, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.3).clamp(0, 1).to(dtype)
    x = low + (high - low) * x  # many at a face, or in a corner
    x_adv = x + drawn(6, 60, 12, dtype=dtype) * torch.logspace(-1.5, 3, 60, dtype=dtype)[:, None]
    found = into_both(x_adv, x, norm, 0.6, bounds)
    assert length(found - x, norm).max() <= 0.6 * (1 + 1e-6)
    assert bounds is None or (found.min() >= low and found.max() <= high)
    for seed in range(20):
        inner = drawn(300 + seed, 60, 12, dtype=dtype)
        inner = geometry.clip(x + 0.6 * inner / column(length(inner, norm), inner), bounds)
        slack = ((x_adv - found) * (inner - found)).sum(1) / (1 + length(x_adv - found, 2))
        assert slack.max() <= 2e-6
    if norm == 2 and bounds:
        longer = length(geometry.clip(x_adv, bounds) - x, 2) > 0.6
        assert 10 < longer.sum() < 60
        assert length(found - x, 2)[longer].min() >= 0.6 * (1 - 1e-6)  # on the sphere, not short of it


@pytest.mark.parametrize("kind", geometry.STARTS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_starts_are_in_ball_and_box_and_belong_to_their_sample(kind, norm, dtype):
    x = torch.rand(40, 2, 3, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[:20] = x[:20].round()
    found = random_start(kind, x, norm, 0.3, (0.0, 1.0), Noise(x))
    assert found.shape == x.shape and found.dtype == dtype
    assert found.min() >= 0 and found.max() <= 1 and length(found - x, norm).max() <= 0.3 + 1e-6
    assert (length(found - x, norm) > 0).all()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(random_start(kind, x[order], norm, 0.3, (0.0, 1.0), Noise(x[order])), found[order])
    assert random_start(kind, x[:0], norm, 0.3, (0.0, 1.0), Noise(x[:0])).shape == (0, 2, 3, 4)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_have_their_distributions(norm):
    x = torch.rand(4000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    delta = {kind: random_start(kind, x, norm, 2.0, None, Noise(x)) - x for kind in ("uniform", "sphere", "normal")}
    for each in delta.values():
        assert (each.mean(0).abs() < 5 * each.std(0) / math.sqrt(4000)).all()
    torch.testing.assert_close(
        length(delta["sphere"], norm), torch.full((4000,), 2.0, dtype=torch.float64), rtol=1e-6, atol=0
    )
    share = (length(delta["uniform"], norm) / 2) ** 5  # of the volume: uniform in [0, 1]
    assert (share.sort().values - torch.arange(4000) / 4000).abs().max() < 2.5 / math.sqrt(4000)
    if norm == math.inf:
        assert (delta["sphere"].abs() - 2).abs().max() < 1e-6
    assert delta["normal"].std().item() == pytest.approx(1e-3, rel=0.03)
    image = random_start("image", x, norm, 0.3, (0.0, 1.0), Noise(x))
    plain = Noise(x).uniform(5).double()
    torch.testing.assert_close(image, into_ball(plain, x, norm, 0.3))
    assert (length(image - x, norm) > 0.2999).double().mean() > 0.9


def test_a_floor_below_what_float32_can_square_does_not_bind():
    gradient = torch.full((2, 16), 1e-25)
    assert length(direction(gradient, 2, floor=1e-30), 2).tolist() == pytest.approx([1, 1])
    assert length(direction(gradient, 2, floor=1e-23), 2).tolist() == pytest.approx([0.04, 0.04])
