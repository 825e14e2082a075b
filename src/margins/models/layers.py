"""What the nets of AMM's tables have in common: initial weights, the check of their images, the end of a block."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from margins.errors import MarginsError
from margins.models.linear import check_sizes


def he(kind: type[nn.Linear] | type[nn.Conv2d], *sizes: int, generator: torch.Generator, **settings) -> nn.Module:
    """A layer `kind(*sizes, **settings)` drawn by `draw`; the global random state is neither read nor moved."""
    return draw(nn.utils.skip_init(kind, *sizes, **settings), generator)


@torch.no_grad()
def draw(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> nn.Linear | nn.Conv2d:
    """The layer with He's initial weights (He et al. 2015; Caffe, and so the papers, call them MSRA).

    Normal with deviation sqrt(2 / fan_in), drawn from `generator` on the CPU, and zero biases; fan_in counts the inputs
    of one neuron.
    """
    layer.weight.normal_(0, (2 / layer.weight[0].numel()) ** 0.5, generator=generator)
    if layer.bias is not None:
        layer.bias.zero_()
    return layer


def images(shape: Sequence[int], classes: int, multiple: int = 1, least: int = 1) -> tuple[int, int, int]:
    """The shape (C, H, W). Raises MarginsError unless H and W are multiples and no smaller, and classes is positive."""
    if len(shape) != 3 or any(size < least or size % multiple for size in shape[1:]):
        of = f"multiples of {multiple} and " if multiple > 1 else ""
        raise MarginsError(f"shape must be (C, H, W) with H and W {of}at least {least}, but is {shape!r}")
    check_sizes(classes=classes, **dict(zip(("C", "H", "W"), shape, strict=True)))
    return tuple(shape)


class Average(nn.Module):
    """The mean over all places of each channel: (B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))
