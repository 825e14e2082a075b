"""Cells of a cover of the plane, times the labels, and nets whose margins there are exact (AMM, Theorem 3.1)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from margins.margin.exact import linear_margin
from margins.models import MLP, Linear
from margins.planar import planar_margin
from margins.training.plain import fit


def grid(width: float, height: float, diameter: float) -> tuple[int, int]:
    """Columns and rows of the fewest equal cells of a rectangle that are no wider across than `diameter`.

    Each cell lies in a ball of radius diameter / 2 around its centre, so that their number is at least the covering
    number of that radius. It never rises with the diameter: what is allowed for one is for a larger one.
    """
    best, columns = None, 1
    while best is None or columns * math.ceil(height / diameter) < best[0] * best[1]:
        left = diameter**2 - (width / columns) ** 2
        if left > 0:
            rows = math.ceil(height / math.sqrt(left))
            if best is None or columns * rows < best[0] * best[1]:
                best = columns, rows
        columns += 1
    return best


@dataclass(frozen=True)
class Partition:
    """A square [-1, 1]^2 cut into columns x rows equal cells, times the labels."""

    columns: int
    rows: int

    def cell(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The number of the cell (B,) that points (B, 2) with labels (B,) of 0 and 1 lie in."""
        column, row = (
            np.clip(((x[:, axis] + 1) / 2 * count).astype(int), 0, count - 1)
            for axis, count in enumerate((self.columns, self.rows))
        )
        return (column * self.rows + row) * 2 + y

    def corners(self, x: np.ndarray) -> np.ndarray:
        """The four corners (B, 4, 2) of the cell that each point (B, 2) lies in."""
        counts = np.array([self.columns, self.rows])
        low = np.clip(((x + 1) / 2 * counts).astype(int), 0, counts - 1)
        steps = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        return (low[:, None] + steps) / counts * 2 - 1


@dataclass(frozen=True)
class Drawn:
    """A net of the plane with two classes, a training set x (N, 2), y (N,), and its exact distances (N,)."""

    model: nn.Module
    x: np.ndarray
    y: np.ndarray
    margins: np.ndarray

    def classes(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.model(torch.from_numpy(x)).argmax(1).numpy()

    def wrong(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The 0/1 loss of each point (B,)."""
        return self.classes(x) != y


def distances(model: nn.Module, x: Tensor) -> Tensor:
    """The exact distance of each point (B, 2) to the decision boundary, (B,), float64."""
    y = model(x).argmax(1)
    if isinstance(model, Linear):
        return linear_margin(model.head.weight.detach(), model.head.bias.detach(), x, y)
    return planar_margin(model, x, y, (-20.0, 20.0, -20.0, 20.0))


def draw(kind: str, seed: int, points: int, least: float, flipped: float) -> Drawn:
    """A random problem on [-1, 1]^2, a net trained on it, and `points` training points farther than `least` from it.

    "linear": two half-planes and a linear classifier; "ReLU": a disc and its outside, and a net with 16 units. A share
    `flipped` of the labels is wrong, so that wrongly classified training points are met too.
    """
    generator = torch.Generator().manual_seed(seed)
    centre, towards = torch.rand(2, 2, generator=generator, dtype=torch.float64) - 0.5
    model = Linear(2, 2, generator=generator) if kind == "linear" else MLP(2, (16,), 2, generator=generator)

    def some(count: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 2 - 1
        inside = (x - centre).norm(dim=1) < 0.6 if kind == "ReLU" else (x - centre) @ towards > 0
        return x, inside.long()

    x, y = some(500)
    fit(model, x.float(), y, epochs=60, batch_size=50, lr=0.02, seed=seed)
    model = model.double()
    x, y = some(20 * points)
    margins = distances(model, x)
    chosen = (margins > least).nonzero()[:points, 0]
    y = torch.where(torch.rand(len(y), generator=generator) < flipped, 1 - y, y)
    return Drawn(model, x[chosen].numpy(), y[chosen].numpy(), margins[chosen].numpy())


def violations(drawn: Drawn, gamma: float, samples: int, seed: int) -> tuple[int, int]:
    """How many samples lie in a cell with a training point, and how many of those have another 0/1 loss than it.

    The cells are those of a cover of [-1, 1]^2 by balls of radius gamma / 2, times the labels (Theorem 3.1). Samples
    are uniform, with random labels; the corners of the training points' cells, with their labels, are added.
    """
    partition = Partition(*grid(2, 2, gamma))
    at, loss = partition.cell(drawn.x, drawn.y), drawn.wrong(drawn.x, drawn.y)
    seen = np.zeros((2, partition.columns * partition.rows * 2), dtype=bool)  # a training point of that loss there
    seen[loss.astype(int), at] = True
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-1, 1, (samples, 2)), rng.integers(0, 2, samples)
    corners = partition.corners(drawn.x).reshape(-1, 2)
    wrong = np.concatenate([drawn.wrong(x, y), drawn.wrong(corners, drawn.y.repeat(4))]).astype(int)
    cells = np.concatenate([partition.cell(x, y), at.repeat(4)])
    return int(seen[:, cells].any(0).sum()), int(seen[1 - wrong, cells].sum())
