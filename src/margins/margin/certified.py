"""A radius within which no point has another class: proven, by linear bounds."""

import math

import torch
from torch import Tensor, nn

from margins import checks
from margins.attacks.found import Bounds
from margins.attacks.halfspace import nearest_in_halfspace
from margins.margin.chain import layers
from margins.margin.layers import Dense, Layer, Relu
from margins.margin.propagation import NUMBERS, relaxed
from margins.margin.relaxation import Ball, dot, lower_line

_PRECISION = 0.01  # the share of the radius that the search leaves open
_TRIALS = 100  # far more than it takes, but for a model without a boundary and without a box


@torch.no_grad()
def certified_radius(model: nn.Module, x: Tensor, *, norm: float = 2, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """A proven lower bound r of the distance from each x to the nearest point of another class, float64 (B,).

    No z of the box `bounds` (None: no box) with ||z - x|| < r, in l2 or linf, is put into another class than x. No
    estimate but a proof, by linear bounds (CROWN, Zhang et al. 2018), as far as float64 rounding reaches; it is about
    the weights as they are and float64 arithmetic. On a linear model r is the distance; on a network it falls short of
    it by what the bounds lose, a factor that grows with depth and width. 0 where two classes tie at x, infinite where
    all of the box is proven to be of one class.

    model: Linear, Conv2d, ReLU, MaxPool2d, Flatten and Dropout in a torch.nn.Sequential, or a Linear, MLP or CNN of
    margins.models, in evaluation mode whatever its mode is. x (B, ...), in the box. The radius is the largest that the
    bounds prove, to 1 %. Cost: some ten times the bounds of all layers; those of one dense layer with H neurons are 2 H
    backwards a sample through the layers before, and a convolution's are 2 backwards a neuron through the patch that it
    sees. Memory is bounded but for the layers' own size. Raises MarginsError for other models and arguments.
    """
    norm, bounds = checks.norm(norm, (2, math.inf)), checks.box(bounds)
    checks.network(model, checks.inside(x, bounds))
    chain, inputs = layers(model, x), x.detach().double().flatten(1)
    rows = max((len(layer.weight) for layer in chain[1:-1] if isinstance(layer, Dense)), default=1)
    widest = max(layer.inputs for layer in chain if not isinstance(layer, Relu))
    parts = inputs.split(max(1, NUMBERS // (rows * widest)))
    return torch.cat([_search(chain, part, norm, bounds) for part in parts])


def _search(chain: list[Layer], x: Tensor, norm: float, bounds: Bounds) -> Tensor:
    """Bounds that hold within eps prove a radius of at most eps: find the eps where they prove most, by bisection."""
    gaps, proven = _gaps(chain, x), x.new_zeros(len(x))
    low, high = bounds or (-math.inf, math.inf)
    farthest = torch.linalg.vector_norm(torch.maximum(x - low, high - x), norm, dim=1)
    # With eps 0 the bounds are the model linearised at x. Its distance proves nothing, but is a scale to begin with.
    scale = _proven_within(chain, Ball(x, proven, norm, bounds), gaps)
    eps = torch.minimum(torch.where(scale.isfinite(), scale / 2, 1.0), farthest)
    failed = torch.full_like(eps, math.inf)  # the least eps within which a gap may close
    searching = scale > 0
    for _ in range(_TRIALS):
        i = searching.nonzero()[:, 0]
        if not len(i):
            break
        found = _proven_within(chain, Ball(x[i], eps[i], norm, bounds), gaps[i])
        closed = found <= (1 + 1e-12) * eps[i]
        failed[i] = torch.where(closed, torch.minimum(failed[i], eps[i]), failed[i])
        whole = ~closed & (eps[i] >= farthest[i])
        proven[i] = torch.where(whole, math.inf, torch.maximum(proven[i], torch.minimum(found, eps[i])))
        searching &= proven.isfinite() & (failed.isinf() | (failed - proven > _PRECISION * failed))
        between = torch.where(proven > 0, (proven + failed) / 2, failed / 4)
        eps = torch.where(failed.isinf(), torch.minimum(2 * eps, farthest), between)
    return proven


def _gaps(chain: list[Layer], x: Tensor) -> Tensor:
    """(B, K - 1, K): the rows whose products with the logits are f_c - f_j, c the class of x."""
    logits = x
    for layer in chain:
        logits = layer.forward(logits)
    classes = logits.shape[1]
    predicted = logits.argmax(1)[:, None]
    others = (predicted + torch.arange(1, classes, device=x.device)) % classes
    eye = torch.eye(classes, dtype=x.dtype, device=x.device)
    return eye[predicted] - eye[others]


def _proven_within(chain: list[Layer], ball: Ball, gaps: Tensor) -> Tensor:
    """(B,) the distance up to which no gap closes, if it is at most ball.eps."""
    a, constant = lower_line(relaxed(chain, ball), gaps)
    value = dot(a, ball.x) + constant
    step = nearest_in_halfspace(
        ball.x.repeat_interleave(a.shape[1], 0), a.flatten(0, 1), value.flatten(), ball.norm, ball.bounds
    ).view_as(a)
    distance = torch.linalg.vector_norm(step, ball.norm, dim=2)
    closed = value + (a * step).sum(2) <= 1e-9 * value
    return torch.where(closed | (value <= 0), distance, math.inf).amin(1)
