"""Certified radii against exact distances, and the bounds that they are made of against samples."""

import math
from functools import partial

import known
import pytest
import torch
from torch import nn

from margins import margin, planar
from margins.margin import propagation
from margins.margin.chain import layers
from margins.margin.layers import Pool, Relu
from margins.margin.relaxation import Ball, PoolBounds, ReluBounds, lower_line
from margins.models import CNN, MLP, Linear

BALLS = [(2, None), (2, (0.0, 1.0)), (math.inf, None), (math.inf, (0.0, 1.0))]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_mlp(seed, inputs, hidden, classes):
    """A random float64 net, scaled up and centred so that its boundary crosses the unit box."""
    model = MLP(inputs, hidden, classes, generator=generator(seed)).double()
    with torch.no_grad():
        for layer in [*model.hidden, model.head]:
            layer.weight.mul_(3)
        model.head.bias.sub_(model(torch.rand(500, inputs, generator=generator(0)).double()).mean(0))
    return model


def random_layer(kind, *sizes, seed, **settings):
    layer = kind(*sizes, **settings)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed)) / 3)
    return layer


def convolutional(padding):
    """Strides, groups, overlapping windows, a pooling that does not follow a ReLU: all that the chain allows."""
    model = nn.Sequential(
        random_layer(nn.Conv2d, 2, 4, 3, seed=1, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=1),
        random_layer(nn.Conv2d, 4, 6, (2, 3), seed=2, stride=(1, 2), groups=2, bias=False),
        nn.MaxPool2d((2, 1)),
        nn.ReLU(),
        nn.Sequential(random_layer(nn.Conv2d, 6, 4, 2, seed=3), nn.Identity()),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        random_layer(nn.Linear, 4 * (1 + padding) * (2 + padding), 7, seed=4),
        nn.ReLU(),
        random_layer(nn.Linear, 7, 3, seed=5),
    )
    return model.double().eval(), torch.rand(8, 2, 9, 11, generator=generator(6), dtype=torch.float64)


def towering():
    """Strides that multiply: each of the last convolution's outputs sees a patch of 18 x 18, 4 apart."""
    model = CNN((1, 22, 22), ((3,), (4,), (5,)), (6,), 3, generator=generator(16)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model, torch.rand(4, 1, 22, 22, generator=generator(17), dtype=torch.float64)


def dense():
    return random_mlp(7, 6, (10, 9, 8), 4), torch.rand(20, 6, generator=generator(8), dtype=torch.float64)


def around(x, eps, norm, bounds, draws, seed):
    """Points of the ball and box, (draws, B, n), most near the sphere."""
    move = torch.randn(draws, *x.shape, generator=generator(seed), dtype=torch.float64)
    if norm == math.inf:
        move = torch.where(torch.rand(move.shape, generator=generator(seed + 1)) < 0.8, move.sign(), move.clamp(-1, 1))
    else:
        move = move / torch.linalg.vector_norm(move, dim=2, keepdim=True)
    share = torch.rand(draws, len(x), 1, generator=generator(seed + 2), dtype=torch.float64) ** 0.1
    points = x + move * share * eps[:, None]
    return points if bounds is None else points.clamp(*bounds)


@pytest.mark.parametrize(("norm", "bounds"), BALLS)
@pytest.mark.parametrize(
    "case", [dense, lambda: convolutional(0), lambda: convolutional(1)], ids=["mlp", "cnn", "padded"]
)
@pytest.mark.parametrize("eps", [0.02, 0.2, 1.0])
def test_every_linear_bound_holds_at_every_point_of_the_ball(case, norm, bounds, eps):
    model, images = case()
    chain, x = layers(model, images), images.flatten(1)
    radius = eps * (0.5 + torch.rand(len(x), generator=generator(9), dtype=torch.float64)) * (0.3 if norm > 2 else 1)
    ball = Ball(x, radius, norm, bounds)
    steps = propagation.relaxed(chain, ball)
    rows = torch.randn(len(x), 5, len(chain[-1].weight), generator=generator(10), dtype=torch.float64)
    a, constant = lower_line(steps, rows)
    loose = 0
    for z in around(x, radius, norm, bounds, 60, 11):
        bound = (a @ z[:, :, None])[:, :, 0] + constant
        for step, layer in zip(steps, chain, strict=True):
            out = layer.forward(z)
            if isinstance(step, ReluBounds):
                assert (step.below * z <= out + 1e-9).all()
                assert (step.slope * z + step.above >= out - 1e-9).all()
                loose += ((step.above > 0) & (step.slope < 1)).sum()
            elif isinstance(step, PoolBounds):
                at = [z[:, layer.windows].gather(2, place[:, :, None])[:, :, 0] for place in (step.i, step.j)]
                assert (at[0] <= out).all()
                assert (step.slope * at[1] + step.above >= out - 1e-9).all()
            z = out
        assert (bound <= (rows * z[:, None]).sum(2) + 1e-9).all()
    assert loose  # there was something to bound


@pytest.mark.parametrize("case", [dense, partial(convolutional, 0), partial(convolutional, 1)])
def test_each_layer_knows_its_own_matrix(case):
    model, x = case()
    z = x[:2].flatten(1)
    for layer in layers(model, x):
        if not isinstance(layer, Relu | Pool):
            matrix = torch.autograd.functional.jacobian(lambda z, layer=layer: layer.forward(z[None])[0], z[0])
            torch.testing.assert_close(layer.forward(z), z @ matrix.T + layer.bias)
            torch.testing.assert_close(layer.lengths(), matrix.norm(dim=1))
            torch.testing.assert_close(layer.spread(z), z @ matrix.abs().T)
            a = torch.randn(2, 3, len(matrix), generator=generator(18), dtype=torch.float64)
            torch.testing.assert_close(layer.back(a), a @ matrix)
        z = layer.forward(z)


@pytest.mark.parametrize(("norm", "bounds"), BALLS)
@pytest.mark.parametrize("classes", [2, 4])
def test_on_linear_models_the_radius_is_the_distance(norm, bounds, classes):
    model, x, _ = known.linear(3, classes=classes)
    exact = known.nearest(model, x, model(x).argmax(1), norm, bounds)
    found = margin.certified_radius(model, x, norm=norm, bounds=bounds)
    if bounds is not None:
        assert (exact > known.nearest(model, x, model(x).argmax(1), norm, None) * 1.01).any()  # the box is active
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("hidden", "classes"), [((8,), 2), ((16,), 3), ((6, 6), 4), ((10, 10, 10), 3)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_radius_is_larger_than_the_exact_distance_in_the_plane(hidden, classes, seed):
    model = random_mlp(seed, 2, hidden, classes)
    x = torch.rand(200, 2, generator=generator(seed + 10), dtype=torch.float64)
    exact = planar.planar_margin(model, x, model(x).argmax(1), (-30, 31, -30, 31))
    found = margin.certified_radius(model, x, bounds=None)
    assert (found <= exact * (1 + 1e-9)).all()
    assert (found > 0).all()
    assert (found / exact).median() > (0.3 if len(hidden) > 2 else 0.5)


@pytest.mark.parametrize(("norm", "bounds"), BALLS)
@pytest.mark.parametrize("case", [dense, partial(convolutional, 0)])
def test_no_point_within_the_radius_has_another_class(case, norm, bounds):
    model, images = case()
    radius, x = margin.certified_radius(model, images, norm=norm, bounds=bounds), images.flatten(1)
    predicted = model(images).argmax(1)
    eps = radius.clamp(max=10)
    for z in around(x, eps * (1 - 1e-9), norm, bounds, 200, 12):
        assert (model(z.reshape(images.shape)).argmax(1) == predicted).all()
    z = x.clone()  # and by descent on the gap, from the middle and along the sphere
    for _ in range(100):
        z.requires_grad_()
        gap = margin.logit_margin(model(z.reshape(images.shape)), predicted)
        assert (gap > 0).all()
        (slope,) = torch.autograd.grad(gap.sum(), z)
        slope = slope.sign() if norm == math.inf else slope / torch.linalg.vector_norm(slope, dim=1, keepdim=True)
        move = z.detach() - 0.1 * eps[:, None] * slope - x
        size = torch.linalg.vector_norm(move, 2, dim=1, keepdim=True).clamp(min=1e-300)
        bound = eps[:, None] * (1 - 1e-9)
        move = move.clamp(-bound, bound) if norm == math.inf else move * (bound / size).clamp(max=1)
        z = x + move if bounds is None else (x + move).clamp(*bounds)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_the_radius_follows_the_units_and_not_the_logits(norm):
    model, x = dense()
    radius = margin.certified_radius(model, x, norm=norm, bounds=None)
    with torch.no_grad():
        model.head.weight.mul_(7)
        model.head.bias.mul_(7)
    torch.testing.assert_close(margin.certified_radius(model, x, norm=norm, bounds=None), radius)
    with torch.no_grad():
        model.hidden[0].weight.div_(4)
    torch.testing.assert_close(margin.certified_radius(model, 4 * x, norm=norm, bounds=None), 4 * radius)


@pytest.mark.parametrize("case", [dense, partial(convolutional, 0)])
def test_a_larger_set_of_points_proves_less(case):
    model, x = case()
    l2, linf = (margin.certified_radius(model, x, norm=norm, bounds=None) for norm in (2, math.inf))
    assert (linf <= l2 * 1.02).all()  # the l2 ball is inside the linf ball; 2 x 1 % is the search's precision
    assert (l2 <= linf * x[0].numel() ** 0.5 * 1.02).all()
    for norm, free in ((2, l2), (math.inf, linf)):
        assert (free <= margin.certified_radius(model, x, norm=norm) * 1.02).all()  # the box takes points away


@pytest.mark.parametrize(("norm", "bounds"), BALLS)
@pytest.mark.parametrize(("case", "depth"), [(towering, 6), (towering, 3), (partial(convolutional, 0), 6)])
def test_a_patch_tells_what_the_whole_image_tells(case, depth, norm, bounds):
    model, x = case()
    chain = layers(model, x[:2])[: depth + 1]
    ball = Ball(x[:2].flatten(1), torch.tensor([0.01, 0.1], dtype=torch.float64), norm, bounds)
    steps = propagation.relaxed(chain, ball)
    whole = torch.eye(math.prod(chain[-1].out_shape), dtype=torch.float64)
    for patch, image in zip(
        propagation._range_of_patches(steps, ball), propagation._range(steps, ball, whole), strict=True
    ):
        torch.testing.assert_close(patch, image)


def test_one_sample_does_not_see_the_others_and_types_agree():
    model, x = convolutional(0)
    radius = margin.certified_radius(model, x)
    order = torch.randperm(len(x), generator=generator(13))
    torch.testing.assert_close(margin.certified_radius(model, x[order]), radius[order], rtol=1e-6, atol=0)
    alone = torch.cat([margin.certified_radius(model, part) for part in x[:6].split([1, 2, 3])])
    torch.testing.assert_close(alone, radius[:6], rtol=1e-6, atol=0)
    assert margin.certified_radius(model, x[:0]).shape == (0,)
    single = margin.certified_radius(model.float(), x.float())
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, radius, rtol=1e-3, atol=1e-6)


def test_little_memory_at_a_time_gives_the_same(monkeypatch):
    model, x = convolutional(0)
    radius = margin.certified_radius(model, x[:3])
    monkeypatch.setattr("margins.margin.propagation.NUMBERS", 1000)
    monkeypatch.setattr("margins.margin.certified.NUMBERS", 1000)
    torch.testing.assert_close(margin.certified_radius(model, x[:3]), radius, rtol=1e-6, atol=0)


def test_the_models_of_the_package_are_chains():
    x = torch.rand(3, 1, 12, 12, generator=generator(14))
    for model in (CNN((1, 12, 12), ((3, 4), (5,)), (6,), 3), MLP(144, (8,), 3), Linear(144, 3), MLP(144, (), 3, False)):
        radius = margin.certified_radius(model, x, bounds=None)
        assert (radius > 0).all()
        assert (radius <= margin.effective_margin(model, x, model(x).argmax(1)).double() * 1.5).all()
