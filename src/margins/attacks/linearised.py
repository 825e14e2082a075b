"""The nearest point where a linear gap closes, exactly, within a box too: the step of minimum-norm attacks.

The gap at x' is gap + w . (x' - x). The move that closes it is -rate * w in l2 and -rate * sign(w) in linf, each entry
cut off at the box. The gap falls as the rate grows, piecewise linearly and convexly: Newton's method from below never
goes too far, and a few steps make it exact.
"""

import math

import torch
from torch import Tensor

from margins.attacks.found import Bounds
from margins.attacks.geometry import clip, column, length


_ENOUGH = 100  # steps of Newton's method; a few are needed


def distance(gap: Tensor, w: Tensor, norm: float) -> Tensor:
    """How far it is to where the gap (n,) with the gradient w (n, ...) closes, without a box: (n,), inf for w = 0."""
    steepness = length(w, 2 if norm == 2 else 1)
    return torch.where(steepness > 0, gap / steepness, math.inf)


def closing(gap: Tensor, w: Tensor, x: Tensor, norm: float, bounds: Bounds, cut: bool = False):
    """The point x' nearest to x, in the box, where gap + w . (x' - x) = 0, and its distance (n,).

    gap (n,) >= 0; w and x (n, ...), x in the box; norm 2 or math.inf. Where the gap closes nowhere in the box, x' is
    the point without a box, moved into it, and the distance is larger than any in the box; where no move makes the gap
    smaller, x' is x and the distance infinite. With `cut` x' is the point without a box, moved into it, in all cases.
    Cost: some passes over x, little against a forward.
    """
    scale = w.flatten(1).abs().amax(1).clamp(min=torch.finfo(w.dtype).tiny)
    w, gap = w / column(scale, w), gap / scale  # so that squares do not underflow
    towards = w if norm == 2 else w.sign()
    slope = dot(w, towards)
    rate = torch.where(slope > 0, gap / slope, 0.0)
    size = torch.where(slope > 0, rate * length(towards, norm), math.inf)
    straight = x - column(rate, x) * towards
    if bounds is None:
        return straight, size
    moved_in = clip(straight, bounds)
    near, _, left = newton(gap, w, towards, x, bounds, rate, _ENOUGH)
    closes = left <= tolerance(x) * gap
    diameter = (bounds[1] - bounds[0]) * (math.prod(x.shape[1:]) ** 0.5 if norm == 2 else 1)
    size = torch.where(closes, length(near - x, norm), size + diameter)
    size = torch.where(length(moved_in - x, norm) + gap > gap, size, math.inf)
    if cut or closes.all():
        return moved_in if cut else near, size
    return torch.where(column(closes, x), near, moved_in), size


def newton(gap: Tensor, w: Tensor, towards: Tensor, x: Tensor, bounds: Bounds, rate: Tensor, steps: int):
    """The point x - rate * towards, moved into the box, where the gap closes; the rate; and the gap left there.

    Starts at `rate` (n,), which may be too large, and ends after that many steps or when no gap is left.
    """
    gain = None
    for step in range(steps):
        straight = torch.addcmul(x, towards, column(rate, x), value=-1)
        near = clip(straight, bounds)
        left = gap + dot(w, near - x)
        more = left.abs() > tolerance(x) * gap
        if step == steps - 1 or not more.any():
            break
        gain = w * towards if gain is None else gain
        slope = dot(gain, (straight == near).to(x.dtype))  # of what is not cut off
        if not (more & (slope > 0)).any():
            break
        rate = torch.where(more, rate + left / slope, rate).nan_to_num(0.0,0.0,0.0).clamp(min=0)
    return near, rate, left


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(n,) the sum over each sample of a * b."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def tolerance(x: Tensor) -> float:
    """The share of a gap that counts as none, some roundings of x's type."""
    return 64 * torch.finfo(x.dtype).eps
