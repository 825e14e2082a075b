"""The exact plane geometry against linear models, hand-made networks and brute force."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from margins import margin, planar
from margins.errors import MarginsError
from margins.models import MLP, Linear

BOX = (-3.0, 4.0, -2.0, 3.0)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_mlp(seed, hidden=(12,), classes=3):
    """A random net, scaled up and centred so that its lines and its boundary cross the box."""
    model = MLP(2, hidden, classes, generator=generator(seed)).double()
    with torch.no_grad():
        for layer in [*model.hidden, model.head]:
            layer.weight.mul_(3)
        model.head.bias.sub_(model(points(1000, 0)).mean(0))
    return model


def points(count, seed, box=BOX):
    left, right, bottom, top = box
    corner, size = torch.tensor([left, bottom]).double(), torch.tensor([right - left, top - bottom]).double()
    return corner + size * torch.rand(count, 2, generator=generator(seed), dtype=torch.float64)


def set_layers(model, *layers):
    with torch.no_grad():
        for layer, (weight, bias) in zip([*model.hidden, model.head], layers, strict=True):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    return model.double()


def area(polygon):
    x, y = polygon.T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2  # positive: counter-clockwise


@pytest.mark.parametrize("hidden", [(), (1,), (12,), (8, 8), (5, 4, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_regions_tile_the_box_and_carry_the_right_affine_maps(hidden, seed):
    model = random_mlp(seed, hidden)
    parts = planar.regions(model, BOX)
    areas = np.array([area(part.polygon) for part in parts])
    assert (areas >= 0).all()
    assert areas.sum() == pytest.approx(35, rel=1e-12)
    assert hidden == () or len(parts) > 1
    rng = np.random.default_rng(seed)
    for part in parts:
        inside = rng.dirichlet(np.ones(len(part.polygon)), 5) @ part.polygon
        logits = model(torch.from_numpy(inside)).detach().numpy()
        np.testing.assert_allclose(inside @ part.weight.T + part.bias, logits, rtol=0, atol=1e-12 * abs(logits).max())


def test_the_number_of_regions_of_lines_in_general_position():
    # n lines that all cross inside the box, no three in a point: 1 + n + n (n - 1) / 2 regions.
    angles = np.linspace(0.1, 2.9, 7)
    offsets = 0.1 * np.cos(5 * np.arange(7))
    model = MLP(2, (7,), 2)
    set_layers(model, (np.stack([np.cos(angles), np.sin(angles)], 1), offsets), (np.ones((2, 7)), [0.0, 0]))
    assert len(planar.regions(model, (-50, 50, -50, 50))) == 1 + 7 + 21


@pytest.mark.parametrize(("classes", "bias"), [(2, True), (3, True), (5, False)])
def test_a_linear_model_has_its_closed_form(classes, bias):
    model = Linear(2, classes, bias, generator=generator(3)).double()
    x, y = points(200, 4, (-1, 1, -1, 1)), torch.arange(200) % classes
    exact = margin.linear_margin(model.head.weight, model.head.bias, x, y)
    found = planar.planar_margin(model, x, y, (-60, 60, -60, 60))
    assert (found > 0).any()
    assert (found < 0).any()
    torch.testing.assert_close(found, exact.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("hidden", "classes"), [((8,), 2), ((12,), 3), ((6, 6), 4)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_a_dense_grid(hidden, classes, seed):
    model = random_mlp(seed, hidden, classes)
    segments = planar.boundary(model, BOX)
    left, right, bottom, top = BOX
    step = 0.02
    grid = np.stack(np.meshgrid(np.arange(left, right, step), np.arange(bottom, top, step), indexing="ij"), -1)
    predicted = model(torch.from_numpy(grid).flatten(0, 1)).argmax(1).reshape(grid.shape[:2]).numpy()
    # Midpoints of neighbouring grid points of different classes: each is within half a step of the boundary ...
    across, up = predicted[1:] != predicted[:-1], predicted[:, 1:] != predicted[:, :-1]
    brute = np.concatenate([grid[:-1][across] + [step / 2, 0], grid[:, :-1][up] + [0, step / 2]])
    assert len(brute) > 50
    assert np.linalg.norm(planar.nearest(brute, segments) - brute, axis=1).max() <= step / 2 + 1e-12
    # ... and at each segment the class does change, so that no distance is too small either.
    along = segments[:, 1] - segments[:, 0]
    normal = np.stack([-along[:, 1], along[:, 0]], 1) * np.minimum(1e-3, 1e-6 / np.linalg.norm(along, axis=1))[:, None]
    classes_at = [model(torch.from_numpy(segments.mean(1) + side * normal)).argmax(1) for side in (1, -1)]
    assert (classes_at[0] != classes_at[1]).all()
    x = points(50, seed).numpy()
    exact = np.linalg.norm(planar.nearest(x, segments) - x, axis=1)
    grid_distance = np.array([np.linalg.norm(brute - point, axis=1).min() for point in x])
    assert (exact <= grid_distance + step / 2 + 1e-12).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_at_the_nearest_point_the_two_top_logits_tie_and_no_class_changes_before(seed):
    model = random_mlp(seed, (10, 6), 4)
    x = points(100, seed + 10)
    feet = torch.from_numpy(planar.nearest(x, planar.boundary(model, BOX)))
    top = model(feet).detach().topk(2, 1).values
    torch.testing.assert_close(top[:, 0], top[:, 1], rtol=0, atol=1e-11)
    prediction, distance = model(x).argmax(1), (feet - x).norm(dim=1)
    angles = torch.linspace(0, 2 * math.pi, 100, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    for share in (0.3, 0.7, 0.999):
        around = x[:, None] + share * distance[:, None, None] * circle
        inside = ((around > torch.tensor([-3, -2])) & (around < torch.tensor([4, 3]))).all(2)
        assert ((model(around.flatten(0, 1)).argmax(1).view(100, 100) == prediction[:, None]) | ~inside).all()


def absolute(offset, bias=0.0):
    """Class 1 where |x1| > offset, by two ReLUs."""
    return set_layers(MLP(2, (2,), 2), ([[1.0, 0], [-1, 0]], [bias, bias]), ([[0.0, 0], [1, 1]], [offset, bias]))


def test_the_absolute_value_in_closed_form():
    x = torch.tensor([[0.0, 0], [0.2, 1], [-0.4, -1], [1.5, 0.5], [-2, 0]], dtype=torch.float64)
    found = planar.planar_margin(absolute(0.5), x, torch.tensor([0, 0, 1, 1, 0]), (-6, 6, -6, 6))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.3, -0.1, 1.0, -1.5], dtype=torch.float64))
    segments = planar.boundary(absolute(0.5), (-6, 6, -6, 6))
    assert sorted(segments.reshape(-1, 2).tolist()) == [[-0.5, -6], [-0.5, 6], [0.5, -6], [0.5, 6]]


def test_a_corner_of_the_boundary_is_nearest():
    # Class 1 where |x1| + |x2| > 1: from (2, 0) the nearest point is the diamond's corner, from the centre a side.
    cross = [[1.0, 0], [-1, 0], [0, 1], [0, -1]]
    model = set_layers(MLP(2, (4,), 2), (cross, [0.0] * 4), ([[0.0] * 4, [1.0] * 4], [1.0, 0]))
    x = torch.tensor([[2.0, 0], [0, 0], [1, 1]], dtype=torch.float64)
    found = planar.planar_margin(model, x, torch.tensor([1, 0, 1]), (-9, 9, -9, 9))
    torch.testing.assert_close(found, torch.tensor([1, 0.5**0.5, 0.5**0.5], dtype=torch.float64))


def test_a_boundary_along_a_neurons_own_line_is_found_once():
    # f1 - f0 = relu(x1) - relu(-x1) = x1: the class changes exactly where both neurons switch.
    model = set_layers(MLP(2, (2,), 2), ([[1.0, 0], [-1, 0]], [0.0, 0]), ([[0.0, 0], [1, -1]], [0.0, 0]))
    assert sorted(planar.boundary(model, (-1, 1, -1, 1)).reshape(-1, 2).tolist()) == [[0, -1], [0, 1]]


def test_a_line_that_only_touches_is_no_boundary():
    assert planar.boundary(absolute(0.0), (-1, 1, -1, 1)).shape == (0, 2, 2)  # f1 - f0 = |x1|: class 1 on both sides


def test_a_neurons_line_that_is_boundary_on_one_half_and_touches_on_the_other():
    # With u = relu(-x1): f1 - f0 = relu(x1) - u + 2 relu(u - 5 relu(x2)), so |x1| below x2 = 0, and above it negative
    # for -10 x2 < x1 < 0 only. The boundary: the upper half of x1 = 0, and the ray x1 = -10 x2.
    first = [[1.0, 0], [-1, 0], [0, 1]], [0.0] * 3
    second = [[1.0, 0, 0], [0, 1, 0], [0, 1, -5]], [0.0] * 3
    model = set_layers(MLP(2, (3, 3), 2), first, second, ([[0.0, 0, 0], [1, -1, 2]], [0.0, 0]))
    segments = planar.boundary(model, (-1, 1, -1, 1))
    assert sorted(np.round(segments, 9).reshape(-1, 2).tolist()) == [[-1, 0.1], [0, 0], [0, 0], [0, 1]]


def test_a_neighbours_corner_inside_a_side_splits_it():
    # The side is the upper and lower half of x1 = 0 in one polygon; the neighbours on the left meet at (0, 0).
    whole, upper, lower = (
        np.array(p, dtype=float)
        for p in (
            [[0, -1], [1, -1], [1, 1], [0, 1]],
            [[-1, 0], [0, 0], [0, 1], [-1, 1]],
            [[-1, -1], [0, -1], [0, 0], [-1, 0]],
        )
    )
    parts = [planar.Region(p, np.zeros((2, 2)), np.zeros(2)) for p in (whole, upper, lower)]
    # The class by a net that changes across x1 = 0 above x2 = 0 only, as in the test before.
    first, second = ([[1.0, 0], [-1, 0], [0, 1]], [0.0] * 3), ([[1.0, 0, 0], [0, 1, 0], [0, 1, -5]], [0.0] * 3)
    layers = [(np.array(w), np.array(b)) for w, b in (first, second, ([[0.0, 0, 0], [1, -1, 2]], [0.0, 0]))]
    kept = planar._changing([np.array([[0.0, 1], [0, -1]])], parts, layers, (-1, 1, -1, 1))
    assert [piece.tolist() for piece in kept] == [[[0, 1], [0, 0]]]


def test_two_top_logits_that_are_equal_on_an_area_are_refused_and_two_low_ones_are_not():
    flat = [[1.0, 0]], [0.0]  # relu(x1): all dead on the left
    tied = set_layers(MLP(2, (1,), 2), flat, ([[0.0], [1.0]], [0.0, 0]))
    with pytest.raises(MarginsError, match=r"classes 0 and 1 the same logit on an area around \[-0.5, 0.0\]"):
        planar.boundary(tied, (-1, 1, -1, 1))
    # Classes 0 and 1 tie on the left, but below class 2; on the right class 1 overtakes class 2 at x1 = 0.5.
    below = set_layers(MLP(2, (1,), 3), flat, ([[0.0], [1.0], [0.0]], [0.0, 0, 0.5]))
    assert sorted(planar.boundary(below, (-1, 1, -1, 1)).reshape(-1, 2).tolist()) == [[0.5, -1], [0.5, 1]]


def test_a_small_box_is_refused_rather_than_a_distance_too_large():
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([0])
    with pytest.raises(MarginsError, match=r"too small: sample 0 is 0\.4 from its edge and 0\.5 from"):
        planar.planar_margin(absolute(0.5), x, y, (-2, 0.6, -0.4, 2))
    with pytest.raises(MarginsError, match=r"is 0\.3 from its edge and inf from"):
        planar.planar_margin(absolute(0.5), x, y, (-0.3, 0.3, -0.3, 0.3))


def test_the_model_is_not_touched():
    model = random_mlp(0).float().train()
    before = [parameter.clone() for parameter in model.parameters()]
    x, y = points(3, 0, (-1, 1, -1, 1)).float(), torch.zeros(3, dtype=torch.int64)
    planar.planar_margin(model, x, y, (-99, 99, -99, 99))
    assert model.training
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))


X, Y = torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: planar.regions(nn.Linear(2, 2), BOX), "model must be .* but is a Linear with unknown inputs"),
        (lambda: planar.regions(Linear(3, 2), BOX), "with 2 inputs, but is a Linear with 3 inputs"),
        (lambda: planar.regions(Linear(2, 2), (1, 0, 0, 1)), r"box must be \(left, .* but is \(1, 0, 0, 1\)"),
        (lambda: planar.regions(Linear(2, 2), (0, 1)), "box must be"),
        (lambda: planar.planar_margin(Linear(2, 2), X + 9, Y, BOX), r"x must lie in the box .* 0 is at \[9.0, 9.0\]"),
        (lambda: planar.planar_margin(Linear(2, 2), X[:, :1], Y, BOX), r"shape \(B, 2\), but has the shape \(2, 1\)"),
        (lambda: planar.planar_margin(Linear(2, 2), X, Y + 2, BOX), "y must lie in 0..1, but goes from 2 to 2"),
        (lambda: planar.planar_margin(Linear(2, 1), X, Y, BOX), "at least 2 classes"),
        (lambda: planar.nearest(X, np.empty((0, 2, 2))), "segments is empty"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(MarginsError, match=words):
        call()


def test_weights_that_are_not_finite_are_refused():
    model = random_mlp(0)
    with torch.no_grad():
        model.hidden[0].weight[0, 0] = math.nan
    with pytest.raises(MarginsError, match="weights or biases that are not finite"):
        planar.regions(model, BOX)
