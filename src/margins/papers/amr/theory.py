"""What AMR says of margins as distances, checked numerically: Proposition 1, Eqs. 4, 7 and 10, sections 2 to 4.1."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from margins import datasets, planar
from margins.attacks.deepfool import deepfool
from margins.attacks.race import race
from margins.linear.logistic import descend
from margins.linear.svm import hard_margin_svm
from margins.margin import binary_margin
from margins.models import MLP, Linear
from margins.papers.measured import measured
from margins.penalties.amr import hinge, truncated
from margins.training.plain import fit

NAME = "amr/theory"
#: The domain of the nets in the plane: a square of this half side.
SIDE = 2.0
BOX = (-SIDE, SIDE, -SIDE, SIDE)


def clouds(generator: torch.Generator, classes: int, size: int) -> tuple[Tensor, Tensor]:
    """Points x (size, 2), float64, in two clouds a class on the unit circle, the classes in turns; y (size,)."""
    at = torch.randint(2 * classes, (size,), generator=generator)
    angle = at.double() * torch.pi / classes
    x = torch.stack([angle.cos(), angle.sin()], 1)
    return x + 0.25 * torch.randn(size, 2, generator=generator, dtype=torch.float64), at % classes


def trained(kind: str, classes: int, seed: int, hidden: tuple[int, ...] = (12,)) -> nn.Module:
    """A linear classifier ("linear") or a net with ReLUs ("ReLU net") of the plane, trained on clouds; float64."""
    generator = torch.Generator().manual_seed(seed)
    x, y = clouds(generator, classes, 600)
    linear = kind == "linear"
    model = Linear(2, classes, generator=generator) if linear else MLP(2, hidden, classes, generator=generator)
    return fit(model, x.float(), y, epochs=40, batch_size=50, lr=0.02, seed=seed).double()


def lattice(side: int) -> tuple[np.ndarray, float]:
    """The points (side, side, 2) of a square lattice over the domain, and the diagonal of its cells: the step."""
    ticks, step = np.linspace(-SIDE, SIDE, side, retstep=True)
    return np.stack(np.meshgrid(ticks, ticks), -1), step * 2**0.5


def nearest_outside(inside: np.ndarray) -> np.ndarray:
    """The distance of each point of a lattice over the domain to the nearest one that is not `inside`; same shape."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(inside, sampling=2 * SIDE / (len(inside) - 1))


@torch.no_grad()
def predicted(model: nn.Module, x: np.ndarray) -> np.ndarray:
    """The class of each point of (..., 2)."""
    return model(torch.from_numpy(x).reshape(-1, 2)).argmax(1).numpy().reshape(x.shape[:-1])


def to_segments(x: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """The distance (B,) of each x (B, 2) to the nearest of the segments (M, 2, 2)."""
    return np.linalg.norm(planar.nearest(x, segments) - x, axis=1)


def beside(model: nn.Module, segments: np.ndarray) -> np.ndarray:
    """The classes (M, 2) on the two sides of each segment of the decision boundary."""
    along = segments[:, 1] - segments[:, 0]
    normal = np.stack([-along[:, 1], along[:, 0]], 1) / np.linalg.norm(along, axis=1, keepdims=True)
    return predicted(model, segments.mean(1)[:, None] + 1e-7 * np.array([[1], [-1]]) * normal[:, None])


def proposition(kind: str, classes: int, seed: int, points: int, side: int) -> dict[str, float]:
    """Eq. 2 by a search over all points of a lattice, against the exact distance to the boundary, of random points.

    The domain is the box of the lattice for both. Then what it takes to reach a given other class, not any one.
    """
    model, (grid, step) = trained(kind, classes, seed), lattice(side)
    on = predicted(model, grid)
    rng = np.random.default_rng(seed)
    at = tuple(rng.integers(0, side, (2, points)))
    mine, other = on[at], (on[at] + rng.integers(1, classes, points)) % classes
    found, own, towards = np.zeros((3, points))
    for c in range(classes):
        others, itself = nearest_outside(on == c)[at], nearest_outside(on != c)[at]
        found[mine == c], own[mine == c] = others[mine == c], itself[mine == c]
        towards[other == c] = itself[other == c]
    excess = (found - to_segments(grid[at], planar.boundary(model, BOX))) / step
    return {
        "points": points,
        "largest excess of the search, steps": excess.max(),
        "least excess of the search, steps": excess.min(),
        "mean distance": found.mean(),
        "as printed: largest distance to the predicted set": own.max(),
        "share for which another given class is farther": (towards > found + step).mean(),
        "mean distance to another given class": towards.mean(),
    }


def star(rng: np.random.Generator, corners: int) -> np.ndarray:
    """The corners (V, 2) of a random polygon around the origin, in general not convex."""
    angle = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) / corners
    return rng.uniform(0.7, 1.5, (corners, 1)) * np.stack([np.cos(angle), np.sin(angle)], 1)


def within(polygon: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Whether each x (..., 2) is in a polygon (V, 2): a ray from it crosses an odd number of sides."""
    inside = np.zeros(x.shape[:-1], dtype=bool)
    for (left, low), (right, high) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        if low != high:
            crossed = (low > x[..., 1]) != (high > x[..., 1])
            inside ^= crossed & (x[..., 0] < left + (x[..., 1] - low) / (high - low) * (right - left))
    return inside


def to_a_set(kind: str, seed: int, points: int, side: int) -> dict[str, float]:
    """The distance to a set by a search over a lattice, against Eq. 4: 0 inside, outside that to the set's boundary."""
    grid, step = lattice(side)
    rng = np.random.default_rng(seed)
    sets = []
    if kind == "polygon":
        polygon = star(rng, 8)
        sets.append((within(polygon, grid), np.stack([polygon, np.roll(polygon, -1, 0)], 1)))
    else:
        model = trained(kind, 3, seed)
        on, segments = predicted(model, grid), planar.boundary(model, BOX)
        classes = beside(model, segments)
        sets += [(on == c, segments[(classes == c).any(1)]) for c in range(3)]
    inside_distances, differences, depths = [], [], []
    for inside, edge in sets:
        at = tuple(rng.integers(0, side, (2, points)))
        found, exact = nearest_outside(~inside)[at], to_segments(grid[at], edge)
        inside_distances.append(found[inside[at]])
        depths.append(exact[inside[at]])
        differences.append((found - exact)[~inside[at]] / step)
    differences = np.concatenate(differences)
    return {
        "points outside": len(differences),
        "largest difference outside, steps": abs(differences).max(),
        "least excess of the search, steps": differences.min(),
        "largest distance inside": np.concatenate(inside_distances).max(),
        "mean distance to the boundary inside": np.concatenate(depths).mean(),
    }


def maximisers(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals (2,) of the lines through 0 with the largest minimum margin, and with the largest average one.

    x (N, 2), y (N,) in {0, 1}, separable; the average is over distances without a sign (AMR, section 2), the larger
    of 36,000 directions, turned so that more samples are right than wrong.
    """
    svm = hard_margin_svm(x, y, bias=False).weight
    angle = np.pi * np.arange(36_000) / 36_000
    normals = np.stack([np.cos(angle), np.sin(angle)], 1)
    best = normals[np.argmax([abs(x @ part.T).mean(0) for part in np.split(normals, 10)])]
    return svm / np.linalg.norm(svm), best * (1 if ((x @ best > 0) == (y == 1)).mean() >= 0.5 else -1)


def two_classes(kind: str, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Points x (N, 2) with labels y (N,) in {0, 1} that a line through 0 separates.

    "symmetric": random points, `size` of them, each with its mirror image in an axis, and the other class is the first
    one's image in the origin; all turned by a random angle. Else a data set.
    """
    if kind != "symmetric":
        data = datasets.load(kind, "train", size=size, seed=seed)
        return data.x.double().numpy(), data.y.numpy()
    rng = np.random.default_rng(seed)
    a, b, turn = rng.uniform(0.5, 1.5, size), rng.uniform(-1, 1, size), rng.uniform(0, 2 * np.pi)
    half = np.concatenate([np.stack([a, b], 1), np.stack([a, -b], 1)])
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.concatenate([-half, half]) @ rotation, np.arange(2).repeat(2 * size)


def conflict(kind: str, seed: int, size: int) -> dict[str, float]:
    """How far the classifier with the best minimum margin is from that with the best average margin (section 3)."""
    x, y = two_classes(kind, seed, size)
    least, average = maximisers(x, y)
    signed = np.where(y == 1, 1, -1)[:, None] * (x @ np.stack([least, average], 1))
    return {
        "angle of the two": np.degrees(np.arccos(np.clip(least @ average, -1, 1))),
        "minimum margin, best": signed[:, 0].min(),
        "minimum margin of the one with the best average": signed[:, 1].min(),
        "average margin, best": abs(signed[:, 1]).mean(),
        "average margin of the one with the best minimum": abs(signed[:, 0]).mean(),
    }


def scale_free(data: str, seed: int, images: int, epochs: int) -> dict[str, float]:
    """The closed form |w x| / |w| against two attacks on t w, for t from a thousandth to a thousand."""
    known = datasets.load(data, "train", size=images, classes=(0, 1), seed=seed)
    x, y = known.x.double(), known.y
    weight = descend(x, y, lr=0.1, epochs=epochs, growing=False).weights[-1]
    first = binary_margin(weight, 0.0, x, y).abs()
    model = Linear(weight.numel(), 2, bias=False).double().requires_grad_(False)
    changes, differences = [], {"race": [], "DeepFool": []}
    for scale in torch.logspace(-3, 3, 7, dtype=torch.float64):
        model.head.weight.copy_(torch.stack([torch.zeros_like(weight), scale * weight]))
        formula, own = binary_margin(scale * weight, 0.0, x, y).abs(), model(x).argmax(1)
        changes.append((formula / first - 1).abs().max())
        for name, attack in (("race", race), ("DeepFool", deepfool)):
            options = {"steps": 20} if name == "race" else {"overshoot": 1e-4}
            found = attack(model, x, own, norm=2, bounds=None, **options)
            differences[name].append((found.distance / formula - 1).abs().max())
    return {
        "images": len(x),
        "largest relative change with the scale": max(changes),
        **{f"{name}: largest relative difference": max(found) for name, found in differences.items()},
    }


def hinges(seed: int, points: int) -> dict[str, Tensor]:
    """Eq. 10 for random t and tau: what H_tau - H_0 and -[t] differ by, and whether both hinges are convex."""
    generator = torch.Generator().manual_seed(seed)
    t = 20 * torch.rand(points, generator=generator, dtype=torch.float64) - 10
    spread, correct, printed, above = [], [], [], []
    for tau in 10 * torch.rand(50, generator=generator, dtype=torch.float64):
        tau = tau.item()
        difference = -truncated(t, tau) - (hinge(t, tau) - hinge(t, 0.0))
        spread.append(difference.max() - difference.min())
        correct.append((difference + tau).abs().max())
        printed.append((difference - tau).abs().max() / (2 * tau))
        middle = (t + t.flip(0)) / 2
        above += [(hinge(middle, s) - (hinge(t, s) + hinge(t.flip(0), s)) / 2).max() for s in (0.0, tau)]
    return {
        "largest spread of the difference": max(spread),
        "largest difference from -tau": max(correct),
        "difference from the printed +tau, in 2 tau": max(printed),
        "largest height of a hinge above its chord": max(above),
    }


_PLANE = {"points": 1000, "side": 2001}
ROWS: dict[str, tuple[Callable, dict]] = {
    "Prop. 1, linear": (proposition, {"kind": "linear", "classes": 3, **_PLANE}),
    "Prop. 1, ReLU net": (proposition, {"kind": "ReLU net", "classes": 3, **_PLANE}),
    "Prop. 1, two classes": (proposition, {"kind": "ReLU net", "classes": 2, **_PLANE}),
    "Eq. 4, polygon": (to_a_set, {"kind": "polygon", **_PLANE}),
    "Eq. 4, ReLU net": (to_a_set, {"kind": "ReLU net", **_PLANE}),
    "symmetric points": (conflict, {"kind": "symmetric", "size": 50}),
    "toy boxes": (conflict, {"kind": "toy2d", "size": 200}),
    "scale, MNIST 0 against 1": (scale_free, {"data": "mnist", "images": 300, "epochs": 100}),
    "Eq. 10": (hinges, {"points": 2000}),
}
measured(
    ROWS,
    name=NAME,
    title="AMR's margins as distances, checked numerically",
    source="AMR, sections 2 to 4.1, Proposition 1, Eqs. 2, 4, 6 and 10",
    revisions={"theory": 1},
    minutes=0.1,
)
