"""The certified radius at its edges: ties and boxes, the model untouched, what is refused."""

import math

import pytest
import torch
from test_certified import convolutional, generator
from torch import nn

from margins import margin
from margins.errors import MarginsError
from margins.models import MLP, Linear


def test_a_tie_is_zero_and_a_class_without_end_is_infinite():
    tied = Linear(2, 2)
    with torch.no_grad():
        tied.head.weight.zero_()
        tied.head.bias.zero_()
    x = torch.full((2, 2), 0.5)
    assert margin.certified_radius(tied, x).tolist() == [0, 0]
    with torch.no_grad():
        tied.head.bias[0] = 1
    assert margin.certified_radius(tied, x).tolist() == [math.inf] * 2
    assert (margin.certified_radius(tied, x, bounds=None) > 1e9).all()
    with torch.no_grad():  # class 1 where x1 > 2: beyond the box
        tied.head.weight.copy_(torch.tensor([[0.0, 0], [1, 0]]))
        tied.head.bias.copy_(torch.tensor([2.0, 0]))
    assert margin.certified_radius(tied, x).tolist() == [math.inf] * 2
    assert margin.certified_radius(tied, x, bounds=None).tolist() == [1.5, 1.5]


def test_the_model_is_left_as_it_was():
    model, x = convolutional(0)
    model.train()
    before = torch.get_rng_state()
    first = margin.certified_radius(model, x[:2])
    assert torch.equal(first, margin.certified_radius(model, x[:2]))  # no dropout
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


class Halved(MLP):
    def forward(self, x):
        return super().forward(x / 2)


def hooked():
    model = MLP(4, (3,), 2)
    model.head.register_forward_hook(lambda module, args, out: out + 1)
    return model


X = torch.rand(2, 1, 4, 4, generator=generator(15))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(32, 2)),
            "Conv2d",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Tanh(), nn.Linear(3, 2)), r"layer Tanh\(\) for inputs"),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 2)), "the layer BatchNorm2d"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten(), nn.Linear(32, 2)), "the layer Conv2d"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(32, 2)),
            "Conv2d",
        ),
        (nn.Sequential(nn.MaxPool2d(2, padding=1), nn.Flatten(), nn.Linear(9, 2)), "the layer MaxPool2d"),
        (nn.Sequential(nn.Conv2d(1, 2, 2, dilation=2), nn.Flatten(), nn.Linear(8, 2)), "the layer Conv2d"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.ReLU()), "does not end in a Linear"),
        (Halved(16, (3,), 2), "the layer Halved"),
        (nn.Sequential(nn.Linear(4, 2)), "the layer Linear.* for inputs of shape"),
    ],
)
def test_what_is_no_chain_is_refused(model, words):
    with pytest.raises(MarginsError, match=words):
        margin.certified_radius(model, X)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: margin.certified_radius(hooked(), X[:, 0, 0]), "does not compute what its layers do"),
        (lambda: margin.certified_radius(MLP(16, (3,), 2), X + 1), "x must lie in the box"),
        (lambda: margin.certified_radius(MLP(16, (3,), 2), X, norm=1), "norm must be one of 2, inf"),
        (lambda: margin.certified_radius(MLP(16, (3,), 2), X.double()), "model computes in torch.float32"),
        (lambda: margin.certified_radius(MLP(16, (3,), 1), X), "K >= 2"),
        (lambda: margin.certified_radius("mlp", X), "model must be a torch.nn.Module"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(MarginsError, match=words):
        call()


@pytest.mark.parametrize(("norm", "distance"), [(2, 2.0), (math.inf, 1.0)])
@pytest.mark.parametrize(("bias", "whole"), [(4.0, False), (4.001, True), (3.999, False)])
def test_a_tie_in_the_corner_of_the_box_is_a_boundary(norm, distance, bias, whole):
    model = Linear(4, 2).double()
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[-1.0] * 4, [0.0] * 4]))
        model.head.bias.copy_(torch.tensor([bias, 0.0]))
    found = margin.certified_radius(model, torch.zeros(1, 4, dtype=torch.float64), norm=norm).item()
    assert found == math.inf if whole else found == pytest.approx(distance * bias / 4, rel=0.011)
