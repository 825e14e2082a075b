"""AMR's regulariser: the average margin, of scores or of the features (AMR section 4, Eqs. 8 to 15)."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from margins import checks, losses
from margins.errors import MarginsError
from margins.margin.exact import feature_distance
from margins.penalties.context import ADDED, PLACES, Context, Part, Run, in_mode

#: How a margin a becomes a loss: H_tau(a) - H_0(a), H_tau(a), and min(max(-a, 0), tau), with H_s(a) = max(0, s - a).
READINGS = ("truncated", "hinge", "shifted")
_CHUNK = 1000  # samples at a time, where all data are asked


def truncated(margins: Tensor, tau: float) -> Tensor:
    """[a]_0^tau = min(max(a, 0), tau), elementwise: what the regulariser makes large (AMR, Eq. 9)."""
    return margins.clamp(0.0, tau)


def hinge(margins: Tensor, tau: float) -> Tensor:
    """H_tau(a) = max(0, tau - a), elementwise. H_tau - H_0 is tau - [a]_0^tau (AMR, Eq. 10, with its sign mended)."""
    return (tau - margins).clamp(min=0.0)


def feature_scores(features: Tensor, weight: Tensor) -> Tensor:
    """(B, K) of features (B, D): w_k . Phi with the rows of weight (K, D) at length 1, and no bias (AMR, Eq. 14).

    The least gap of these is the paper's distance in feature space, without the division by |w_y - w_k|, up to 2.
    """
    return nn.functional.linear(features, nn.functional.normalize(weight))


@dataclass
class AverageMargin(Part):
    """What Eq. 15 adds for each sample, (B,), up to a constant: a loss that falls as the margin a grows.

    tau: the truncation, in units of the scores.
    normalised: a is the least gap of `feature_scores`, as Eqs. 14 and 15 have it; else that of the logits, bias
        included, as in the authors' code.
    divided: with normalised false, each gap of logits is divided by |w_y - w_k|: then a is the exact distance to the
        boundary in feature space, and on a linear model the margin itself, which neither paper nor code has.
    reading: "truncated" is tau - [a]_0^tau, Eq. 15: without gradient where a sample is wrong or its margin beyond tau.
        "hinge" is H_tau(a), the convex part of it: wrong samples have a gradient too. The released code adds
        `WrongMargin`, the concave part. "shifted" is [-a]_0^tau, the code's for the CIFAR CNN: zero for every correctly
        classified sample, so that no margin is promoted.

    Costs nothing beside a cross-entropy of the same samples. Raises MarginsError for a model
    whose `head` is not a linear layer, unless the margin is that of the logits.
    """

    tau: float
    reading: str = "truncated"
    normalised: bool = True
    divided: bool = field(default=False, metadata=ADDED)
    places = PLACES

    def __post_init__(self):
        checks.number("tau", self.tau, 0, above=True)
        checks.choice("reading", self.reading, READINGS)
        checks.choice("normalised", self.normalised, (True, False))
        if checks.choice("divided", self.divided, (True, False)) and self.normalised:
            raise MarginsError("divided: a distance is of the logits, so normalised must be False")

    @property
    def features(self) -> bool:
        return self.normalised

    def begin(self, run: Run) -> None:
        super().begin(run)
        head = getattr(run.model, "head", None)
        if (self.normalised or self.divided) and not isinstance(head, nn.Linear):
            raise MarginsError(f"model: a margin of the features needs a linear layer called head, but it is {head!r}")

    def __call__(self, context: Context, at: str) -> Tensor:
        if self.normalised:
            margins = -losses.margin(feature_scores(context.features(at), context.model.head.weight), context.y)
        elif self.divided:
            margins = feature_distance(context.logits(at), context.model.head.weight, context.y)
        else:
            margins = -losses.margin(context.logits(at), context.y)
        if self.reading == "shifted":
            return truncated(-margins, self.tau)
        return self.tau - truncated(margins, self.tau) if self.reading == "truncated" else hinge(margins, self.tau)


@dataclass
class WrongMargin(Part):
    """The concave part -H_0(a) of the regulariser on the logits, as the authors' code has it: linearised once an epoch.

    A number of the parameters theta: -<g, theta>, where g is the gradient of the mean over all training data of
    max(0, -a) at the epoch's first weights (the concave-convex procedure). It has a term of its own, at "parameters",
    with the coefficient of `AverageMargin`'s "hinge". The released code adds to g what the last step left in the
    gradients, divided by the number of batches, from the second epoch on; that is not done here.

    Costs a forward of the training data an epoch, and a forward and a full backward of those that are wrong.
    """

    places = ("parameters",)
    shared = True

    def start_epoch(self, run: Run) -> None:
        weights = _trained(run.model)
        slope = torch.zeros_like(_flat(weights))
        with in_mode(run.model, "eval"):
            with torch.no_grad():
                wrong = torch.cat([losses.margin(run.model(x), y) > 0 for x, y in _chunks(run.x, run.y)])
            for x, y in _chunks(run.x[wrong], run.y[wrong]):
                loss = losses.margin(run.model(x), y).sum() / len(run.y)
                slope += _flat(torch.autograd.grad(loss, weights))
        self.state = {"gradient": slope}

    def __call__(self, model: nn.Module) -> Tensor:
        weights = _trained(model)
        parts = self.state["gradient"].split([weight.numel() for weight in weights])
        return -sum(torch.dot(part, weight.flatten()) for part, weight in zip(parts, weights, strict=True))


def _chunks(x: Tensor, y: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(x.split(_CHUNK), y.split(_CHUNK), strict=True) if len(y) else ()


def _trained(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
