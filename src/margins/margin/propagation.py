"""From layer to layer: the range of every number in a network while its input moves in a ball."""

import torch
from torch import Tensor

from margins.margin.layers import Convolution, Dense, Layer, Pool, Relu, patches
from margins.margin.relaxation import Ball, Bounded, PoolBounds, ReluBounds, lower_line

NUMBERS = 2**23  # coefficients in memory at a time: 64 MiB of float64


def relaxed(chain: list[Layer], ball: Ball) -> list[Bounded]:
    """The chain with each Relu and Pool between linear functions, for all inputs in the ball.

    A first layer's range is exact (l2: but for the box). A later Dense takes its from a linear bound through all
    layers before, so does a Convolution after layers without padding, patch by patch; another Convolution has interval
    arithmetic.
    """
    low, high = ball.sides()
    steps: list[Bounded] = []
    for layer in chain:
        if isinstance(layer, Relu | Pool):
            between = ReluBounds.between(low, high) if isinstance(layer, Relu) else PoolBounds.between(layer, low, high)
            steps.append(between)
            low, high = layer.forward(low), layer.forward(high)
            continue
        steps.append(layer)
        if layer is chain[-1]:
            break  # nobody asks for the range of the logits
        middle, half = layer.forward((low + high) / 2), layer.spread((high - low) / 2)
        ranges = [(middle - half, middle + half)]
        if len(steps) == 1 and ball.norm == 2:
            middle, half = layer.forward(ball.x), ball.eps[:, None] * layer.lengths()
            ranges.append((middle - half, middle + half))
        elif len(steps) > 1 and isinstance(layer, Dense):
            ranges.append(_range(steps, ball, layer.weight.new_ones(len(layer.weight)).diag()))
        elif len(steps) > 1 and _local(steps):
            ranges.append(_range_of_patches(steps, ball))
        low = torch.stack([each[0] for each in ranges]).amax(0)
        high = torch.stack([each[1] for each in ranges]).amin(0)
    return steps


def _range(steps: list[Bounded], ball: Ball, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(B, R) each: rows (R, n) times the last step's output is at least and at most this, by a linear bound."""
    low, high = [], []
    for part in rows.split(max(1, NUMBERS // max(step.inputs * max(1, len(ball.x)) for step in steps))):
        for sign, side in ((1, low), (-1, high)):
            a, constant = lower_line(steps, (sign * part).expand(len(ball.x), -1, -1))
            side.append(sign * (ball.least(a) + constant))
    return torch.cat(low, 1), torch.cat(high, 1)


def _local(steps: list[Bounded]) -> bool:
    """Whether each entry of the output sees one patch of the input, the same way everywhere."""
    return all(
        isinstance(step, ReluBounds | PoolBounds) or (isinstance(step, Convolution) and step.padding == (0, 0))
        for step in steps
    )


def _range_of_patches(steps: list[Bounded], ball: Ball) -> tuple[Tensor, Tensor]:
    """As `_range` for all outputs of a last Convolution: each patch of the input is a small network's input."""
    channels, *grid = steps[-1].out_shape
    shape, side, jump = steps[-1].out_shape, (1, 1), (1, 1)
    plan = []
    for step in reversed(steps):
        index = _index(shape, side, jump, grid, ball.x.device)
        if isinstance(step, ReluBounds):
            plan.append((step, None, index))
            continue
        layer = step.layer if isinstance(step, PoolBounds) else step
        side = tuple((s - 1) * t + k for s, t, k in zip(side, layer.stride, layer.kernel, strict=True))
        jump = tuple(j * t for j, t in zip(jump, layer.stride, strict=True))
        plan.append((step, layer.resized(*side), index))
        shape = layer.shape
    index = _index(shape, side, jump, grid, ball.x.device)
    widest = max(layer.inputs for _, layer, _ in plan if layer is not None)
    size = max(1, NUMBERS // (widest * channels * max(1, len(ball.x))))
    ranges = []
    for part in torch.arange(len(index), device=index.device).split(size):
        local = []
        for step, layer, places in reversed(plan):
            if isinstance(step, Convolution):
                local.append(layer)
            else:
                local.append(step.at(places[part]) if layer is None else step.at(places[part], layer))
        found = _range(local, ball.at(index[part]), ball.x.new_ones(channels).diag())
        ranges.append([each.unflatten(0, (len(ball.x), len(part))) for each in found])
    low, high = (torch.cat(each, 1).transpose(1, 2).flatten(1) for each in zip(*ranges, strict=True))
    return low, high


def _index(shape, side, jump, grid, device) -> Tensor:
    """(P, m): the flat entries of an image of this shape that each of the grid's P positions sees."""
    index = patches(shape, side, jump, device)[:, : grid[0], : grid[1]]
    return index.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
