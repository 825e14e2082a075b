"""Wide residual networks for small images (Zagoruyko and Komodakis 2016), in two variants of adversarial training."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from margins import checks
from margins.errors import MarginsError
from margins.models.cnn import OfImages
from margins.models.layers import Average, he, images, normalising
from margins.models.linear import check_sizes

VARIANTS = ("trades", "madry")
#: Channels of the first convolution, and of the three groups for each unit of width.
FIRST, CHANNELS = 16, (16, 32, 64)
LEAK = 0.1


class WideResNet(OfImages):
    """A 3 x 3 convolution, three groups of (depth - 4) / 6 blocks that begin with BatchNorm, the mean, a linear head.

    Takes x (B, *shape), shape (C, H, W) with H and W multiples of 4, and returns logits (B, classes). The groups have
    16, 32 and 64 channels times `width`; the first block of the second and third has stride 2. Convolutions have no
    bias, there is no dropout. variant: of the networks of that name that the literature mixes,

    - "trades" has ReLU, and a 1 x 1 convolution as the shortcut where channels are added, which starts behind the
      block's first BatchNorm and ReLU: TRADES, MART, AWP, RobustBench; 46,160,474 parameters at 34-10, 10 classes;
    - "madry" has LeakyReLU (0.1), and as the shortcut the mean of 2 x 2 places and zeros for the channels that are new,
      half of them on each side; only the very first one starts behind BatchNorm: Madry et al., EMR's released code;
      45,901,914 parameters at 34-10.

    normalised: whether pixels are first normalised by the mean and deviation of CIFAR-10's. Convolutions and head are
    He's, drawn from `generator`; None stands for a new one with seed 0.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        depth: int = 34,
        width: int = 10,
        variant: str = "trades",
        normalised: bool = False,
        *,
        generator: torch.Generator | None = None,
    ):
        shape = images(shape, classes, multiple=4, least=4)
        check_sizes(depth=depth, width=width)
        checks.choice("variant", variant, VARIANTS)
        if depth < 10 or depth % 6 != 4:
            raise MarginsError(f"depth must be 6 n + 4 with n of at least 1, such as 28 or 34, but is {depth}")
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.shape = shape
        activation = nn.ReLU if variant == "trades" else partial(nn.LeakyReLU, LEAK)
        layers = normalising(normalised, shape)
        layers.append(_convolution(shape[0], FIRST, 1, generator))
        inputs = FIRST
        for group, channels in enumerate(width * base for base in CHANNELS):
            for block in range((depth - 4) // 6):
                stride = 2 if group and not block else 1
                shared = inputs != channels if variant == "trades" else not (group or block)
                shortcut = _shortcut(variant, inputs, channels, stride, generator)
                layers.append(Block(inputs, channels, stride, activation, shortcut, shared, generator))
                inputs = channels
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(inputs), activation(), Average())
        self.head = he(nn.Linear, inputs, classes, generator=generator)


class Block(nn.Module):
    """Twice BatchNorm, activation and convolution, beside the shortcut, which is `shared` if it starts behind both."""

    def __init__(self, inputs, channels, stride, activation, shortcut: nn.Module, shared: bool, generator):
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), activation())
        self.body = nn.Sequential(
            _convolution(inputs, channels, stride, generator),
            nn.BatchNorm2d(channels),
            activation(),
            _convolution(channels, channels, 1, generator),
        )
        self.shortcut, self.shared = shortcut, shared

    def forward(self, x: Tensor) -> Tensor:
        here = self.before(x)
        return self.body(here) + self.shortcut(here if self.shared else x)


class Padded(nn.Module):
    """The mean of stride x stride places, and zeros for the channels that are new, half of them on each side."""

    def __init__(self, added: int, stride: int):
        super().__init__()
        self.added, self.stride = (added // 2, added - added // 2), stride

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(functional.avg_pool2d(x, self.stride), (0, 0, 0, 0, *self.added))


def _shortcut(variant: str, inputs: int, channels: int, stride: int, generator: torch.Generator) -> nn.Module:
    if inputs == channels:
        return nn.Identity()
    if variant == "madry":
        return Padded(channels - inputs, stride)
    return he(nn.Conv2d, inputs, channels, 1, stride=stride, bias=False, generator=generator)


def _convolution(inputs: int, channels: int, stride: int, generator: torch.Generator) -> nn.Conv2d:
    return he(nn.Conv2d, inputs, channels, 3, stride=stride, padding=1, bias=False, generator=generator)
