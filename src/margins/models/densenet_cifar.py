"""Densely connected networks for small images (Huang et al. 2017), without bottlenecks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from margins.errors import MarginsError
from margins.models.cnn import OfImages
from margins.models.layers import Average, he, images
from margins.models.linear import check_sizes

#: Channels of the first convolution.
FIRST = 16


class DenseNetCIFAR(OfImages):
    """A 3 x 3 convolution with 16 channels, three blocks of (depth - 4) / 3 dense layers, the mean, a linear head.

    Takes x (B, *shape), shape (C, H, W) with H and W multiples of 4, and returns logits (B, classes). A dense layer is
    BatchNorm, ReLU and a 3 x 3 convolution with `growth` channels, which are appended to what it saw; between blocks
    stand BatchNorm, ReLU, a 1 x 1 convolution that keeps the number of channels, and a 2 x 2 pooling of means. No
    convolution has a bias; no dropout, as in the paper where images are augmented. depth 40 and growth 12 are AMM's
    DenseNet-40: 1,019,722 parameters for 10 classes. Convolutions and head are He's, drawn from `generator`; None
    stands for a new one with seed 0.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        depth: int = 40,
        growth: int = 12,
        *,
        generator: torch.Generator | None = None,
    ):
        shape = images(shape, classes, multiple=4, least=4)
        check_sizes(depth=depth, growth=growth)
        if depth < 7 or depth % 3 != 1:
            raise MarginsError(f"depth must be 3 n + 4 with n of at least 1, such as 40, but is {depth}")
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.shape = shape
        channels, layers = FIRST, [_convolution(shape[0], FIRST, 3, generator)]
        for block in range(3):
            if block:
                layers += [*_normed(channels), _convolution(channels, channels, 1, generator), nn.AvgPool2d(2)]
            for _ in range((depth - 4) // 3):
                layers.append(Dense(channels, growth, generator))
                channels += growth
        self.body = nn.Sequential(*layers, *_normed(channels), Average())
        self.head = he(nn.Linear, channels, classes, generator=generator)


class Dense(nn.Module):
    """(B, channels, H, W) -> (B, channels + growth, H, W)."""

    def __init__(self, channels: int, growth: int, generator: torch.Generator):
        super().__init__()
        self.body = nn.Sequential(*_normed(channels), _convolution(channels, growth, 3, generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def _normed(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.ReLU()


def _convolution(inputs: int, channels: int, kernel: int, generator: torch.Generator) -> nn.Conv2d:
    return he(nn.Conv2d, inputs, channels, kernel, padding=kernel // 2, bias=False, generator=generator)
