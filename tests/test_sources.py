"""Files that come from a small known original: whole, missing, truncated, altered, incomplete, and downloaded."""

import hashlib
import os
import socket
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from real import needs

from margins import _sources, datasets, paths, published
from margins.errors import MarginsError

REAL = Path(os.environ.get("MARGINS_DATA") or paths.CACHE).resolve()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Empty MARGINS_DATA and cache folders, and a download that would have no network."""
    import torchvision

    def unreachable(*arguments, **settings):
        raise URLError("no network")

    for folder in ("data", "cache"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("MARGINS_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MARGINS_OFFLINE", raising=False)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(torchvision.datasets, "MNIST", unreachable)
    return tmp_path


def idx(pixels, labels):
    """Images and labels in the idx format: only the lengths of the headers matter to the reader."""
    return bytes(16) + pixels.tobytes(), bytes(8) + labels.tobytes()


@pytest.fixture
def tiny(place, monkeypatch):
    """An MNIST of 6 training and 4 test images as the original, laid out in MARGINS_DATA; gives its folder."""
    names = [("train-images", "train-labels"), ("t10k-images", "t10k-labels")]
    files, folder = {}, place / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, pair, count in zip(datasets.SPLITS, names, (6, 4), strict=True):
        pixels = np.arange(count * 784, dtype=np.uint8).reshape(count, 28, 28)
        files[split] = {}
        for name, content in zip(pair, idx(pixels, np.arange(count, dtype=np.uint8)), strict=True):
            (folder / name).write_bytes(content)
            files[split][name] = (len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(_sources.SOURCES, "mnist", _sources.Source("MNIST/raw", "MNIST", files))
    monkeypatch.setitem(datasets.SETS, "mnist", (10, (6, 4)))
    return folder


def test_files_are_read_as_they_are(tiny):
    train, test = datasets.load("mnist"), datasets.load("mnist", "test", classes=(3, 1))
    expected = torch.from_numpy(np.arange(6 * 784, dtype=np.uint8)).reshape(6, 1, 28, 28)
    assert torch.equal((train.x * 255).round().byte(), expected) and train.x.max() == 1 and train.x.min() == 0
    assert train.y.tolist() == [0, 1, 2, 3, 4, 5] and test.y.tolist() == [1, 0]
    assert datasets.available("mnist") and datasets.live("mnist") == "mnist"
    with pytest.raises(MarginsError, match="size=7: give a whole number from 1 to 6"):
        datasets.load("mnist", size=7)


def test_the_cache_is_the_second_place(tiny, place, monkeypatch):
    (place / "data" / "MNIST").rename(place / "cache" / "MNIST")
    assert datasets.load("mnist").y.tolist() == [0, 1, 2, 3, 4, 5]
    monkeypatch.delenv("MARGINS_DATA")
    assert datasets.available("mnist")


def broken(tiny, how):
    file = tiny / "train-images"
    content = bytearray(file.read_bytes())
    if how == "truncated":
        del content[-5:]
    elif how == "altered":
        content[1000] ^= 1
    elif how == "longer":
        content += b"\0"
    file.write_bytes(content)
    if how == "incomplete":
        file.unlink()
    return file


@pytest.mark.parametrize(
    "how, message",
    [
        ("truncated", r"train-images is truncated: 4715 bytes instead of 4720\. It was left untouched"),
        ("altered", r"train-images is altered: SHA-256 [0-9a-f]{64} instead of [0-9a-f]{64}\. It was left untouched"),
        ("longer", r"train-images is altered: 4721 bytes instead of 4720"),
        ("incomplete", r"mnist in .*raw is incomplete: train-images missing"),
    ],
)
@pytest.mark.parametrize("call", [datasets.load, datasets.available, datasets.live])
def test_a_broken_file_is_named_and_nothing_else_is_tried(tiny, place, how, message, call):
    assert datasets.available("mnist")  # the check of the whole file must not be remembered for the broken one
    file = broken(tiny, how)
    before = file.read_bytes() if file.exists() else None
    with pytest.raises(MarginsError, match=message) as error:
        call("mnist")
    assert not isinstance(error.value, datasets.NotAvailable)
    assert (file.read_bytes() if file.exists() else None) == before
    assert not list((place / "cache").iterdir())


def test_a_digest_is_computed_once_while_the_file_stays_the_same(tiny, monkeypatch):
    calls = []
    monkeypatch.setattr(hashlib, "file_digest", lambda *a, real=hashlib.file_digest: calls.append(1) or real(*a))
    for _ in range(3):
        datasets.load("mnist")
    assert len(calls) == 4


def test_missing(place):
    assert not datasets.available("mnist") and datasets.available("digits") and datasets.available("toy2d")
    with pytest.raises(datasets.NotAvailable) as error:
        datasets.load("mnist")
    message = str(error.value)
    for root in ("data", "cache"):
        assert str(place / root / "MNIST" / "raw") in message
    assert "mnist was not found" in message and "no network" in message and "Set MARGINS_DATA" in message
    assert datasets.live("mnist") == "digits" and datasets.live("mnist", fallback="toy2d") == "toy2d"
    assert not [path for path in (place / "cache").rglob("*") if path.name.startswith(".download")]


def test_offline_forbids_the_download(place, monkeypatch):
    monkeypatch.setenv("MARGINS_OFFLINE", "1")
    monkeypatch.setattr("torchvision.datasets.MNIST", lambda *a, **k: pytest.fail("a download was tried"))
    with pytest.raises(datasets.NotAvailable, match="MARGINS_OFFLINE forbids a download"):
        datasets.load("mnist")
    assert datasets.live("mnist") == "digits"


def test_a_download_lands_whole_in_the_cache(tiny, place, monkeypatch):
    originals = {path.name: path.read_bytes() for path in tiny.iterdir()}
    for path in tiny.iterdir():
        path.unlink()
    timeouts = []

    def fetch(root, download):
        assert download and root.parent == place / "cache"
        timeouts.append(socket.getdefaulttimeout())
        (root / "MNIST" / "raw").mkdir(parents=True)
        for name, content in originals.items():
            (root / "MNIST" / "raw" / name).write_bytes(content)

    monkeypatch.setattr("torchvision.datasets.MNIST", fetch)
    assert datasets.live("mnist") == "mnist" and len(datasets.load("mnist", "test").y) == 4
    assert timeouts == [20] and socket.getdefaulttimeout() is None
    assert [path.name for path in (place / "cache").iterdir()] == ["MNIST"]


def test_a_download_never_replaces_what_lies_there(tiny, place, monkeypatch):
    (place / "data" / "MNIST").rename(place / "away")
    other = place / "cache" / "MNIST" / "raw" / "notes.txt"
    other.parent.mkdir(parents=True)
    other.write_text("mine")

    def fetch(root, download):
        (root / "MNIST" / "raw").mkdir(parents=True)

    monkeypatch.setattr("torchvision.datasets.MNIST", fetch)
    with pytest.raises(datasets.NotAvailable, match=r"could not be moved to .*MNIST.raw, where something else lies"):
        datasets.load("mnist")
    assert other.read_text() == "mine"


def test_a_wrong_folder_in_the_environment(place, monkeypatch):
    monkeypatch.setenv("MARGINS_DATA", str(place / "nowhere"))
    with pytest.raises(MarginsError, match=r"MARGINS_DATA=.*nowhere: no such folder"):
        datasets.available("mnist")
    assert datasets.load("digits").name == "digits"


def test_unknown_fallback(place):
    with pytest.raises(MarginsError, match="fallback='none': no such data set"):
        datasets.live("mnist", fallback="none")


def test_what_was_read_or_looked_for_is_noted(tiny, place, monkeypatch):
    trace = place / "trace"
    monkeypatch.setenv("MARGINS_TRACE", str(trace))
    datasets.load("mnist")
    assert {str(path) for path in tiny.iterdir()} == set(trace.read_text().split())
    trace.unlink()
    (place / "data" / "MNIST").rename(place / "away")
    assert datasets.live("mnist") == "digits"
    assert {str(place / root / "MNIST" / "raw") for root in ("data", "cache")} == set(trace.read_text().split())


@needs("mnist")
@pytest.mark.parametrize("how", ["whole", "truncated", "altered", "incomplete"])
def test_real_mnist_files(place, monkeypatch, how):
    folder = place / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    files = [file for part in _sources.SOURCES["mnist"].files.values() for file in part]
    for file in files:
        (folder / file).symlink_to(REAL / "MNIST" / "raw" / file)
    broken_file = folder / "t10k-labels-idx1-ubyte"
    content = bytearray(broken_file.read_bytes())
    if how == "whole":
        assert datasets.available("mnist")
        return
    broken_file.unlink()
    if how == "truncated":
        broken_file.write_bytes(content[:5000])
    elif how == "altered":
        content[9000] = (content[9000] + 1) % 10
        broken_file.write_bytes(content)
    with pytest.raises(MarginsError, match=f"t10k-labels-idx1-ubyte is {how}|is {how}: t10k-labels-idx1-ubyte missing"):
        datasets.load("mnist", "test")


@pytest.mark.parametrize(("folder", "skipped"), [("", True), ("somewhere", False)])
def test_what_needs_others_files_is_never_skipped_where_a_folder_of_them_is_named(monkeypatch, folder, skipped):
    for module in (datasets, published):
        monkeypatch.setattr(module, "available", lambda name: False)
    monkeypatch.setenv("MARGINS_DATA", folder)
    mark = needs("mnist", *published.NETWORKS).mark
    assert mark.name == "skipif" and mark.args == (skipped,) and "mnist" in mark.kwargs["reason"]
