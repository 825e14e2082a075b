"""AMR's Lipschitz estimate against linear models, the exact distance in the plane, and its own definition."""

import math

import known
import pytest
import torch
from torch import nn

from margins import margin, planar
from margins.errors import MarginsError
from margins.margin import lipschitz
from margins.models import MLP, Linear


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_mlp(seed=0, inputs=2, hidden=(12, 8), classes=3):
    model = MLP(inputs, hidden, classes, generator=generator(seed)).double()
    with torch.no_grad():
        for layer in [*model.hidden, model.head]:
            layer.weight.mul_(3)
        model.head.bias.sub_(model(torch.rand(500, inputs, generator=generator(0)).double()).mean(0))
    return model


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("points", [1, 7])
def test_on_linear_models_one_point_is_exact(classes, points):
    model, x, y = known.linear(1, classes=classes)
    exact = margin.linear_margin(model.head.weight, model.head.bias, x, y).detach()
    found = margin.lipschitz_margin(model, x, y, points=points, radius=1000)
    torch.testing.assert_close(found.margin, exact, rtol=1e-12, atol=1e-14)
    assert (found.margin < 0).any()
    capped = margin.lipschitz_margin(model, x, y, points=points, radius=0.05).margin
    torch.testing.assert_close(capped, exact.clamp(-0.05, 0.05), rtol=1e-12, atol=1e-14)
    assert (exact.abs() > 0.05).any()


def test_it_is_theorem_3_written_out():
    model, classes = random_mlp(1, 5, (9,), 4), 4
    x, y = torch.rand(6, 5, generator=generator(2), dtype=torch.float64), torch.arange(6) % 4
    found = margin.lipschitz_margin(model, x, y, points=64, radius=0.7, generator=generator(3))
    noise = lipschitz.Noise(x, generator(3))
    around = torch.cat([lipschitz._in_ball(x, noise, n, 0.7) for n in (1, 1, 2, 4, 8, 16, 16, 16)], 1)
    for i in range(len(x)):
        logits = model(x[i : i + 1])[0].detach()
        c = logits.argmax().item()
        jacobian = torch.stack([torch.autograd.functional.jacobian(model, z[None])[0, :, 0] for z in around[i]])
        expected = min(
            (logits[c] - logits[j]).item() / (jacobian[:, c] - jacobian[:, j]).norm(dim=1).max().item()
            for j in range(classes)
            if j != c
        )
        assert found.margin[i].item() == pytest.approx(min(expected, 0.7) * (1 if c == y[i] else -1), rel=1e-9)


@pytest.mark.parametrize("inputs", [1, 2, 30])
def test_the_points_are_uniform_in_the_ball(inputs):
    x = torch.arange(3.0)[:, None].expand(3, inputs).double()
    move = lipschitz._in_ball(x, lipschitz.Noise(x, generator(4)), 4000, 2.5) - x[:, None]
    size = move.norm(dim=2)
    assert (size <= 2.5 * (1 + 1e-12)).all()
    # U = (|move| / R)^d is uniform, and the direction has no preference.
    share = (size / 2.5) ** inputs
    assert (share.mean(1) - 0.5).abs().max() < 5 * (1 / 12 / 4000) ** 0.5
    assert (share.square().mean(1) - 1 / 3).abs().max() < 5 * (4 / 45 / 4000) ** 0.5
    assert (move / size[..., None]).mean(1).abs().max() < 5 * (1 / inputs / 4000) ** 0.5


def test_the_path_falls_to_the_margin_and_more_points_begin_with_the_same():
    model = random_mlp()
    x, y = torch.rand(30, 2, generator=generator(5), dtype=torch.float64), torch.arange(30) % 3
    found = margin.lipschitz_margin(model, x, y, points=100, radius=2)
    assert found.counts == (1, 2, 4, 8, 16, 32, 64, 100)
    assert found.path.shape == (8, 30)
    assert torch.equal(found.path[-1], found.margin)
    assert (found.path.abs().diff(dim=0) <= 0).all()
    assert (found.path.abs().diff(dim=0) < 0).any()
    longer = margin.lipschitz_margin(model, x, y, points=128, radius=2)
    assert torch.equal(longer.path[:7], found.path[:7])
    assert torch.equal(margin.lipschitz_margin(model, x, y, points=1, radius=2).path, found.path[:1])


def test_enough_points_give_a_lower_bound_of_the_exact_distance_in_the_plane():
    model = random_mlp()
    x = torch.rand(60, 2, generator=generator(6), dtype=torch.float64)
    y = torch.arange(60) % 3
    exact = planar.planar_margin(model, x, y, (-30, 31, -30, 31))
    found = margin.lipschitz_margin(model, x, y, points=3000, radius=1)
    assert torch.equal(found.margin.sign(), exact.sign())
    assert (found.margin.abs() <= exact.abs() * (1 + 1e-9)).all()  # all linear regions nearby were met
    # One point says too much: it is an estimate from above.
    assert (found.path[0].abs() > exact.abs() * 1.01).any()


def test_one_sample_does_not_see_the_others(monkeypatch):
    model = random_mlp(inputs=6)
    x, y = torch.rand(20, 6, generator=generator(7), dtype=torch.float64), torch.arange(20) % 3
    found = margin.lipschitz_margin(model, x, y, points=40, radius=1).path
    order = torch.randperm(20, generator=generator(8))
    shuffled = margin.lipschitz_margin(model, x[order], y[order], points=40, radius=1).path
    torch.testing.assert_close(shuffled, found[:, order], rtol=1e-9, atol=0)
    part = margin.lipschitz_margin(model, x[3:5], y[3:5], points=40, radius=1).path
    torch.testing.assert_close(part, found[:, 3:5], rtol=1e-9, atol=0)
    monkeypatch.setattr(lipschitz, "_NUMBERS", 200)  # two samples at a time
    torch.testing.assert_close(margin.lipschitz_margin(model, x, y, points=40, radius=1).path, found, rtol=1e-9, atol=0)
    other = margin.lipschitz_margin(model, x, y, points=40, radius=1, generator=generator(9)).path
    assert not torch.equal(other, found)


def test_images_and_single_precision():
    model = random_mlp(inputs=12)
    x, y = torch.rand(4, 3, 2, 2, generator=generator(10), dtype=torch.float64).float(), torch.arange(4) % 3
    wide = margin.lipschitz_margin(model, x.double(), y, points=20).margin
    narrow = margin.lipschitz_margin(model.float(), x, y, points=20).margin
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(margin.lipschitz_margin(model, x.flatten(1), y, points=20).margin, narrow)


def test_no_samples_and_no_slope():
    flat = Linear(2, 2)
    with torch.no_grad():
        flat.head.weight.zero_()
        flat.head.bias.copy_(torch.tensor([1.0, 0]))
    x, y = torch.zeros(2, 2), torch.tensor([0, 1])
    assert margin.lipschitz_margin(flat, x, y, points=3).margin.tolist() == [5, -5]
    empty = margin.lipschitz_margin(flat, x[:0], y[:0], points=3)
    assert (empty.margin.shape, empty.path.shape) == ((0,), (3, 0))


X, Y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"radius": 0}, "radius must be a finite number greater than 0, but is 0"),
        ({"radius": math.inf}, "radius must be a finite number"),
        ({"points": 0}, "points must be a whole number of at least 1"),
        ({"y": Y + 2}, r"y must lie in 0..1"),
        ({"x": X.double()}, "model computes in torch.float32"),
        ({"x": X / 0}, "x must be finite"),
        ({"model": nn.Flatten(0)}, "logits must have the shape"),
    ],
)
def test_bad_input_is_named(settings, words):
    with pytest.raises(MarginsError, match=words):
        margin.lipschitz_margin(**{"model": Linear(3, 2), "x": X, "y": Y} | settings)
