"""TinyImageNet as it is published: a folder of JPEG files, which the user puts in place; nothing downloads it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from margins import paths
from margins._sources import NotAvailable, roots
from margins.errors import MarginsError

NAME, FOLDER, SIDE = "tiny-imagenet", "tiny-imagenet-200", 64


def find() -> Path | None:
    """The first folder that looks like the set: the root's tiny-imagenet-200 with its list of classes."""
    for root in roots():
        if paths.note(root / FOLDER / "wnids.txt").is_file():
            return root / FOLDER
    return None


def read(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (N, 3, 64, 64) and labels int64 (N,), the classes in the order of their names.

    "train" is train/<class>/images/*.JPEG, class by class; "test" the published validation images, since the labels of
    the test images are not public: val/images, in the order of val/val_annotations.txt. Raises MarginsError where there
    are not `count` images, or one is no image of that size, and its kind NotAvailable where there is no such folder.
    """
    folder = find()
    if folder is None:
        looked = ", ".join(str(root / FOLDER) for root in roots())
        raise NotAvailable(
            f"{NAME} was not found: looked at {looked}. Unpack {FOLDER}.zip of the Stanford course CS231n there"
        )
    classes = sorted((folder / "wnids.txt").read_text().split())
    if split == "train":
        files = [
            (file, label)
            for label, name in enumerate(classes)
            for file in sorted((folder / "train" / name / "images").glob("*.JPEG"))
        ]
    else:
        listed = folder / "val" / "val_annotations.txt"
        if not listed.is_file():
            raise MarginsError(f"{folder} is incomplete: {listed} is missing; unpack it again")
        named = [line.split("\t")[:2] for line in listed.read_text().splitlines() if line]
        if strange := {name for _, name in named} - set(classes):
            raise MarginsError(f"{listed} names the class {min(strange)}, which wnids.txt lacks; unpack it again")
        files = [(folder / "val" / "images" / file, classes.index(name)) for file, name in named]
    if len(files) != count:
        raise MarginsError(f"{folder} is incomplete: {len(files)} images of {split} instead of {count}")
    with ThreadPoolExecutor() as pool:
        x = np.stack(list(pool.map(_pixels, (file for file, _ in files))))
    return torch.from_numpy(x), torch.tensor([label for _, label in files])


def _pixels(file: Path) -> np.ndarray:
    """(3, 64, 64); some are grey, and become three equal channels."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            x = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise MarginsError(f"{file} can't be read: {error}") from error
    if x.shape != (SIDE, SIDE, 3):
        raise MarginsError(f"{file} has {x.shape[1]} x {x.shape[0]} pixels instead of {SIDE} x {SIDE}")
    return x.transpose(2, 0, 1)
