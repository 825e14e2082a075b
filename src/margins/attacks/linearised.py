"""The nearest point where a linear gap closes, exactly, within a box too: the step of minimum-norm attacks.

The move to it is -rate * w in l2 and -rate * sign(w) in linf, each entry cut off at the box. The gap falls as the rate
grows, piecewise linearly and convexly: Newton's method from below never goes too far, and a few steps make it exact.
"""

import math

import torch
from torch import Tensor

from margins.attacks.found import Bounds
from margins.attacks.geometry import clip, column, length


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
    scale = w.flatten(1).abs().amax(1)
    scale = torch.where(scale > 0, scale, 1.0)
    w, gap = w / column(scale, w), gap / scale  # so that squares do not underflow
    towards = -w if norm == 2 else -w.sign()
    gain = (w * -towards).flatten(1)
    slope = gain.sum(1)
    rate = torch.where(slope > 0, gap / slope, 0.0)
    straight = torch.addcmul(x, towards, column(rate, x))
    size = torch.where(slope > 0, rate * length(towards, norm), math.inf)
    if bounds is None:
        return straight, size
    near = moved_in = clip(straight, bounds)
    closes = slope > 0
    for _ in range(gain.shape[1]):
        left = gap + torch.linalg.vecdot(w.flatten(1), (near - x).flatten(1))
        more = closes & (left > 64 * torch.finfo(x.dtype).eps * gap)
        if not more.any():
            break
        slope = torch.linalg.vecdot(gain, (straight == near).to(gain.dtype).flatten(1))  # of what is not yet cut off
        closes = closes & ~(more & (slope <= 0))
        rate = torch.where(more & closes, rate + left / slope, rate)
        straight = torch.addcmul(x, towards, column(rate, x))
        near = clip(straight, bounds)
    diameter = (bounds[1] - bounds[0]) * (gain.shape[1] ** 0.5 if norm == 2 else 1)
    size = torch.where(closes, length(near - x, norm), size + diameter)
    near = moved_in if cut else torch.where(column(closes, x), near, moved_in)
    return near, torch.where((near == x).flatten(1).all(1) & (gap > 0), math.inf, size)
