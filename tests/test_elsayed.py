"""Elsayed et al.'s linearised margin: closed forms, its two published forms, and what it refuses."""

import math

import pytest
import torch
from tiny import CLASSES, D, context, gradients, network, run, slope
from torch import nn

from margins.errors import MarginsError
from margins.models import Linear
from margins.penalties.deepfool import DeepFoolMargin
from margins.penalties.elsayed import LinearisedMargin


def by_hand(model, x, y, gamma, norm=2, alpha=math.inf, probabilities=False):
    """max(0, gamma - d) of one sample, the gradients' lengths constants."""
    x = x[None].requires_grad_()
    scores = model(x).softmax(1) if probabilities else model(x)
    distances = []
    for k in (k for k in range(CLASSES) if k != y):
        gap = scores[0, y] - scores[0, k]
        (w,) = torch.autograd.grad(gap, x, retain_graph=True)
        distances.append(gap / (w.norm() if norm == 2 else w.abs().sum()))
    return gamma - min(distances).clamp(gamma * (1 - alpha), gamma)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "modal"])
@pytest.mark.parametrize(
    "settings", [{}, {"norm": math.inf}, {"alpha": 1.5}, {"scores": "probabilities", "rivals": None, "alpha": 4.0}]
)
def test_value_and_gradient_are_those_of_the_formula(kind, settings):
    model, step = network(kind).eval(), context(network(kind))
    step.model = step.forward = model
    part = LinearisedMargin(0.8, **settings)
    found = part(step, "clean")
    given = {"norm": part.norm, "alpha": part.alpha, "probabilities": part.scores == "probabilities"}
    expected = torch.stack([by_hand(model, x, int(y), 0.8, **given) for x, y in zip(step.x, step.y, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)  # TINY is in one of them only
    for ours, theirs in zip(gradients(found.mean(), model), gradients(expected.mean(), model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_on_a_linear_model_it_is_gamma_minus_the_exact_distance():
    model = Linear(16, CLASSES, generator=torch.Generator().manual_seed(2)).to(D)
    step = context(model, count=12)
    found, w, f = LinearisedMargin(5.0)(step, "clean"), model.head.weight.detach(), model(step.x).detach()
    for i, y in enumerate(step.y.tolist()):
        distance = min((f[i, y] - f[i, k]) / (w[y] - w[k]).norm() for k in range(CLASSES) if k != y)
        torch.testing.assert_close(found[i].detach(), (5.0 - distance).clamp(min=0), rtol=1e-4, atol=1e-5)


def test_a_sample_beyond_the_threshold_counts_nothing_and_has_no_gradient():
    model = network("mlp")
    step = context(model)
    step.y = model(step.x).argmax(1)
    values = LinearisedMargin(1e-9)(step, "clean")
    assert torch.equal(values, torch.zeros_like(values))
    assert all((g == 0).all() for g in gradients(values.mean(), model))


def test_one_step_of_deepfool_without_second_order_has_the_same_gradient_below_the_threshold():
    """d is DeepFool's first step there, so LIN with c = 1 differs by the overshoot only."""
    model = network("mlp")
    deepfool = DeepFoolMargin("AVG", "LIN", c=1.0, steps=1, overshoot=0.0, second_order=False)
    ours, theirs = context(model), context(model)
    ours.y = theirs.y = model(ours.x).argmax(1)
    ours = gradients(LinearisedMargin(1e3)(ours, "clean").mean(), model)
    theirs = gradients(deepfool(theirs, "clean").mean(), model)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_no_gradient_goes_through_the_length_of_the_gradient():
    """The derivative along a direction is not that of the value, but of the gap over a constant."""
    model = network("mlp")

    def value():
        return LinearisedMargin(5.0)(context(model), "clean").mean()

    directions, whole = slope(value, model, 0)
    along = sum((g * d).sum() for g, d in zip(gradients(value(), model), directions, strict=True))
    assert abs(float(along) - whole) > 0.01 * abs(whole)


def test_layers_are_averaged_with_the_input():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, CLASSES)).to(D)
    step = context(model)
    alone, both = LinearisedMargin(5.0)(step, "clean"), LinearisedMargin(5.0, layers=("1",))(context(model), "clean")
    hidden = nn.Sequential(*model[2:])
    inner = context(hidden)
    inner.x, inner.y = model[:2](step.x).detach(), step.y
    torch.testing.assert_close(both, (alone + LinearisedMargin(5.0)(inner, "clean")) / 2)


def test_fewer_rivals_look_at_those_of_the_largest_scores_only():
    model = Linear(2, 3).to(D)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 1.0]]))
        model.head.bias.copy_(torch.tensor([5.0, -4.0, 3.0]))
    step = context(model, count=1)
    step.x, step.y = torch.full((1, 2), 0.5, dtype=D), torch.tensor([0])  # logits 5, 1, 3.5; distances 0.4 and 1.5
    one, every = LinearisedMargin(5.0, rivals=1)(step, "clean"), LinearisedMargin(5.0)(step, "clean")
    torch.testing.assert_close(torch.cat([one, every]).detach(), torch.tensor([3.5, 4.6], dtype=D), rtol=1e-5, atol=0)


class Mixing(nn.Module):
    """Subtracts the mean over the batch, in evaluation too."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, CLASSES).to(D)

    def forward(self, x):
        return self.head((x - x.mean(0)).flatten(1))


@pytest.mark.parametrize("part", [LinearisedMargin(1.0), DeepFoolMargin()])
def test_a_model_that_mixes_samples_and_a_single_class_are_refused(part):
    with pytest.raises(MarginsError, match="model: a sample's logits depend on the others in its batch"):
        part.begin(run(Mixing()))
    alone = run(network("mlp"))
    alone.classes = 1
    with pytest.raises(MarginsError, match="classes: a distance to another class needs at least 2, but there is 1"):
        part.begin(alone)
    part.begin(run(network("norm")))  # BatchNorm mixes in training only


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0}, "gamma must be a finite number greater than 0"),
        ({"gamma": 1, "scores": "logit"}, "scores must be one of 'logits', 'probabilities'"),
        ({"gamma": 1, "rivals": 0}, "rivals must be a whole number of at least 1"),
        ({"gamma": 1, "alpha": 0.5}, "alpha must be a finite number of at least 1"),
        ({"gamma": 1, "norm": 1}, "norm must be"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(MarginsError, match=message):
        LinearisedMargin(**settings)


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(MarginsError, match="layers: the model has no module body; it has"):
        LinearisedMargin(1.0, layers=("body",)).begin(run(network("mlp")))
