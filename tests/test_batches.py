"""Order and augmentation: every sample once an epoch, crops, windows, flips as by hand, and all of it its own."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from margins.datasets import Data
from margins.errors import MarginsError
from margins.methods import plain
from margins.methods.rows import describe
from margins.models import MLP
from margins.penalties.context import Threat
from margins.training import Recipe, train, train_together
from margins.training.batches import Augment, batches, central, stream


def images(count=12, channels=2, height=5, width=7):
    return torch.arange(count * channels * height * width).double().view(count, channels, height, width) + 1


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_has_every_sample_once_in_an_order_of_its_own(drop_last):
    epochs = [list(batches(23, 5, drop_last, seed=3, epoch=epoch)) for epoch in range(3)]
    for epoch in epochs:
        assert [len(index) for index in epoch] == [5, 5, 5, 5] + [3] * (not drop_last)
        seen = torch.cat(epoch)
        assert len(seen.unique()) == len(seen)
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    again = list(batches(23, 5, drop_last, seed=3, epoch=1, first=2))
    assert all(torch.equal(a, b) for a, b in zip(epochs[1][2:], again, strict=True))
    assert not torch.equal(next(batches(23, 5, drop_last, seed=4, epoch=0)), epochs[0][0])


@pytest.mark.parametrize(("crop", "flip"), [(0, True), (2, False), (2, True), (4, True)])
def test_crops_and_flips_are_those_of_a_loop(crop, flip):
    x = images()
    augment = Augment(x, crop, flip, seed=1, epoch=2)
    found = augment(x, torch.arange(len(x)))
    for i, image in enumerate(x):
        mirrored = image.flip(-1) if flip and augment.flip[i] else image
        padded = functional.pad(mirrored, [crop] * 4)
        down, right = augment.shift[i].tolist()
        if flip and augment.flip[i]:  # of the mirrored image it is counted from the other side
            right = 2 * crop - right
        assert torch.equal(found[i], padded[:, down : down + 5, right : right + 7])


def test_a_sample_is_augmented_alike_in_any_batch_and_anew_in_each_epoch():
    x = images()
    augment = Augment(x, 2, True, seed=1, epoch=0)
    whole, order = augment(x, torch.arange(12)), torch.tensor([7, 2, 9])
    assert torch.equal(augment(x[order], order), whole[order])
    assert torch.equal(Augment(x, 2, True, 1, 0)(x, torch.arange(12)), whole)
    assert not torch.equal(Augment(x, 2, True, 1, 1)(x, torch.arange(12)), whole)
    assert not torch.equal(Augment(x, 2, True, 2, 0)(x, torch.arange(12)), whole)


def test_every_shift_and_both_sides_are_as_likely():
    augment = Augment(torch.zeros(40_000, 1), 1, True, seed=0, epoch=0)
    shifts = (augment.shift[:, 0] * 3 + augment.shift[:, 1]).bincount(minlength=9) / 40_000
    assert (shifts - 1 / 9).abs().max() < 0.01  # six standard errors
    assert abs(augment.flip.double().mean() - 0.5) < 0.015


@pytest.mark.parametrize("flip", [False, True])
def test_windows_are_those_of_a_loop_and_each_is_as_likely(flip):
    x = images(3000, 1, 6, 6)
    augment = Augment(x, 0, flip, seed=1, epoch=2, window=4)
    found = augment(x, torch.arange(len(x)))
    for i in range(20):
        down, right = augment.shift[i].tolist()
        window = x[i, :, down : down + 4, right : right + 4]
        assert torch.equal(found[i], window.flip(-1) if flip and augment.flip[i] else window)
    counts = (augment.shift[:, 0] * 3 + augment.shift[:, 1]).bincount(minlength=9) / len(x)
    assert len(counts) == 9 and (counts - 1 / 9).abs().max() < 0.035  # six standard errors
    order = torch.tensor([7, 2, 9])
    assert torch.equal(augment(x[order], order), found[order])


def test_the_central_window():
    x = images(1, 1, 6, 7)
    assert torch.equal(central(x, 4), x[:, :, 1:5, 1:5])
    assert torch.equal(central(x[..., :6], 6), x[..., :6])


def test_nothing_to_do_gives_the_samples_themselves():
    x = torch.rand(4, 6)
    assert Augment(x, 0, False, 0, 0)(x, torch.arange(4)) is x


def test_streams_of_different_numbers_differ():
    seeds = {stream(seed, what, epoch) for seed in range(20) for what in range(5) for epoch in range(20)}
    assert len(seeds) == 20 * 5 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_training_takes_windows_of_larger_images_and_everything_else_the_central_one():
    """A network of 4 x 4 images on data of 6 x 6: the crops of the first step are those that are drawn for it."""
    seen = []

    class Watched(MLP):
        def forward(self, x):
            if self.training and torch.is_grad_enabled():
                seen.append(x.detach().clone())
            return super().forward(x)

    x = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    data = Data(x, torch.arange(8) % 2, "tiny", 2)
    held_out = Data(central(x, 4), data.y, "tiny", 2)
    recipe, ball = Recipe(epochs=1, batch_size=4, window=4), Threat(math.inf, 0.1, 0.05)
    model = Watched(16, (3,), 2)
    train(model, plain(), data, recipe=recipe, threat=ball, seed=3, validation=held_out)
    augment = Augment(x, 0, False, 3, 0, window=4)
    steps = [augment(x[index], index) for index in batches(8, 4, False, 3, 0)]
    assert [torch.equal(one, two) for one, two in zip(seen, steps, strict=True)] == [True, True]
    together = train_together([MLP(16, (3,), 2)], plain(), data, recipe=recipe, threat=ball, seeds=[3])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(together[0].last[name], value)
    with pytest.raises(MarginsError, match="16 numbers a sample"):
        train(model, plain(), data, recipe=replace(recipe, window=0), threat=ball, seed=3)
    with pytest.raises(MarginsError, match=r"validation: .*\(1, 6, 6\)|validation: .*16 numbers"):
        train(model, plain(), data, recipe=recipe, threat=ball, seed=3, validation=data)


@pytest.mark.parametrize(
    ("given", "x", "words"),
    [
        ({"window": -1}, None, "window must be a whole number"),
        ({"window": 4, "crop": 1}, None, "window: images are cropped by 1 already"),
        ({"window": 7}, torch.zeros(2, 1, 6, 6), r"window must be of square images at least as large, but is 7"),
        ({"window": 4}, torch.zeros(2, 1, 6, 7), "window must be of square images"),
        ({"window": 4}, torch.zeros(2, 36), "window must be of square images"),
    ],
)
def test_windows_that_cannot_be_are_refused(given, x, words):
    with pytest.raises(MarginsError, match=words):
        Recipe(epochs=1, **given).seen(Data(x, torch.zeros(2, dtype=torch.int64), "tiny", 2))


def test_a_recipe_without_a_window_is_told_of_as_before_there_were_any():
    told = describe(Recipe(epochs=1))
    assert "window" not in told and "crop" in told and told["kind"] == "Recipe"
    assert describe(Recipe(epochs=1, window=4)) == told | {"window": 4}
