"""What is linear but for kinks: nets whose second derivatives are 0 in fact, and none whose are not."""

import pytest
import torch
from tiny import Own
from torch import nn

from margins import models
from margins.penalties.kinks import piecewise_linear


class Squared(nn.Module):
    """A sum over pixels of pixels times what a linear layer makes of them: an operation that LINEAR has, twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        x = x.flatten(1)
        return (x * self.layer(x)).sum(1, keepdim=True)


class Gated(nn.Module):
    """A matrix product of which x is in both factors."""

    def forward(self, x):
        x = x.flatten(2)
        return (x @ x.transpose(1, 2)).flatten(1)


def curvature(net, x):
    """The largest second derivative of a sum of logits, with random weights, along a random direction."""
    logits = net(x)
    (w,) = torch.autograd.grad((logits * torch.randn_like(logits)).sum(), x, create_graph=True)
    if not w.requires_grad:
        return 0.0
    (second,) = torch.autograd.grad((w * torch.randn_like(w)).sum(), x, allow_unused=True, materialize_grads=True)
    return second.abs().max().item()


def flat(*layers):
    return nn.Sequential(nn.Flatten(), *layers)


LINEAR = {
    "linear": lambda: models.build("linear", inputs=16, classes=3),
    "mlp": lambda: models.build("mlp", inputs=16, hidden=(8, 8), classes=3),
    "centred mlp": lambda: models.Centred(models.build("mlp", inputs=16, hidden=(8,), classes=3), torch.ones(1, 4, 4)),
    "lenet": lambda: models.build("lenet", shape=(1, 28, 28), classes=10),
    "convnet": lambda: models.build("convnet", shape=(3, 32, 32), classes=10),
    "nin": lambda: models.build("nin", shape=(3, 32, 32), classes=10),
    "resnet, running statistics": lambda: models.build("resnet-cifar", depth=20, shape=(3, 32, 32), classes=10),
    "leaky": lambda: flat(nn.Linear(16, 8), nn.LeakyReLU(), nn.Linear(8, 3)),
}
CURVED = {
    "softplus": lambda: flat(nn.Linear(16, 8), nn.Softplus(), nn.Linear(8, 3)),
    "group norm": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten()),
    "batch statistics": lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3)).train(),
    "squared": Squared,
    "gated": Gated,
    "divided": lambda: flat(nn.Linear(16, 8), nn.Softmax(1)),
}


@pytest.mark.parametrize(("name", "expected"), [*((n, True) for n in LINEAR), *((n, False) for n in CURVED)])
def test_linear_but_for_kinks_is_what_has_no_second_derivatives(name, expected):
    torch.manual_seed(0)
    net = {**LINEAR, **CURVED}[name]().double()
    if name != "batch statistics":
        net.eval()
    shape = getattr(net, "shape", (1, 4, 4))
    x = torch.rand(3, *shape, dtype=torch.float64, requires_grad=True)
    assert piecewise_linear(net(x), x) is expected
    assert (curvature(net, x) == 0) is expected


def test_a_point_within_a_graph_or_a_backward_of_ones_own_is_not_trusted():
    x = torch.rand(3, 4, requires_grad=True)
    assert piecewise_linear(2 * x, x) and not piecewise_linear(Own.apply(x), x)
    within = x.sin()
    assert not piecewise_linear(2 * within, within)
    assert piecewise_linear(torch.ones(3), x)
