"""What every attack returns, and the frozen, counted model that it asks."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from margins import checks
from margins.errors import MarginsError
from margins.losses import Loss
from margins.models import frozen

Bounds = tuple[float, float] | None

#: So few samples at a time stay in the caches of a CPU; and from this share of solved ones on the others close ranks.
CHUNK, SOLVED = 334, 1 / 16


@dataclass(frozen=True)
class Calls:
    """How often the model was asked, in samples: a batch of B counts B, and one that shrinks counts what is left."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: "Calls") -> "Calls":
        return Calls(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True, eq=False)
class Found:
    """What an attack found.

    x_adv: like x; x itself where x was misclassified already. Where the attack failed see InBall, Nearest.
    success: (B,) bool, whether x_adv is misclassified; true for a sample that was from the start.
    distance: (B,) the length of x_adv - x in `norm`; of a minimum-norm attack infinite where it failed.
    calls: forward and backward passes, counted in samples.
    """

    x_adv: Tensor
    success: Tensor
    distance: Tensor
    calls: Calls
    norm: float


@dataclass(frozen=True, eq=False)
class InBall(Found):
    """Of a budget attack: x_adv lies within eps of x; where it failed it is the last or best point tried, or x."""

    eps: float


@dataclass(frozen=True, eq=False)
class Nearest(Found):
    """Of a minimum-norm attack: the nearest misclassified point that it met, x where it met none.

    Its distance is an upper bound of the margin.
    """


class Oracle:
    """The frozen model with its labels: logits and input gradients of per-sample losses, counted.

    Made by `attacking`. Samples may leave the batch: `x` and `y` are given with each question.
    """

    def __init__(self, model: nn.Module, classes: int):
        self.model, self.classes = model, classes
        self.calls = Calls()

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """(B, K), without a graph: B forwards."""
        self.calls += Calls(forward=len(x))
        return self.model(x)

    def gradient(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of loss(logits, y) to x, the loss (B,) and the logits, detached: B forwards and backwards.

        An entry that is nan or infinite (the model's own doing) counts as 0, so that other pixels go on.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = self.model(x)
            value = loss(logits, y)
            gradient = input_gradient(value.sum(), x)
        self.calls += Calls(len(x), len(x))
        return finite(gradient), value.detach(), logits.detach()

    def wrong(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) bool, whether x is misclassified; logits with a nan count as misclassified: B forwards."""
        return misclassified(self.logits(x), y)


@contextmanager
def attacking(model: nn.Module, x: Tensor, y: Tensor, bounds: Bounds) -> Iterator[tuple[Oracle, Tensor, Tensor]]:
    """Check what every attack is given, and yield (oracle, logits at x, wrong at x): B forwards.

    The model is frozen within the block and as it was after it, whatever happens. Raises MarginsError where model, x
    and y don't fit together, x leaves the box, the model changes its input, or its output is not finite logits (B, K)
    of x's type.
    """
    checks.inside(x, bounds)
    checks.network(model, x)
    with frozen(model):
        with torch.no_grad():
            asked = x.detach().clone()
            logits = checks.logits(model(asked), len(x))
        if logits.dtype != x.dtype:
            raise MarginsError(f"logits must be {x.dtype}, as x is, but the model returns {logits.dtype}: .to(x.dtype)")
        if not torch.equal(asked, x):
            raise MarginsError("model must leave its input as it is, but changes it in place, as x.sub_(mean) does")
        checks.labels(y, len(x), logits.shape[1], x.device)
        oracle = Oracle(model, logits.shape[1])
        oracle.calls += Calls(forward=len(x))
        yield oracle, logits, misclassified(logits, y)


def rivals(logits: Tensor, y: Tensor, most: int) -> Tensor:
    """(B, at most `most`) the other classes than y, those of the largest logits (B, K) first."""
    order = logits.scatter(1, y[:, None], -math.inf).argsort(dim=1, descending=True, stable=True)
    return order[:, : min(most, logits.shape[1] - 1)]


def parts(rows: Tensor) -> tuple[Tensor, ...]:
    """Even pieces of at most CHUNK rows (n, ...) on a CPU; one piece elsewhere; none of nothing."""
    return rows.chunk(-(-len(rows) // CHUNK) if rows.device.type == "cpu" else 1) if len(rows) else ()


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) bool; a tie between y and another class, and logits with a nan, count as misclassified."""
    own = logits.gather(1, y[:, None])
    return ~(own > logits.scatter(1, y[:, None], -math.inf)).all(1)


def input_gradient(value: Tensor, x: Tensor, keep: bool = False) -> Tensor:
    """The gradient of a scalar to x; zeros where it does not depend on x."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, retain_graph=keep, allow_unused=True, materialize_grads=True)
    return gradient


def finite(gradient: Tensor) -> Tensor:
    """The gradient with 0 in place of nan and infinity."""
    return gradient if torch.isfinite(gradient.sum()) else gradient.nan_to_num(0.0, 0.0, 0.0)
