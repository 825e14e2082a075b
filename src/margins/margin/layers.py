"""The layers of a feed-forward network, in float64, for bounds that are proven.

All values are flat, (B, n): a Flatten is nothing then, and R linear functions of a value are coefficients (B, R, n).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Dense:
    """z -> weight z + bias."""

    weight: Tensor
    bias: Tensor

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.weight.T + self.bias

    def spread(self, radius: Tensor) -> Tensor:
        """How far each output can move if each input moves by at most its radius."""
        return radius @ self.weight.abs().T

    def lengths(self) -> Tensor:
        """(n_out,) how far each output can move if the input moves by an l2 length of 1."""
        return torch.linalg.vector_norm(self.weight, 2, dim=1)

    def back(self, a: Tensor) -> Tensor:
        """The coefficients of z in a . (weight z)."""
        return a @ self.weight


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution with zero padding of flat images of the shape (C, H, W); one bias a channel."""

    weight: Tensor
    channel_bias: Tensor
    shape: tuple[int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int

    @property
    def inputs(self) -> int:
        return math.prod(self.shape)

    @property
    def kernel(self) -> tuple[int, int]:
        return tuple(self.weight.shape[2:])

    @property
    def out_shape(self) -> tuple[int, int, int]:
        sides = zip(self.shape[1:], self.padding, self.kernel, self.stride, strict=True)
        return len(self.weight), *((side + 2 * pad - kernel) // stride + 1 for side, pad, kernel, stride in sides)

    @property
    def bias(self) -> Tensor:
        return self.channel_bias.repeat_interleave(math.prod(self.out_shape[1:]))

    def resized(self, height: int, width: int) -> "Convolution":
        return replace(self, shape=(self.shape[0], height, width))

    def forward(self, z: Tensor) -> Tensor:
        return self._convolve(z, self.weight) + self.bias

    def spread(self, radius: Tensor) -> Tensor:
        return self._convolve(radius, self.weight.abs())

    def lengths(self) -> Tensor:
        return self._convolve(self.weight.new_ones(1, self.inputs), self.weight.square())[0].sqrt()

    def back(self, a: Tensor) -> Tensor:
        images = a.reshape(-1, *self.out_shape)
        size = (len(images), *self.shape)
        back = nn.grad.conv2d_input(size, self.weight, images, self.stride, self.padding, groups=self.groups)
        return back.reshape(*a.shape[:-1], self.inputs)

    def _convolve(self, z: Tensor, weight: Tensor) -> Tensor:
        z = z.reshape(-1, *self.shape)
        return functional.conv2d(z, weight, None, self.stride, self.padding, 1, self.groups).flatten(1)


@dataclass(frozen=True, eq=False)
class Pool:
    """The maximum of each window; windows (n_out, k) are the inputs that it looks at."""

    shape: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    windows: Tensor

    @classmethod
    def of(cls, shape, kernel, stride, device: torch.device) -> "Pool":
        windows = patches(shape, kernel, stride, device)
        return cls(shape, kernel, stride, windows.flatten(3).flatten(0, 2))

    @property
    def inputs(self) -> int:
        return math.prod(self.shape)

    def resized(self, height: int, width: int) -> "Pool":
        return Pool.of((self.shape[0], height, width), self.kernel, self.stride, self.windows.device)

    def forward(self, z: Tensor) -> Tensor:
        return z[:, self.windows].amax(2)


class Relu:
    """max(z, 0)."""

    def forward(self, z: Tensor) -> Tensor:
        return z.clamp(min=0)


Layer = Dense | Convolution | Pool | Relu


def patches(shape, side, step, device: torch.device) -> Tensor:
    """(C, rows, columns, h, w): the flat index of each entry of each patch of that side, a step apart, in an image."""
    index = torch.arange(math.prod(shape), device=device).reshape(shape)
    return index.unfold(1, side[0], step[0]).unfold(2, side[1], step[1])
