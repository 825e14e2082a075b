"""A ReLU and a maximum between two linear functions, wherever their inputs keep within known bounds.

Put into each other from the last layer back to the first, they leave a linear function of x that is, in all of a ball,
no more than a linear function of the outputs: CROWN (Zhang et al. 2018). Nothing here is estimated; what is said of all
points holds but for rounding in float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margins.attacks.found import Bounds
from margins.attacks.geometry import clip
from margins.margin.layers import Convolution, Dense, Pool


@dataclass(frozen=True, eq=False)
class Ball:
    """The points within eps (B,) of x (B, n) in the l2 or linf norm and within the box, if there is one."""

    x: Tensor
    eps: Tensor
    norm: float
    bounds: Bounds

    def sides(self) -> tuple[Tensor, Tensor]:
        """(B, n) each: the range of every entry."""
        eps = self.eps[:, None]
        return clip(self.x - eps, self.bounds), clip(self.x + eps, self.bounds)

    def least(self, a: Tensor) -> Tensor:
        """(B, R): no more than a . z in all the ball, a (B, R, n); attained for linf, and for l2 but for the box."""
        if self.norm == 2:
            return dot(a, self.x) - self.eps[:, None] * torch.linalg.vector_norm(a, 2, dim=2)
        low, high = self.sides()
        return dot(a, (low + high) / 2) - dot(a.abs(), (high - low) / 2)

    def at(self, index: Tensor) -> "Ball":
        """The balls of the patches index (P, m) of x, as a batch of B P."""
        x, eps = self.x[:, index].flatten(0, 1), self.eps.repeat_interleave(len(index))
        return Ball(x, eps, self.norm, self.bounds)


@dataclass(frozen=True, eq=False)
class ReluBounds:
    """below z <= max(z, 0) <= slope z + above for low <= z <= high; all (B, n)."""

    below: Tensor
    slope: Tensor
    above: Tensor

    @property
    def inputs(self) -> int:
        return self.below.shape[1]

    @classmethod
    def between(cls, low: Tensor, high: Tensor) -> "ReluBounds":
        on, off = low >= 0, high <= 0
        chord = torch.where(on, 1.0, torch.where(off, 0.0, high / (high - low)))
        # Any slope from 0 to 1 is sound below; of these two, the one with the smaller area between the bounds.
        below = torch.where(on | off, chord, (high > -low).to(low.dtype))
        return cls(below, chord, torch.where(on | off, 0.0, -chord * low))

    def at(self, index: Tensor) -> "ReluBounds":
        """The bounds of the patches index (P, m), as a batch of B P."""
        return ReluBounds(*(part[:, index].flatten(0, 1) for part in (self.below, self.slope, self.above)))

    def substitute(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of z, and a constant (B, R), that are together no more than a . max(z, 0)."""
        rising, falling = a.clamp(min=0), a.clamp(max=0)
        return rising * self.below[:, None] + falling * self.slope[:, None], dot(falling, self.above)


@dataclass(frozen=True, eq=False)
class PoolBounds:
    """z_i <= the maximum of a window <= slope z_j + above; i and j, places in the window, and the others (B, n_out)."""

    layer: Pool
    i: Tensor
    j: Tensor
    slope: Tensor
    above: Tensor

    @property
    def inputs(self) -> int:
        return self.layer.inputs

    @classmethod
    def between(cls, layer: Pool, low: Tensor, high: Tensor) -> "PoolBounds":
        # z_j has the largest upper bound, v is the next largest: the maximum is at most max(z_j, v), which is convex in
        # z_j and so below its chord between low_j and high_j.
        lows, highs = low[:, layer.windows], high[:, layer.windows]
        i, j = lows.argmax(2), highs.argmax(2)
        low_j, high_j = (part.gather(2, j[:, :, None])[:, :, 0] for part in (lows, highs))
        start = torch.maximum(highs.scatter(2, j[:, :, None], -math.inf).amax(2), low_j)
        slope = torch.where(high_j > low_j, (high_j - start) / (high_j - low_j), 1.0)
        return cls(layer, i, j, slope, start - slope * low_j)

    def at(self, index: Tensor, layer: Pool) -> "PoolBounds":
        """The bounds of the patches index (P, m) of the output, as a batch of B P; `layer` pools such a patch."""
        return PoolBounds(layer, *(part[:, index].flatten(0, 1) for part in (self.i, self.j, self.slope, self.above)))

    def substitute(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of z, and a constant (B, R), that are together no more than a . maximum."""
        rising, falling = a.clamp(min=0), a.clamp(max=0)
        back = a.new_zeros(*a.shape[:2], self.inputs)
        for place, part in ((self.i, rising), (self.j, falling * self.slope[:, None])):
            entry = self.layer.windows.expand(len(a), -1, -1).gather(2, place[:, :, None])[:, :, 0]
            back.scatter_add_(2, entry[:, None].expand_as(a), part)
        return back, dot(falling, self.above)


Bounded = Dense | Convolution | ReluBounds | PoolBounds


def lower_line(steps: Sequence[Bounded], a: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (B, R, n) of x, and a constant (B, R), that are together no more than a . (the last output)."""
    constant = a.new_zeros(a.shape[:2])
    for step in reversed(steps):
        if isinstance(step, Dense | Convolution):
            constant = constant + a @ step.bias
            a = step.back(a)
        else:
            a, shift = step.substitute(a)
            constant = constant + shift
    return a, constant


def dot(a: Tensor, z: Tensor) -> Tensor:
    """(B, R): a . z for a (B, R, n) and z (B, n)."""
    return (a @ z[:, :, None])[:, :, 0]
