"""Defences that are broken on purpose: each looks robust to a careless attack, and one sanity check names its fault.

Teaching and test material; none makes a classifier more robust. Each wraps a sound classifier of inputs in [0, 1], with
logits (B, K) out, and gives the same answers, or nearly: what it takes away is what attacks see.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class SaturatedLogits(nn.Module):
    """Logits times `scale`, as defensive distillation's temperature leaves them: the cross-entropy's gradient is 0.

    The softmax is certain to the last bit of float32 and its gradient underflows, so that attacks on the cross-entropy
    stay where they start; the margin, and the ranking of the classes, are as before.
    """

    def __init__(self, model: nn.Module, scale: float = 1000.0):
        super().__init__()
        self.model = model
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * self.scale


class QuantisedInput(nn.Module):
    """The input rounded to `levels` even steps in [0, 1]: the gradient of a rounding is zero everywhere."""

    def __init__(self, model: nn.Module, levels: int = 16):
        super().__init__()
        self.model = model
        self.register_buffer("steps", torch.tensor(float(levels - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * self.steps).round() / self.steps)


class RandomLayer(nn.Module):
    """Normal noise of deviation `std` added to the input at each call, in evaluation mode too."""

    def __init__(self, model: nn.Module, std: float = 0.1):
        super().__init__()
        self.model = model
        self.register_buffer("std", torch.tensor(float(std)))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.std * torch.randn_like(x))


class SoftmaxOutput(nn.Module):
    """Probabilities instead of logits: the cross-entropy takes a second softmax of them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).softmax(1)


class ThresholdedInput(nn.Module):
    """The input as zeros and ones, from a comparison: no gradient passes it, autograd sees a constant."""

    def __init__(self, model: nn.Module, threshold: float = 0.5):
        super().__init__()
        self.model = model
        self.register_buffer("threshold", torch.tensor(float(threshold)))

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x > self.threshold).to(x.dtype))


class NanGradient(nn.Module):
    """Logits divided by 1 plus the input's l2 distance from the box: it is 0 in the box, where its gradient is nan.

    The length is written as the root of a sum of squares, whose derivative at 0 is 0 / 0: the logits are untouched.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        outside = (x - x.clamp(0, 1)).square().flatten(1).sum(1).sqrt()
        return self.model(x) / (1 + outside)[:, None]


#: name -> (the defence around a classifier, the name of the sanity check that must catch it).
BROKEN: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "saturated logits": (SaturatedLogits, "vanishing gradients"),
    "quantised inputs": (QuantisedInput, "zero gradients"),
    "random layer": (RandomLayer, "randomised outputs"),
    "softmax output": (SoftmaxOutput, "probabilities as outputs"),
    "non-differentiable step": (ThresholdedInput, "no path for gradients"),
    "nan gradients": (NanGradient, "nan gradients"),
}
