import pytest
import torch

from margins.errors import MarginsError
from margins.models import MLP, Linear, build, frozen


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_a_linear_model_is_its_matrix():
    model = build("linear", inputs=6, classes=3)
    x = torch.rand(4, 1, 2, 3, generator=generator(1))
    assert torch.equal(model.features(x), x.flatten(1))
    torch.testing.assert_close(model(x), x.flatten(1) @ model.head.weight.T + model.head.bias)
    assert build("linear", inputs=6, classes=3, bias=False).head.bias is None


def test_an_mlp_by_hand():
    model = MLP(2, (3,), 2)
    with torch.no_grad():
        model.hidden[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, -1]]))
        model.hidden[0].bias.copy_(torch.tensor([0.0, -1, 0]))
        model.head.weight.copy_(torch.tensor([[1.0, 2, 0], [0, 0, 3]]))
        model.head.bias.copy_(torch.tensor([0.5, 0]))
    x = torch.tensor([[2.0, 3.0], [-1.0, -1.0]])
    assert torch.equal(model.features(x), torch.tensor([[2.0, 2, 0], [0, 0, 2]]))
    assert torch.equal(model(x), torch.tensor([[6.5, 0], [0.5, 6]]))


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4, 3)])
def test_the_logits_are_the_head_of_the_features(hidden):
    model = build("mlp", inputs=12, hidden=hidden, classes=7)
    x = torch.rand(3, 3, 2, 2, generator=generator(1))
    assert model.features(x).shape == (3, hidden[-1] if hidden else 12)
    assert torch.equal(model(x), model.head(model.features(x)))
    assert model(x).shape == (3, 7)
    assert model(x[:0]).shape == (0, 7)


def test_initial_weights_come_from_the_generator_alone():
    before = torch.random.get_rng_state()
    one, same, other = (build("mlp", inputs=4, hidden=(8,), classes=2, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    torch.manual_seed(5)
    a = Linear(3, 2)
    torch.manual_seed(6)
    assert torch.equal(a.head.weight, Linear(3, 2).head.weight)  # no generator: still not by luck


def test_initial_weights_have_the_stated_spread():
    weight = Linear(400, 500, generator=generator(0)).head.weight
    assert weight.abs().max() <= 1 / 20
    # Uniform on +-a has variance a^2 / 3; with 200,000 draws the estimate is good to about 0.2 %.
    assert weight.var().item() == pytest.approx(1 / 400 / 3, rel=0.01)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: build("resnet", classes=2),
            "no model is called 'resnet'; there are: cnn, convnet, densenet-cifar, lenet",
        ),
        (lambda: build("mlp", inputs=2, classes=3), "missing a required argument: 'hidden'"),
        (lambda: build("linear", inputs=2, classes=3, width=4), "unexpected .* 'width'.*inputs, classes, bias"),
        (lambda: Linear(0, 2), "inputs must be a whole number of at least 1, but is 0"),
        (lambda: MLP(2, (3, 2.5), 2), r"hidden\[1\] must be a whole number of at least 1, but is 2.5"),
        (lambda: MLP(2, 16, 2), "hidden must be a list of layer sizes .* but is 16"),
        (lambda: MLP(2, (3,), 2)(torch.zeros(4, 3)), r"with 2 numbers a sample, but has \(4, 3\)"),
    ],
)
def test_bad_settings_are_named(call, words):
    with pytest.raises(MarginsError, match=words):
        call()


def test_frozen_gives_back_every_mode_and_flag():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout()).train()
    model[1].eval()  # a BatchNorm frozen on purpose stays frozen
    model[0].bias.requires_grad_(False)
    with pytest.raises(ZeroDivisionError), frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise ZeroDivisionError
    assert [module.training for module in model] == [True, False, True]
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    with pytest.raises(MarginsError, match=r"must be a torch\.nn\.Module, but is a function"), frozen(lambda x: x):
        pass


def test_lenet_small_by_hand_and_its_size():
    model = build("lenet-small", shape=(1, 28, 28), classes=10)
    sizes = [16 * 16 + 16, 16 * 32 * 16 + 32, 32 * 49 * 100 + 100, 100 * 10 + 10]
    assert sum(p.numel() for p in model.parameters()) == sum(sizes) == 166_406
    x = torch.rand(2, 1, 28, 28, generator=generator(1))
    one, two = model.body[0], model.body[2]
    here = torch.relu(torch.nn.functional.conv2d(x, one.weight, one.bias, stride=2, padding=1))
    here = torch.relu(torch.nn.functional.conv2d(here, two.weight, two.bias, stride=2, padding=1))
    assert here.shape == (2, 32, 7, 7)
    torch.testing.assert_close(model.features(x), torch.relu(model.body[5](here.flatten(1))))
    assert torch.equal(model(x), model.head(model.features(x)))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"shape": (28, 28)}, "shape"),
        ({"shape": (1, 30, 28)}, "shape"),
        ({"hidden": 0}, "hidden"),
        ({"classes": 1.5}, "classes"),
    ],
)
def test_a_lenet_small_that_cannot_be_is_refused(given, name):
    with pytest.raises(MarginsError, match=name):
        build("lenet-small", **{"shape": (1, 28, 28), "classes": 10, **given})
    with pytest.raises(MarginsError, match="x must have"):
        build("lenet-small", shape=(1, 28, 28), classes=10)(torch.zeros(1, 28, 28))
