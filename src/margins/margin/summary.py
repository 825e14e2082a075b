"""What a set of margins says: least and average margin, and the robust accuracy at any eps."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from margins import checks
from margins.errors import MarginsError

_Z = 1.959963984540054  # of a 95 % interval


class Rate(NamedTuple):
    """A share of samples in [0, 1], with its 95 % interval (Wilson 1927) over the draw of the samples; nan for none."""

    estimate: float
    low: float
    high: float


def rate(right: Tensor) -> Rate:
    """The share of a bool tensor (N,) that is true. Raises MarginsError for anything else."""
    if not isinstance(right, Tensor) or right.dtype != torch.bool or right.ndim != 1:
        given = f"{right.dtype} of shape {tuple(right.shape)}" if isinstance(right, Tensor) else type(right).__name__
        raise MarginsError(f"right must be a bool tensor of shape (N,), but is {given}")
    n, hits = len(right), int(right.sum())
    if not n:
        return Rate(math.nan, 0.0, 1.0)
    centre, half = hits + _Z**2 / 2, _Z * math.sqrt(hits * (n - hits) / n + _Z**2 / 4)
    low, high = (centre - half) / (n + _Z**2), (centre + half) / (n + _Z**2)
    return Rate(hits / n, low if hits else 0.0, high if hits < n else 1.0)


def minimum(margins: Tensor) -> float:
    """AMR's minimum margin (section 2): the least signed margin. margins (B,), B >= 1, not nan; else MarginsError."""
    return _margins(margins).min().item()


def average(margins: Tensor) -> float:
    """AMR's average margin (section 2): the mean of |margin|, so wrong samples count with their distance, unsigned."""
    return _margins(margins).abs().mean().item()


def accuracy_at(margins: Tensor, eps: float) -> Rate:
    """The share of samples that are right everywhere within eps >= 0, from signed distances (B,), B >= 1, not nan.

    Those with a margin above eps. Of an attack's distances (`Bracket.upper`, `found.distance`) it is the accuracy that
    the attack leaves, at all eps from one run, and an upper bound of the true robust accuracy; of certified ones
    (`Bracket.lower`) a lower bound. Raises MarginsError for other arguments.
    """
    return rate(_margins(margins) > checks.number("eps", eps, 0))


def _margins(margins: Tensor) -> Tensor:
    if not isinstance(margins, Tensor) or margins.ndim != 1 or not len(margins) or torch.isnan(margins).any():
        raise MarginsError("margins must be a tensor of shape (B,) with B >= 1 and no nan")
    return margins
