"""The networks of adversarial training on CIFAR: parameters counted by hand, shortcuts, normalisation, other sizes."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from margins.errors import MarginsError
from margins.models import build
from margins.models.layers import CIFAR

COLOUR = {"shape": (3, 32, 32), "classes": 10}
#: As small as each comes.
SMALL = {
    "resnet-18-cifar": {"shape": (3, 16, 16), "classes": 3, "width": 4},
    "wide-resnet": {"shape": (3, 8, 8), "classes": 3, "depth": 10, "width": 2},
    "resnet-cifar": {"shape": (3, 8, 8), "classes": 3, "depth": 8, "width": 4},
}
BOTH = [("wide-resnet", {"variant": "trades"}), ("wide-resnet", {"variant": "madry"}), ("resnet-18-cifar", {})]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def wide(depth, width, classes, projected):
    """BatchNorms before each convolution but the first, and before the mean; projected: 1 x 1 convolutions."""
    total, inputs = 27 * 16, 16
    for channels in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            total += 2 * inputs + 9 * inputs * channels + 2 * channels + 9 * channels**2
            total += projected * (inputs != channels) * inputs * channels
            inputs = channels
    return total + 2 * inputs + inputs * classes + classes


def resnet18(width, classes):
    total, inputs = 27 * width + 2 * width, width
    for channels in (width, 2 * width, 4 * width, 8 * width):
        total += 9 * channels * (inputs + 3 * channels) + 8 * channels
        total += (inputs != channels) * (inputs * channels + 2 * channels)
        inputs = channels
    return total + inputs * classes + classes


def resnet(depth, width, classes):
    total, inputs, n = 29 * width, width, (depth - 2) // 6
    for channels in (width, 2 * width, 4 * width):
        total += 9 * channels * (inputs + (2 * n - 1) * channels) + 4 * n * channels
        inputs = channels
    return total + inputs * classes + classes


@pytest.mark.parametrize(
    ("name", "settings", "by_hand", "stated"),
    [
        ("wide-resnet", {}, wide(34, 10, 10, True), 46_160_474),
        ("wide-resnet", {"variant": "madry"}, wide(34, 10, 10, False), 45_901_914),
        ("wide-resnet", {"depth": 28, "width": 4}, wide(28, 4, 10, True), None),
        ("wide-resnet", {"depth": 10, "width": 1}, wide(10, 1, 10, True), None),  # whose first shortcut has no weights
        ("resnet-18-cifar", {}, resnet18(64, 10), 11_173_962),
        ("resnet-18-cifar", {"width": 8}, resnet18(8, 10), None),
        ("resnet-cifar", {"depth": 8, "width": 8}, resnet(8, 8, 10), None),
    ],
)
def test_parameters_as_counted_by_hand(name, settings, by_hand, stated):
    model = build(name, **COLOUR, **settings)
    assert sum(parameter.numel() for parameter in model.parameters()) == by_hand
    assert stated is None or (by_hand == stated and f"{stated:,}" in type(model).__doc__)


@pytest.mark.parametrize(("name", "settings"), BOTH)
def test_logits_are_the_head_of_the_features_at_any_size(name, settings):
    for side in (16, 32, 64):
        model = build(name, **SMALL[name] | {"shape": (3, side, side)}, **settings).double().eval()
        x = torch.rand(2, *model.shape, generator=generator(1), dtype=torch.float64)
        assert torch.equal(model(x), model.head(model.features(x))) and model(x).std() > 0
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "settings"), BOTH)
def test_weights_come_from_the_generator_alone(name, settings):
    before = torch.random.get_rng_state()
    one, same, other = (build(name, **SMALL[name], **settings, generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    default = build(name, **SMALL[name], **settings)
    for a, b, c, d in zip(*(model.parameters() for model in (one, same, other, default)), strict=True):
        assert torch.equal(a, b) and torch.equal(a, d) and (a.ndim == 1 or not torch.equal(a, c))


@pytest.mark.parametrize("name", ["wide-resnet", "resnet-18-cifar"])
def test_normalised_pixels_are_those_of_the_same_net_without(name):
    plain, inside = (build(name, **SMALL[name], normalised=on).eval() for on in (False, True))
    x = torch.rand(2, *plain.shape, generator=generator(1))
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in CIFAR)
    torch.testing.assert_close(inside(x), plain((x - mean) / deviation))


def test_a_block_of_trades_starts_its_new_shortcut_behind_the_first_activation():
    model = build("wide-resnet", **SMALL["wide-resnet"]).eval()
    for first, block in enumerate(model.body[1:4]):
        nn.init.zeros_(block.body[3].weight)
        x = torch.randn(2, block.before[0].num_features, 8, 8, generator=generator(2))
        expected = functional.conv2d(x.clamp(min=0), block.shortcut.weight, stride=1 if first == 0 else 2)
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)  # BatchNorm divides by sqrt(1 + 1e-5)
    twice = build("wide-resnet", **SMALL["wide-resnet"] | {"depth": 16}).eval().body[2]
    nn.init.zeros_(twice.body[3].weight)
    x = torch.randn(2, 32, 8, 8, generator=generator(2))
    assert torch.equal(twice(x), x)  # where no channels are added the block's own input goes by


def test_a_block_of_madry_pads_with_zeros_and_starts_the_very_first_shortcut_behind_the_activation():
    model = build("wide-resnet", **SMALL["wide-resnet"], variant="madry").eval()
    for first, block in enumerate(model.body[1:4]):
        nn.init.zeros_(block.body[3].weight)
        inputs = block.before[0].num_features
        x = torch.randn(2, inputs, 8, 8, generator=generator(2))
        found = block(x)
        seen = functional.leaky_relu(x, 0.1) if first == 0 else functional.avg_pool2d(x, 2)
        added = (found.shape[1] - inputs) // 2
        torch.testing.assert_close(found[:, added : added + inputs], seen, rtol=1e-4, atol=1e-5)
        assert added and not found[:, :added].any() and not found[:, added + inputs :].any()


def test_a_projected_block_that_does_nothing_is_its_shortcut():
    first, *_, last = build("resnet-18-cifar", **SMALL["resnet-18-cifar"]).eval().body[3:11]
    for block in (first, last):
        nn.init.zeros_(block.body[3].weight)
        x = torch.randn(2, block.body[0].in_channels, 8, 8, generator=generator(2))
        assert torch.equal(block(x), x.clamp(min=0))


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("wide-resnet", {"depth": 33}, r"depth must be 6 n \+ 4"),
        ("wide-resnet", {"depth": 4}, r"depth must be 6 n \+ 4"),
        ("wide-resnet", {"width": 0}, "width must be a whole number"),
        ("wide-resnet", {"variant": "pad"}, "variant must be one of 'trades', 'madry'"),
        ("wide-resnet", {"shape": (3, 10, 8)}, "H and W multiples of 4"),
        ("resnet-18-cifar", {"shape": (3, 12, 16)}, "H and W multiples of 8"),
        ("resnet-18-cifar", {"width": 0}, "width must be a whole number"),
        ("wide-resnet", {"shape": (1, 8, 8), "normalised": True}, "normalised: shape must have 3 channels"),
        ("resnet-18-cifar", {"shape": (1, 8, 8), "normalised": True}, "normalised: shape must have 3 channels"),
    ],
)
def test_nets_that_cannot_be_are_refused(name, given, words):
    with pytest.raises(MarginsError, match=words):
        build(name, **{**SMALL[name], **given})
