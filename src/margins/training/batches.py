"""Batches of data that lies on the device: order and augmentation belong to (seed, epoch, sample), nothing else."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional


def stream(*numbers: int) -> int:
    """A seed for each tuple of whole numbers (a hash of 63 bits), as of (run's seed, what for, epoch)."""
    state = 0
    for number in numbers:
        state = (state ^ (number + 1)) * 0x9E3779B97F4A7C15 % 2**64
        state ^= state >> 29
        state = state * 0xBF58476D1CE4E5B9 % 2**64
        state ^= state >> 32
    return state % 2**63


def batches(count: int, batch_size: int, drop_last: bool, seed: int, epoch: int, first: int = 0) -> Iterator[Tensor]:
    """The indices of an epoch's batches from the batch `first` on, int64 on the CPU."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(stream(seed, 1, epoch)))
    for index in order.split(batch_size)[first:]:
        if len(index) == batch_size or not drop_last:
            yield index


def central(x: Tensor, window: int) -> Tensor:
    """The middle window x window pixels of x (N, C, H, W), a view; of an odd rest one more is left out at the end."""
    down, right = ((size - window) // 2 for size in x.shape[2:])
    return x[:, :, down : down + window, right : right + window]


class Augment:
    """Random crops or windows, and flips, of an epoch, drawn for every sample of the data x at once.

    crop: zeros on each side; window: the side of what is cut out of square images instead, 0 for none.
    """

    def __init__(self, x: Tensor, crop: int, flip: bool, seed: int, epoch: int, window: int = 0):
        generator = torch.Generator().manual_seed(stream(seed, 2, epoch))
        self.crop, self.window = crop, window
        spare = x.shape[-1] - window if window else 2 * crop
        self.shift = torch.randint(spare + 1, (len(x), 2), generator=generator).to(x.device)
        self.flip = torch.randint(2, (len(x),), generator=generator).to(x.device) if flip else None

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """The samples x (B, C, H, W), which have these indices in the data, cropped and flipped."""
        if not self.crop and not self.window and self.flip is None:
            return x
        height, width = (self.window, self.window) if self.window else x.shape[-2:]
        rows = torch.arange(height, device=x.device) + self.shift[index, :1]
        columns = torch.arange(width, device=x.device).expand(len(x), -1)
        if self.flip is not None:
            columns = torch.where(self.flip[index, None] == 1, width - 1 - columns, columns)
        columns = columns + self.shift[index, 1:]
        padded = functional.pad(x, [self.crop] * 4)
        sample = torch.arange(len(x), device=x.device)[:, None, None]
        # Indices around the slice put the channels last: as NHWC in memory, which convolutions like
        return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
