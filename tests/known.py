"""What is exactly known: linear classifiers with uneven weights, in closed form, with and without a box that is active.

With two classes the gap f_y - f_j is linear, g + w . delta. Within a box the nearest point where it closes is
x + clip(lambda d) for one number lambda, d = -w (l2) or -sign(w) (linf), and so is the worst point of a ball; lambda is
found by bisection in float64.
"""

import math

import torch
from torch import Tensor

from margins import models


def linear(seed: int, inputs: int = 8, classes: int = 3, batch: int = 60):
    """A float64 linear model whose weights differ widely in size, points in [0, 1] and labels, mostly right."""
    g = torch.Generator().manual_seed(seed)
    model = models.build("linear", inputs=inputs, classes=classes, generator=g).double()
    with torch.no_grad():
        scale = torch.logspace(-1.5, 0.5, inputs, dtype=torch.float64)
        model.head.weight *= scale[torch.randperm(inputs, generator=g)] * 3
        model.head.bias -= (model.head.weight @ torch.full((inputs,), 0.5, dtype=torch.float64)) + model.head.bias
    x = torch.rand(batch, inputs, generator=g, dtype=torch.float64)
    x[: batch // 3] = x[: batch // 3].round(decimals=0) * 0.98 + 0.01  # near the faces: there the box is active
    y = model(x).argmax(1)
    y[::7] = (y[::7] + 1) % classes
    return model, x, y


def crossing(seed=0, *, inputs, hidden, scale, classes=5, dtype=torch.float64, batch=40):
    """An MLP, scaled and centred so that its boundary crosses [0, 1], points in it and labels, mostly right."""
    g = torch.Generator().manual_seed(seed)
    model = models.build("mlp", inputs=inputs, hidden=hidden, classes=classes, generator=g).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale
        x = torch.rand(batch, inputs, generator=g, dtype=dtype)
        model.head.bias -= model(x).mean(0)
    y = model(x).argmax(1)
    y[::8] = (y[::8] + 1) % classes
    return model, x, y


def gaps(model, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """f_y - f_j (B, K) and its gradient (B, K, D), of a linear model; inf for j = y."""
    weight, logits = model.head.weight.detach(), model(x).detach()
    gap = logits.gather(1, y[:, None]) - logits
    return gap.scatter(1, y[:, None], math.inf), weight[y][:, None] - weight[None]


def nearest(model, x: Tensor, y: Tensor, norm: float, bounds=(0.0, 1.0)) -> Tensor:
    """The exact distance (B,) from x to the nearest misclassified point in the box; 0 if x is one, inf if none is."""
    gap, w = gaps(model, x, y)
    distance = torch.full_like(gap, math.inf)
    for j in range(gap.shape[1]):
        other = y != j
        steps = _steps(x[other], w[other, j], norm, bounds)
        reach = _bisect(lambda t, s=steps, o=other, k=j: gap[o, k] + (w[o, k] * s(t)).sum(1) > 0, int(other.sum()))
        found = torch.linalg.vector_norm(steps(reach), norm, dim=1)
        closes = gap[other, j] + (w[other, j] * steps(reach)).sum(1) <= 1e-9
        distance[other, j] = torch.where(closes, found, math.inf)
    least = distance.amin(1)
    return torch.where((gap <= 0).any(1), 0.0, least)


def worst_gap(model, x: Tensor, y: Tensor, norm: float, eps: float, bounds=(0.0, 1.0)) -> Tensor:
    """The exact least gap f_y - f_j over j != y and over the ball of radius eps within the box, (B,)."""
    gap, w = gaps(model, x, y)
    worst = torch.full_like(gap, math.inf)
    for j in range(gap.shape[1]):
        other = y != j
        steps = _steps(x[other], w[other, j], norm, bounds)
        inside = lambda t, s=steps: torch.linalg.vector_norm(s(t), norm, dim=1) <= eps  # noqa: E731
        reach = _bisect(inside, int(other.sum()), keep_low=True)
        worst[other, j] = gap[other, j] + (w[other, j] * steps(reach)).sum(1)
    return worst.amin(1)


def _steps(x: Tensor, w: Tensor, norm: float, bounds):
    """lambda (B,) -> the best move of that length parameter within the box, (B, D)."""
    towards = -w if norm == 2 else -w.sign()

    def move(size: Tensor) -> Tensor:
        point = x + size[:, None] * towards
        return (point if bounds is None else point.clamp(*bounds)) - x

    return move


def _bisect(before, batch: int, keep_low: bool = False) -> Tensor:
    """The largest lambda (B,) for which `before(lambda)` still holds, to float64; the one just beyond it by default."""
    low, high = torch.zeros(batch, dtype=torch.float64), torch.full((batch,), 1e8, dtype=torch.float64)
    for _ in range(200):
        middle = (low + high) / 2
        holds = before(middle)
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return low if keep_low else high
