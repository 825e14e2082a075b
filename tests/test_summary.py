"""What margins sum up to: least, average, and the accuracy at any eps with its interval."""

import math

import pytest
import torch

from margins import margin
from margins.errors import MarginsError


def test_minimum_and_average_are_those_of_amr():
    margins = torch.tensor([0.5, -2.0, 1.5])
    assert margin.minimum(margins) == -2
    assert margin.average(margins) == pytest.approx(4 / 3)  # of absolute values: wrong samples count as distances


def test_accuracy_follows_from_distances_at_any_eps():
    margins = torch.tensor([0.5, -2.0, 1.5, math.inf, 0.0])
    shares = [margin.accuracy_at(margins, eps).estimate for eps in (0, 0.4, 0.5, 1, 1.5, 99)]
    assert shares == pytest.approx([0.6, 0.6, 0.4, 0.4, 0.2, 0.2])
    assert margin.accuracy_at(margins, 0.4) == margin.rate(torch.tensor([True, True, True, False, False]))


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (37, 200), (999, 1000), (1, 1)])
def test_the_interval_is_where_the_score_test_does_not_reject(right, count):
    estimate, low, high = margin.rate(torch.arange(count) < right)
    assert estimate == right / count
    for end, inner in ((low, 0), (high, 1)):
        if 0 < end < 1:
            assert abs(estimate - end) / math.sqrt(end * (1 - end) / count) == pytest.approx(1.959964, rel=1e-6)
        else:
            assert end == estimate == inner
    assert 0 <= low <= estimate <= high <= 1
    assert high - low > 0


def test_the_rate_of_nothing_is_unknown():
    estimate, low, high = margin.rate(torch.zeros(0, dtype=torch.bool))
    assert math.isnan(estimate)
    assert (low, high) == (0, 1)


@pytest.mark.parametrize("right", [[True], torch.ones(3), torch.ones(2, 2, dtype=torch.bool), torch.tensor(True)])
def test_a_rate_is_of_true_and_false(right):
    with pytest.raises(MarginsError, match="right must be a bool tensor"):
        margin.rate(right)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: margin.accuracy_at(torch.ones(3), -0.1), "eps must be a finite number of at least 0, but is -0.1"),
        (lambda: margin.accuracy_at(torch.ones(3) * math.nan, 0.1), "no nan"),
        (lambda: margin.minimum(torch.ones(3, 2)), "margins must be a tensor of shape"),
        (lambda: margin.average(torch.ones(0)), "B >= 1"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(MarginsError, match=words):
        call()
