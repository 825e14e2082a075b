"""TinyImageNet's published folder, as two tiny classes: pixels and labels, grey images, and what is wrong with it."""

import numpy as np
import pytest
import torch
from PIL import Image

from margins import datasets, paths, tinyimagenet
from margins._sources import NotAvailable
from margins.errors import MarginsError

CLASSES = ("n02", "n01")  # as listed, not in order


def picture(file, colour, mode="RGB", side=64):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), colour).save(file, "JPEG", quality=100)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Three training images a class and two to test, of one colour each."""
    monkeypatch.setenv("MARGINS_DATA", str(tmp_path))
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setitem(datasets.SETS, "tiny-imagenet", (2, (6, 2)))
    folder = tmp_path / tinyimagenet.FOLDER
    for name, level in (("n01", 0), ("n02", 120)):
        for k in range(3):
            picture(folder / "train" / name / "images" / f"{name}_{k}.JPEG", (level + 40 * k, 10, 200))
    picture(folder / "val" / "images" / "val_0.JPEG", (250, 0, 0))
    picture(folder / "val" / "images" / "val_1.JPEG", 90, mode="L")
    (folder / "wnids.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n")
    return folder


def test_images_and_labels_are_those_of_the_folders(root):
    data = datasets.load("tiny-imagenet")
    assert datasets.available("tiny-imagenet") and datasets.live("tiny-imagenet") == "tiny-imagenet"
    assert data.x.shape == (6, 3, 64, 64) and data.x.dtype == torch.float32 and data.classes == 2
    assert data.y.tolist() == [0, 0, 0, 1, 1, 1]
    red = data.x[:, 0].mean((1, 2)) * 255
    assert np.allclose(red, [0, 40, 80, 120, 160, 200], atol=3)
    assert data.x[0, 2].mean().item() == pytest.approx(200 / 255, abs=0.02)


def test_the_test_split_are_the_validation_images_and_grey_ones_have_equal_channels(root):
    data = datasets.load("tiny-imagenet", "test")
    assert data.y.tolist() == [1, 0]
    assert data.x[1].mean((1, 2)).tolist() == pytest.approx([90 / 255] * 3, abs=0.01)
    some = datasets.load("tiny-imagenet", size=4, seed=1)
    assert len(some.y) == 4 and set(some.y.tolist()) <= {0, 1}


def test_without_the_folder_it_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("MARGINS_DATA", str(tmp_path))
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    assert not datasets.available("tiny-imagenet") and datasets.live("tiny-imagenet") == "digits"
    with pytest.raises(NotAvailable, match=r"tiny-imagenet was not found: looked at .*tiny-imagenet-200.*CS231n"):
        datasets.load("tiny-imagenet")


def test_what_is_wrong_is_named(root):
    (root / "train" / "n02" / "images" / "n02_1.JPEG").unlink()
    with pytest.raises(MarginsError, match="is incomplete: 5 images of train instead of 6"):
        datasets.load("tiny-imagenet")
    picture(root / "train" / "n02" / "images" / "n02_1.JPEG", (0, 0, 0), side=32)
    with pytest.raises(MarginsError, match=r"n02_1.JPEG has 32 x 32 pixels instead of 64 x 64"):
        datasets.load("tiny-imagenet")
    (root / "train" / "n02" / "images" / "n02_1.JPEG").write_bytes(b"no image")
    with pytest.raises(MarginsError, match=r"n02_1.JPEG can't be read"):
        datasets.load("tiny-imagenet")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99\t0\t0\t9\t9\n")
    with pytest.raises(MarginsError, match=r"names the class n99, which wnids.txt lacks"):
        datasets.load("tiny-imagenet", "test")
    (root / "val" / "val_annotations.txt").unlink()
    with pytest.raises(MarginsError, match=r"val_annotations.txt is missing; unpack it again"):
        datasets.load("tiny-imagenet", "test")
