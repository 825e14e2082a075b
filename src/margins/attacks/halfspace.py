"""The nearest point of a box on the far side of a hyperplane: what FAB and a DeepFool within a box step to."""

import math

import torch
from torch import Tensor

from margins.attacks.found import Bounds


def nearest_in_halfspace(x: Tensor, w: Tensor, gap: Tensor, norm: float, bounds: Bounds) -> Tensor:
    """The shortest step r (B, ...) with gap + w . r <= 0 and x + r within the box, each sample by itself.

    x, w: (B, ...), x within the box; gap: (B,); norm 2 or math.inf; bounds (low, high), or None for no box. Zero where
    gap <= 0. Where the box holds no such point, the step to the corner where w . r is least; zero where w is zero.
    Entries where w is 0 stay. Exact to rounding: gap + w . r is 0 within a few units in the last place of gap.

    The step is -sign(w_i) min(t s_i, room_i), with room_i the way to the face of the box and s_i = 1 (linf) or |w_i|
    (l2), for the number t at which the sum of |w_i| min(t s_i, room_i) is gap. That sum grows with t, is concave and
    made of straight pieces, so Newton's method from t = 0 climbs to the solution without passing it and ends exactly
    there, after few rounds of O(D): each puts at least one more entry at its face, mostly very many.
    """
    shape, x, w = x.shape, x.flatten(1), w.flatten(1)
    tiny, huge = torch.finfo(w.dtype).tiny, torch.finfo(w.dtype).max
    scale = w.abs().amax(1, keepdim=True).clamp(min=tiny)  # so that squares of small entries don't underflow
    w, gap = w / scale, torch.where(gap > 0, gap, 0)[:, None].div(scale).clamp(max=huge)
    size = w.abs()
    weight = size if norm == math.inf else size.square()
    if bounds is None:
        t = gap / weight.sum(1, keepdim=True).clamp(min=1)
        return (-t * (w.sign() if norm == math.inf else w)).reshape(shape)
    # No boolean masks from here on: on a CPU they cost ten times the arithmetic.
    corner = torch.minimum(torch.maximum(-huge * w, bounds[0] - x), bounds[1] - x)
    room = corner.abs()
    face = room if norm == math.inf else room / size.clamp(min=tiny**0.5)
    t = _newton(weight, size * room, face, gap)
    reach = t if norm == math.inf else t * size
    return torch.minimum(torch.maximum(corner, -reach), reach).reshape(shape)


def _newton(weight: Tensor, full: Tensor, face: Tensor, gap: Tensor) -> Tensor:
    """The t (B, 1) at which the sum of weight * min(t, face) is gap (B, 1); huge where it never is.

    weight, face and their product full: (B, D), at least 0.
    """
    t, huge, still = torch.zeros_like(gap), torch.finfo(gap.dtype).max, torch.empty_like(face)
    while True:
        torch.le(face, t, out=still)  # 1 where an entry is at its face and moves no further, else 0
        slope = (weight - still * weight).sum(1, keepdim=True)
        further = torch.where(slope > 0, (gap - (still * full).sum(1, keepdim=True)) / slope, huge).clamp(max=huge)
        further = torch.where(gap > 0, further, 0)
        if not (further > t).any():
            return t
        t = torch.maximum(t, further)
