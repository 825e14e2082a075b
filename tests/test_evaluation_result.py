"""What an evaluation's result says: statistics of margins, and the accuracy at other radii."""

import math
from functools import partial

import pytest
import torch
from known import linear

from margins.attacks.deepfool import deepfool
from margins.attacks.pgd import pgd
from margins.errors import MarginsError
from margins.evaluation import evaluate
from margins.evaluation.result import Measured

PGD = partial(pgd, norm=2, eps=0.1, steps=2, step_size=0.1)


def test_statistics_of_margins_with_infinite_and_undefined_ones():
    values = torch.tensor([1.0, -2.0, math.inf, 3.0, math.nan, 0.5])
    found = Measured(values, None).statistics
    assert found["min"] == -2 and found["median"] == 1 and found["95 %"] == 3 and found["mean"] == math.inf
    assert found["positive"] == pytest.approx(4 / 6) and found["infinite"] == pytest.approx(1 / 6)
    assert found["undefined"] == pytest.approx(1 / 6)


def test_what_margins_ask_is_counted():
    model, x, y = linear(3, classes=4)
    cost = evaluate(model, x, y, norm=2, eps=0.1, attacks={"PGD": PGD}).margins["effective margin"].cost
    assert (cost.forward, cost.backward) == (1, 3)


def test_without_a_minimum_norm_attack_there_is_no_curve():
    model, x, y = linear(3, classes=2)
    result = evaluate(model, x, y, norm=2, eps=0.1, attacks={"PGD": PGD})
    assert result.to_dict()["curve"] is None
    with pytest.raises(MarginsError, match="minimum-norm"):
        result.accuracy_at([0.1])


def test_accuracy_at_takes_numbers_and_sequences():
    attacks = {"DeepFool": partial(deepfool, norm=2, bounds=(0.0, 1.0))}
    result = evaluate(*linear(3, classes=2), norm=2, eps=0.1, attacks=attacks, margins={})
    many = result.accuracy_at([0.0, 0.1, 0.5])
    assert many.shape == (3,) and result.accuracy_at(0.1).shape == () and result.accuracy_at(0.1) == many[1]
    assert torch.equal(result.accuracy_at(torch.tensor([0.0, 0.1, 0.5], dtype=torch.float64)), many)
    for eps in (-0.1, math.nan, [0.1, math.inf], "0.1", None, [[0.1]], [0.1, [0.2]], {}):
        with pytest.raises(MarginsError, match="eps must be a finite number of at least 0"):
            result.accuracy_at(eps)
