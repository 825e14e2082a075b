"""Balls and boxes: lengths, steps, projections and random starts, each sample by itself. norm is 2 or math.inf."""

import math

import torch
from torch import Tensor

from margins.attacks.found import Bounds
from margins.attacks.noise import Noise


def column(values: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to multiply a tensor (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def length(delta: Tensor, norm: float) -> Tensor:
    """(B,) the lp length of each sample of delta (B, ...)."""
    if norm == math.inf:
        return delta.flatten(1).abs().amax(1)  # on a CPU far faster than vector_norm
    return torch.linalg.vector_norm(delta.flatten(1), norm, dim=1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) the inner product of each sample of a and b (B, ...)."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def direction(gradient: Tensor, norm: float, floor: float = 0.0) -> Tensor:
    """The direction of steepest ascent of length 1: the sign for linf, gradient / max(length, floor) for l2.

    Zero where the gradient is zero. Also one whose square underflows or overflows has its length.
    """
    if norm == math.inf:
        return gradient.sign()
    size, tiny = length(gradient, 2), torch.finfo(gradient.dtype).tiny
    scale, least = torch.ones_like(size), 1e3 * tiny**0.5
    odd = (size < least) | size.isinf()
    if floor < least and odd.any():
        scale = torch.where(odd, gradient.flatten(1).abs().amax(1).clamp(min=tiny), scale)
        gradient = gradient / column(scale, gradient)
        size = length(gradient, 2)
    size = torch.maximum(size, floor / scale)
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


def into_both(x_adv: Tensor, x: Tensor, norm: float, eps: float, bounds: Bounds) -> Tensor:
    """x_adv moved to the nearest point of ball and box; x lies in the box.

    For l2 that is x + clip(t delta), where t solves |clip(t delta)| = eps: into the ball and then into the box would
    end short of the sphere, and the other way round off the best point. |clip(t delta)|^2 is concave and piecewise
    linear in t^2, so that Newton's method is on the inside from its first step on, and ends after a few.
    """
    if norm == math.inf or bounds is None:
        return clip(into_ball(x_adv, x, norm, eps), bounds)
    delta, low, high = x_adv - x, bounds[0] - x, bounds[1] - x
    part = delta.clamp(low, high)
    size = length(part, 2)
    outside = size > eps
    scale, least = torch.where(outside, eps / size, 1.0), eps / length(delta, 2)
    for _ in range(20):
        if not outside.any():
            break
        whole = delta * column(scale, delta)
        part = whole.clamp(low, high)
        mask = torch.eq(part, whole, out=torch.empty_like(part))  # as 0 and 1: `where` is ten times slower on a CPU
        free = length(mask.mul_(part), 2).square()
        excess = length(part, 2).square() - eps**2
        outside &= (excess.abs() > 4e-7 * eps**2) & ((free > 0) | (excess > 0))
        closer = torch.maximum(scale * (1 - excess / free).clamp(min=0).sqrt(), least)  # t is at least eps / |delta|
        scale = torch.where(outside, closer, scale)
    return clip(x + part, bounds)


#: The random points of a ball that an attack can start from.
STARTS = ("uniform", "normal", "sphere", "image")


def random_start(kind: str, x: Tensor, norm: float, eps: float, bounds: Bounds, noise: Noise) -> Tensor:
    """A random point near each x, within ball and box, of one of these kinds.

    "uniform" in the ball; "normal": 0.001 x a standard normal away; "sphere": at distance eps, in any direction (for
    linf at a corner of the ball); "image": a uniform image of the box, shrunk onto the ball. Then clipped.
    """
    size = math.prod(x.shape[1:])
    if kind == "image":
        image = noise.uniform(size).to(x.dtype) * (bounds[1] - bounds[0]) + bounds[0]
        return clip(into_ball(image.reshape(x.shape), x, norm, eps), bounds)
    if kind == "normal":
        delta = noise.normal(size) * 0.001
    elif norm == math.inf:
        delta = eps * (noise.signs(size) if kind == "sphere" else noise.uniform(size) * 2 - 1)
    else:
        delta = eps * direction(noise.normal(size), 2)
        if kind == "uniform":
            delta *= noise.uniform(1) ** (1 / size)
    return clip(into_ball(x + delta.to(x.dtype).reshape(x.shape), x, norm, eps), bounds)
