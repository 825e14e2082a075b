"""What attacks ask the model through: counted, frozen, checked; misclassified; gradients that are not finite."""

import math

import pytest
import torch
from torch import nn

from margins import losses, models
from margins.attacks import deepfool
from margins.attacks.found import Calls, attacking, finite, input_gradient, misclassified
from margins.errors import MarginsError

BOX = (0.0, 1.0)


def small():
    model = models.build("mlp", inputs=6, hidden=(8,), classes=3, generator=torch.Generator().manual_seed(0)).double()
    x = torch.rand(10, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model, x, torch.arange(10) % 3


def test_the_oracle_counts_and_leaves_no_graph():
    model, x, y = small()
    with attacking(model, x, y, BOX) as (oracle, logits, wrong):
        assert oracle.calls == Calls(10, 0) and not logits.requires_grad
        assert torch.equal(logits, model(x)) and torch.equal(wrong, model(x).argmax(1) != y)
        assert torch.equal(oracle.logits(x[:4]), model(x[:4])) and oracle.calls == Calls(14, 0)
        gradient, value, asked = oracle.gradient(x[:3], y[:3], losses.margin)
        assert oracle.calls == Calls(17, 3)
        assert not any(part.requires_grad for part in (gradient, value, asked))
        assert torch.equal(oracle.wrong(x, y), wrong) and oracle.calls == Calls(27, 3)
    point = x[:3].clone().requires_grad_()
    (expected,) = torch.autograd.grad(losses.margin(model(point), y[:3]).sum(), point)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(value, losses.margin(model(x[:3]), y[:3]).detach())
    assert gradient.shape == (3, 2, 3) and all(p.grad is None and p.requires_grad for p in model.parameters())


def test_gradients_also_where_the_caller_has_switched_them_off():
    model, x, y = small()
    with torch.no_grad(), attacking(model, x.requires_grad_(), y, BOX) as (oracle, _, _):
        assert oracle.gradient(x, y, losses.cross_entropy)[0].any() and not torch.is_grad_enabled()


def test_ties_and_nan_count_as_misclassified():
    nan, inf = math.nan, math.inf
    rows = [[2, 1, 0], [1, 2, 0], [1, 1, 0], [nan, 1, 0], [2, nan, 0], [inf, 1, 0], [inf, inf, 0], [-inf, -inf, -inf]]
    found = misclassified(torch.tensor(rows, dtype=torch.float32), torch.zeros(8, dtype=torch.int64))
    assert found.tolist() == [False, True, True, True, True, False, True, True]
    assert misclassified(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_one_sample_that_is_not_finite_does_not_spoil_the_others():
    gradient = torch.tensor([[1.0, math.nan], [math.inf, 2.0], [-math.inf, 3.0]])
    assert finite(gradient).tolist() == [[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]]
    huge = torch.full((2, 3), 3e38)
    assert torch.equal(finite(huge), huge)
    model, x, y = small()
    x[0, 0, 0] = 0
    root = nn.Sequential(nn.Flatten(), _Root(), model)
    with attacking(root, x, y, BOX) as (oracle, _, _):
        spoilt = oracle.gradient(x, y, losses.margin)[0]
        alone = oracle.gradient(x[1:], y[1:], losses.margin)[0]
    assert spoilt.isfinite().all() and spoilt[0, 0, 0] == 0 and spoilt[0].any()
    torch.testing.assert_close(spoilt[1:], alone)


class _Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


def test_a_loss_that_does_not_depend_on_x_has_gradient_zero():
    x = torch.ones(2, 3, requires_grad=True)
    assert torch.equal(input_gradient(torch.tensor(1.0), x), torch.zeros(2, 3))
    assert torch.equal(input_gradient(torch.ones(2, requires_grad=True).sum(), x), torch.zeros(2, 3))
    value = (x**2).sum()
    assert torch.equal(input_gradient(value, x, keep=True), input_gradient(value, x))


def test_the_model_is_thawed_after_an_exception_in_the_block():
    model, x, y = small()
    model.train()
    next(model.parameters()).requires_grad_(False)
    with pytest.raises(ZeroDivisionError), attacking(model, x, y, BOX):
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        raise ZeroDivisionError
    assert model.training and [p.requires_grad for p in model.parameters()] == [False, True, True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, x, y: (m, x + 0.5, y, BOX), "x must lie in the box"),
        (lambda m, x, y: (m, x * math.nan, y, BOX), "x must be finite"),
        (lambda m, x, y: (m, x.float(), y, BOX), "model computes in torch.float64"),
        (lambda m, x, y: (m, x.long(), y, BOX), "x must be a tensor of floating-point"),
        (lambda m, x, y: (m, x, y.tolist(), BOX), "y must be int64 of shape"),
        (lambda m, x, y: (m, x, y[:5], BOX), "y must be int64 of shape"),
        (lambda m, x, y: (m, x, y + 1, BOX), "y must lie in 0..2"),
        (lambda m, x, y: (m, x, y.to("meta"), BOX), "y must be on x's device"),
        (lambda m, x, y: (lambda x: x, x, y, BOX), "model must be a torch.nn.Module"),
        (lambda m, x, y: (nn.Flatten(2), x, y, BOX), "logits must have the shape"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    with pytest.raises(MarginsError, match=message), attacking(*change(*small())):
        pytest.fail("entered")


def test_a_model_that_changes_its_input_is_refused_and_x_stays():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.sub_(0.5).flatten(1)

    x = torch.rand(3, 4)
    before = x.clone()
    with pytest.raises(MarginsError, match="model must leave its input as it is"):
        deepfool(InPlace(), x, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(x, before)


def test_logits_of_another_type_than_x_are_refused():
    class Double(nn.Module):
        def forward(self, x):
            return x.double()

    with pytest.raises(MarginsError, match=r"logits must be torch.float32, as x is, but the model returns"):
        deepfool(Double(), torch.rand(3, 4), torch.zeros(3, dtype=torch.int64))
