"""Plain convolutional networks: blocks of convolutions with ReLU, a max-pooling after each block, dense layers."""

from collections.abc import Sequence

import torch
from torch import nn

from margins import checks
from margins.errors import MarginsError
from margins.models.linear import check_sizes, dense


class OfImages(nn.Module):
    """A `body` that flattens and a `head`, for images of one `shape` (C, H, W): what small convolutional nets share."""

    shape: tuple[int, ...]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the head sees, (B, D)."""
        if x.shape[1:] != self.shape:
            raise MarginsError(
                f"x must have the shape (B, {', '.join(map(str, self.shape))}), but has {tuple(x.shape)}"
            )
        return self.body(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


class CNN(OfImages):
    """Blocks of `kernel` x `kernel` convolutions, 2 x 2 max-pooling after each block, dense layers, a linear head.

    Takes x (B, *shape), shape (C, H, W), and returns logits (B, classes). `blocks` lists the channels of each block's
    convolutions, `hidden` the dense layers' sizes; a ReLU follows each of both. `padding` zeros surround each
    convolution's input, and each dense layer but the head is followed by dropout of that share. `generator` draws the
    initial weights, layer by layer from the input, uniform in +-1/sqrt(inputs of a neuron); None stands for a new
    generator with seed 0.

    AMR's MNIST CNN (Carlini and Wagner's) is `CNN((1, 28, 28), ((32, 32), (64, 64)), (200, 200), 10)`, its CIFAR CNN
    `CNN((3, 32, 32), ((64, 64), (128, 128)), (256, 256), 10, dropout=0.5)`, with two dropouts as in its code.
    """

    def __init__(
        self,
        shape: Sequence[int],
        blocks: Sequence[Sequence[int]],
        hidden: Sequence[int],
        classes: int,
        kernel: int = 3,
        padding: int = 0,
        dropout: float = 0.0,
        *,
        generator: torch.Generator | None = None,
    ):
        if len(shape) != 3 or not blocks or not all(blocks):
            raise MarginsError(
                f"shape must be (C, H, W) and blocks lists of channels such as ((32, 32), (64, 64)), "
                f"but are {shape!r} and {blocks!r}"
            )
        sizes = {f"hidden[{i}]": size for i, size in enumerate(hidden)}
        sizes |= {f"blocks[{i}][{j}]": c for i, block in enumerate(blocks) for j, c in enumerate(block)}
        check_sizes(classes=classes, kernel=kernel, **sizes, **dict(zip(("C", "H", "W"), shape, strict=True)))
        if checks.number("dropout", dropout, 0, 1) == 1:
            raise MarginsError("dropout must be below 1, or nothing is left")
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.shape = tuple(shape)
        channels, height, width = shape
        layers: list[nn.Module] = []
        for block in blocks:
            for outputs in block:
                layers += [convolution(channels, outputs, kernel, padding, generator), nn.ReLU()]
                channels, height, width = outputs, height + 2 * padding - kernel + 1, width + 2 * padding - kernel + 1
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
            if min(height, width) < 1:
                raise MarginsError(f"shape {self.shape} is too small for the blocks {blocks!r}: nothing is left of it")
        layers.append(nn.Flatten())
        inputs = channels * height * width
        for outputs in hidden:
            layers += [dense(inputs, outputs, True, generator), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.head = dense(inputs, classes, True, generator)


def convolution(
    inputs: int, outputs: int, kernel: int, padding: int, generator: torch.Generator, stride: int = 1
) -> nn.Conv2d:
    """A convolution drawn from `generator`, all entries uniform in +-1/sqrt(inputs of a neuron), as PyTorch's own."""
    layer = nn.utils.skip_init(nn.Conv2d, inputs, outputs, kernel, stride=stride, padding=padding)
    bound = (inputs * kernel**2) ** -0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer
