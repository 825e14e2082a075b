"""Random numbers that belong to a sample: the same in whatever batch, order, device and precision it is attacked."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B9 - 2**32, 0x7FEB352D, 0x846CA68B - 2**32


class Noise:
    """A stream of random numbers for each sample of x (B, ...), from one seed and the sample's own content.

    A hash of (seed, the sample's entries as float32, how many numbers were drawn before): samples may leave the batch
    (`keep`), come in another order or another batch, on a CPU or a GPU, and get the same numbers. Equal samples get
    equal numbers. `generator` gives the seed and moves on by one number; None stands for a new one with seed 0. Of a
    sequence of generators each gives the seed of one group of samples, groups of equal size one after the other.
    """

    def __init__(self, x: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None):
        several = generator if isinstance(generator, Sequence) else [generator or torch.Generator().manual_seed(0)]
        seeds = [torch.randint(-(2**31), 2**31, (), generator=one, device=one.device).item() for one in several]
        bits = x.detach().float().flatten(1).contiguous().view(torch.int32)
        entry = torch.arange(bits.shape[1], dtype=torch.int32, device=x.device) * _GOLDEN
        if len(seeds) == 1:
            bits = bits + (entry + seeds[0])
        else:
            seed = torch.tensor(seeds, dtype=torch.int32, device=x.device)[:, None, None]
            bits = (bits.view(len(seeds), -1, bits.shape[1]) + (entry + seed)).view_as(bits)
        self.key = _mix(_mix(bits).sum(1, dtype=torch.int32))
        self.drawn = 0

    def keep(self, chosen: Tensor) -> "Noise":
        """The streams of the chosen samples (a mask or indices), from where they are now."""
        other = object.__new__(Noise)
        other.key, other.drawn = self.key[chosen], self.drawn
        return other

    def bits(self, *shape: int) -> Tensor:
        """(B, *shape) int32, all 32 bits random."""
        size = math.prod(shape)
        index = torch.arange(self.drawn, self.drawn + size, dtype=torch.int32, device=self.key.device)
        self.drawn += size
        return _mix(_mix(index * _GOLDEN) + self.key[:, None]).reshape(len(self.key), *shape)

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) float32 in [0, 1), a multiple of 2^-24."""
        return ((self.bits(*shape) >> 8) & 0xFFFFFF).float() * 2.0**-24

    def signs(self, *shape: int) -> Tensor:
        """(B, *shape) float32, -1 or 1 with equal probability."""
        return (self.bits(*shape) & 1).float() * 2 - 1

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float32, standard normal (Box and Muller)."""
        radius = (-2 * (1 - self.uniform(*shape)).log()).sqrt()
        return radius * (2 * math.pi * self.uniform(*shape)).cos()


def _mix(bits: Tensor) -> Tensor:
    """A bijection of 32 bits without visible structure (Wellons's lowbias32); works in place on a tensor of its own."""
    bits = bits ^ _shift(bits, 16)
    bits *= _FIRST
    bits ^= _shift(bits, 15)
    bits *= _SECOND
    bits ^= _shift(bits, 16)
    return bits


def _shift(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & (2 ** (32 - by) - 1)
