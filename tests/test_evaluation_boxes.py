"""Evaluations in other boxes than [0, 1] and without one: tolerances follow the inputs' size."""

import math
from functools import partial

import pytest
import torch

from margins.attacks import pgd
from margins.evaluation import evaluate
from margins.models import build


@pytest.mark.parametrize(("norm", "eps"), [(math.inf, 1.0), (math.inf, 4.0), (2, 8.0)])
def test_pixels_up_to_255(norm, eps):
    g = torch.Generator().manual_seed(0)
    model, x = build("mlp", inputs=64, hidden=(16,), classes=3, generator=g), torch.rand(40, 64, generator=g) * 255
    result = evaluate(model, x, model(x).argmax(1), norm=norm, eps=eps, bounds=(0.0, 255.0), attacks="quick")
    assert 0 <= result.accuracy.estimate < 1


def test_a_linear_model_with_distant_classes_and_no_box_raises_no_alarm():
    g = torch.Generator().manual_seed(0)
    model, y = build("linear", inputs=2, classes=2, generator=g), torch.arange(40) % 2
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        model.head.bias.zero_()
    x = torch.randn(40, 2, generator=g) * 0.1 + torch.tensor([4.0, 0.0]) * (y[:, None] - 0.5)
    attack = partial(pgd, norm=2, eps=0.01, steps=5, step_size=0.005, bounds=None)
    assert not evaluate(model, x, y, norm=2, eps=0.01, bounds=None, attacks={"PGD": attack}).failed
