"""Noise: numbers that look random, and depend on the seed, the sample and the count of draws alone."""

import math

import pytest
import torch

from margins.attacks.noise import Noise


def generator(seed):
    return torch.Generator().manual_seed(seed)


def samples(count=50, dtype=torch.float32):
    return torch.rand(count, 3, 4, generator=generator(9)).to(dtype)


DRAWS = [lambda n: n.uniform(7), lambda n: n.normal(7), lambda n: n.signs(7), lambda n: n.bits(7)]


@pytest.mark.parametrize("draw", DRAWS)
def test_a_sample_has_its_numbers_in_every_batch_order_and_precision(draw):
    x = samples()
    whole = draw(Noise(x, generator(1)))
    order = torch.randperm(50, generator=generator(0))
    assert torch.equal(draw(Noise(x[order], generator(1))), whole[order])
    assert torch.equal(torch.cat([draw(Noise(part, generator(1))) for part in x.split(11)]), whole)
    assert torch.equal(draw(Noise(x.double(), generator(1))), whole)
    assert torch.equal(draw(Noise(x.clone().requires_grad_(), generator(1))), whole)
    assert torch.equal(draw(Noise(x.transpose(1, 2).contiguous().transpose(1, 2), generator(1))), whole)
    assert torch.equal(draw(Noise(torch.cat([x, x]), generator(1))), torch.cat([whole, whole]))
    assert len(whole.unique(dim=0)) > 35  # seven signs may agree
    assert not torch.equal(draw(Noise(x, generator(2))), whole)
    assert draw(Noise(x[:0])).shape == (0, 7)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_stream_goes_on_where_it_was_when_others_leave(draw):
    x, left = samples(), torch.arange(50) % 3 == 0
    noise = Noise(x, generator(1))
    noise.uniform(5)
    fewer = noise.keep(left)
    expected = draw(noise)
    assert torch.equal(draw(fewer), expected[left])
    assert torch.equal(draw(fewer), draw(noise)[left])
    assert not torch.equal(draw(noise), expected)


def test_many_draws_are_one_draw_in_pieces():
    pieces = Noise(samples(), generator(1))
    whole = Noise(samples(), generator(1)).signs(5, 12)
    assert torch.equal(torch.cat([pieces.signs(2, 12), pieces.signs(3, 12)], 1), whole)


def test_the_generator_gives_the_seed_and_moves_on_by_one_number():
    g, twin = generator(3), generator(3)
    first, second = Noise(samples(), g).uniform(4), Noise(samples(), g).uniform(4)
    assert not torch.equal(first, second)
    torch.randint(-(2**31), 2**31, (), generator=twin)
    assert torch.equal(Noise(samples(), twin).uniform(4), second)
    state = torch.get_rng_state()
    assert torch.equal(Noise(samples()).uniform(4), Noise(samples(), generator(0)).uniform(4))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("alike", [False, True])
def test_uniform_signs_and_normal_have_their_distributions(alike):
    """Also for samples that differ in one pixel only. Tolerances are five standard errors of 400 x 500 numbers."""
    x = samples(400)
    if alike:
        x[:], x[:, 1, 2] = 0, torch.arange(400) / 399
    noise = Noise(x, generator(5))
    u, s, z, n = noise.uniform(500), noise.signs(500), noise.normal(500), 400 * 500
    assert u.dtype == s.dtype == z.dtype == torch.float32
    assert u.min() >= 0 and u.max() < 1 and s.abs().eq(1).all()
    ranks = (u.flatten().sort().values - torch.arange(n) / n).abs().max()
    assert ranks < 2.5 / math.sqrt(n)  # Kolmogorov and Smirnov
    assert abs(s.mean()) < 5 / math.sqrt(n)
    assert abs(z.mean()) < 5 / math.sqrt(n) and abs(z.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs(z.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert (z.abs() > 3).double().mean().item() == pytest.approx(0.0027, rel=0.3)
    for values in (u - 0.5, s, z):
        for axis in (0, 1):  # neighbouring samples, neighbouring draws
            pairs = values * values.roll(1, axis)
            assert abs(pairs.mean()) < 5 * values.var() / math.sqrt(n)
        spread = values.mean(axis).std() / values.std() * math.sqrt(values.shape[axis])
        assert spread.item() == pytest.approx(1, abs=0.2)
    bits = noise.bits(500)
    for place in range(32):
        assert abs((bits >> place & 1).double().mean() - 0.5) < 2.5 / math.sqrt(n)


def test_seeds_and_draws_are_unrelated():
    x = samples(400)
    for first, second in (((0, 0), (1, 0)), ((0, 0), (0, 500)), ((7, 0), (8, 1))):
        a, b = (Noise(x, generator(seed)) for seed, _ in (first, second))
        a.bits(first[1]), b.bits(second[1])
        assert abs((a.signs(500) * b.signs(500)).mean()) < 5 / math.sqrt(400 * 500)
