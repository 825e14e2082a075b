"""Residual networks for small images (He et al. 2016, section 4.2), and ImageNet's ResNet-18 without its stem."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from margins.errors import MarginsError
from margins.models.cnn import OfImages
from margins.models.layers import Average, he, images, normalising
from margins.models.linear import check_sizes

#: Of the three groups, over those of the first.
WIDER = (1, 2, 4)


class ResNetCIFAR(OfImages):
    """A 3 x 3 convolution, three groups of (depth - 2) / 6 blocks, the mean, a linear head.

    Takes x (B, *shape), shape (C, H, W) with H and W multiples of 4, and returns logits (B, classes). BatchNorm follows
    each convolution, which has no bias; the first block of the second and third group has stride 2. Shortcuts have no
    parameters (the paper's option A): every other place, and zeros for the channels that are new. depth: 20 and 56 in
    AMM, 269,722 and 853,018 parameters for 10 classes. width: channels of the first group, half and a quarter of those
    of the others. Convolutions and head are He's, drawn from `generator`; None stands for a new one with seed 0.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        depth: int = 20,
        width: int = 16,
        *,
        generator: torch.Generator | None = None,
    ):
        shape = images(shape, classes, multiple=4, least=4)
        check_sizes(depth=depth, width=width)
        if depth < 8 or depth % 6 != 2:
            raise MarginsError(f"depth must be 6 n + 2 with n of at least 1, such as 20 or 56, but is {depth}")
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.shape = shape
        layers = [_convolution(shape[0], width, 1, generator), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
        for channels in (width * wider for wider in WIDER):
            for _ in range((depth - 2) // 6):
                layers.append(Block(inputs, channels, generator))
                inputs = channels
        self.body = nn.Sequential(*layers, Average())
        self.head = he(nn.Linear, inputs, classes, generator=generator)


class Block(nn.Module):
    """Two convolutions beside the shortcut; where channels are added, at half the resolution."""

    def __init__(self, inputs: int, channels: int, generator: torch.Generator):
        super().__init__()
        self.stride, self.added = (1 if inputs == channels else 2), channels - inputs
        self.body = _twice(inputs, channels, self.stride, generator)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return torch.relu(self.body(x) + shortcut)


class ResNet18CIFAR(OfImages):
    """ImageNet's ResNet-18 for small images: its first layers are one 3 x 3 convolution with stride 1, without pooling.

    Takes x (B, *shape), shape (C, H, W) with H and W multiples of 8, and returns logits (B, classes). Four groups of
    two blocks with 1, 2, 4 and 8 times `width` channels, each after the first with stride 2 and a shortcut of a 1 x 1
    convolution and BatchNorm; the mean over all places, and a linear head: the ResNet-18 of adversarial training on
    CIFAR, 11,173,962 parameters for 10 classes. normalised: whether pixels are first normalised by the mean and
    deviation of CIFAR-10's. Convolutions and head are He's, drawn from `generator`; None stands for a new one, seed 0.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        width: int = 64,
        normalised: bool = False,
        *,
        generator: torch.Generator | None = None,
    ):
        shape = images(shape, classes, multiple=8, least=8)
        check_sizes(width=width)
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.shape = shape
        layers = normalising(normalised, shape)
        layers += [_convolution(shape[0], width, 1, generator), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
        for channels in (width, 2 * width, 4 * width, 8 * width):
            layers += [Projected(inputs, channels, generator), Projected(channels, channels, generator)]
            inputs = channels
        self.body = nn.Sequential(*layers, Average())
        self.head = he(nn.Linear, inputs, classes, generator=generator)


class Projected(nn.Module):
    """Two convolutions beside the shortcut; where channels are added, at half the resolution, that is a convolution."""

    def __init__(self, inputs: int, channels: int, generator: torch.Generator):
        super().__init__()
        stride = 1 if inputs == channels else 2
        self.body = _twice(inputs, channels, stride, generator)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            projection = he(nn.Conv2d, inputs, channels, 1, stride=stride, bias=False, generator=generator)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _twice(inputs: int, channels: int, stride: int, generator: torch.Generator) -> nn.Sequential:
    """Two convolutions, each with BatchNorm, and a ReLU between them."""
    return nn.Sequential(
        _convolution(inputs, channels, stride, generator),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        _convolution(channels, channels, 1, generator),
        nn.BatchNorm2d(channels),
    )


def _convolution(inputs: int, channels: int, stride: int, generator: torch.Generator) -> nn.Conv2d:
    return he(nn.Conv2d, inputs, channels, 3, stride=stride, padding=1, bias=False, generator=generator)
