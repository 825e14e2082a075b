"""Exact geometry of ReLU networks on a rectangle of the plane: linear regions, decision boundary, distances.

A ReLU network is affine on each of finitely many convex polygons. They are found by cutting the rectangle with each
neuron's line, layer by layer; in each polygon the decision boundary is then a set of straight segments. All in float64
on the CPU. A box is (left, right, bottom, top), as matplotlib's `extent`. The cost grows with the number of polygons:
some tens for 16 neurons, thousands for two layers of 64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import torch
from torch import nn

from margins import checks
from margins.errors import MarginsError
from margins.models import MLP, Linear

_ROUND = 1e-12  # a value this small, relative to the largest that its terms can take in the box, counts as zero


@dataclass(frozen=True)
class Region:
    """A convex polygon (V, 2), counter-clockwise, on which the logits are weight @ x + bias: (K, 2) and (K,)."""

    polygon: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def regions(model: nn.Module, box: Sequence[float]) -> list[Region]:
    """The polygons of the box on which `model`, a Linear or MLP with 2 inputs, is affine; they tile the box.

    Raises MarginsError for another model, for weights that are not finite and for an impossible box.
    """
    (*hidden, head), (left, right, bottom, top) = _layers(model), _box(box)
    corners = np.array([[left, bottom], [right, bottom], [right, top], [left, top]])
    pieces = [(corners, np.eye(2), np.zeros(2))]
    for weight, bias in hidden:
        finer = []
        for polygon, matrix, shift in pieces:
            matrix, shift = weight @ matrix, weight @ shift + bias
            polygons = [polygon]
            for normal, offset in zip(matrix, shift, strict=True):
                polygons = [part for whole in polygons for part in _cut(whole, _values(whole, normal, offset))]
            for part in polygons:
                active = matrix @ part.mean(0) + shift > 0
                finer.append((part, matrix * active[:, None], shift * active))
        pieces = finer
    return [Region(polygon, head[0] @ matrix, head[0] @ shift + head[1]) for polygon, matrix, shift in pieces]


def boundary(model: nn.Module, box: Sequence[float]) -> np.ndarray:
    """The segments (M, 2, 2) inside the box where the predicted class changes: M segments, two ends, two coordinates.

    Places where two logits only touch, and no class changes, do not belong to it. Errors as for `regions`, and where
    the two largest logits are equal on a whole area: the boundary is no line there (all neurons dead and no bias, say).
    """
    parts, found, doubtful = regions(model, box), [], []
    for part in parts:
        gaps = {
            (i, j): _values(part.polygon, part.weight[i] - part.weight[j], part.bias[i] - part.bias[j])
            for i, j in combinations(range(len(part.bias)), 2)
        }
        for (i, j), values in gaps.items():
            if _flat(part, i, j, values) and _reigns(part, i):
                x = part.polygon.mean(0).tolist()
                raise MarginsError(f"model gives classes {i} and {j} the same logit on an area around {x}: no boundary")
            ends = _crossings(part.polygon, values)
            if len(ends):
                found += _topmost(ends, part, i, j)
            # Two logits that meet along a polygon's side: the polygon alone does not tell whether the class changes.
            following = np.roll(values, -1)
            for k in np.flatnonzero((values == 0) & (following == 0)):
                side = part.polygon[[k, (k + 1) % len(values)]]
                doubtful += _topmost(side, part, i, j)
    found += _changing(doubtful, parts, _layers(model), box)
    segments = np.array(found).reshape(-1, 2, 2)
    return segments[np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1) > _ROUND * abs(np.asarray(box)).max()]


def nearest(x, segments: np.ndarray) -> np.ndarray:
    """The point of the segments (M, 2, 2), M >= 1, that is nearest to each x (B, 2); returns (B, 2), float64."""
    x, start = _points(x)[:, None], np.asarray(segments)[:, 0]
    if not len(start):
        raise MarginsError("segments is empty: there is no boundary to be near to")
    along = segments[:, 1] - start
    share = ((x - start) * along).sum(2) / np.maximum((along**2).sum(1), np.finfo(float).tiny)
    feet = start + np.clip(share, 0, 1)[..., None] * along
    return feet[np.arange(len(feet)), ((feet - x) ** 2).sum(2).argmin(1)]


def planar_margin(model: nn.Module, x, y, box: Sequence[float]) -> torch.Tensor:
    """The exact signed l2 distance of each x to the decision boundary (AMR, Eq. 6; AMM, Definition 3.1), float64 (B,).

    x (B, 2) inside the box, y (B,) int64. Positive where the predicted class is y; minus the distance to the boundary
    of the predicted class's region where it is not. Raises MarginsError for points outside the box, and where the
    boundary found is farther away than the edge of the box, so that a nearer one may lie outside: take a larger box
    then.
    """
    left, right, bottom, top = _box(box)
    x = _points(x)
    layers = _layers(model)
    checks.labels(y, len(x), len(layers[-1][1]))
    edge = np.min([x[:, 0] - left, right - x[:, 0], x[:, 1] - bottom, top - x[:, 1]], axis=0)
    if (edge < 0).any():
        at = edge.argmin()
        raise MarginsError(f"x must lie in the box {tuple(box)}, but sample {at} is at {x[at].tolist()}")
    segments = boundary(model, box)
    distance = np.linalg.norm(nearest(x, segments) - x, axis=1) if len(segments) else np.full(len(x), np.inf)
    if (distance > edge).any():
        at = (distance - edge).argmax()
        raise MarginsError(
            f"box {tuple(box)} is too small: sample {at} is {edge[at]:.3g} from its edge and {distance[at]:.3g} from "
            "the nearest boundary inside it"
        )
    return torch.from_numpy(np.where(_logits(layers, x).argmax(1) == y.cpu().numpy(), distance, -distance))


def _cut(polygon: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """The polygon, or its two parts where the affine function with these values at the corners changes sign."""
    if (values >= 0).all() or (values <= 0).all():
        return [polygon]
    above, below = [], []
    for k, (corner, value) in enumerate(zip(polygon, values, strict=True)):
        after, next_value = polygon[(k + 1) % len(polygon)], values[(k + 1) % len(polygon)]
        above += [corner] if value >= 0 else []
        below += [corner] if value <= 0 else []
        if value * next_value < 0:
            crossing = corner + value / (value - next_value) * (after - corner)
            above.append(crossing)
            below.append(crossing)
    return [np.array(above), np.array(below)]


def _crossings(polygon: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The two points (2, 2) where a function that changes sign is zero on the polygon's sides; else none, (0, 2)."""
    if (values >= 0).all() or (values <= 0).all():
        return np.empty((0, 2))
    after, next_values = np.roll(polygon, -1, 0), np.roll(values, -1)
    k = values * next_values < 0
    share = (values[k] / (values[k] - next_values[k]))[:, None]
    points = np.concatenate([polygon[values == 0], polygon[k] + share * (after[k] - polygon[k])])
    return points[[0, ((points - points[0]) ** 2).sum(1).argmax()]]  # more than two where corners nearly coincide


def _flat(part: Region, i: int, j: int, values: np.ndarray) -> bool:
    """Whether f_i = f_j all over the polygon, which a thin polygon along the line f_i = f_j is no case of."""
    return not values.any() and abs(part.weight[i] - part.weight[j]).max() <= _ROUND * abs(part.weight).max()


def _reigns(part: Region, i: int) -> bool:
    """Whether there is a part of the polygon on which no logit is above f_i."""
    polygon = part.polygon
    for k in range(len(part.bias)):
        values = _values(polygon, part.weight[i] - part.weight[k], part.bias[i] - part.bias[k])
        if (values <= 0).all() and values.any():
            return False
        polygon = _cut(polygon, values)[0]
    return True


def _topmost(ends: np.ndarray, part: Region, i: int, j: int) -> list[np.ndarray]:
    """The piece of a segment on which f_i = f_j where no other logit is above them; a list of none or one."""
    low, high = 0.0, 1.0
    for k in set(range(len(part.bias))) - {i, j}:
        first, last = _values(ends, part.weight[i] - part.weight[k], part.bias[i] - part.bias[k])
        if first < 0 and last < 0:
            return []
        if first < 0 or last < 0:
            share = first / (first - last)
            low, high = (max(low, share), high) if first < 0 else (low, min(high, share))
    return [ends[0] + np.array([[low], [high]]) * (ends[1] - ends[0])] if low < high else []


def _changing(sides: list[np.ndarray], parts: list[Region], layers, box) -> list[np.ndarray]:
    """Those pieces of the polygons' sides across which the predicted class changes, each once."""
    size = max(abs(np.asarray(box, dtype=float)))
    corners = np.concatenate([part.polygon for part in parts])
    kept = {}
    for start, end in sides:
        along = end - start
        length = np.hypot(*along)
        if length < 1e-9 * size:
            continue
        normal = np.array([-along[1], along[0]]) / length
        share = (corners - start) @ along / length**2  # a neighbour's corner may lie within this side
        inside = (abs((corners - start) @ normal) < 1e-9 * size) & (share > 1e-9) & (share < 1 - 1e-9)
        stops = start + np.unique(np.concatenate([[0.0], share[inside], [1.0]]))[:, None] * along
        for piece in pairwise(stops):
            sides_of = np.mean(piece, 0) + 1e-7 * size * np.array([[1], [-1]]) * normal
            classes = _logits(layers, sides_of).argmax(1)
            if classes[0] != classes[1]:
                kept[tuple(sorted(map(tuple, np.round(piece, 9))))] = np.array(piece)
    return list(kept.values())


def _values(points: np.ndarray, normal: np.ndarray, offset: float) -> np.ndarray:
    """normal @ point + offset, with what is zero but for rounding set to zero."""
    values = points @ normal + offset
    scale = abs(points) @ abs(normal) + abs(offset)
    return np.where(abs(values) <= _ROUND * scale, 0.0, values)


def _logits(layers, x: np.ndarray) -> np.ndarray:
    *hidden, (weight, bias) = layers
    for inner, shift in hidden:
        x = np.maximum(x @ inner.T + shift, 0)
    return x @ weight.T + bias


def _layers(model: nn.Module) -> list[tuple[np.ndarray, np.ndarray]]:
    if not isinstance(model, Linear | MLP) or model.inputs != 2:
        given = f"{type(model).__name__} with {getattr(model, 'inputs', 'unknown')} inputs"
        raise MarginsError(f"model must be a Linear or MLP of margins.models with 2 inputs, but is a {given}")
    layers = []
    for layer in [*getattr(model, "hidden", []), model.head]:
        weight = layer.weight.detach().cpu().double().numpy()
        bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().cpu().double().numpy()
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise MarginsError("model has weights or biases that are not finite")
        layers.append((weight, bias))
    return layers


def _box(box: Sequence[float]) -> Sequence[float]:
    if len(box) != 4 or not np.isfinite(box).all() or not (box[0] < box[1] and box[2] < box[3]):
        raise MarginsError(f"box must be (left, right, bottom, top), left < right, bottom < top, but is {tuple(box)}")
    return box


def _points(x) -> np.ndarray:
    x = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    if x.ndim != 2 or x.shape[1] != 2 or not np.isfinite(x).all():
        raise MarginsError(f"x must be finite and of shape (B, 2), but has the shape {x.shape}")
    return x.astype(float)
