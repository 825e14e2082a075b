"""Last layers by name: what a method puts in the place of a model's `head`."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from margins import checks
from margins.errors import MarginsError

KINDS = ("bias-free", "cosine", "centred")


@dataclass(frozen=True)
class Head:
    """A last layer: "bias-free" (W f), "cosine" (scale x the cosine of f and each row of W), "centred" (logits minus
    their mean over the classes, which neither the softmax nor a margin sees)."""

    kind: str
    scale: float = 1.0

    def __post_init__(self):
        checks.choice("kind", self.kind, KINDS)
        if checks.number("scale", self.scale, 0, above=True) != 1 and self.kind != "cosine":
            raise MarginsError(f"scale: only a cosine head has one, but the {self.kind} one got {self.scale}")

    def put_on(self, model: nn.Module) -> nn.Module:
        """Replace the model's linear `head`, keeping its weights, unless it is this already. Raises MarginsError."""
        head = getattr(model, "head", None)
        there = {"centred": isinstance(head, Centred), "cosine": isinstance(head, Cosine) and head.scale == self.scale}
        if there.get(self.kind):
            return model
        if not isinstance(head, nn.Linear):
            raise MarginsError(f"model: a {self.kind} head replaces a linear layer called head, which it lacks")
        if self.kind == "centred":
            model.head = Centred(head)
        elif self.kind == "cosine":
            model.head = Cosine(head.weight, self.scale)
        else:
            head.register_parameter("bias", None)
        return model


class Cosine(nn.Module):
    """scale x cos(f, w_k): features (B, D) and rows of the weight (K, D) at length 1 (HE: Pang et al. 2020)."""

    def __init__(self, weight: nn.Parameter, scale: float):
        super().__init__()
        self.weight, self.scale = weight, scale

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * functional.linear(functional.normalize(features), functional.normalize(self.weight))


class Centred(nn.Module):
    """The logits of a linear layer minus their mean: same softmax, same margins, no mean logit (methods J.1-7)."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear

    def forward(self, features: Tensor) -> Tensor:
        weight, bias = self.linear.weight, self.linear.bias
        weight = weight - weight.mean(0)
        return functional.linear(features, weight, None if bias is None else bias - torch.mean(bias))
