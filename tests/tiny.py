"""Tiny float64 networks, data and contexts for tests of training's parts."""

import math

import torch
from torch import nn

from margins.datasets import Data
from margins.models import CNN, MLP
from margins.penalties.context import Context, Run, Threat

D = torch.float64
CLASSES = 3


class Modal(nn.Module):
    """A convolution, BatchNorm, a ReLU, dropout and a head, for images (1, 4, 4)."""

    def __init__(self, norm: bool = True, dropout: float = 0.3):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.convolution = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.head = nn.Linear(12, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)

    def features(self, x):
        return self.dropout(torch.relu(self.norm(self.convolution(x))).flatten(1))

    def forward(self, x):
        return self.head(self.features(x))


class Own(torch.autograd.Function):
    """Twice x, by a backward of its own that has no rule for `torch.vmap`."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def network(kind: str) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    return {
        "mlp": lambda: MLP(16, (7, 6), CLASSES, generator=generator),
        "cnn": lambda: CNN((1, 4, 4), ((3,),), (5,), CLASSES, padding=1, generator=generator),
        "modal": Modal,
        "norm": lambda: Modal(dropout=0.0),
        "dropout": lambda: Modal(norm=False),
    }[kind]().to(D)


def data(count: int = 8, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 4, 4, generator=generator, dtype=D) * 0.8 + 0.1
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    return Data(x, y, "tiny", CLASSES)


def context(model: nn.Module, count: int = 6, adversarial: bool = True, seed: int = 0, **settings) -> Context:
    """A step's context on `count` samples; their adversaries are random points near them."""
    known = data(count, seed)
    noise = torch.rand(known.x.shape, generator=torch.Generator().manual_seed(9), dtype=D) * 0.2 - 0.1
    settings = {"threat": Threat(math.inf, 0.1, 0.025, 3), "index": torch.arange(count), **settings}
    x_adv = (known.x + noise).clamp(0, 1) if adversarial else None
    given = {"total": count, "progress": 0.0, "seed": 5, "x_adv": x_adv, **settings}
    return Context(model, known.x, known.y, **given)


def run(model: nn.Module, count: int = 8, batch_size: int = 4, processes: int = 1) -> Run:
    known = data(count)
    threat = Threat(math.inf, 0.1, 0.025, 3)
    return Run(model, known.x, known.y, CLASSES, threat, batch_size, count % batch_size != 0, processes)


def gradients(value: torch.Tensor, model: nn.Module) -> list[torch.Tensor]:
    """The gradient to each parameter, zeros where there is none."""
    parameters = list(model.parameters())
    return list(torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True))


def slope(value, model: nn.Module, seed: int, step: float = 1e-6) -> tuple[list[torch.Tensor], float]:
    """A random direction of the parameters, and the derivative of value() along it by central differences."""
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]
    found = []
    for size in (step, -2 * step):
        for parameter, direction in zip(model.parameters(), directions, strict=True):
            parameter.data.add_(direction, alpha=size)
        found.append(float(value().detach()))
    for parameter, direction in zip(model.parameters(), directions, strict=True):
        parameter.data.add_(direction, alpha=step)
    return directions, (found[0] - found[1]) / (2 * step)


def differences(value, model: nn.Module, step: float = 1e-6) -> list[torch.Tensor]:
    """The gradient of value() to each parameter by central differences."""
    found = []
    for parameter in model.parameters():
        flat, slope = parameter.data.view(-1), torch.zeros(parameter.numel(), dtype=D)
        for i in range(len(flat)):
            kept = flat[i].item()
            flat[i] = kept + step
            above = float(value().detach())
            flat[i] = kept - step
            below = float(value().detach())
            flat[i] = kept
            slope[i] = (above - below) / (2 * step)
        found.append(slope.view_as(parameter))
    return found
