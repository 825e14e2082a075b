"""Small nets and data for tests of training, in float64."""

import math

import torch
from torch import nn

from margins.datasets import Data
from margins.penalties.context import Threat
from margins.training import Recipe

THREAT = Threat(math.inf, 0.1, 0.025, steps=3)


def data(count=40, shape=(6,), classes=3, seed=0, dtype=torch.float64):
    """Random samples in [0, 1] whose labels a linear map of them decides, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, *shape, generator=generator, dtype=torch.float64)
    w = torch.randn(math.prod(shape), classes, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return Data(x.to(dtype), ((x.flatten(1) - 0.5) @ w).argmax(1), "random", classes)


class Net(nn.Module):
    """Dense layers with a head; `norm` puts BatchNorm, `dropout` a dropout of one half between them."""

    def __init__(self, inputs=6, hidden=8, classes=3, norm=False, dropout=False, seed=0):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            layers = [nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU()]
            layers += [nn.BatchNorm1d(hidden)] * norm + [nn.Dropout(0.5)] * dropout
            self.body, self.head = nn.Sequential(*layers), nn.Linear(hidden, classes)
        self.double()

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.features(x))


def recipe(**given):
    return Recipe(**{"epochs": 2, "batch_size": 10, "lr": 0.1, **given})
