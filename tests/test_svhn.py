"""SVHN in the real files' format: .mat files of a few images, with the digit 0 labelled 10, and two real steps."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.io import savemat
from steps import two_steps

from margins import _sources, datasets, paths
from margins.errors import MarginsError
from margins.models import build

#: Of each file, the labels as they are in it.
LABELS = {"train": [1, 2, 3, 10, 5, 6, 7, 10], "extra": [9, 9, 9, 10, 9], "test": [10, 1, 1, 4]}
DIGITS = {split: [label % 10 for label in given] for split, given in LABELS.items()}


def pixels(split):
    """uint8 (N, 3, 32, 32)."""
    draw = np.random.default_rng(len(LABELS[split]))
    return draw.integers(0, 256, (len(LABELS[split]), 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """All three files in MARGINS_DATA, as the originals; gives their folder."""
    folder = tmp_path / "data" / "SVHN"
    folder.mkdir(parents=True)
    known = {}
    for split, given in LABELS.items():
        file = folder / f"{split}_32x32.mat"
        arrays = {"X": pixels(split).transpose(2, 3, 1, 0), "y": np.array(given, np.uint8)[:, None]}
        savemat(file, arrays, do_compression=True)
        known[split] = {file.name: (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())}
    for name, extra in ("svhn", False), ("svhn-extra", True):
        files = {"train": known["extra" if extra else "train"], "test": {} if extra else known["test"]}
        monkeypatch.setitem(_sources.SOURCES, name, replace(_sources.SOURCES[name], files=files))
        monkeypatch.setitem(datasets.SETS, name, (10, (13 if extra else 8, 4)))
    monkeypatch.setenv("MARGINS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.delenv("MARGINS_OFFLINE", raising=False)
    return folder


def test_images_and_digits_are_those_of_the_files(tiny):
    for split in datasets.SPLITS:
        data = datasets.load("svhn", split)
        assert data.x.dtype == torch.float32 and data.classes == 10
        assert np.array_equal((data.x * 255).round().byte().numpy(), pixels(split))
        assert data.y.dtype == torch.int64 and data.y.tolist() == DIGITS[split]


def test_the_extra_images_come_after_the_others(tiny):
    data = datasets.load("svhn-extra")
    assert np.array_equal((data.x * 255).round().byte().numpy(), np.concatenate([pixels("train"), pixels("extra")]))
    assert data.y.tolist() == DIGITS["train"] + DIGITS["extra"]
    assert torch.equal(datasets.load("svhn-extra", "test").x, datasets.load("svhn", "test").x)


def test_the_extra_file_is_asked_for_where_it_is_needed(tiny, monkeypatch):
    monkeypatch.setenv("MARGINS_OFFLINE", "1")
    assert datasets.available("svhn-extra")
    (tiny / "extra_32x32.mat").unlink()
    assert datasets.available("svhn") and not datasets.available("svhn-extra")
    assert datasets.live("svhn-extra") == "digits"
    with pytest.raises(datasets.NotAvailable, match="svhn-extra was not found"):
        datasets.load("svhn-extra")


def test_a_download_brings_what_is_missing_through_torchvision(tiny, monkeypatch):
    """First one of the two, then the other beside it in the same folder."""
    originals = {file.name: file.read_bytes() for file in tiny.iterdir()}
    for file in tiny.iterdir():
        file.unlink()
    fetched = []

    def fetch(root, split, download):
        assert download
        fetched.append(split)
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{split}_32x32.mat").write_bytes(originals[f"{split}_32x32.mat"])

    monkeypatch.setattr("torchvision.datasets.SVHN", fetch)
    assert datasets.live("svhn") == "svhn" and fetched == ["train", "test"]
    assert len(datasets.load("svhn-extra").y) == 13 and fetched == ["train", "test", "extra"]
    assert {file.name for file in (paths.CACHE / "SVHN").iterdir()} == set(originals)
    assert [path.name for path in paths.CACHE.iterdir()] == ["SVHN"]


def test_an_altered_file_is_named(tiny):
    file = tiny / "extra_32x32.mat"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(MarginsError, match=r"extra_32x32\.mat is altered"):
        datasets.load("svhn-extra")
    assert len(datasets.load("svhn").y) == 8


def test_the_files_are_torchvisions():
    """Names as torchvision has them, and in its splits; the sizes and digests are those of TensorFlow's data sets."""
    from torchvision.datasets import SVHN

    for name in ("svhn", "svhn-extra"):
        source = _sources.SOURCES[name]
        files = {file for given in source.files.values() for file in given}
        assert files == {SVHN.split_list[split][1] for split in source.fetched}
    assert datasets.SETS["svhn-extra"][1][0] == 73_257 + 531_131


@pytest.mark.parametrize(("net", "recipe"), [("convnet", {}), ("resnet-cifar", {"frozen_norms": True})])
def test_two_steps_of_the_papers_configuration(tiny, net, recipe):
    """On windows of the enlarged images, as the paper has them: MIN+EXP, batches of 4, SGD as for SVHN."""
    data = datasets.load("svhn", "train")
    two_steps(build(net, shape=(3, 32, 32), classes=10), data, lr=5e-3, **recipe)
