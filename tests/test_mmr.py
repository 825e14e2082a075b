"""MMR: distances by brute force, value and gradient against unit by unit autograd, closed forms, what is refused."""

import math

import pytest
import torch
from tiny import CLASSES, D, context, gradients, network, run, slope
from torch import nn

from margins.errors import MarginsError
from margins.models import MLP, Centred, LeNet, LeNetSmall, Linear
from margins.penalties import mmr
from margins.penalties.mmr import LinearRegions, boundary_distances


def convolutions():
    """Strides, paddings and kernels that are not square, 9 channels in between, and two hidden dense layers."""
    first = nn.Conv2d(1, 2, (3, 2), stride=(1, 2), padding=(2, 1)), nn.ReLU()
    second = nn.Conv2d(2, 9, 3, stride=2, padding=1, bias=False), nn.ReLU()
    third = nn.Conv2d(9, 3, 2, padding=(0, 1)), nn.ReLU(), nn.Dropout2d(0.5), nn.Flatten()
    dense = nn.Linear(18, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 4), nn.ReLU(), nn.Identity()
    return nn.Sequential(*first, *second, nn.Sequential(*third), *dense, nn.Linear(4, CLASSES))


NETS = {
    "mlp": lambda: MLP(16, (7, 6), CLASSES),
    "deep": lambda: MLP(16, (5, 6, 7), CLASSES, bias=False),
    "lenet": lambda: LeNetSmall((1, 4, 4), CLASSES, (2, 3), 4),
    "convolutions": convolutions,
    "centred": lambda: Centred(LeNetSmall((1, 4, 4), CLASSES, (2, 3), 4), torch.linspace(0, 1, 16).view(1, 4, 4)),
}


def net(kind):
    model, generator = NETS[kind]().to(D).eval(), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=D) * 0.5)
    return model


def units(model, x):
    """What the ReLUs of a net are given at x (1, ...), (U,), and the logits (K,)."""
    given, layers = [], [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(lambda _, x, z: given.append(z.flatten())) for layer in layers]
    logits = model(x)[0]
    for hook in hooks:
        hook.remove()
    return torch.cat(given[:-1]), logits


def naive(model, x, y, part, count):
    """The value of one sample, unit by unit, with the graph of everything."""
    x = x[None].requires_grad_()
    z, logits = units(model, x)

    def far(value):
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        return value / (slope.norm() if part.norm == 2 else slope.abs().sum())

    near = sorted((far(one).abs() for one in z), key=lambda d: float(d.detach()))[:count]
    gaps = [far(logits[y] - logits[k]) for k in range(CLASSES) if k != y]
    region = sum((1 - d / part.regions).clamp(min=0) for d in near) / count
    return region + sum((1 - d / part.boundaries).clamp(min=0) for d in gaps) / len(gaps)


def whole(model, step, part, count):
    return torch.stack([naive(model, x, int(y), part, count) for x, y in zip(step.x, step.y, strict=True)])


def flat(value, model):
    return torch.cat([g.flatten() for g in gradients(value, model)])


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("kind", NETS)
def test_distances_are_those_of_each_unit_by_itself(kind, norm):
    model = net(kind)
    x = context(model).x
    found = boundary_distances(model, x, norm)
    for row, one in zip(found, x, strict=True):
        one = one[None].requires_grad_()
        z, _ = units(model, one)
        slopes = torch.stack([torch.autograd.grad(value, one, retain_graph=True)[0].flatten() for value in z])
        sizes = torch.linalg.vector_norm(slopes, 2 if norm == 2 else 1, dim=1)
        expected = torch.where(sizes > 0, z.detach().abs() / sizes, math.inf)
        torch.testing.assert_close(row, expected, rtol=1e-10, atol=0)
    assert found.isfinite().sum() > found.numel() / 2


@pytest.mark.parametrize("kind", NETS)
def test_the_nearest_boundary_is_where_the_first_unit_switches(kind):
    """Walking against its gradient, its sign and no other changes at its distance."""
    model = net(kind)
    x = context(model).x
    for one, row in zip(x, boundary_distances(model, x), strict=True):
        one, unit = one[None].requires_grad_(), int(row.argmin())
        z, _ = units(model, one)
        (g,) = torch.autograd.grad(z[unit], one)
        step = -z[unit].sign() * row[unit] * g / g.norm()
        before, after = (units(model, (one + share * step).detach())[0] > 0 for share in (1 - 1e-6, 1 + 1e-6))
        assert torch.equal(before, z > 0) and (before != after).nonzero().flatten().tolist() == [unit]


@pytest.mark.parametrize("norm", [2, math.inf])
def test_no_unit_switches_nearer_than_the_least_distance(norm):
    model = MLP(2, (8, 8), CLASSES, generator=torch.Generator().manual_seed(3)).to(D)
    x = torch.rand(6, 2, generator=torch.Generator().manual_seed(5), dtype=D)
    around = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(6), dtype=D) * 2 - 1
    around = around[torch.linalg.vector_norm(around, norm, dim=1) <= 1]

    def signs(points):
        first = model.hidden[0](points)
        return torch.cat([first, model.hidden[1](first.relu())], 1) > 0

    for one, least in zip(x, boundary_distances(model, x, norm).amin(1), strict=True):
        within, beyond = (signs(one + share * least * around) != signs(one[None]) for share in (1 - 1e-9, 1.05))
        assert not within.any() and beyond.any()


@pytest.mark.parametrize("settings", [{}, {"norm": math.inf}, {"share": (0.9, 0.5)}])
@pytest.mark.parametrize("progress", [0.0, 0.75])
@pytest.mark.parametrize("kind", NETS)
def test_value_and_gradient_are_those_of_the_formula(kind, progress, settings):
    model = net(kind)
    step = context(model, progress=progress)
    part = LinearRegions(0.2, 0.5, **{"share": (0.4, 0.1), **settings})
    total = boundary_distances(model, step.x).shape[1]
    count = part.count(total, progress)
    found, expected = part(step, "clean"), whole(model, step, part, count)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    ours, theirs = flat(found.mean(), model), flat(expected.mean(), model)
    assert (ours - theirs).abs().max() <= 1e-8 * theirs.abs().max() and 1 < count < total


@pytest.mark.parametrize("kind", NETS)
def test_the_gradient_is_that_of_differences(kind):
    model = net(kind)
    part = LinearRegions(0.3, 0.5, share=(0.5, 0.5))

    def value():
        return part(context(model), "adversarial").mean()

    found = gradients(value(), model)
    for seed in range(3):
        directions, expected = slope(value, model, seed, step=1e-7)
        along = sum((g * direction).sum() for g, direction in zip(found, directions, strict=True))
        assert float(along) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", NETS)
def test_samples_are_looked_at_by_themselves_and_in_any_parts(kind, monkeypatch):
    model, part = net(kind), LinearRegions(0.3, 0.5, share=(0.5, 0.5))
    values = part(context(model), "clean")
    gradient = flat(values.mean(), model)
    step, order = context(model), torch.tensor([4, 0, 5, 2, 1, 3])
    step.x, step.y = step.x[order], step.y[order]
    torch.testing.assert_close(part(step, "clean"), values[order], rtol=1e-10, atol=1e-12)
    step.x, step.y = step.x[:1], step.y[:1]
    torch.testing.assert_close(part(step, "clean"), values[order[:1]], rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(mmr, "NUMBERS", 1)
    again = part(context(model), "clean")
    torch.testing.assert_close(again, values, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(flat(again.mean(), model), gradient, rtol=1e-10, atol=1e-12)


def test_with_one_hidden_layer_the_distances_are_those_to_its_rows():
    model = MLP(16, (9,), CLASSES).to(D)
    step = context(model)
    weight, bias = model.hidden[0].weight.detach(), model.hidden[0].bias.detach()
    expected = (step.x.flatten(1) @ weight.T + bias).abs() / weight.norm(dim=1)
    torch.testing.assert_close(boundary_distances(model, step.x), expected)
    region = (1 - expected.sort(1).values[:, :3] / 0.4).clamp(min=0).mean(1)
    part = LinearRegions(0.4, 1e-12, share=(0.34, 0.34))
    step.y = model(step.x).argmax(1)
    torch.testing.assert_close(part(step, "clean").detach(), region)


def test_a_linear_model_has_one_region_and_exact_margins():
    model = Linear(16, CLASSES, generator=torch.Generator().manual_seed(2)).to(D)
    step = context(model, count=12)
    w, f = model.head.weight.detach(), model(step.x).detach()
    found = LinearRegions(1.0, 0.7)(step, "clean")
    for i, y in enumerate(step.y.tolist()):
        gaps = [(f[i, y] - f[i, k]) / (w[y] - w[k]).norm() for k in range(CLASSES) if k != y]
        torch.testing.assert_close(found[i].detach(), sum((1 - d / 0.7).clamp(min=0) for d in gaps) / 2)
    assert boundary_distances(model, step.x).shape == (12, 0) and not (f.argmax(1) == step.y).all()


def test_where_the_padding_cuts_a_filter_the_rest_of_it_counts():
    model = LeNetSmall((1, 4, 4), CLASSES, (1, 1), 2).to(D)
    with torch.no_grad():
        model.body[0].weight.fill_(1.0)
        model.body[0].bias.fill_(6.0)
    found = boundary_distances(model, torch.zeros(1, 1, 4, 4, dtype=D))
    torch.testing.assert_close(found[0, :4], torch.full((4,), 6.0 / 3.0, dtype=D))  # 9 of 16 weights lie in the image


def test_the_share_shrinks_in_a_line_and_leaves_a_unit():
    part = LinearRegions(1.0, 1.0)
    assert [part.count(4804, progress) for progress in (0.0, 0.5, 1.0)] == [480, 288, 96]
    assert (part.count(5, 0.0), part.count(0, 0.0)) == (1, 0)


def test_dropout_is_that_of_evaluation():
    model, part = net("convolutions"), LinearRegions(0.4, 0.4)
    expected = part(context(model), "clean")
    model.train()
    torch.testing.assert_close(part(context(model), "clean"), expected)
    part.begin(run(model))
    assert all(module.training for module in model.modules())


def test_units_that_depend_on_nothing_are_infinitely_far_and_have_no_gradient():
    model = net("mlp")
    with torch.no_grad():
        model.hidden[0].bias -= 100
        model.hidden[0].weight[0] = 0
    step = context(model)
    found = boundary_distances(model, step.x)
    assert found[:, 0].isinf().all() and found[:, 7:].isinf().all() and found[:, 1:7].isfinite().all()
    values = LinearRegions(1e3, 1e3, share=(1.0, 1.0))(step, "clean")
    assert values.isfinite().all() and all(g.isfinite().all() for g in gradients(values.mean(), model))


def test_a_diverged_model_gives_nan_and_no_error():
    model = net("lenet")
    with torch.no_grad():
        model.head.weight *= torch.nan
    assert LinearRegions(1.0, 1.0)(context(model), "clean").isnan().all()


def test_going_down_moves_the_boundaries_away():
    model = net("lenet")
    part = LinearRegions(0.5, 0.5, share=(0.3, 0.3))

    def near():
        return boundary_distances(model, context(model).x).sort(1).values[:, :5].mean()

    before = near()
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(20):
        optimiser.zero_grad()
        part(context(model), "clean").mean().backward()
        optimiser.step()
    assert near() > 1.5 * before


class Twice(LeNetSmall):
    def forward(self, x):
        return 2 * super().forward(x)


def chain(*middle):
    return nn.Sequential(*middle, nn.Flatten(), nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, CLASSES))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: network("cnn"), r"model has the layer MaxPool2d.* where \(3, 4, 4\) numbers come in: MMR is for"),
        (lambda: network("norm"), "model has the layer Modal"),
        (lambda: LeNet((1, 16, 16), CLASSES), "model has the layer MaxPool2d"),
        (lambda: chain(nn.Conv2d(1, 2, 3), nn.Tanh()), "model has the layer Tanh"),
        (lambda: chain(nn.Conv2d(1, 2, 3)), "model has the layer LazyLinear|Linear"),
        (lambda: chain(nn.Conv2d(1, 2, 2, dilation=2), nn.ReLU()), "model has the layer Conv2d"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU()), "model does not end in a Linear"),
        (lambda: Twice((1, 4, 4), CLASSES, (2, 3), 4), "model does not compute what its layers do"),
    ],
)
def test_networks_that_are_no_such_chains_are_refused(model, message):
    model = model().to(D)
    known = run(model)
    known.x = torch.rand(4, *getattr(model, "shape", (1, 4, 4)), dtype=D)
    model(known.x)  # a lazy layer takes its shape
    for ask in (lambda: LinearRegions(1.0, 1.0).begin(known), lambda: boundary_distances(model, known.x)):
        with pytest.raises(MarginsError, match=message):
            ask()


def test_a_single_class_is_refused():
    alone = run(net("mlp"))
    alone.classes = 1
    with pytest.raises(MarginsError, match="classes: a distance to another class needs at least 2, but there is 1"):
        LinearRegions(1.0, 1.0).begin(alone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regions": 0}, "regions must be a finite number greater than 0"),
        ({"boundaries": -1.0}, "boundaries must be a finite number greater than 0"),
        ({"share": 0.1}, "share must be two numbers, of the beginning and the end, but is 0.1"),
        ({"share": (0.1, 1.5)}, r"share\[1\] must be a finite number of at least 0 and at most 1"),
        ({"norm": 1}, "norm must be one of 2, inf"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(MarginsError, match=message):
        LinearRegions(**{"regions": 1.0, "boundaries": 1.0, **settings})
