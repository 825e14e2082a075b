"""AMM's nets: parameters counted by hand, layers by hand, samples that do not see each other, seeded weights."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from margins.errors import MarginsError
from margins.models import build
from margins.models.layers import he

COLOUR = (3, 32, 32)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def conv(inputs, outputs, kernel, bias=True):
    return inputs * kernel**2 * outputs + outputs * bias


def dense(inputs, outputs, bias=True):
    return inputs * outputs + outputs * bias


def liunet(colours, first, blocks, units, places, classes):
    total, inputs = 0, colours
    for channels, count in ((first, 1), *blocks):
        for _ in range(count):
            total += conv(inputs, channels, 3) + 2 * channels  # the norm's scale and shift
            inputs = channels
    return total + dense(inputs * places, units) + 2 * units + dense(units, classes, bias=False)


def resnet(depth, classes):
    """Option A: no parameters in shortcuts; 2 n convolutions a group, the first of which adds the channels."""
    n, total, inputs = (depth - 2) // 6, conv(3, 16, 3, False) + 32, 16
    for channels in (16, 32, 64):
        total += (
            conv(inputs, channels, 3, False) + (2 * n - 1) * conv(channels, channels, 3, False) + 2 * n * 2 * channels
        )
        inputs = channels
    return total + dense(64, classes)


def densenet(depth, growth, classes):
    total, channels = conv(3, 16, 3, False), 16
    for block in range(3):
        if block:
            total += 2 * channels + conv(channels, channels, 1, False)
        for _ in range((depth - 4) // 3):
            total += 2 * channels + conv(channels, growth, 3, False)
            channels += growth
    return total + 2 * channels + dense(channels, classes)


def resnet18():
    total, inputs = conv(3, 64, 7, False) + 128, 64
    for channels in (64, 128, 256, 512):
        total += conv(inputs, channels, 3, False) + 3 * conv(channels, channels, 3, False) + 4 * 2 * channels
        if inputs != channels:
            total += conv(inputs, channels, 1, False) + 2 * channels
        inputs = channels
    return total + dense(512, 1000)


def bottlenecks(squeezed):
    """ResNet-50; `squeezed`: each block's channels are weighed by two dense layers with a 16th of them between."""
    total, inputs = conv(3, 64, 7, False) + 128, 64
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        wide = 4 * width
        for block in range(count):
            total += conv(inputs, width, 1, False) + conv(width, width, 3, False) + conv(width, wide, 1, False)
            total += 2 * (width + width + wide)
            if not block:
                total += conv(inputs, wide, 1, False) + 2 * wide
            if squeezed:
                total += dense(wide, wide // 16) + dense(wide // 16, wide)
            inputs = wide
    return total + dense(2048, 1000)


CONVNET = [conv(3, 32, 5), conv(32, 32, 5), conv(32, 64, 5), conv(64, 64, 4), dense(64, 10)]
NIN = [conv(3, 192, 5), conv(192, 160, 1), conv(160, 96, 1), conv(96, 192, 5), 2 * conv(192, 192, 1)]
NIN += [conv(192, 192, 3), conv(192, 192, 1), conv(192, 10, 1)]
LENET = [conv(1, 20, 5), conv(20, 50, 5), dense(50 * 4 * 4, 500), dense(500, 10)]
SIZES = [
    ("lenet", {"shape": (1, 28, 28), "classes": 10}, sum(LENET), 431_080),
    ("convnet", {"shape": COLOUR, "classes": 10}, sum(CONVNET), 145_578),
    ("convnet", {"shape": COLOUR, "classes": 100}, sum(CONVNET) + 65 * 90, 151_428),
    ("nin", {"shape": COLOUR, "classes": 10}, sum(NIN), 966_986),
    (
        "liunet",
        {"shape": (1, 28, 28), "classes": 10, "variant": "mnist"},
        liunet(1, 64, [(64, 3)] * 3, 256, 3 * 3, 10),
        485_056,
    ),
    (
        "liunet",
        {"shape": COLOUR, "classes": 10, "variant": "cifar10"},
        liunet(3, 64, [(64, 4), (96, 4), (128, 4)], 256, 4 * 4, 10),
        1_537_536,
    ),
    (
        "liunet",
        {"shape": COLOUR, "classes": 100, "variant": "cifar100"},
        liunet(3, 96, [(96, 4), (192, 4), (384, 4)], 512, 4 * 4, 100),
        9_347_264,
    ),
    ("resnet-cifar", {"shape": COLOUR, "classes": 10}, resnet(20, 10), 269_722),
    ("resnet-cifar", {"shape": COLOUR, "classes": 10, "depth": 56}, resnet(56, 10), 853_018),
    ("densenet-cifar", {"shape": COLOUR, "classes": 10}, densenet(40, 12, 10), 1_019_722),
    ("resnet-18", {}, resnet18(), 11_689_512),
    ("resnet-50", {}, bottlenecks(squeezed=False), 25_557_032),
    ("senet-50", {}, bottlenecks(squeezed=True), 28_088_024),
]
#: As small as each comes, for what is asked of all of them.
SMALL = {
    "lenet": {"shape": (1, 16, 16), "classes": 3},
    "convnet": {"shape": COLOUR, "classes": 3},
    "nin": {"shape": (3, 8, 8), "classes": 3},
    "liunet": {"shape": (3, 8, 8), "classes": 3},
    "resnet-cifar": {"shape": (3, 8, 8), "classes": 3, "depth": 8},
    "densenet-cifar": {"shape": (3, 8, 8), "classes": 3, "depth": 7},
    "resnet-18": {"shape": (3, 32, 32), "classes": 3},
    "resnet-50": {"shape": (3, 32, 32), "classes": 3},
    "senet-50": {"shape": (3, 32, 32), "classes": 3},
}


@pytest.mark.parametrize(("name", "settings", "by_hand", "stated"), SIZES)
def test_parameters_as_counted_by_hand(name, settings, by_hand, stated):
    model = build(name, **settings)
    assert sum(parameter.numel() for parameter in model.parameters()) == by_hand == stated
    assert f"{stated:,}" in type(model).__doc__ or (settings["classes"] == 100 and name == "convnet")


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_the_head_of_the_features_in_float64_too(name):
    model = build(name, **SMALL[name]).to(torch.float64).eval()
    x = torch.rand(2, *model.shape, generator=generator(1), dtype=torch.float64)
    features = model.features(x)
    assert features.shape == (2, model.head.in_features) and isinstance(model.head, nn.Linear)
    assert model(x).dtype == torch.float64 and model(x).shape == (2, 3)
    assert torch.equal(model(x), model.head(features)) and model(x).std() > 0
    with pytest.raises(MarginsError, match="x must have the shape"):
        model(x[:, :, :-1])


@pytest.mark.parametrize("name", SMALL)
def test_weights_come_from_the_generator_alone_and_are_hes(name):
    before = torch.random.get_rng_state()
    one, same, other = (build(name, **SMALL[name], generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for (module, twin), third in zip(zip(one.modules(), same.modules(), strict=True), other.modules(), strict=True):
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        assert torch.equal(module.weight, twin.weight) and not torch.equal(module.weight, third.weight)
        assert module.bias is None or not module.bias.any()
        ratio = module.weight.square().mean().item() / (2 / module.weight[0].numel())
        assert abs(ratio - 1) < 6 * math.sqrt(2 / module.weight.numel())  # the spread of a mean of squared normals
    assert all(torch.equal(a, b) for a, b in zip(build(name, **SMALL[name]).parameters(), _zero(name), strict=True))
    for module in one.modules():  # norms begin as the identity, and nothing is left as it lay in memory
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            assert (module.weight == 1).all() and not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.running_var == 1).all() and not module.running_mean.any()


def _zero(name):
    return build(name, **SMALL[name], generator=generator(0)).parameters()


@pytest.mark.parametrize("name", SMALL)
def test_a_samples_logits_do_not_depend_on_the_batch(name):
    model = build(name, **SMALL[name]).to(torch.float64).train()
    for module in model.modules():  # BatchNorm frozen as AMM has it; no masks
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.eval()
    x = torch.rand(5, *model.shape, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(model(x)[:2], model(x[:2]), rtol=1e-10, atol=1e-10)
    if name in ("resnet-cifar", "densenet-cifar"):  # not frozen it does
        assert not torch.allclose(model.train()(x)[:2], model.train()(x[:2]))


def test_he_takes_the_inputs_of_one_neuron():
    layer = he(nn.Conv2d, 50, 400, 3, bias=False, generator=generator(0))
    assert layer.bias is None  # 180,000 draws: the mean square is good to 0.33 %
    assert layer.weight.square().mean().item() == pytest.approx(2 / 450, rel=0.015)


def test_lenet_by_hand():
    model = build("lenet", **SMALL["lenet"])
    first, second, third = (model.body[i] for i in (0, 2, 5))
    x = torch.rand(2, 1, 16, 16, generator=generator(1))
    here = functional.max_pool2d(functional.conv2d(x, first.weight), 2)
    assert (here < 0).any()  # no ReLU stands between the convolutions
    here = functional.max_pool2d(functional.conv2d(here, second.weight), 2)
    expected = functional.linear(here.flatten(1), third.weight).relu() @ model.head.weight.T
    torch.testing.assert_close(model(x), expected)


def test_convnet_by_hand():
    model = build("convnet", **SMALL["convnet"])
    one, two, three, four = (module.weight for module in model.body if isinstance(module, nn.Conv2d))
    x = torch.rand(2, *COLOUR, generator=generator(1))
    here = functional.max_pool2d(functional.conv2d(x, one, padding=2), 2).relu()
    here = functional.avg_pool2d(functional.conv2d(here, two, padding=2).relu(), 2)
    here = functional.avg_pool2d(functional.conv2d(here, three, padding=2).relu(), 2)
    here = functional.conv2d(here, four).relu()
    expected = functional.conv2d(here, model.head.weight[:, :, None, None])  # the classifier as a convolution
    assert expected.shape == (2, 3, 1, 1)
    torch.testing.assert_close(model(x), expected.flatten(1))


def test_nins_head_is_its_last_convolution_before_the_mean():
    model = build("nin", **SMALL["nin"]).eval()
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
    x = torch.rand(2, 3, 8, 8, generator=generator(1))
    maps = model.body[:-1](x)
    assert maps.shape == (2, 192, 2, 2)
    expected = functional.conv2d(maps, model.head.weight[:, :, None, None], model.head.bias).mean((2, 3))
    torch.testing.assert_close(model(x), expected)
    kinds = [type(module).__name__ for module in model.body if not isinstance(module, nn.Conv2d | nn.ReLU)]
    assert kinds == ["MaxPool2d", "Dropout", "AvgPool2d", "Dropout", "Average"]


def test_liunets_groups_have_32_channels_or_are_32():
    groups = {"group": [64 // 32, 256 // 32], "32 groups": [32, 32], "batch": []}
    for norm, expected in groups.items():
        model = build("liunet", **SMALL["liunet"], norm=norm)
        norms = [module for module in model.body if isinstance(module, nn.GroupNorm)]
        assert ([norms[0].num_groups, norms[-1].num_groups] if norms else []) == expected
        assert len(norms) == (14 if norms else 0) and model.head.bias is None
        assert sum(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in model.body) == 14 - len(norms)


def test_a_residual_block_that_does_nothing_is_its_shortcut():
    """Option A: every other place, zeros for the channels that are new."""
    block = build("resnet-cifar", **SMALL["resnet-cifar"]).body[4]
    nn.init.zeros_(block.body[3].weight)
    x = torch.rand(2, 16, 8, 8, generator=generator(1))
    found = block.eval()(x)
    assert found.shape == (2, 32, 4, 4)
    assert torch.equal(found[:, :16], x[:, :, ::2, ::2]) and not found[:, 16:].any()


def test_a_dense_layer_keeps_what_it_saw():
    model = build("densenet-cifar", **SMALL["densenet-cifar"]).eval()
    x = torch.rand(2, 16, 8, 8, generator=generator(1))
    found = model.body[1](x)
    assert found.shape == (2, 28, 8, 8) and torch.equal(found[:, :16], x)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("lenet", {"shape": (1, 15, 16)}, r"shape must be \(C, H, W\) with H and W at least 16"),
        ("lenet", {"classes": 0}, "classes must be a whole number of at least 1"),
        ("convnet", {"shape": (3, 64, 64)}, r"shape must be \(C, 32, 32\), but is \(3, 64, 64\)"),
        ("nin", {"shape": (3, 10, 8)}, "H and W multiples of 4 and at least 4"),
        ("nin", {"shape": (0, 8, 8)}, "C must be a whole number"),
        ("liunet", {"variant": "svhn"}, "variant must be one of 'mnist', 'cifar10', 'cifar100'"),
        ("liunet", {"norm": "layer"}, "norm must be one of 'group', '32 groups', 'batch'"),
        ("liunet", {"shape": (3, 7, 8)}, "H and W at least 8"),
        ("resnet-cifar", {"depth": 18}, r"depth must be 6 n \+ 2"),
        ("resnet-cifar", {"depth": 2}, r"depth must be 6 n \+ 2"),
        ("densenet-cifar", {"depth": 41}, r"depth must be 3 n \+ 4"),
        ("densenet-cifar", {"growth": 0}, "growth must be a whole number"),
        ("resnet-18", {"shape": (1, 32, 32)}, r"shape must be \(3, H, W\)"),
        ("resnet-50", {"weights": True}, "classes must be 1000 with the published weights, but is 3"),
    ],
)
def test_nets_that_cannot_be_are_refused(name, given, words):
    with pytest.raises(MarginsError, match=words):
        build(name, **{**SMALL[name], **given})
