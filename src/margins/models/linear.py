"""The linear classifier, and the seeded layer that every dense model is made of."""

import torch
from torch import nn

from margins.errors import MarginsError


def check_sizes(**sizes: int) -> None:
    """Raise MarginsError naming the first size that is not a positive whole number."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise MarginsError(f"{name} must be a whole number of at least 1, but is {size!r}")


def dense(inputs: int, outputs: int, bias: bool, generator: torch.Generator) -> nn.Linear:
    """A linear layer drawn from `generator` (on the CPU): all entries uniform in +-1/sqrt(inputs), as PyTorch's own.

    The global random state is neither read nor moved.
    """
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer


def flatten(x: torch.Tensor, inputs: int) -> torch.Tensor:
    """x (B, ...) as (B, inputs); MarginsError where a sample has another number of entries."""
    if x.ndim < 2 or x[0:1].numel() not in (0, inputs):
        raise MarginsError(f"x must have the shape (B, ...) with {inputs} numbers a sample, but has {tuple(x.shape)}")
    return x.flatten(1)


class Linear(nn.Module):
    """logits = W x + b: x (B, inputs) or any (B, ...) with that many entries a sample; returns (B, classes).

    `generator` draws the initial weights; None stands for a new generator with seed 0, so two models built alike are
    alike.
    """

    def __init__(self, inputs: int, classes: int, bias: bool = True, *, generator: torch.Generator | None = None):
        check_sizes(inputs=inputs, classes=classes)
        super().__init__()
        self.inputs = inputs
        self.head = dense(inputs, classes, bias, generator or torch.Generator().manual_seed(0))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the head sees: the flattened input, (B, inputs)."""
        return flatten(x, self.inputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))
