"""Order and augmentation: every sample once an epoch, crops and flips as by hand, and all of it the sample's own."""

import pytest
import torch
from torch.nn import functional

from margins.training.batches import Augment, batches, stream

CPU = torch.device("cpu")


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
    augment = Augment(len(x), crop, flip, seed=1, epoch=2, device=CPU)
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
    augment = Augment(len(x), 2, True, seed=1, epoch=0, device=CPU)
    whole, order = augment(x, torch.arange(12)), torch.tensor([7, 2, 9])
    assert torch.equal(augment(x[order], order), whole[order])
    assert torch.equal(Augment(12, 2, True, 1, 0, CPU)(x, torch.arange(12)), whole)
    assert not torch.equal(Augment(12, 2, True, 1, 1, CPU)(x, torch.arange(12)), whole)
    assert not torch.equal(Augment(12, 2, True, 2, 0, CPU)(x, torch.arange(12)), whole)


def test_every_shift_and_both_sides_are_as_likely():
    augment = Augment(40_000, 1, True, seed=0, epoch=0, device=CPU)
    shifts = (augment.shift[:, 0] * 3 + augment.shift[:, 1]).bincount(minlength=9) / 40_000
    assert (shifts - 1 / 9).abs().max() < 0.01  # six standard errors
    assert abs(augment.flip.double().mean() - 0.5) < 0.015


def test_nothing_to_do_gives_the_samples_themselves():
    x = torch.rand(4, 6)
    assert Augment(4, 0, False, 0, 0, CPU)(x, torch.arange(4)) is x


def test_streams_of_different_numbers_differ():
    seeds = {stream(seed, what, epoch) for seed in range(20) for what in range(5) for epoch in range(20)}
    assert len(seeds) == 20 * 5 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
