"""Known exactly: the boxes of toy2d, scikit-learn's digits, and the sizes and class counts of the published files."""

import subprocess
import sys

import pytest
import torch
from real import needs
from sklearn.datasets import load_digits

from margins import datasets
from margins.errors import MarginsError


def equal(a, b):
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


@pytest.mark.parametrize("split", datasets.SPLITS)
def test_toy2d_lies_in_its_boxes(split):
    data = datasets.load("toy2d", split, size=5000)
    assert data.x.shape == (10_000, 2) and data.x.dtype == torch.float32
    assert data.y.dtype == torch.int64 and data.y.bincount().tolist() == [5000, 5000] and data.classes == 2
    for label, (low, high) in enumerate([([-1.01, -4], [-0.99, 2]), ([0.99, -2], [1.01, 4])]):
        points, low, high = data.x[data.y == label], torch.tensor(low), torch.tensor(high)
        assert ((points >= low) & (points <= high)).all()
        # a uniform sample of n misses the last 1 % of a side with a chance of 0.99^n < 1e-21
        near = 0.01 * (high - low)
        assert (points.amin(0) < low + near).all() and (points.amax(0) > high - near).all()


def test_toy2d_has_200_points_per_class_and_its_streams_differ():
    train = datasets.load("toy2d")
    assert train.x.shape == (400, 2)
    assert equal(train, datasets.load("toy2d", seed=0))
    others = [datasets.load("toy2d", "test"), datasets.load("toy2d", seed=1), datasets.load("toy2d", "test", seed=1)]
    sets = [{tuple(point) for point in data.x.tolist()} for data in [train, *others]]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_digits_are_scikit_learns_over_16():
    images, labels = load_digits(return_X_y=True)
    train, test = datasets.load("digits"), datasets.load("digits", "test")
    assert train.x.shape == (1437, 1, 8, 8) and test.x.shape == (360, 1, 8, 8)
    assert train.x.dtype == torch.float32 and train.y.dtype == torch.int64 and train.classes == 10
    assert torch.equal(torch.cat([train.x, test.x]).flatten(1).double() * 16, torch.from_numpy(images))
    assert torch.cat([train.y, test.y]).tolist() == labels.tolist()


def test_upscale():
    small, large = datasets.load("digits", "test"), datasets.load("digits", "test", upscale=28)
    assert large.x.shape == (360, 1, 28, 28) and large.x.min() >= 0 and large.x.max() <= 1
    assert torch.equal(datasets.load("digits", "test", upscale=8).x, small.x)
    # doubling: an output pixel lies a quarter pixel from its centre, so it weighs the neighbours 3/4 and 1/4
    row, wide = small.x[:, 0, 0], datasets.load("digits", "test", upscale=16).x[:, 0, 0]
    torch.testing.assert_close(wide[:, 1:-1:2], 0.75 * row[:, :-1] + 0.25 * row[:, 1:])


def test_classes_are_kept_in_order_and_relabelled():
    full, some = datasets.load("digits"), datasets.load("digits", classes=(7, 2))
    keep = (full.y == 7) | (full.y == 2)
    assert torch.equal(some.x, full.x[keep]) and torch.equal(some.y, (full.y[keep] == 2).long())
    assert some.y.dtype == torch.int64 and some.classes == 2


def test_size_takes_the_beginning_of_a_seeded_permutation():
    full, some = datasets.load("digits"), datasets.load("digits", size=100)
    assert some.x.shape == (100, 1, 8, 8)
    known = {image.numpy().tobytes(): int(label) for image, label in zip(full.x, full.y, strict=True)}
    assert all(known[image.numpy().tobytes()] == int(label) for image, label in zip(some.x, some.y, strict=True))
    longer = datasets.load("digits", size=200)
    assert torch.equal(longer.x[:100], some.x) and torch.equal(longer.y[:100], some.y)
    assert equal(some, datasets.load("digits", size=100)) and not equal(some, datasets.load("digits", size=100, seed=1))
    everything = datasets.load("digits", size=1437, seed=3)
    assert everything.y.bincount().tolist() == full.y.bincount().tolist()
    pair = datasets.load("digits", size=20, classes=(0, 1))
    assert len(pair.y) == 20 and set(pair.y.tolist()) == {0, 1}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(name="minst"), r"name='minst': no such data set; there are toy2d, digits, mnist, fashion-mnist, cifar10"),
        (dict(name=["mnist"]), r"name=\['mnist'\]"),
        (dict(split="val"), r"split='val': give one of train, test"),
        (dict(size=0), r"size=0: give a whole number from 1 to 1437"),
        (dict(size=1438), r"size=1438: give a whole number from 1 to 1437"),
        (dict(size=361, split="test"), r"size=361: give a whole number from 1 to 360"),
        (dict(size=1e3), r"size=1000\.0: give a whole number"),
        (dict(size=True), r"size=True: give a whole number"),
        (dict(size=999, classes=(0, 1)), r"size=999: .* 1 to 28\d \(digits train has no more with classes=\(0, 1\)"),
        (dict(name="toy2d", size=-1), r"size=-1: give a whole number of at least 1"),
        (dict(seed=-1), r"seed=-1: give a whole number of at least 0"),
        (dict(classes=(0, 10)), r"classes=\(0, 10\): give one or more different labels from 0 to 9"),
        (dict(classes=(1, 1)), r"classes=\(1, 1\)"),
        (dict(classes=()), r"classes=\(\)"),
        (dict(classes=3), r"classes=3: "),
        (dict(classes="01"), r"classes='01': "),
        (dict(classes=[[0], [1]]), r"classes=\[\[0\], \[1\]\]: "),
        (dict(classes=(0.0, 1)), r"classes=\(0\.0, 1\): "),
        (dict(name="toy2d", classes=(2,)), r"classes=\(2,\): .* from 0 to 1$"),
        (dict(name="mnist", upscale=28), r"upscale=28 with mnist: only digits"),
        (dict(upscale=7), r"upscale=7: give a whole number of at least 8"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(MarginsError, match=message):
        datasets.load(**{"name": "digits", **arguments})


def test_importing_is_light():
    code = "import sys, margins.datasets; print(sorted({'torchvision', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@needs("mnist")
def test_real_mnist_facts():
    train, test = datasets.load("mnist"), datasets.load("mnist", "test")
    assert train.x.shape == (60_000, 1, 28, 28) and test.x.shape == (10_000, 1, 28, 28)
    assert test.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # the mean and deviation by which MNIST is usually normalised
    assert abs(train.x.mean() - 0.1307) < 1e-4 and abs(train.x.std() - 0.3081) < 1e-4
    assert [len(datasets.load("mnist", split, classes=(0, 1)).y) for split in datasets.SPLITS] == [12_665, 2_115]


@needs("fashion-mnist")
def test_real_fashion_mnist_facts():
    for split, count in ("train", 6000), ("test", 1000):
        data = datasets.load("fashion-mnist", split)
        assert data.x.shape == (10 * count, 1, 28, 28) and data.y.bincount().tolist() == [count] * 10


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in ("cifar10", "cifar100")])
def test_real_cifar_facts(name):
    for split, count in ("train", 50_000), ("test", 10_000):
        data = datasets.load(name, split)
        assert data.x.shape == (count, 3, 32, 32) and data.x.min() == 0 and data.x.max() == 1
        assert data.y.bincount().tolist() == [count // data.classes] * data.classes
        if (name, split) == ("cifar10", "train"):  # the means by which CIFAR-10 is usually normalised
            assert (data.x.mean((0, 2, 3)) - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 1e-4
