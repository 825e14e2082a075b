"""Large-margin softmax: its definition by angles, the ends of the angle, and plain softmax where m is 1."""

import math

import pytest
import torch
from torch.nn import functional

from margins import datasets, models
from margins.errors import MarginsError
from margins.methods import Row, Term
from margins.methods.softmax import LSoftmax
from margins.models.heads import Head
from margins.penalties.context import Context, Run, Threat
from margins.training import Recipe, train

THREAT = Threat(math.inf, 0.1, 0.025)


def net():
    model = Head("bias-free").put_on(models.build("mlp", inputs=5, hidden=(7,), classes=4).double())
    g = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    model.hidden[0].bias.data.abs_().add_(1)  # no sample is without features
    return model


def context(model, step=0, batch=12):
    g = torch.Generator().manual_seed(3)
    x = torch.rand(batch, 5, generator=g, dtype=torch.float64)
    y = torch.randint(4, (batch,), generator=g)
    return Context(model, x, y, torch.arange(batch), batch, 0.0, 1, THREAT, featured=True, step=step)


def by_angle(m, angle):
    k = min(m - 1, int(angle * m / math.pi))
    return (-1) ** k * math.cos(m * angle) - 2 * k


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
def test_psi_is_its_definition_by_angles_falls_and_has_no_jumps(m):
    angles = torch.linspace(0, math.pi, 500, dtype=torch.float64)
    found = LSoftmax(m).psi(angles.cos())
    torch.testing.assert_close(found, torch.tensor([by_angle(m, a) for a in angles.tolist()], dtype=torch.float64))
    assert (found.diff() < 0).all() and found.diff().abs().max() < 2 * m * math.pi / 499
    ends = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    assert LSoftmax(m).psi(ends).tolist() == [1.0, 1.0 - 2 * m]
    slope = torch.autograd.grad(LSoftmax(m).psi(ends).sum(), ends)[0]
    assert slope.tolist() == [m * m, m * m]  # of the Chebyshev polynomial at its ends


@pytest.mark.parametrize(("m", "step"), [(2, 0), (4, 0), (4, 300), (3, 10_000)])
def test_the_loss_is_cross_entropy_with_the_true_logit_annealed_towards_psi(m, step):
    model = net()
    seen = context(model, step)
    features, weight = model.features(seen.x).detach(), model.head.weight.detach()
    expected = []
    for f, y in zip(features, seen.y.tolist(), strict=True):
        logits = [float(w @ f) for w in weight]
        length = float(weight[y].norm() * f.norm())
        annealing = 100 * 0.99**step
        target = (annealing * logits[y] + length * by_angle(m, math.acos(logits[y] / length))) / (1 + annealing)
        rest = sum(math.exp(v) for j, v in enumerate(logits) if j != y)
        expected.append(-math.log(math.exp(target) / (math.exp(target) + rest)))
    torch.testing.assert_close(LSoftmax(m)(seen, "clean").detach(), torch.tensor(expected, dtype=torch.float64))


def test_a_margin_of_1_is_softmax_without_bias_in_value_and_gradient():
    model = net()
    weights = list(model.parameters())
    found = LSoftmax(1, base=0.0)(context(model), "clean")
    plain = functional.cross_entropy(model(context(model).x), context(model).y, reduction="none")
    assert torch.equal(found, plain)
    for a, b in zip(*(torch.autograd.grad(one.sum(), weights) for one in (found, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_the_gradient_is_that_of_finite_differences():
    model = net()
    g = torch.Generator().manual_seed(5)
    loss, weights = LSoftmax(3, base=1.0), list(model.parameters())
    for value, gradient in zip(weights, torch.autograd.grad(loss(context(model), "clean").sum(), weights), strict=True):
        move = torch.randn(value.shape, generator=g, dtype=torch.float64)
        ends = []
        for h in (1e-5, -1e-5):
            value.data.add_(h * move)
            ends.append(loss(context(model), "clean").sum().item())
            value.data.add_(-h * move)
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float((gradient * move).sum()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, -1.0, 0.0, 1e-30])
def test_features_along_against_and_without_the_class_weights_give_finite_gradients(dtype, scale):
    model = models.build("linear", inputs=3, classes=3).to(dtype)
    model = Head("bias-free").put_on(model)
    x, y = scale * model.head.weight.detach().clone(), torch.arange(3)
    seen = Context(model, x.requires_grad_(), y, y, 3, 0.0, 1, THREAT, featured=True)
    value = LSoftmax(4, base=0.0)(seen, "clean")
    found = torch.autograd.grad(value.sum(), [x, model.head.weight])
    assert value.isfinite().all() and all(one.isfinite().all() for one in found)


def test_annealing_is_the_ports_or_the_authors_and_a_function_of_the_step():
    port, authors = LSoftmax(), LSoftmax(4, base=1000.0, decay=2.5e-5, power=35.0, least=1.0)
    assert port.annealing(0) == 100 and port.annealing(900) == pytest.approx(0.0118, rel=0.01)
    assert authors.annealing(8000) == pytest.approx(1000 * 1.2**-35) and authors.annealing(30_000) == 1.0
    model = net()
    early, late = (LSoftmax()(context(model, step), "clean") for step in (0, 500))
    plain = functional.cross_entropy(model(context(model).x), context(model).y, reduction="none")
    assert (plain < early).all() and (early < late).all()


def test_a_head_with_bias_is_refused_before_any_step_and_a_row_that_replaces_it_trains():
    x, y = torch.rand(8, 5, dtype=torch.float64), torch.arange(8) % 4
    data = datasets.Data(x, y, "drawn", 4)
    terms = (Term(LSoftmax(), "clean"),)
    model = models.build("mlp", inputs=5, hidden=(7,), classes=4).double()
    settings = {"recipe": Recipe(epochs=1, batch_size=8), "threat": THREAT, "seed": 0}
    with pytest.raises(MarginsError, match=r"linear head without bias.*Head\(\"bias-free\"\)"):
        train(model, Row(None, terms), data, **settings)
    done = train(model, Row(None, terms, head=Head("bias-free")), data, **settings)
    assert done.status == "done" and set(done.last) == {"hidden.0.weight", "hidden.0.bias", "head.weight"}
    run = Run(torch.nn.Sequential(torch.nn.Linear(5, 4)).double(), x, y, 4, THREAT, 8, False)
    with pytest.raises(MarginsError, match="linear head without bias"):
        LSoftmax().begin(run)


@pytest.mark.parametrize("name", ["margin", "base", "decay", "least", "power"])
def test_bad_settings_are_named(name):
    with pytest.raises(MarginsError, match=f"^{name} must be"):
        LSoftmax(**{name: -1})
