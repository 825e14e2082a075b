"""Small convolutional networks by the papers' names."""

from collections.abc import Sequence

import torch
from torch import nn

from margins.errors import MarginsError
from margins.models.cnn import OfImages, convolution
from margins.models.linear import check_sizes, dense


class LeNetSmall(OfImages):
    """Two strided convolutions and two dense layers, a ReLU after each but the last: 4 x 4, stride 2, padding 1.

    Takes x (B, *shape), shape (C, H, W) with H and W multiples of 4, and returns logits (B, classes): `channels`
    convolution channels, then `hidden` units. With the defaults it is MMR's network (Croce, Andriushchenko and Hein
    2019), which AMR's Table 2 has too: 166,406 parameters for MNIST. `generator` as in `CNN`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        channels: tuple[int, int] = (16, 32),
        hidden: int = 100,
        *,
        generator: torch.Generator | None = None,
    ):
        if len(shape) != 3 or any(size % 4 for size in shape[1:]):
            raise MarginsError(f"shape must be (C, H, W) with H and W multiples of 4, but is {shape!r}")
        names = ("C", "H", "W", "channels[0]", "channels[1]")
        check_sizes(classes=classes, hidden=hidden, **dict(zip(names, (*shape, *channels), strict=True)))
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.shape = tuple(shape)
        sizes, layers = (shape[0], *channels), []
        for inputs, outputs in zip(sizes, channels, strict=False):
            layers += [convolution(inputs, outputs, 4, 1, generator, stride=2), nn.ReLU()]
        units = channels[-1] * (shape[1] // 4) * (shape[2] // 4)
        self.body = nn.Sequential(*layers, nn.Flatten(), dense(units, hidden, True, generator), nn.ReLU())
        self.head = dense(hidden, classes, True, generator)
