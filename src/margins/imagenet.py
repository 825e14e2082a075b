"""ImageNet as a folder in torchvision's layout, read batch by batch: it is too large for `margins.datasets`."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from margins import checks
from margins.errors import MarginsError
from margins.training.batches import batches as in_order_of
from margins.training.batches import stream

SPLITS = ("train", "val")
#: In training: the share of the image that a crop covers, and its aspect ratio (AMM section 4.1.3).
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
#: In validation: the shorter side of the image over that of its central crop.
ENLARGED = 256 / 224


def batches(
    root: Path,
    split: str,
    batch_size: int,
    *,
    size: int = 224,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch's batches: x float32 (B, 3, size, size) in [0, 1], y int64 (B,), the class folders in their order.

    root: holds train/<class>/*.JPEG and val/<class>/*.JPEG with the same classes. "train" comes in an order that
    belongs to (seed, epoch), each image as a random crop of 8 % to 100 % of it with an aspect ratio from 3/4 to 4/3,
    resized, and flipped or not; what is drawn belongs to (seed, epoch, image), whatever the workers. "val" comes in the
    folder's order, the shorter side resized to 256 / 224 of `size`, the centre cropped (usual; AMM does not say).
    Pixels are not normalised: the models do that. workers: processes that read files, 0 for none.

    Raises MarginsError, before any image is read, for a folder that is not laid out so.
    """
    checks.choice("split", split, SPLITS)
    for name, value, least in (("batch_size", batch_size, 1), ("size", size, 1), ("seed", seed, 0)):
        checks.whole(name, value, least)
    checks.whole("workers", workers)
    images = _Images(Path(root), split, size, seed, checks.whole("epoch", epoch))
    if split == "train":
        order = in_order_of(len(images), batch_size, False, seed, epoch)
    else:
        order = torch.arange(len(images)).split(batch_size)
    # a generator of its own: the loader draws from the global one otherwise
    return iter(DataLoader(images, batch_sampler=list(order), num_workers=workers, generator=torch.Generator()))


class _Images(Dataset):
    """The images of a split, each augmented as it is in that epoch."""

    def __init__(self, root: Path, split: str, size: int, seed: int, epoch: int):
        from torchvision import transforms
        from torchvision.datasets import ImageFolder

        try:
            self.folder, other = (ImageFolder(root / name) for name in (split, SPLITS[split == "train"]))
        except FileNotFoundError as error:
            layout = "train/<class>/*.JPEG and val/<class>/*.JPEG"
            raise MarginsError(f"root={root}: give a folder with {layout} ({error})") from error
        if self.folder.classes != other.classes:
            apart = sorted(set(self.folder.classes) ^ set(other.classes))
            raise MarginsError(f"root={root}: train and val must have the same classes, but differ in {apart[0]}")
        self.drawn = None if split == "val" else (seed, epoch)
        if split == "train":
            change = [transforms.RandomResizedCrop(size, AREA, RATIO), transforms.RandomHorizontalFlip()]
        else:
            change = [transforms.Resize(round(size * ENLARGED)), transforms.CenterCrop(size)]
        self.change = transforms.Compose([*change, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, int]:
        image, label = self.folder[int(index)]
        if self.drawn is None:
            return self.change(image), label
        seed, epoch = self.drawn
        with torch.random.fork_rng([]):  # torchvision draws from the global random state
            torch.manual_seed(stream(seed, 2, epoch, int(index)))
            return self.change(image), label
