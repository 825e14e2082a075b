"""The nets of L-Softmax (Liu et al. 2016), which AMM calls LiuNet."""

from collections.abc import Sequence

import torch
from torch import nn

from margins import checks
from margins.models.cnn import OfImages
from margins.models.layers import he, images

#: Of each variant: the channels of the first convolution; channels and number of those of each block; units.
VARIANTS = {
    "mnist": (64, ((64, 3), (64, 3), (64, 3)), 256),
    "cifar10": (64, ((64, 4), (96, 4), (128, 4)), 256),
    "cifar100": (96, ((96, 4), (192, 4), (384, 4)), 512),
}
#: What normalises: group of 32 channels each, 32 groups, or the batch.
NORMS = ("group", "32 groups", "batch")


class LiuNet(OfImages):
    """A 3 x 3 convolution, three blocks of them with a 2 x 2 max-pooling each, a dense layer, a head without bias.

    Takes x (B, *shape), shape (C, H, W) with H and W of 8 or more, and returns logits (B, classes). variant: the sizes
    of L-Softmax's table for "mnist", "cifar10" (SVHN has no net of its own) or "cifar100"; the authors' released files
    have wider nets. Normalisation and a ReLU follow every convolution and the dense layer. norm: "group" as AMM has it,
    group normalisation with groups of 32 channels ("group size 32", AMM section 4.4.1; "32 groups" is the other reading
    of that), or "batch" as L-Softmax has it. An odd size is rounded down in pooling; the original's framework rounds
    up. Parameters: mnist 485,056; cifar10 1,537,536; cifar100 9,347,264, each for its own images. Weights are He's,
    drawn from `generator`; None stands for a new one with seed 0.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        variant: str = "cifar10",
        norm: str = "group",
        *,
        generator: torch.Generator | None = None,
    ):
        shape = images(shape, classes, least=8)
        first, blocks, units = VARIANTS[checks.choice("variant", variant, VARIANTS)]
        checks.choice("norm", norm, NORMS)
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.shape = shape
        inputs, layers = shape[0], []
        for channels, count in ((first, 1), *blocks):
            for _ in range(count):
                layers.append(he(nn.Conv2d, inputs, channels, 3, padding=1, generator=generator))
                layers += [_norm(norm, channels, nn.BatchNorm2d), nn.ReLU()]
                inputs = channels
            if count > 1:
                layers.append(nn.MaxPool2d(2))
        places = (shape[1] // 8) * (shape[2] // 8)
        layers += [nn.Flatten(), he(nn.Linear, inputs * places, units, generator=generator)]
        self.body = nn.Sequential(*layers, _norm(norm, units, nn.BatchNorm1d), nn.ReLU())
        self.head = he(nn.Linear, units, classes, bias=False, generator=generator)


def _norm(kind: str, channels: int, of_batch: type[nn.Module]) -> nn.Module:
    groups = {"group": channels // 32, "32 groups": 32}
    return of_batch(channels) if kind == "batch" else nn.GroupNorm(groups[kind], channels)
