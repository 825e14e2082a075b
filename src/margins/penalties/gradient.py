"""IGR: the squared length of the loss's input gradient (Ross and Doshi-Velez 2018)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from margins import checks, losses
from margins.penalties.context import MODES, PLACES, Context, Part


@dataclass
class InputGradient(Part):
    """||d CE_i / d x_i||^2 of each sample, (B,), in 1 / (input unit)^2, at "clean" or "adversarial" samples.

    The authors' code adds lambda / 2 times the squared length of the gradient of the batch's *mean* cross-entropy to
    the whole batch. In the mean over the batch of these values that is the coefficient lambda / (2 B): it shrinks with
    the batch, ours does not.
    mode: of the forward; "train" is the one that the cross-entropy asks for. BatchNorm then mixes the samples, and the
    value is that of the gradient of the summed cross-entropy to x_i.

    Beside a cross-entropy of the same samples and mode it costs 3 forwards' worth, double backward included: a plain
    step becomes 6, or 8 to 9 with BatchNorm, whose second derivative is slow. Over several processes BatchNorm has none
    in "train": that is refused.
    """

    mode: str = "train"
    places = PLACES
    together = True

    def __post_init__(self):
        checks.choice("mode", self.mode, MODES)

    @property
    def input_grad(self) -> tuple[str, ...]:
        return (self.mode,)

    def __call__(self, context: Context, at: str) -> Tensor:
        logits = context.logits(at, self.mode, input_grad=True)
        return squared_gradient(losses.cross_entropy(logits, context.y), context.input(at, self.mode))


def squared_gradient(values: Tensor, x: Tensor) -> Tensor:
    """||d values_i / d x_i||^2, (B,), with a graph, for values (B,) of which each depends on its own row of x."""
    (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1)
