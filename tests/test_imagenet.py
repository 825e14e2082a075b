"""ImageNet's folder and networks: tiny JPEGs in the real layout, weights in the real files' form, two real steps."""

import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from steps import two_steps
from torch import nn

from margins import _sources, imagenet, paths
from margins.datasets import Data
from margins.errors import MarginsError
from margins.models import build
from margins.models.imagenet import DEVIATION, FOLDER, MEAN

TINY = {"shape": (3, 32, 32), "classes": 3}


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes with images of several sizes and modes: nine to train, three to validate."""
    root, noise = tmp_path_factory.mktemp("imagenet"), generator(0)
    for split, count in (("train", 3), ("val", 1)):
        for label, name in enumerate(("n01440764", "n01443537", "n01484850")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (60 + 20 * i, 90, 3), generator=noise, dtype=torch.uint8)
                pixels[:, :, label] = 255
                image = Image.fromarray(pixels.numpy())
                image = image.convert("L") if (label, i) == (2, 2) else image  # ImageNet has grey ones
                image.save(root / split / name / f"{name}_{i}.JPEG", quality=95)
    return root


def test_an_epoch_has_every_image_once_as_random_crops(folder):
    found = list(imagenet.batches(folder, "train", 4, size=32, seed=1))
    assert [tuple(x.shape) for x, _ in found] == [(4, 3, 32, 32)] * 2 + [(1, 3, 32, 32)]
    x, y = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert x.dtype == torch.float32 and 0 <= x.min() < 0.2 and 0.8 < x.max() <= 1
    assert y.dtype == torch.int64 and y.bincount().tolist() == [3, 3, 3] and y.tolist() != sorted(y.tolist())
    coloured = [(image[label].mean() > 0.9).item() for image, label in zip(x, y, strict=True)]
    assert sum(coloured) == 8  # the channel of the class is full in all but the grey one


def test_what_is_drawn_belongs_to_seed_epoch_and_image(folder):
    before = torch.random.get_rng_state()
    parts = list(imagenet.batches(folder, "train", 4, size=32, seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    whole = next(imagenet.batches(folder, "train", 9, size=32, seed=1))
    for found in (parts, imagenet.batches(folder, "train", 4, size=32, seed=1, workers=1)):  # whatever the batch
        for one, together in zip(zip(*found, strict=True), whole, strict=True):
            assert torch.equal(torch.cat(one), together)
    for other in ({"seed": 2}, {"seed": 1, "epoch": 1}):
        x, y = next(imagenet.batches(folder, "train", 9, size=32, **other))
        assert not torch.equal(y, whole[1])
        assert not any(torch.equal(one, two) for one in x for two in whole[0])


def test_validation_is_the_centre_of_the_resized_image(folder):
    (x, y), (last, third) = imagenet.batches(folder, "val", 2, size=28)
    assert y.tolist() == [0, 1] and third.tolist() == [2] and last.shape == (1, 3, 28, 28)
    name = "n01440764"
    image = Image.open(folder / "val" / name / f"{name}_0.JPEG")
    resized = image.resize((48, 32), Image.Resampling.BILINEAR)  # 60 x 90 with the shorter side at 28 * 256 / 224
    centre = torch.tensor(list(resized.crop((10, 2, 38, 30)).tobytes())).view(28, 28, 3).permute(2, 0, 1) / 255
    torch.testing.assert_close(x[0], centre)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"split": "test"}, "split must be one of 'train', 'val', but is 'test'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"size": 0}, "size must be a whole number"),
        ({"epoch": -1}, "epoch must be a whole number"),
        ({"root": "/nowhere"}, "root=/nowhere: give a folder with train/<class>"),
    ],
)
def test_a_call_that_cannot_be_is_refused_before_any_image_is_read(folder, given, words):
    with pytest.raises(MarginsError, match=words):
        imagenet.batches(**{"root": folder, "split": "train", "batch_size": 2, **given})


def test_other_classes_in_validation_are_refused(tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/c"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / name / "0.JPEG")
    with pytest.raises(MarginsError, match="train and val must have the same classes, but differ in b"):
        imagenet.batches(tmp_path, "train", 2)


def test_two_steps_of_the_papers_configuration(folder):
    """ResNet-18 at 64 pixels, MIN+EXP, batches of 4, SGD as for ImageNet, BatchNorm frozen."""
    (x, y), (x2, y2), _ = imagenet.batches(folder, "train", 4, size=64)
    data = Data(torch.cat([x, x2]), torch.cat([y, y2]), "imagenet", 3)
    model = build("resnet-18", shape=(3, 64, 64), classes=3)
    two_steps(model, data, lr=1e-2, frozen_norms=True)


def test_pixels_are_normalised_first():
    model = build("resnet-18", **TINY)
    x = torch.rand(2, 3, 32, 32, generator=generator(1))
    expected = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    torch.testing.assert_close(model.body[0](x), expected)
    assert {name.split(".")[0] for name in model.state_dict()} == {"body", "head"}
    assert not any(name.startswith("body.0") for name in model.state_dict())


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Weights of a seeded ResNet-18 under torchvision's names, as a file in MARGINS_DATA that torchvision points to."""
    import torchvision

    model = build("resnet-18", generator=generator(7))
    weights = model.body[1].state_dict() | {f"fc.{name}": value for name, value in model.head.state_dict().items()}
    torch.save(weights, tmp_path / "weights")
    digest = hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()[:8]
    (tmp_path / "data" / FOLDER).mkdir(parents=True)
    file = (tmp_path / "weights").rename(tmp_path / "data" / FOLDER / f"resnet18-{digest}.pth")
    first = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    assert first.url.endswith("resnet18-f37072fd.pth")
    monkeypatch.setattr(type(first), "url", f"https://nowhere.invalid/{file.name}")
    monkeypatch.setenv("MARGINS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.delenv("MARGINS_OFFLINE", raising=False)
    return file


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_published_weights_are_read_checked_and_downloaded(published, monkeypatch):
    original = build("resnet-18", generator=generator(7))
    assert same(build("resnet-18", weights=True), original) and not same(build("resnet-18"), original)
    content = published.read_bytes()
    published.unlink()
    fetched = []

    def fetch(url, path, hash_prefix, progress):
        fetched.append((url.rsplit("/", 1)[-1], hash_prefix))
        Path(path).write_bytes(content)

    monkeypatch.setenv("MARGINS_OFFLINE", "1")
    with pytest.raises(_sources.NotAvailable, match="MARGINS_OFFLINE forbids a download"):
        build("resnet-18", weights=True)
    monkeypatch.delenv("MARGINS_OFFLINE")
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert same(build("resnet-18", weights=True), original) and same(build("resnet-18", weights=True), original)
    assert fetched == [(published.name, published.stem.split("-")[1])]
    cached = paths.CACHE / FOLDER / published.name
    cached.write_bytes(content + b"0")
    with pytest.raises(MarginsError, match="is altered: SHA-256"):
        build("resnet-18", weights=True)
    cached.unlink()

    def unreachable(*given, **settings):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(_sources.NotAvailable, match=r"no network.*Fetch https"):
        build("resnet-18", weights=True)


def test_senet_is_the_collections_and_has_no_dropout():
    model = build("senet-50", **TINY)
    block = model.body[1].layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))  # in the first convolution, as Caffe's
    assert model.body[1].drop_rate == 0 and not any(isinstance(module, nn.Dropout) for module in model.modules())
    assert model.body[1].default_cfg["url"].endswith("se_resnet50-ce0d4300.pth")


def test_senet_without_timm_says_what_is_needed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(_sources.NotAvailable, match=r"margins-book\[imagenet\]"):
        build("senet-50", **TINY)
