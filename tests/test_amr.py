"""AMR's penalties against closed forms, plain formulas and differences, in float64; the binary classifier of Eq. 11."""

import math
from dataclasses import replace

import pytest
import torch
from small import THREAT
from small import data as drawn
from small import recipe as short
from tiny import CLASSES, D, context, data, differences, gradients, network, run
from torch import nn

from margins import methods
from margins.errors import MarginsError
from margins.linear.average import average_margin_classifier, objective
from margins.margin import linear_margin, logit_margin
from margins.margin.exact import feature_distance
from margins.methods import Row, Term
from margins.methods.baselines import CE
from margins.models import MLP, Linear
from margins.penalties.amr import AverageMargin, WrongMargin, feature_scores, hinge, truncated
from margins.penalties.orthogonality import orthogonality
from margins.training import train

READINGS = ("truncated", "hinge", "shifted")
PARTS = [AverageMargin(0.3, reading, normalised) for reading in READINGS for normalised in (True, False)]
PARTS += [AverageMargin(0.3, normalised=False, divided=True)]


def test_the_truncated_margin_is_a_difference_of_hinges():
    a = torch.linspace(-3, 3, 61, dtype=D)
    torch.testing.assert_close(0.7 - truncated(a, 0.7), hinge(a, 0.7) - hinge(a, 0.0), atol=1e-15, rtol=0)
    assert truncated(torch.tensor([-1.0, 0.5, 2.0]), 1.5).tolist() == [0.0, 0.5, 1.5]


def margin(model, x, y, part):
    """The margin that a part looks at, sample by sample, as the formulas say it."""
    features, head, found = model.features(x), model.head, []
    for phi, label in zip(features, y, strict=True):
        gaps = []
        for k in range(CLASSES):
            w = head.weight[label] / head.weight[label].norm() - head.weight[k] / head.weight[k].norm()
            if not part.normalised:
                w = head.weight[label] - head.weight[k]
            gap = w @ phi + (0 if part.normalised else head.bias[label] - head.bias[k])
            gaps += [gap / w.norm() if part.divided else gap] * (k != label)
        found.append(min(gaps))
    return torch.stack(found)


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_values_and_gradients_are_those_of_the_formulas(kind, part):
    model = network(kind)
    step = context(model, featured=part.features)
    a, tau = margin(model, step.x, step.y, part), part.tau
    naive = {
        "truncated": [tau - min(max(v, 0 * v), tau + 0 * v) for v in a],
        "hinge": [max(tau - v, 0 * v) for v in a],
        "shifted": [min(max(-v, 0 * v), tau + 0 * v) for v in a],
    }[part.reading]
    found = part(step, "clean")
    torch.testing.assert_close(found, torch.stack(naive))
    assert (found.detach() > 0).any()
    ours, theirs = gradients(found.mean(), model), gradients(torch.stack(naive).mean(), model)
    torch.testing.assert_close(ours, theirs)
    value = lambda: part(context(model, featured=part.features), "clean").mean()  # noqa: E731
    torch.testing.assert_close(ours, differences(value, model), atol=1e-8, rtol=1e-6)


def test_on_a_linear_model_it_is_the_exact_average_margin():
    model = Linear(16, CLASSES, generator=torch.Generator().manual_seed(2)).to(D)
    step = context(model)
    exact = linear_margin(model.head.weight, model.head.bias, step.x, step.y).detach()
    assert (exact < 0).any()  # of a wrong sample it is the way to its own class, a longer one than out of the present
    right = exact > 0
    value = AverageMargin(100.0, normalised=False, divided=True)(step, "clean")
    torch.testing.assert_close(100.0 - value[right], exact[right])
    assert (value[~right] == 100.0).all()
    # of two classes the published one, rows at length 1, is twice the distance, since the difference of rows is 2 long
    binary = Linear(16, 2, bias=False).to(D)
    with torch.no_grad():
        binary.head.weight[1] = -binary.head.weight[0]
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    twice = logit_margin(feature_scores(step.x.flatten(1), binary.head.weight), y)
    torch.testing.assert_close(twice, 2 * linear_margin(binary.head.weight, None, step.x, y))
    torch.testing.assert_close(feature_distance(binary(step.x), binary.head.weight, y), twice / 2)


def test_what_each_reading_promotes():
    """Of a correct sample within tau Eq. 15 and the hinge push the margin, the shifted clamp does not; wrong ones."""
    a = torch.tensor([-2.0, -0.1, 0.1, 2.0], dtype=D, requires_grad=True)
    pushes = {}
    for reading in READINGS:
        part = AverageMargin(1.0, reading, normalised=False)
        two = torch.stack([a, torch.zeros_like(a)], 1)
        step = context(nn.Module(), 4)
        step.y, step.logits = torch.zeros(4, dtype=torch.int64), lambda at, f=two: f
        (slope,) = torch.autograd.grad(part(step, "clean").sum(), a)
        pushes[reading] = slope.tolist()
    assert pushes == {"truncated": [0, 0, -1, 0], "hinge": [-1, -1, -1, 0], "shifted": [0, -1, 0, 0]}


def test_the_concave_part_is_linear_in_the_weights_with_the_gradient_of_the_errors():
    model, all_of_them = network("mlp"), run(network("mlp"))
    all_of_them.model = model
    part = WrongMargin()
    part.begin(all_of_them)
    part.start_epoch(all_of_them)
    errors = lambda: hinge(logit_margin(model(all_of_them.x), all_of_them.y), 0.0).mean()  # noqa: E731
    assert errors() > 0
    ours = gradients(part(model), model)
    torch.testing.assert_close(ours, [-one for one in gradients(errors(), model)])
    with torch.no_grad():
        before = part(model).item()
        for parameter in model.parameters():
            parameter *= 3
        assert part(model).item() == pytest.approx(3 * before)
    assert torch.equal(gradients(part(model), model)[0], ours[0])  # whatever the weights are, until the next epoch


def test_training_with_it_is_the_gradient_of_the_hinge_minus_that_of_the_errors():
    known, tau = drawn(10), 0.5
    model, by_hand = (MLP(6, (5,), 3, generator=torch.Generator().manual_seed(0)).to(D) for _ in range(2))
    train(model, methods.amr(tau, beta=0, reading="released"), known, recipe=short(epochs=1), threat=THREAT, seed=0)
    a = logit_margin(by_hand(known.x), known.y)
    loss = CE(by_hand(known.x), known.y).mean() + 0.1 * (hinge(a, tau) - hinge(a, 0.0)).mean()
    for parameter, slope in zip(by_hand.parameters(), gradients(loss, by_hand), strict=True):
        parameter.data -= 0.1 * slope
    torch.testing.assert_close(list(model.parameters()), list(by_hand.parameters()))


def departure(weight):
    return (weight @ weight.T - torch.eye(len(weight), dtype=D)).square().sum()


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_orthogonality_is_its_formula_whatever_gram_matrix_is_taken(kind):
    model = network(kind)
    weights = [parameter.flatten(1) for parameter in model.parameters() if parameter.ndim > 1]
    assert any(len(weight) < weight.shape[1] for weight in weights)
    naive = sum(map(departure, weights))
    torch.testing.assert_close(orthogonality(model), naive)
    torch.testing.assert_close(gradients(orthogonality(model), model), gradients(naive, model))
    torch.testing.assert_close(orthogonality(model, doubled=True), 2 * naive)
    numbers = differences(lambda: orthogonality(model), model)
    torch.testing.assert_close(gradients(orthogonality(model), model), numbers, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(9, 4), (4, 9), (5, 5)])
def test_the_floor_of_a_wide_layer_is_reached_by_orthonormal_columns(rows, columns):
    model = nn.Linear(columns, rows, bias=False).to(D)
    long, short_side = max(rows, columns), min(rows, columns)
    frame = torch.linalg.qr(torch.randn(long, short_side, dtype=D, generator=torch.Generator().manual_seed(0)))[0]
    with torch.no_grad():
        model.weight.copy_(frame if rows > columns else frame.T)
    assert orthogonality(model).item() == pytest.approx(max(rows - columns, 0), abs=1e-12)
    assert gradients(orthogonality(model), model)[0].abs().max() < 1e-12
    assert orthogonality(model, doubled=True) == orthogonality(model)  # its weight has no bias to be counted at


def test_a_sample_does_not_depend_on_its_batch():
    model, part = network("cnn"), AverageMargin(0.3)
    whole = part(context(model, featured=True), "clean").detach()
    known = data(6)
    for i in range(6):
        step = context(model, featured=True)
        step.x, step.y = known.x[i : i + 1], known.y[i : i + 1]
        torch.testing.assert_close(part(step, "clean").detach(), whole[i : i + 1])


@pytest.mark.parametrize("reading", methods.average_margin.TERMS)
def test_rows_of_every_reading_train(reading):
    row = methods.amr(2.0, beta=0.1, reading=reading, doubled=True)
    model, known = MLP(6, (5,), 3).to(D), drawn(40)
    trained = train(model, row, known, recipe=short(epochs=3, lr=0.02), threat=THREAT, seed=0)
    curves = trained.curves
    assert trained.status == "done"
    assert curves["orthogonality at parameters"][-1] < curves["orthogonality at parameters"][0]
    assert ("WrongMargin at parameters" in curves) == (reading == "released")


def test_the_published_adversarial_training_stays_near_its_start_and_the_proper_one_does_not():
    known = drawn(40, shape=(30,))
    model = MLP(30, (8,), 3, generator=torch.Generator().manual_seed(0)).to(D)
    threat = THREAT.__class__(2, 2.0, 0.125, 40)
    moved = {}
    for name, row in {"published": methods.adv(), "proper": methods.adv(None)}.items():
        step = context(model, threat=threat)
        step.x, step.y, step.index, step.total = known.x, known.y, torch.arange(40), 40
        start = context(model, threat=threat)
        start.x, start.y, start.index, start.total = known.x, known.y, torch.arange(40), 40
        row.craft(step, "clean")
        methods.PGD(start="image", steps=1, step_size=1e-12)(start, "clean")
        assert (step.x_adv - step.x).flatten(1).norm(dim=1).max() <= 2.0 + 1e-9
        moved[name] = (step.x_adv - start.x_adv).flatten(1).norm(dim=1)
    assert moved["published"].max() <= 0.4 + 1e-9
    assert moved["proper"].median() > 0.4


def test_a_floor_stops_the_craft_where_the_cross_entropy_is_flat():
    model = Linear(4, 2).to(D)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[40.0] * 4, [-40.0] * 4]))
        model.head.bias.zero_()
    steps = {}
    for floor in (0.0, 1e-6):
        step = context(model, threat=THREAT.__class__(2, 0.5, 0.1, 3))
        step.x, step.y, step.index, step.total = torch.full((2, 4), 0.5, dtype=D), torch.zeros(2).long(), None, 2
        methods.PGD(start="none", floor=floor)(step, "clean")
        steps[floor] = (step.x_adv - step.x).norm(dim=1).max().item()
    assert steps[0.0] == pytest.approx(0.3)
    assert steps[1e-6] < 1e-20  # the gradient is e^-160 long


def test_a_floor_is_for_l2_alone():
    known, row = drawn(10), methods.adv()
    with pytest.raises(MarginsError, match="floor: above 0 the norm must be 2, but the threat's is inf"):
        model = MLP(6, (5,), 3).to(D)
        train(model, row, known, recipe=short(epochs=1), threat=replace(THREAT, norm=math.inf), seed=0)


def circle(count):
    angle = torch.arange(count, dtype=D) / count * 2 * math.pi
    return torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize(("coefficient", "tau"), [(0.0, 1.0), (1.0, 0.5), (10.0, 0.5), (3.0, 100.0)])
def test_the_binary_classifier_is_the_best_direction_of_the_plane(coefficient, tau):
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(60) % 2
    x = torch.randn(60, 2, generator=generator, dtype=D) + torch.where(y == 1, 1.0, -1.0)[:, None] * torch.tensor(
        [1.0, 0.3], dtype=D
    )
    w = average_margin_classifier(x, y, coefficient=coefficient, tau=tau)
    assert w.norm().item() == pytest.approx(1)
    grid = objective(circle(20_000), x, y, coefficient, tau)
    assert objective(w[None], x, y, coefficient, tau).item() <= grid.min().item() + 1e-4


def test_with_the_margin_alone_and_all_right_it_is_the_difference_of_the_class_sums():
    y = torch.arange(20) % 2
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0), dtype=D) + 5.0 * (2 * y[:, None] - 1)
    w = average_margin_classifier(x, y, coefficient=1e6, tau=1e3)
    signed = (2.0 * y[:, None] - 1) * x
    assert (w @ (signed.sum(0) / signed.sum(0).norm())).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: AverageMargin(0), "tau must be a finite number greater than 0"),
        (lambda: AverageMargin(1.0, "clamped"), "reading must be one of .truncated., .hinge., .shifted."),
        (lambda: AverageMargin(1.0, divided=True), "normalised must be False"),
        (lambda: methods.amr(1.0, reading="paper"), "reading must be one of .literal., .released., .hinge., .shifted."),
        (lambda: methods.PGD(floor=1e-6, loss="kl"), "floor: above 0 the loss must be 'cross-entropy'"),
        (lambda: methods.PGD(step_size=0.0), "step_size must be a finite number greater than 0"),
        (lambda: Row(None, (Term(WrongMargin(), "clean"),)), "WrongMargin can be asked at parameters, not at clean"),
        (
            lambda: average_margin_classifier(torch.ones(2, 2), torch.tensor([0, 2]), coefficient=1.0, tau=1.0),
            "y must hold 2 labels 0 and 1",
        ),
        (
            lambda: average_margin_classifier(torch.ones(2, 2), torch.tensor([0, 1]), coefficient=1.0, tau=1.0),
            "sums of both classes are equal",
        ),
    ],
)
def test_bad_settings_are_named(call, words):
    with pytest.raises(MarginsError, match=words):
        call()


def test_a_margin_of_features_needs_a_linear_head():
    model = network("mlp")
    model.head = nn.Sequential(model.head)
    with pytest.raises(MarginsError, match="needs a linear layer called head"):
        AverageMargin(1.0).begin(run(model))
