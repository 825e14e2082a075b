"""Square: the algorithm against a plain one, linear models, models without gradients, and every attack's promises."""

import importlib
import math

import pytest
import torch
from known import linear, worst_gap
from torch import nn

from margins import losses, models
from margins.attacks.noise import Noise
from margins.attacks.square import share, square
from margins.errors import MarginsError

module = importlib.import_module("margins.attacks.square")  # margins.attacks.square is the function

BOTH = pytest.mark.parametrize("norm", [2, math.inf])


def network(seed=0, shape=(3, 6, 6), classes=4, dtype=torch.float64, batch=30):
    g = torch.Generator().manual_seed(seed)
    body = models.build("mlp", inputs=math.prod(shape), hidden=(20,), classes=classes, generator=g).to(dtype)
    x = torch.rand(batch, *shape, generator=g, dtype=dtype)
    x[: batch // 2] = x[: batch // 2].round()
    with torch.no_grad():
        body.head.bias -= body(x).mean(0)
    model = nn.Sequential(nn.Flatten(), body)
    y = model(x).argmax(1)
    y[::9] = (y[::9] + 1) % classes
    return model, x, y


def seed(number=0):
    return torch.Generator().manual_seed(number)


class Spy(nn.Module):
    """A model that remembers what it was asked; with labels, of one whole batch, it is right and sure of it."""

    def __init__(self, model, y=None):
        super().__init__()
        self.model, self.y, self.asked = model, y, []

    def forward(self, x):
        self.asked.append(x.clone())
        logits = self.model(x)
        return logits if self.y is None else logits + 100 * nn.functional.one_hot(self.y, logits.shape[1])


# The algorithm


def test_the_schedule_is_the_published_one():
    at = [0, 10, 11, 50, 51, 200, 201, 501, 1001, 2001, 4001, 6001, 8001, 10**6]
    halved = [0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert [share(0.8, step) for step in at] == [0.8 / 2**n for n in halved]


def test_linf_starts_with_stripes_and_moves_squares_to_the_faces():
    x, eps = torch.rand(20, 3, 10, 10, generator=seed(), dtype=torch.float64), 0.1
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    ball = module._Linf(x, eps, (0.0, 1.0), Noise(x))
    best = ball.start().reshape(x.shape)
    upper = best == high
    assert (upper | (best == low)).all()
    assert (upper == upper[:, :, :1]).all()
    assert 0.4 < upper[:, :, 0].double().mean() < 0.6
    sides = set()
    for _ in range(60):
        point = ball.move(best.flatten(1), 0.16).reshape(x.shape)
        for k, differ in enumerate((point != best).any(1)):
            rows, columns = differ.nonzero().T
            if len(rows):
                assert rows.max() - rows.min() < 4
                assert columns.max() - columns.min() < 4
                sides.add((rows.min().item(), columns.min().item()))
            for new, old, *faces in zip(point[k], best[k], low[k], high[k], strict=True):
                assert any((new == face)[new != old].all() for face in faces)
    assert {row for row, _ in sides} >= {0, 6}  # also at the far edge
    assert {column for _, column in sides} >= {0, 6}


def plain_l2_move(x, best, eps, first, other, pattern, signs):
    """One move for one sample (C, H, W), channel by channel, as the paper's Algorithm 3 has it."""
    delta, before = best - x, best - x
    union = torch.zeros_like(x)
    union[:, first[0], first[1]] = union[:, other[0], other[1]] = 1
    delta[:, other[0], other[1]] = 0
    for c in range(len(x)):
        old = before[c, first[0], first[1]]
        new = signs[c] * pattern + old / old.norm()
        budget = max(eps**2 - before.square().sum(), 0) / len(x) + (before[c] * union[c]).square().sum()
        delta[c, first[0], first[1]] = new / new.norm() * budget.sqrt()
    return (x + eps * delta / delta.norm()).clamp(0, 1)


def test_l2_moves_as_the_paper_says():
    x = torch.rand(15, 3, 9, 9, generator=seed(), dtype=torch.float64)
    ball = module._L2(x, 0.8, (0.0, 1.0), Noise(x))
    best = ball.start()
    assert ((best - x.flatten(1)).norm(dim=1) <= 0.8 + 1e-12).all()
    for part in (0.5, 0.1):
        ball.resize(part)
        drawn = ball.next(8).double()
        ball.turn -= 1  # the move gets the same numbers
        side = ball.sides[0]
        assert side == {0.5: 7, 0.1: 3}[part]
        point = ball.move(best, part).reshape(x.shape)
        place = (drawn[:, :4] * (9 - side + 1)).long()
        for k in range(len(x)):
            top, left, below, right = (slice(p, p + side) for p in place[k].tolist())
            pattern = ball.patterns[int(drawn[k, 4] < 0.5)].reshape(side, side)
            signs = (drawn[k, 5:] < 0.5) * 2.0 - 1
            expected = plain_l2_move(x[k], best[k].reshape(3, 9, 9), 0.8, (top, left), (below, right), pattern, signs)
            assert torch.allclose(point[k], expected, atol=1e-9)


@pytest.mark.parametrize("tall, wide", [(3, 3), (25, 25), (1, 7), (1, 1), (4, 4)])
def test_patterns_are_two_bumps_of_opposite_sign(tall, wide):
    one, two = module._patterns(tall, wide, torch.ones(1, dtype=torch.float64))
    assert two.norm().item() == pytest.approx(1)
    assert (two[:, : wide // 2] > 0).all()
    assert (two[:, wide // 2 :] < 0).all()
    assert torch.equal(one, two if tall == 1 else two.T)


def test_a_bump_is_the_sum_over_growing_rectangles():
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for k in range(3):  # of the size 2k + 1 about the middle (2, 1), of weight 1/(k + 1)^2
        expected[max(2 - k, 0) : 3 + k, max(1 - k, 0) : 2 + k] += 1 / (k + 1) ** 2
    assert torch.allclose(module._bump(5, 3), expected / expected.norm())


@BOTH
def test_the_loss_of_the_best_point_only_grows(norm):
    model, x, y = network()
    spy = Spy(model, y)
    found = square(spy, x, y, norm=norm, eps=0.2, queries=60, generator=seed())
    assert not found.success.any()
    values = torch.stack([losses.margin(model(point), y) for point in spy.asked[1:]])
    assert len(values) == 60
    assert torch.allclose(losses.margin(model(found.x_adv), y), values.amax(0), rtol=1e-9)
    assert (values.amax(0) > values[0]).all()
    assert (found.calls.forward, found.calls.backward) == (30 * 61, 0)


# What is exactly known, and gradients that are not needed


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("eps", [0.05, 0.15])
def test_linf_breaks_what_can_be_broken_of_linear_models(classes, eps):
    model, x, y = linear(1, classes=classes)
    worst = worst_gap(model, x, y, math.inf, eps)
    clear = worst.abs() > 1e-5
    found = square(model, x, y, norm=math.inf, eps=eps, queries=600)
    assert torch.equal(found.success[clear], worst[clear] < 0)
    assert 10 < found.success.sum() < 55


def test_l2_breaks_most_of_what_can_be_broken_and_nothing_else():
    model, x, y = linear(1)
    possible = worst_gap(model, x, y, 2, 0.3) < 0
    found = square(model, x, y, norm=2, eps=0.3, queries=1000)
    assert not (found.success & ~possible).any()
    assert found.success.sum() >= 0.85 * possible.sum()
    assert possible.sum() < 55


@BOTH
def test_it_needs_no_gradients(norm):
    class Steps(nn.Module):
        """Quantised inputs: the gradient is zero everywhere."""

        def forward(self, x):
            return model((x * 50).round() / 50)

    model, x, y = network()
    through, plain = (square(each, x, y, norm=norm, eps=0.5, queries=100) for each in (Steps(), model))
    assert through.success.sum() > 15
    assert abs(through.success.sum() - plain.success.sum()) <= 3
    assert through.calls.backward == 0


@BOTH
@pytest.mark.parametrize("shape", [(5,), (1,), (1, 1, 1), (3, 4, 1), (2, 1, 6), (1, 30, 2), (2, 3), (1, 2, 2)])
def test_every_shape_works(norm, shape):
    model, x, y = network(shape=shape, dtype=torch.float32)
    found = square(model, x, y, norm=norm, eps=0.2, queries=40)
    assert (torch.linalg.vector_norm((found.x_adv - x).flatten(1), norm, dim=1) <= 0.2 + 1e-6).all()


# What every attack promises


@BOTH
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_inside_the_ball_and_the_box(norm, bounds):
    model, x, y = network()
    found = square(model, x, y, norm=norm, eps=0.25, queries=50, bounds=bounds, generator=seed())
    length = torch.linalg.vector_norm((found.x_adv - x).flatten(1), norm, dim=1)
    assert (length <= 0.25 + 1e-9).all()
    assert torch.allclose(found.distance, length)
    outside = (found.x_adv < 0) | (found.x_adv > 1)
    assert outside.any() == (bounds is None)
    wrong = model(x).argmax(1) != y
    assert wrong.any()
    assert torch.equal(found.x_adv[wrong], x[wrong])
    assert torch.equal(found.success, model(found.x_adv).argmax(1) != y)
    assert wrong.sum() < found.success.sum() < len(x) + (norm == math.inf)
    assert (found.norm, found.eps) == (norm, 0.25)


@BOTH
def test_samples_do_not_see_each_other(norm):
    model, x, y = network()
    whole = square(model, x, y, norm=norm, eps=0.2, queries=80, generator=seed(3))
    assert 5 < whole.success.sum() < 30
    for part in torch.randperm(len(x), generator=seed()).split(7):
        found = square(model, x[part], y[part], norm=norm, eps=0.2, queries=80, generator=seed(3))
        assert torch.allclose(found.x_adv, whole.x_adv[part], atol=1e-6)
        assert torch.equal(found.success, whole.success[part])


@BOTH
def test_the_model_is_asked_about_few_samples_at_a_time(norm, monkeypatch):
    model, x, y = network()
    whole = square(model, x, y, norm=norm, eps=0.2, queries=40)
    monkeypatch.setattr("margins.attacks.found.CHUNK", 4)
    spy = Spy(model)
    found = square(spy, x, y, norm=norm, eps=0.2, queries=40)
    assert max(len(each) for each in spy.asked[1:]) <= 4
    assert torch.allclose(found.x_adv, whole.x_adv, atol=1e-6)
    assert found.calls == whole.calls


@BOTH
def test_the_generator_decides_and_broken_samples_leave(norm):
    model, x, y = network()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, two, other = (square(model, x, y, norm=norm, eps=0.2, queries=80, generator=seed(k)) for k in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.x_adv, two.x_adv)
    assert not torch.equal(one.x_adv, other.x_adv)
    assert one.calls == two.calls
    assert one.calls.forward < 0.8 * 30 * 81


def test_no_samples_and_misclassified_ones_cost_nothing():
    model, x, y = network()
    found = square(model, x[:0], y[:0], norm=2, eps=0.1)
    assert (found.x_adv.shape, found.success.shape, found.calls.forward) == ((0, 3, 6, 6), (0,), 0)
    found = square(model, x, (model(x).argmax(1) + 1) % 4, norm=2, eps=0.1)
    assert found.success.all()
    assert torch.equal(found.x_adv, x)
    assert found.calls.forward == 30


WRONG = {"norm": [1], "eps": [-0.1, math.nan], "queries": [0, 1.5], "p_init": [0, 1.1], "bounds": [(1, 0), (0, 0.5)]}


@pytest.mark.parametrize("name, value", [(name, value) for name in WRONG for value in WRONG[name]])
def test_bad_input_is_told_before_any_work(name, value):
    class Untouched(nn.Module):
        def forward(self, x):
            raise AssertionError("asked")

    _, x, y = network()
    with pytest.raises(MarginsError, match="bounds|box" if name == "bounds" else name):
        square(Untouched(), x, y, **({"norm": 2, "eps": 0.1} | {name: value}))
