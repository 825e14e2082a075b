"""What every public function asks of its arguments: each check names the argument, what was given, what is allowed."""

import math
import numbers
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from margins.errors import MarginsError


def tensor(name: str, value, ndim: int | None = None, length: int | None = None) -> Tensor:
    """`value` if it is a finite floating-point tensor with that many dimensions and that length; else MarginsError."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        given = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise MarginsError(f"{name} must be a tensor of floating-point numbers, but is a {given}")
    if ndim is not None and (value.ndim != ndim or (length is not None and len(value) != length)):
        wanted = f"{ndim} dimensions" if length is None else f"the shape ({length},)"
        raise MarginsError(f"{name} must have {wanted}, but has the shape {tuple(value.shape)}")
    if value.is_meta:
        raise MarginsError(f"{name} must hold numbers, but is on the device meta, which holds none")
    if not torch.isfinite(value).all():
        raise MarginsError(f"{name} must be finite, but has entries that are nan or infinite")
    return value


def samples(x, inputs: int, dtype: torch.dtype) -> Tensor:
    """x (B, ...) of that type as (B, inputs)."""
    if tensor("x", x).ndim < 2 or math.prod(x.shape[1:]) != inputs:
        raise MarginsError(f"x must have the shape (B, ...) with {inputs} numbers a sample, but has {tuple(x.shape)}")
    if x.dtype != dtype:
        raise MarginsError(f"x must be {dtype}, as the weights are, but is {x.dtype}")
    return x.flatten(1)


def logits(value, batch: int) -> Tensor:
    """`value` if it is finite, float32 or float64, (batch, K) with K >= 2: what a classifier's output must be."""
    if not isinstance(value, Tensor):
        raise MarginsError(
            f"logits must be a tensor, but the model returned a {type(value).__name__}: wrap it in a module that"
            " returns its logits (B, K) alone"
        )
    if value.ndim != 2 or len(value) != batch or value.shape[1] < 2:
        single = value.shape in ((batch,), (batch, 1))
        advice = "; for two classes and one logit z let the model return those of both, (0, z)" if single else ""
        raise MarginsError(
            f"logits must have the shape ({batch}, K) with K >= 2, but have {tuple(value.shape)}{advice}"
        )
    return precise("logits", tensor("logits", value))


def precise(name: str, value: Tensor) -> Tensor:
    """`value` if it is float32 or float64: with fewer digits neither distances nor budgets mean what they say."""
    if value.dtype not in (torch.float32, torch.float64):
        raise MarginsError(
            f"{name} must be float32 or float64, but is {value.dtype}: call .float() on model and x, and leave autocast"
        )
    return value


def labels(y, batch: int, classes: int, device: torch.device | None = None) -> Tensor:
    """`y` if it is int64 of shape (batch,) with values in 0..classes-1, on that device, and classes >= 2."""
    if classes < 2:
        raise MarginsError(f"a margin needs at least 2 classes, but there is {classes}")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != (batch,):
        given = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise MarginsError(f"y must be int64 of shape ({batch},), but is {given}")
    if y.is_meta or device not in (None, y.device):
        raise MarginsError(f"y must be on x's device {device or 'cpu'}, but is on {y.device}")
    if batch and not (y.min() >= 0 and y.max() < classes):
        raise MarginsError(f"y must lie in 0..{classes - 1}, but goes from {y.min()} to {y.max()}")
    return y


def box(bounds) -> tuple[float, float] | None:
    """`bounds` as (low, high) with low < high, or None for no box."""
    if bounds is None:
        return None
    pair = tuple(bounds) if isinstance(bounds, Iterable) and not isinstance(bounds, str) else ()
    if len(pair) != 2 or not all(_number(value) for value in pair) or not pair[0] < pair[1]:
        raise MarginsError(f"bounds must be (low, high) with low < high, or None for no box, but is {bounds!r}")
    return float(pair[0]), float(pair[1])


def inside(x, bounds: tuple[float, float] | None) -> Tensor:
    """x (B, ...), finite, of at least one dimension a sample and within the box."""
    if tensor("x", x).ndim < 2:
        raise MarginsError(f"x must have the shape (B, ...) with at least one dimension a sample, but has {x.shape}")
    if bounds is not None and x.numel() and not (x.min() >= bounds[0] and x.max() <= bounds[1]):
        raise MarginsError(
            f"x must lie in the box {bounds}, but goes from {x.min():.4g} to {x.max():.4g};"
            " normalisation belongs into the model, bounds=None is for inputs without a box"
        )
    return x


def network(model, x: Tensor) -> nn.Module:
    """`model` if it is a torch.nn.Module on x's device and of x's type, where gradients can be had."""
    if not isinstance(model, nn.Module):
        raise MarginsError(f"model must be a torch.nn.Module, but is a {type(model).__name__}")
    if torch.is_inference_mode_enabled() or x.is_inference():
        raise MarginsError("gradients are needed, which torch.inference_mode() forbids, within it and for its tensors")
    precise("x", x)
    for name, parameter in model.named_parameters():
        if parameter.device != x.device:
            raise MarginsError(f"model is on {parameter.device} ({name}), but x is on {x.device}")
        if parameter.is_floating_point() and parameter.dtype != x.dtype:
            raise MarginsError(f"model computes in {parameter.dtype} ({name}), but x is {x.dtype}")
    return model


def norm(value, allowed: tuple[float, ...] | None = None) -> float:
    """`value` if it is a p >= 1, among those allowed."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not value >= 1:
        raise MarginsError(f"norm must be a number p >= 1 (math.inf for the largest entry), but is {value!r}")
    if allowed is not None and value not in allowed:
        raise MarginsError(f"norm must be one of {', '.join(map(str, allowed))}, but is {value!r}")
    return float(value)


def number(name: str, value, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> float:
    """`value` as a finite number from low (`above`: greater than it) to high."""
    if not _number(value) or not (low < value if above else low <= value) or not value <= high:
        least = "" if low == -math.inf else f" {'greater than' if above else 'of at least'} {low:g}"
        most = "" if high == math.inf else f"{' and' if least else ''} at most {high:g}"
        raise MarginsError(f"{name} must be a finite number{least}{most}, but is {value!r}")
    return float(value)


def drops(name: str, value) -> tuple[tuple[float, float], ...]:
    """`value` as pairs (share of the training in [0, 1], multiplier of at least 0) in the order of their shares."""
    try:
        pairs = tuple((share, factor) for share, factor in value)
        good = all(0 <= share <= 1 and 0 <= factor < math.inf for share, factor in pairs)
        good = good and all(one[0] <= other[0] for one, other in pairwise(pairs))
    except (TypeError, ValueError):
        good = False
    if not good:
        raise MarginsError(f"{name} must be pairs (share of the training, multiplier), in order, but are {value!r}")
    return pairs


def whole(name: str, value, low: int = 0, high: int | None = None) -> int:
    """`value` if it is a whole number from low to high."""
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not good or value < low or (high is not None and value > high):
        allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise MarginsError(f"{name} must be a whole number {allowed}, but is {value!r}")
    return int(value)


def generator(value) -> torch.Generator | None:
    """`value` if it is a torch.Generator, or None for the default seed."""
    if value is not None and not isinstance(value, torch.Generator):
        raise MarginsError(f"generator must be a torch.Generator or None, but is {value!r}")
    return value


def choice(name: str, value, allowed: Iterable):
    """`value` if it is one of those allowed."""
    allowed = tuple(allowed)
    if not any(value is one or (type(value) is type(one) and value == one) for one in allowed):
        raise MarginsError(f"{name} must be one of {', '.join(map(repr, allowed))}, but is {value!r}")
    return value


def _number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
