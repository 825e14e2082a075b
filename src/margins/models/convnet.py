"""Deep Defense's ConvNet, which AMM's tables of CIFAR and SVHN call LeNet."""

from collections.abc import Sequence

import torch
from torch import nn

from margins.errors import MarginsError
from margins.models.cnn import OfImages
from margins.models.layers import he, images


class ConvNet(OfImages):
    """MatConvNet's light CIFAR net: three 5 x 5 convolutions, each with a 2 x 2 pooling, one of 4 x 4, and the head.

    Takes x (B, *shape), shape (C, 32, 32), and returns logits (B, classes). 32, 32, 64 and 64 channels; the first
    pooling takes maxima and comes before its ReLU, the others take means and come after it; the last convolution leaves
    one place, so that the classifier's 1 x 1 convolution is the linear `head`. As in Deep Defense's code (Yan et al.
    2018); MatConvNet's own pools 3 x 3. 145,578 parameters for 10 classes. Weights are He's, drawn from `generator`;
    None stands for a new one with seed 0.
    """

    def __init__(self, shape: Sequence[int], classes: int, *, generator: torch.Generator | None = None):
        shape = images(shape, classes)
        if shape[1:] != (32, 32):
            raise MarginsError(f"shape must be (C, 32, 32), but is {shape}")
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.shape = shape
        self.body = nn.Sequential(
            he(nn.Conv2d, shape[0], 32, 5, padding=2, generator=generator),
            nn.MaxPool2d(2),
            nn.ReLU(),
            he(nn.Conv2d, 32, 32, 5, padding=2, generator=generator),
            nn.ReLU(),
            nn.AvgPool2d(2),
            he(nn.Conv2d, 32, 64, 5, padding=2, generator=generator),
            nn.ReLU(),
            nn.AvgPool2d(2),
            he(nn.Conv2d, 64, 64, 4, generator=generator),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = he(nn.Linear, 64, classes, generator=generator)
