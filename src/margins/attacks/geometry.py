"""Balls and boxes: lengths, steps, projections and random starts, each sample by itself. norm is 2 or math.inf."""

import math

import torch
from torch import Tensor

from margins.attacks.found import Bounds


def column(values: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to multiply a tensor (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def length(delta: Tensor, norm: float) -> Tensor:
    """(B,) the lp length of each sample of delta (B, ...)."""
    return torch.linalg.vector_norm(delta.flatten(1), norm, dim=1)


def direction(gradient: Tensor, norm: float, floor: float = 0.0) -> Tensor:
    """The direction of steepest ascent of length 1: the sign for linf, gradient / max(length, floor) for l2.

    Zero where the gradient is zero. With floor 0 a gradient whose square underflows still has length 1.
    """
    if norm == math.inf:
        return gradient.sign()
    size = length(gradient, 2)
    if floor:
        return gradient / column(size.clamp(min=floor), gradient)
    tiny = size < torch.finfo(size.dtype).tiny ** 0.5 * 1e3
    if tiny.any():
        gradient = torch.where(
            column(tiny, gradient),
            gradient / column(gradient.flatten(1).abs().amax(1), gradient).clamp(min=torch.finfo(size.dtype).tiny),
            gradient,
        )
        size = length(gradient, 2)
    return gradient / column(torch.where(size > 0, size, 1.0), gradient)


def clip(x: Tensor, bounds: Bounds) -> Tensor:
    """x moved into the box."""
    return x if bounds is None else x.clamp(*bounds)


def into_ball(x_adv: Tensor, x: Tensor, norm: float, eps: float) -> Tensor:
    """x_adv moved into the ball of radius eps about x: each entry clamped for linf, shrunk towards x for l2."""
    if norm == math.inf:
        return torch.minimum(torch.maximum(x_adv, x - eps), x + eps)
    delta = x_adv - x
    size = length(delta, 2)
    return x + delta * column((eps / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1), delta)
