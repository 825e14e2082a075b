"""Margins against what is known exactly: linear models, hand-made ones, and the definitions written out."""

import math

import known
import pytest
import torch
from torch import nn

from margins import margin, planar
from margins.errors import MarginsError
from margins.models import MLP, Linear, build

NORMS = [1, 1.5, 2, math.inf]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def case(seed, batch=200, inputs=5, classes=4):
    g = generator(seed)
    model = build("linear", inputs=inputs, classes=classes, generator=g).double()
    return (
        model,
        torch.randn(batch, inputs, generator=g, dtype=torch.float64),
        torch.randint(classes, (batch,), generator=g),
    )


def distances(model, x, norm):
    """The distance from each x to each hyperplane f_i = f_j, by its own formula in each norm: (B, K, K)."""
    w = model.head.weight
    difference = w[:, None] - w[None]
    length = {1: difference.abs().amax(2), 2: difference.square().sum(2).sqrt(), math.inf: difference.abs().sum(2)}
    length[1.5] = difference.abs().pow(3).sum(2).pow(1 / 3)
    logits = model(x)
    return ((logits[:, :, None] - logits[:, None]) / length[norm]).detach()


@pytest.mark.parametrize("norm", NORMS)
def test_linear_margin_is_the_distance_to_the_nearest_hyperplane(norm):
    model, x, y = case(1)
    found = margin.linear_margin(model.head.weight, model.head.bias, x, y, norm)
    all_distances, prediction = distances(model, x, norm), model(x).argmax(1)
    for k in range(len(x)):
        p = prediction[k]
        least = min(all_distances[k, p, j] for j in range(4) if j != p)
        assert found[k].item() == pytest.approx(least.item() if p == y[k] else -least.item(), rel=1e-12)
    assert 20 < (found > 0).sum() < 180  # both signs were looked at


@pytest.mark.parametrize("norm", NORMS)
def test_moving_by_the_margin_and_no_less_changes_the_class(norm):
    model, x, _ = case(2, classes=2)
    w = (model.head.weight[1] - model.head.weight[0]).detach()
    prediction = model(x).argmax(1)
    distance = margin.linear_margin(model.head.weight, model.head.bias, x, prediction, norm)
    if norm == 1:  # the best direction of length 1 in each norm
        direction = torch.zeros_like(w).index_fill_(0, w.abs().argmax(), 1) * w.sign()
    elif norm == math.inf:
        direction = w.sign()
    else:
        direction = w.sign() * w.abs() ** (1 / (norm - 1))
        direction /= torch.linalg.vector_norm(direction, norm)
    step = direction * distance[:, None] * (1 - 2 * prediction[:, None])
    assert (model(x + 1.000001 * step).argmax(1) != prediction).all()
    assert (model(x + 0.999999 * step).argmax(1) == prediction).all()


@pytest.mark.parametrize("norm", NORMS)
def test_on_linear_models_every_distance_is_the_exact_one(norm):
    model, x, _ = case(3)
    right = model(x).argmax(1)
    exact = margin.linear_margin(model.head.weight, model.head.bias, x, right, norm)
    torch.testing.assert_close(margin.effective_margin(model, x, right, norm), exact, rtol=1e-12, atol=1e-14)
    if norm == 2:
        torch.testing.assert_close(margin.feature_margin(model, x, right), exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("norm", NORMS)
def test_binary_agrees_with_two_classes_for_right_and_wrong(norm):
    model, x, y = case(4, classes=2)
    w, b = model.head.weight, model.head.bias
    two = margin.linear_margin(w, b, x, y, norm)
    one = margin.binary_margin(w[1] - w[0], b[1] - b[0], x, y, norm)
    assert 0 < (two > 0).sum() < len(x)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(margin.effective_margin(model, x, y, norm), two, rtol=1e-12, atol=1e-14)


def test_dual_norms_by_hand():
    weight, x, y = torch.tensor([3.0, -4.0]), torch.tensor([[2.0, 0.0]]), torch.tensor([1])
    assert margin.binary_margin(weight, 1.0, x, y).item() == pytest.approx(7 / 5)
    assert margin.binary_margin(weight, 1.0, x, y, 1).item() == pytest.approx(7 / 4)
    assert margin.binary_margin(weight, 1.0, x, y, math.inf).item() == pytest.approx(7 / 7)
    assert margin.binary_margin(weight, 1.0, x, 1 - y).item() == pytest.approx(-7 / 5)


def test_a_wrong_sample_by_hand_under_both_conventions():
    # f = (x1, 0, -x1 - 2) at x1 = 3: class 0 is predicted, its boundary (with class 1) is 3 away. The truth is class 2,
    # which has to pass class 1 at x1 = -2, 5 away, and class 0 at x1 = -1, 4 away.
    model = Linear(2, 3)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[1.0, 0], [0, 0], [-1, 0]]))
        model.head.bias.copy_(torch.tensor([0.0, 0, -2]))
    x, y = torch.tensor([[3.0, 1.0]]), torch.tensor([2])
    assert margin.linear_margin(model.head.weight, model.head.bias, x, y).item() == -3
    assert margin.effective_margin(model, x, y).item() == -5
    assert margin.feature_margin(model, x, y).item() == -5
    assert margin.logit_margin(model(x), y).item() == -8


def test_effective_margin_is_equation_3_written_out():
    g = generator(5)
    model = build("mlp", inputs=6, hidden=(9, 7), classes=4, generator=g).double()
    x, y = torch.randn(20, 6, generator=g, dtype=torch.float64), torch.randint(4, (20,), generator=g)
    found, points = margin.effective_margin(model, x, y), margin.effective_point(model, x, y)
    for k in range(20):
        jacobian = torch.autograd.functional.jacobian(model, x[k : k + 1])[0, :, 0]
        gaps = model(x[k : k + 1])[0, y[k]] - model(x[k : k + 1])[0]
        ratios = {j: (gaps[j] / (jacobian[y[k]] - jacobian[j]).norm()).item() for j in range(4) if j != y[k]}
        j = min(ratios, key=ratios.get)
        assert found[k].item() == pytest.approx(ratios[j], rel=1e-10)
        # The point closes the linearised gap, and lies as far away as the margin says.
        assert (gaps[j] + (jacobian[y[k]] - jacobian[j]) @ (points[k] - x[k])).item() == pytest.approx(0, abs=1e-10)
        assert (points[k] - x[k]).norm().item() == pytest.approx(abs(ratios[j]), rel=1e-10)


def test_images_count_all_their_pixels():
    model = build("mlp", inputs=12, hidden=(5,), classes=3, generator=generator(6)).double()
    x = torch.rand(4, 3, 2, 2, generator=generator(7), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(margin.effective_margin(model, x, y), margin.effective_margin(model, x.flatten(1), y))
    assert margin.effective_point(model, x, y).shape == x.shape


def test_feature_margin_is_the_linear_margin_of_the_features():
    model = build("mlp", inputs=3, hidden=(8,), classes=5, generator=generator(8)).double()
    x = torch.randn(30, 3, generator=generator(9), dtype=torch.float64)
    right = model(x).argmax(1)
    exact = margin.linear_margin(model.head.weight, model.head.bias, model.features(x).detach(), right)
    torch.testing.assert_close(margin.feature_margin(model, x, right), exact)


def test_scaling_the_logits_changes_the_logit_margin_alone():
    model = build("mlp", inputs=3, hidden=(8,), classes=5, generator=generator(10)).double()
    x = torch.randn(30, 3, generator=generator(11), dtype=torch.float64)
    y = torch.randint(5, (30,), generator=generator(12))
    effective, feature = margin.effective_margin(model, x, y), margin.feature_margin(model, x, y)
    logit = model(x).detach()
    with torch.no_grad():
        model.head.weight.mul_(10)
        model.head.bias.mul_(10)
    torch.testing.assert_close(margin.effective_margin(model, x, y), effective)
    torch.testing.assert_close(margin.feature_margin(model, x, y), feature)
    torch.testing.assert_close(margin.logit_margin(model(x), y), 10 * margin.logit_margin(logit, y))


def test_a_gap_that_no_input_closes_is_an_infinite_margin():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    dead = MLP(2, (3,), 2)
    with torch.no_grad():
        for parameter in dead.parameters():
            parameter.zero_()
        dead.head.bias[0] = 1
    x, y = torch.zeros(2, 2), torch.tensor([0, 1])
    for model in (dead, Constant()):
        assert margin.effective_margin(model, x, y).tolist() == [math.inf, -math.inf]
        assert margin.effective_point(model, x, y).isnan().all()
    assert margin.feature_margin(dead, x, y).tolist() == [math.inf, -math.inf]
    assert margin.linear_margin(torch.zeros(2, 2), torch.tensor([1.0, 0]), x, y).tolist() == [math.inf, -math.inf]
    assert margin.binary_margin(torch.zeros(2), -1.0, x, y).tolist() == [math.inf, -math.inf]
    # No gap at all is a margin of zero, also where nothing can change it.
    assert (margin.linear_margin(torch.zeros(2, 2), None, x, y) == 0).all()
    assert (margin.binary_margin(torch.zeros(2), 0.0, x, y) == 0).all()


def test_one_far_class_does_not_hide_a_near_one():
    # Class 1 can never be reached (inf), class 2 can (1 away): the minimum over the classes is what counts.
    weight, bias = torch.tensor([[0.0, 0], [0, 0], [1, 0]]), torch.tensor([1.0, 0, 0])
    assert margin.linear_margin(weight, bias, torch.zeros(1, 2), torch.tensor([0])).item() == 1


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
        self.fail = False

    def forward(self, x):
        out = self.net(x)
        if self.fail:
            raise ZeroDivisionError
        return out


def test_the_model_is_left_as_it_was_also_after_an_exception():
    model = Fails().train()
    model.net[3].bias.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.rand(6, 3, generator=generator(13)), torch.zeros(6, dtype=torch.int64)
    with torch.no_grad():  # a caller's no_grad does not matter either
        first = margin.effective_margin(model, x, y)
    assert torch.equal(first, margin.effective_margin(model, x, y))  # no dropout, no batch statistics
    model.fail = True
    with pytest.raises(ZeroDivisionError):
        margin.effective_margin(model, x, y)
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]
    assert all((p.grad == 3).all() for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not x.requires_grad
    assert x.grad is None


def test_one_sample_does_not_see_the_others():
    model = Fails()
    x, y = torch.rand(6, 3, generator=generator(14)), torch.tensor([0, 1, 0, 1, 0, 1])
    alone = torch.cat([margin.effective_margin(model, x[k : k + 1], y[k : k + 1]) for k in range(6)])
    torch.testing.assert_close(margin.effective_margin(model, x, y), alone)


def test_the_effective_margin_costs_one_forward_and_the_other_classes_gradients():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.forwards, self.backwards = Linear(3, 5), 0, 0

        def forward(self, x):
            self.forwards += 1
            x = x * 1
            x.register_hook(self.count)
            return self.net(x)

        def count(self, gradient):
            self.backwards += 1

    model = Counted()
    margin.effective_margin(model, torch.rand(7, 3), torch.arange(7) % 5)
    assert (model.forwards, model.backwards) == (1, 4)


def test_no_samples_are_no_margins():
    model, x, y = Linear(3, 4), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    for found in (margin.effective_margin(model, x, y), margin.feature_margin(model, x, y)):
        assert found.shape == (0,)
    assert margin.effective_point(model, x, y).shape == (0, 3)
    assert margin.deepfool_margin(model, x, y).shape == (0,)


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("overshoot", [0.02, 0.5])
def test_on_linear_models_the_deepfool_margin_is_the_distance_and_the_overshoot(norm, overshoot):
    model, x, y = known.linear(2, classes=4)
    exact = margin.linear_margin(model.head.weight, model.head.bias, x, y, norm).detach()
    found = margin.deepfool_margin(model, x, y, norm=norm, overshoot=overshoot)
    torch.testing.assert_close(found, exact * (1 + overshoot), rtol=1e-9, atol=1e-12)
    assert (found < 0).any()
    boxed = margin.deepfool_margin(model, x, y, norm=norm, bounds=(0, 1)).abs()
    assert (boxed >= known.nearest(model, x, model(x).argmax(1), norm) * (1 - 1e-9)).all()


def test_the_deepfool_margin_is_an_upper_bound_of_the_exact_one():
    model = MLP(2, (12, 8), 3, generator=generator(15)).double()
    with torch.no_grad():
        for layer in [*model.hidden, model.head]:
            layer.weight.mul_(3)
    x = torch.rand(100, 2, generator=generator(16), dtype=torch.float64)
    y = torch.arange(100) % 3
    exact = planar.planar_margin(model, x, y, (-30, 31, -30, 31))
    found = margin.deepfool_margin(model, x, y)
    assert torch.equal(found.sign(), exact.sign())
    assert (found < 0).any()
    assert (found.abs() >= exact.abs() * (1 - 1e-9)).all()
    assert 1.02 < (found / exact).median() < 1.1
    torch.testing.assert_close(margin.deepfool_margin(model, x[:9], y[:9]), found[:9])
    assert margin.deepfool_margin(model, x, y, steps=1).isinf().any()  # one step does not always change the class


def test_logit_margin_by_hand_and_its_gradient():
    logits = torch.tensor([[3.0, 1, 2], [3, 1, 2]], requires_grad=True)
    found = margin.logit_margin(logits, torch.tensor([0, 1]))
    assert found.tolist() == [1, -2]
    found.sum().backward()
    assert logits.grad.tolist() == [[1, 0, -1], [-1, 1, 0]]


W, X, Y = torch.eye(3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: margin.linear_margin(W.long(), None, X, Y), "weight must .* floating-point .* is a torch.int64"),
        (lambda: margin.linear_margin(W, torch.zeros(2), X, Y), r"bias must have the shape \(3,\), but .* \(2,\)"),
        (lambda: margin.linear_margin(W, None, X[:, :2], Y), r"x must .* 3 numbers a sample, but has \(2, 2\)"),
        (lambda: margin.linear_margin(W, None, X / 0, Y), "x must be finite"),
        (lambda: margin.linear_margin(W, None, X.double(), Y), "x must be torch.float32, as the weights are"),
        (lambda: margin.linear_margin(W[:1], None, X, Y), "at least 2 classes, but there is 1"),
        (lambda: margin.linear_margin(W, None, X, Y + 3), r"y must lie in 0..2, but goes from 3 to 3"),
        (lambda: margin.linear_margin(W, None, X, Y[:1]), r"y must be int64 of shape \(2,\), but .* \(1,\)"),
        (lambda: margin.linear_margin(W, None, X, [0, 0]), "y must be int64 .* but is list"),
        (lambda: margin.linear_margin(W, None, X, Y, norm=0.5), "norm must be a number p >= 1 .* but is 0.5"),
        (lambda: margin.linear_margin(W, None, X, Y, norm="l2"), "norm must be .* but is 'l2'"),
        (lambda: margin.binary_margin(W[0], 0.0, X, Y - 1), r"y must lie in 0..1, but goes from -1 to -1"),
        (lambda: margin.effective_margin(Linear(3, 2), X, Y.int()), "y must be int64 .* but is torch.int32"),
        (lambda: margin.effective_margin(nn.Flatten(0), X, Y), r"logits must have the shape \(2, K\) with K >= 2"),
        (lambda: margin.effective_margin(Linear(3, 2), X.long(), Y), "x must be a tensor of floating-point"),
        (lambda: margin.effective_margin(lambda x: x, X, Y), "model must be a torch.nn.Module, but is a function"),
        (lambda: margin.effective_margin(Linear(3, 2), X.double(), Y), "model computes in torch.float32"),
        (lambda: margin.feature_margin(nn.Linear(3, 2), X, Y), "must have features"),
        (lambda: margin.deepfool_margin(Linear(3, 2), X, Y, norm=1), "norm must be one of 2, inf, but is 1"),
        (lambda: margin.deepfool_margin(Linear(3, 2), X - 1, Y, bounds=(0, 1)), "x must lie in the box"),
        (lambda: margin.logit_margin(X * math.nan, Y), "logits must be finite"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(MarginsError, match=words):
        call()
