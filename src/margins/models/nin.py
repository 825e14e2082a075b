"""Network in network (Lin, Chen and Yan 2014), as AMM has it for CIFAR and SVHN."""

from collections.abc import Sequence

import torch
from torch import nn

from margins.models.cnn import OfImages
from margins.models.layers import Average, he, images

#: Of each block: (channels, kernel) of its convolutions. The classifier's own comes after the last.
BLOCKS = (((192, 5), (160, 1), (96, 1)), ((192, 5), (192, 1), (192, 1)), ((192, 3), (192, 1)))


class NIN(OfImages):
    """Three blocks of one k x k and two 1 x 1 convolutions, a ReLU after each but the last; dropout 0.5 between blocks.

    Takes x (B, *shape), shape (C, H, W) with H and W multiples of 4, and returns logits (B, classes). A 2 x 2 pooling
    ends the first block (of maxima) and the second (of means). The last 1 x 1 convolution has a channel a class and no
    ReLU; the mean over all places that follows commutes with it, so it is the linear `head` of the mean. As in Deep
    Defense's code (Yan et al. 2018); the original pools 3 x 3 and has a ReLU there. 966,986 parameters for CIFAR-10.
    Weights are He's, drawn from `generator`; None stands for a new one with seed 0.
    """

    def __init__(self, shape: Sequence[int], classes: int, *, generator: torch.Generator | None = None):
        shape = images(shape, classes, multiple=4, least=4)
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.shape = shape
        inputs, layers = shape[0], []
        for block, pooling in zip(BLOCKS, (nn.MaxPool2d(2), nn.AvgPool2d(2), None), strict=True):
            for channels, kernel in block:
                layers.append(he(nn.Conv2d, inputs, channels, kernel, padding=kernel // 2, generator=generator))
                layers.append(nn.ReLU())
                inputs = channels
            layers += [pooling, nn.Dropout()] if pooling else [Average()]
        self.body = nn.Sequential(*layers)
        self.head = he(nn.Linear, inputs, classes, generator=generator)
