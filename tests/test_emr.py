"""EMR's exact penalty, its two routes and its random probes: against single gradients, closed forms, differences."""

import itertools

import pytest
import torch
from tiny import CLASSES, D, Own, context, differences, gradients, network
from torch import nn

from margins import models
from margins.errors import MarginsError
from margins.methods import exact_emr, plain
from margins.models import Linear
from margins.penalties import emr as module
from margins.penalties.context import in_mode
from margins.penalties.emr import EMR, ApproximateEMR
from margins.penalties.jacobian import of_chain


def value(part, model, seed=5):
    """The penalty of the clean samples in a step of that seed."""
    step = context(model)
    step.seed = seed
    return part(step, "clean")


def weights(model, x):
    """The effective weights of each sample by itself, (B, K, inputs), one autograd call a class."""
    found = []
    for one in x:
        one = one[None].clone().requires_grad_()
        logits = model(one)[0]
        found.append(torch.stack([torch.autograd.grad(f, one, retain_graph=True)[0].flatten() for f in logits]))
    return torch.stack(found)


def overlapping():
    """Layers of all kinds that the chain knows, with windows that overlap, strides, groups and a remainder."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 2, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2, bias=False), nn.Identity(),
        nn.MaxPool2d(2, stride=1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, CLASSES),
    )  # fmt: skip
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter)))
    return net.to(D)


def padded():
    return models.build("cnn", shape=(1, 4, 4), blocks=((3,),), hidden=(5,), classes=CLASSES, padding=1).to(D)


@pytest.mark.parametrize("route", module.ROUTES)
def test_on_a_linear_model_it_is_the_squared_frobenius_norm_of_the_weights(route):
    model = Linear(16, CLASSES, generator=torch.Generator().manual_seed(2)).to(D)
    expected = model.head.weight.detach().square().sum().expand(6)
    torch.testing.assert_close(value(EMR(route=route), model).detach(), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("at", ["clean", "adversarial"])
@pytest.mark.parametrize(
    ("route", "model"),
    [
        *itertools.product(module.ROUTES, [network("mlp"), network("cnn"), padded(), overlapping().eval()]),
        ("gradients", network("modal").eval()),
    ],
)
def test_every_route_is_the_sum_of_squares_of_single_gradients(route, model, at):
    step = context(model)
    expected = weights(model, step.x if at == "clean" else step.x_adv).square().sum((1, 2))
    torch.testing.assert_close(EMR(route=route)(step, at).detach(), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("probes", [None, 2])
def test_the_chains_gradient_is_that_of_the_other_route(probes):
    for model in (network("mlp"), network("cnn"), overlapping().eval()):
        one, other = (gradients(value(EMR(probes, route), model).mean(), model) for route in module.ROUTES)
        for found, expected in zip(one, other, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        *itertools.product([EMR(), EMR(2), EMR(mode="train")], ["mlp", "cnn", "norm"]),
        *itertools.product([EMR(route="chain")], ["mlp", "cnn"]),
    ],
    ids=str,
)
def test_gradients_to_the_parameters_are_those_of_differences(part, kind):
    model = network(kind).train()
    mean = torch.rand(6, generator=torch.Generator().manual_seed(4), dtype=D)

    def penalty():
        step = context(model)
        logits, x = step.logits("clean", part.mode, input_grad=True), step.input("clean", part.mode)
        along = EMR(part.probes)._along(step, logits, x)
        total = 0.0
        for one in along:
            (w,) = torch.autograd.grad((one * logits).sum(), x, retain_graph=True)
            total = total + (mean * w.flatten(1).square().sum(1)).sum()
        return total

    found = gradients((mean * value(part, model)).sum(), model)
    for one, expected in zip(found, differences(penalty, model), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-7)


def test_the_mean_over_all_signs_is_the_exact_penalty():
    """Unbiased with nothing left to chance: each of the 2^K signs once."""
    model = network("cnn")
    w = weights(model, context(model).x)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=CLASSES)), dtype=D)
    means = torch.einsum("sk,bki->sbi", signs, w).square().sum(2).mean(0)
    torch.testing.assert_close(value(EMR(), model).detach(), means, rtol=1e-10, atol=0)


@pytest.mark.parametrize("probes", [1, 3])
def test_probes_have_the_exact_penaltys_mean_and_the_variance_that_is_told(probes):
    model, draws = network("cnn"), 4000
    w = weights(model, context(model).x)
    products = w @ w.transpose(1, 2)
    off = products - torch.diag_embed(products.diagonal(dim1=1, dim2=2))
    exact, variance = w.square().sum((1, 2)), 2 * off.square().sum((1, 2)) / probes
    found = torch.stack([value(EMR(probes), model, s).detach() for s in range(draws)])
    error = (found.mean(0) - exact) / (variance / draws).sqrt()
    assert error.abs().max() < 4.5  # of 6 normal numbers, once in 25,000 times
    torch.testing.assert_close(found.var(0), variance, rtol=0.15, atol=0)


def test_a_probe_belongs_to_its_sample_and_step():
    model = network("mlp")
    whole = value(EMR(2), model)
    part = context(model)
    part.x, part.y = part.x[2:5], part.y[2:5]
    torch.testing.assert_close(EMR(2)(part, "clean"), whole[2:5], rtol=1e-12, atol=0)
    assert not torch.isclose(value(EMR(2), model, 6), whole).all()
    assert torch.equal(value(EMR(2), model), whole)


def test_the_approximation_never_exceeds_it_and_k_times_falls_short_at_least_where_all_classes_count():
    """Jensen; and at a large temperature exact / approximate is at least K (methods J.1-7)."""
    for kind in ("mlp", "cnn"):
        model = network(kind)
        exact = value(EMR(), model)
        for temperature in (1e-3, 0.5, 1.0, 40.0):
            assert (value(ApproximateEMR(temperature), model) <= exact * (1 + 1e-12)).all()
        assert (exact >= CLASSES * value(ApproximateEMR(1e9), model) * (1 - 1e-9)).all()


def test_a_class_at_a_time_or_all_at_once_is_the_same(monkeypatch):
    model = network("mlp")
    together = value(EMR(), model)
    monkeypatch.setattr(module, "at_once", lambda model, x: 1)
    torch.testing.assert_close(value(EMR(), model), together, rtol=1e-12, atol=0)


def test_a_model_whose_backward_has_no_rule_for_several_at_once_gets_one_after_the_other():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network("mlp")

        def forward(self, x):
            return Own.apply(self.inner(x))

    model = Net()
    torch.testing.assert_close(value(EMR(), model), 4 * value(EMR(), model.inner), rtol=1e-12, atol=0)


def test_it_leaves_modes_and_statistics_and_asks_for_no_forward_of_its_own():
    model = network("modal").train()
    value(EMR(), model)
    assert model.training and model.norm.training and model.norm.num_batches_tracked == 0
    model, seen = network("cnn"), []
    model.register_forward_hook(lambda *_: seen.append(1))
    for route in module.ROUTES:
        seen.clear()
        part = EMR(route=route)
        step = context(model, differentiated=frozenset(("clean", mode) for mode in part.input_grad))
        step.logits("clean"), part(step, "clean")
        assert len(seen) == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (network("norm").eval(), "the chain is known for Linear, Conv2d .* has the layer Modal"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES), nn.Tanh()).to(D), "has the layer Tanh"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten(), nn.Linear(32, 3)).to(D),
            "has the layer Conv2d",
        ),
    ],
)
def test_what_is_no_chain_is_refused(model, message):
    with pytest.raises(MarginsError, match=message):
        value(EMR(route="chain"), model)


def test_a_chain_with_hooks_that_change_it_is_refused():
    model = network("mlp")
    model.register_forward_hook(lambda net, given, logits: 2 * logits)
    with pytest.raises(MarginsError, match="route: the model does not compute what its layers do"):
        value(EMR(route="chain"), model)


def test_in_training_a_chain_with_dropout_is_refused():
    model = overlapping().train()
    with pytest.raises(MarginsError, match="has the layer Dropout"), in_mode(model, "train"):
        of_chain(model, model(context(model).x), context(model).x, torch.eye(3, dtype=D)[:, None].expand(3, 6, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMR(0), "probes must be a whole number of at least 1"),
        (lambda: EMR(1.5), "probes must be a whole number"),
        (lambda: EMR(route="vmap"), "route must be one of 'gradients', 'chain'"),
        (lambda: EMR(mode="test"), "mode must be one of 'train', 'eval'"),
        (lambda: exact_emr(plain(), -1.0, probes=0), "probes must be a whole number"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(MarginsError, match=message):
        make()
