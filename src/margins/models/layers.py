"""What nets for images have in common: initial weights, the check of their images, first and last layers."""

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


#: The mean and the deviation of CIFAR-10's pixels in [0, 1], a channel each.
CIFAR = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


class Normalised(nn.Module):
    """x (B, 3, H, W) in [0, 1] by a mean and a deviation, a channel each; CIFAR-10's by default."""

    def __init__(self, mean: Sequence[float] = CIFAR[0], deviation: Sequence[float] = CIFAR[1]):
        super().__init__()
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(tuple(values)).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


def normalising(on: bool, shape: Sequence[int]) -> list[nn.Module]:
    """The first layer of a net that normalises its input, if it does. Raises MarginsError for other than 3 channels."""
    if on and shape[0] != 3:
        raise MarginsError(f"normalised: shape must have 3 channels, but is {tuple(shape)}")
    return [Normalised()] if on else []


class Average(nn.Module):
    """The mean over all places of each channel: (B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))
