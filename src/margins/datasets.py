"""The data sets of the book as in-memory tensors: two toy sets that are always there, and those that come from files.

The files are looked for in the folder that the environment variable MARGINS_DATA names (torchvision's layout), then in
`paths.CACHE`, and are then downloaded into the cache, unless MARGINS_OFFLINE=1 forbids it. Every file is checked
against the published original. Reading them needs torch and numpy only; torchvision is imported for a download.
"""

import numbers
import pickle
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from margins import tinyimagenet
from margins._sources import SOURCES, NotAvailable, download, files, find, needed
from margins.errors import MarginsError


@dataclass(frozen=True, eq=False)
class Data:
    """`x` float32 (N, C, H, W) in [0, 1] (`toy2d`: (N, 2), points in the plane), `y` int64 (N,) in 0..classes-1."""

    x: Tensor
    y: Tensor
    name: str
    classes: int


SPLITS = ("train", "test")
#: name -> number of classes, and of samples in SPLITS (`toy2d`: as many as asked for)
SETS: dict[str, tuple[int, tuple[int | None, int | None]]] = {
    "toy2d": (2, (None, None)),
    "digits": (10, (1437, 360)),
    "mnist": (10, (60_000, 10_000)),
    "fashion-mnist": (10, (60_000, 10_000)),
    "cifar10": (10, (50_000, 10_000)),
    "cifar100": (100, (50_000, 10_000)),
    "svhn": (10, (73_257, 26_032)),
    "svhn-extra": (10, (604_388, 26_032)),
    "tiny-imagenet": (200, (100_000, 10_000)),
}


def load(
    name: str,
    split: str = "train",
    *,
    size: int | None = None,
    seed: int = 0,
    classes: Sequence[int] | None = None,
    upscale: int | None = None,
) -> Data:
    """One split of a data set, in memory, in the files' own order.

    `name` is one of `SETS`, `split` "train" or "test".
    `size`: only the first `size` samples of a permutation drawn with `seed`, in that order and after `classes`, so that
    a smaller subset is the beginning of a larger one. For `toy2d` it is the number of samples per class (default 200).
    `classes`: keep these labels only and call them 0, 1, ... in the order given.
    `upscale`: resize the 8 x 8 `digits` bilinearly to `upscale` pixels a side.

    `toy2d` (AMM, Fig. 1): two boxes in the plane, uniform in [-1.01, -0.99] x [-4, 2] (label 0) and
    [0.99, 1.01] x [-2, 4] (label 1); train and test come from different random streams of `seed`.
    `digits`: scikit-learn's 1797 images, divided by 16; the last 360 are the test split.
    `cifar100` has the 100 fine labels. `svhn` are the cropped digits, each labelled with its digit; `svhn-extra` has
    the 531,131 easier ones of the publication as well, after them. `tiny-imagenet`, 64 pixels a side, is never
    downloaded, and its test split are the published validation images. All are as published, divided by 255.

    Raises MarginsError for an argument out of range, for a file that is truncated, altered or missing beside the others
    (nothing is changed and no other place is tried), and its kind NotAvailable if the set cannot be had.
    """
    _check_name("name", name)
    if split not in SPLITS:
        raise MarginsError(f"split={split!r}: give one of {', '.join(SPLITS)}")
    total, counts = SETS[name]
    _check_int("seed", seed, 0)
    if size is not None:
        _check_int("size", size, 1, counts[SPLITS.index(split)])
    if upscale is not None and name != "digits":
        raise MarginsError(f"upscale={upscale!r} with {name}: only digits can be resized, leave it out")
    if upscale is not None:
        _check_int("upscale", upscale, 8)
    if classes is not None:
        classes = _check_classes(classes, total)

    rng = np.random.default_rng([seed, SPLITS.index(split)])
    if name == "toy2d":
        x, y = _toy2d(rng, 200 if size is None else size)
        size = None
    else:
        x, y = _digits(split) if name == "digits" else _read(name, split)
    if classes is not None:
        x, y, total = *_relabel(x, y, classes), len(classes)
    if size is not None:
        _check_int("size", size, 1, len(y), f" ({name} {split} has no more with classes={classes})")
        first = torch.from_numpy(rng.permutation(len(y))[:size])
        x, y = x[first], y[first]
    if x.dtype == torch.uint8:  # only now: the subset is smaller, and a float takes four bytes
        x = x.float().div_(255)
    if upscale is not None:
        x = torch.nn.functional.interpolate(x, size=(upscale, upscale), mode="bilinear", align_corners=False)
    return Data(x, y, name, total)


def available(name: str) -> bool:
    """Whether the set can be loaded without a download; raises MarginsError if its files are there but not whole."""
    _check_name("name", name)
    if name == tinyimagenet.NAME:
        return tinyimagenet.find() is not None
    return name not in SOURCES or all(find(one) is not None for one in needed(name))


def live(name: str, fallback: str = "digits") -> str:
    """`name` if it can be had, downloading it if that is allowed, else `fallback`: what a page can show anywhere."""
    _check_name("fallback", fallback)
    if available(name):
        return name
    if name not in SOURCES:
        return fallback
    try:
        for one in needed(name):
            find(one) or download(one)
    except NotAvailable:
        return fallback
    return name


def _check_name(argument: str, name: str) -> None:
    if name not in tuple(SETS):
        raise MarginsError(f"{argument}={name!r}: no such data set; there are {', '.join(SETS)}")


def _check_int(argument: str, value: int, low: int, high: int | None = None, why: str = "") -> None:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise MarginsError(f"{argument}={value!r}: give a whole number {allowed}{why}")


def _check_classes(classes: Sequence[int], total: int) -> tuple[int, ...]:
    given = tuple(classes) if isinstance(classes, Iterable) else ()
    whole = all(isinstance(label, numbers.Integral) for label in given)
    if not given or not whole or len(set(given)) < len(given) or not set(given) <= set(range(total)):
        raise MarginsError(f"classes={classes!r}: give one or more different labels from 0 to {total - 1}")
    return given


def _relabel(x: Tensor, y: Tensor, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    matches = y[:, None] == torch.tensor(classes)  # (N, k)
    keep = matches.any(1)
    return x[keep], matches[keep].int().argmax(1)


def _toy2d(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
    low = np.array([[-1.01, -4.0], [0.99, -2.0]]).repeat(size, 0)
    high = np.array([[-0.99, 2.0], [1.01, 4.0]]).repeat(size, 0)
    return torch.from_numpy(rng.uniform(low, high)).float(), torch.arange(2).repeat_interleave(size)


def _digits(split: str) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = map(torch.from_numpy, load_digits(return_X_y=True))
    part = slice(-360, None) if split == "test" else slice(None, -360)
    return x[part].float().div_(16).reshape(-1, 1, 8, 8), y[part].long()


def _read(name: str, split: str) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (N, C, H, W) and labels int64 (N,), from files that were checked."""
    if name == tinyimagenet.NAME:
        return tinyimagenet.read(split, SETS[name][1][SPLITS.index(split)])
    found = files(name, split)
    if "mnist" in name:  # idx: a header of 16 bytes before the images, of 8 before the labels
        x = np.fromfile(found[0], np.uint8, offset=16).reshape(-1, 1, 28, 28)
        y = np.fromfile(found[1], np.uint8, offset=8)
    elif "svhn" in name:  # (H, W, C, N), and the digit 0 has the label 10
        from scipy.io import loadmat

        batches = [loadmat(file, variable_names=("X", "y")) for file in found]
        x = np.concatenate([batch["X"].transpose(3, 2, 0, 1) for batch in batches])
        y = np.concatenate([batch["y"][:, 0] % 10 for batch in batches])
    else:
        with warnings.catch_warnings():  # pickles of 2009, whose dtypes newer numpys frown at
            warnings.simplefilter("ignore")
            batches = [pickle.loads(file.read_bytes(), encoding="latin1") for file in found]
        x = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        y = np.concatenate([batch["fine_labels" if name == "cifar100" else "labels"] for batch in batches])
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
