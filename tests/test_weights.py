"""Weights of samples: MAIL's and GAIRAT's against their formulas, without gradient, from the right forward."""

import math

import pytest
import torch
from torch import nn

from margins import models
from margins.errors import MarginsError
from margins.methods.weights import GAIRAT, MAIL
from margins.penalties.context import Context, Threat


def context(right=None, steps=10, norms=False, batch=30):
    g = torch.Generator().manual_seed(4)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8) if norms else nn.Identity(), nn.ReLU(), nn.Linear(8, 4)]
    model = nn.Sequential(*layers).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    x, x_adv = torch.rand(2, batch, 6, generator=g, dtype=torch.float64)
    y = torch.randint(4, (batch,), generator=g)
    found = Context(model, x, y, torch.arange(batch), batch, 0.5, 7, Threat(math.inf, 0.1, 0.025, steps))
    found.x_adv = x_adv
    if right is not None:
        found.crafted = {"steps right": right, "steps": torch.full_like(right, steps)}
    return found


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(("slope", "bias"), [(10.0, -0.5), (2.0, 0.0), (30.0, -0.07)])
def test_mail_is_its_formula_of_the_adversaries_in_training_mode(slope, bias, norms):
    seen = context(norms=norms)
    found, paper = MAIL(slope, bias)(seen, "clean"), MAIL(slope, bias, normalised=True)(seen, "adversarial")
    expected = []
    for p, y in zip(seen.model(seen.x_adv).softmax(1).tolist(), seen.y.tolist(), strict=True):
        margin = p[y] - max(value for j, value in enumerate(p) if j != y)
        expected.append(1 / (1 + math.exp(-slope * (bias - margin))))
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, 3 * expected)
    torch.testing.assert_close(paper, expected * 30 / expected.sum())
    assert not found.requires_grad and not paper.requires_grad


def test_mail_asks_for_no_forward_of_its_own_and_only_the_papers_needs_the_batch():
    seen, calls = context(), []
    seen.model.register_forward_hook(lambda *_: calls.append(1))
    seen.logits("adversarial")
    MAIL(10.0, -0.5)(seen, "adversarial")
    assert len(calls) == 1
    assert not MAIL(10.0, -0.5).batch_wide and MAIL(10.0, -0.5, normalised=True).batch_wide and GAIRAT().batch_wide


@pytest.mark.parametrize("steps", [1, 5, 10])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 2.0])
def test_gairat_is_its_formula_with_mean_1(shift, steps):
    right = torch.arange(30) % (steps + 1)
    seen = context(right, steps)
    for formula, half in (("released", max(1, steps // 2)), ("paper", steps / 2)):
        raw = [(math.tanh(shift + 5 * (half - kappa) / half) + 1) / 2 for kappa in right.tolist()]
        expected = torch.tensor([30 * value / sum(raw) for value in raw], dtype=torch.float64)
        torch.testing.assert_close(GAIRAT(shift, formula)(seen, "adversarial"), expected)
    same = torch.equal(GAIRAT(shift)(seen, "adversarial"), GAIRAT(shift, "paper")(seen, "adversarial"))
    assert same == (steps % 2 == 0)


def test_gairat_weighs_samples_that_fall_early_most_and_never_divides_by_zero():
    weights = GAIRAT()(context(torch.arange(11), batch=11), "adversarial")
    assert (weights.diff() < 0).all()
    seen = context(torch.full((8,), 10), batch=8)
    seen.x = seen.x.float()
    torch.testing.assert_close(GAIRAT(-15.0)(seen, "adversarial"), torch.ones(8))


def test_bad_settings_and_a_craft_that_does_not_count_are_named():
    with pytest.raises(MarginsError, match="slope must be a finite number of at least 0, but is -1"):
        MAIL(-1.0, 0.0)
    with pytest.raises(MarginsError, match="bias must be a finite number"):
        MAIL(1.0, math.nan)
    with pytest.raises(MarginsError, match="formula must be one of 'released', 'paper'"):
        GAIRAT(formula="code")
    with pytest.raises(MarginsError, match=r"GAIRAT needs a craft that counts .* PGD\(counted=True\)"):
        GAIRAT()(context(), "adversarial")
    with pytest.raises(MarginsError, match="nothing crafts adversaries"):
        nothing = context()
        nothing.x_adv = None
        MAIL(1.0, 0.0)(nothing, "clean")


def test_the_weights_of_a_model_are_those_of_its_float32_twin():
    model = models.build("mlp", inputs=6, hidden=(5,), classes=3)
    g = torch.Generator().manual_seed(1)
    x, y = torch.rand(20, 6, generator=g), torch.randint(3, (20,), generator=g)
    found = []
    for dtype in (torch.float32, torch.float64):
        seen = Context(model.to(dtype), x.to(dtype), y, torch.arange(20), 20, 0.0, 0, Threat(2, 1.0, 0.1))
        seen.x_adv = seen.x
        found.append(MAIL(10.0, -0.5)(seen, "adversarial").double())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
