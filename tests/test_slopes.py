"""The gradients to the logits that crafting has in closed form."""

import pytest
import torch

from margins import losses
from margins.attacks.pgd import kl_slope
from margins.methods.craft import log_odds_slope, margin_cross_entropy_slope


def drawn(dtype=torch.float64, classes=5, scale=2.0):
    generator = torch.Generator().manual_seed(classes)
    logits = scale * torch.randn(60, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), torch.randint(classes, (60,), generator=generator)


def derived(value, logits):
    return torch.autograd.grad(value.sum(), logits)[0]


def test_the_log_odds_fall_by_one_with_the_own_logit_and_grow_by_the_others_softmax():
    logits, y = drawn()
    assert torch.allclose(log_odds_slope(logits.detach(), y), derived(losses.log_odds(logits, y), logits), atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 10, 17])
@pytest.mark.parametrize("given", [{}, {"delta": 0.3, "divided": False}], ids=["divided", "literal"])
def test_crafting_with_lmas_margins_is_as_autograd_has_it(dtype, classes, given):
    logits, y = drawn(dtype, classes)
    wanted = derived(losses.margin_cross_entropy(logits, y, **given), logits)
    rounding = 8 * torch.finfo(dtype).eps * wanted.abs().max().item()
    assert torch.allclose(margin_cross_entropy_slope(logits.detach(), y, **given), wanted, rtol=0, atol=rounding)


def test_crafting_with_kl_has_the_direction_of_the_difference_of_the_probabilities():
    logits, _ = drawn()
    clean = drawn(scale=1.0)[0].detach()
    wanted = logits.detach().softmax(1) - clean.softmax(1)
    found = kl_slope(logits.detach(), clean)
    one, other = (slope / slope.norm(dim=1, keepdim=True) for slope in (found, wanted))
    assert torch.allclose(one, other, atol=1e-12)
    assert torch.allclose(wanted, derived(losses.kl(logits, clean), logits), atol=1e-14)
