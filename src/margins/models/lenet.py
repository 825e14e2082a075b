"""Small convolutional networks by the papers' names."""

from collections.abc import Sequence

import torch
from torch import nn

from margins.errors import MarginsError
from margins.models.cnn import OfImages, convolution
from margins.models.layers import he, images
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


class LeNet(OfImages):
    """MatConvNet's LeNet: two 5 x 5 convolutions without padding, each with a 2 x 2 max-pooling, and two dense layers.

    Takes x (B, *shape), shape (C, H, W) with H and W of 16 or more, and returns logits (B, classes). 20 and 50
    channels, 500 units; the only ReLU follows the units, as in Deep Defense (Yan et al. 2018: their code), from which
    AMM's MNIST LeNet comes: 431,080 parameters. Weights are He's, drawn from `generator`; None stands for a new one
    with seed 0.
    """

    def __init__(self, shape: Sequence[int], classes: int, *, generator: torch.Generator | None = None):
        shape = images(shape, classes, least=16)
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.shape = shape
        height, width = (((size - 4) // 2 - 4) // 2 for size in shape[1:])
        self.body = nn.Sequential(
            he(nn.Conv2d, shape[0], 20, 5, generator=generator),
            nn.MaxPool2d(2),
            he(nn.Conv2d, 20, 50, 5, generator=generator),
            nn.MaxPool2d(2),
            nn.Flatten(),
            he(nn.Linear, 50 * height * width, 500, generator=generator),
            nn.ReLU(),
        )
        self.head = he(nn.Linear, 500, classes, generator=generator)
