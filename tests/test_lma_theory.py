"""LMA's theory checks: on losses, averages and nets of which everything is known; and what its claims read."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from margins import datasets, losses, models
from margins.experiments import Outcome
from margins.models import Linear
from margins.papers.lma import input_gradient, theory, theory_margins
from margins.papers.lma.theory_evidence import EVIDENCE
from margins.penalties.moving_average import MovingAverage
from margins.verdicts import page

D = torch.float64


def test_derivatives_of_a_cube():
    value, slope, curvature = theory.derivatives(lambda d: d**3, torch.tensor([2.0, -1.0], dtype=D))
    assert (value.tolist(), slope.tolist(), curvature.tolist()) == ([8, -1], [12, 3], [12, -6])


def test_a_loss_that_is_not_smooth_is_seen(monkeypatch):
    monkeypatch.setattr(losses, "mhuber", lambda d, alpha: theory.huber(d, alpha * np.pi / 2))
    assert theory.knots(0, drawn=2)["mHuber: largest jump of the curvature"] == pytest.approx(1)
    monkeypatch.setattr(losses, "mhuber", lambda d, alpha: alpha * d.abs())
    assert theory.outliers(0, drawn=2)["mHuber: jump of the slope at 0"] > 1


def test_averages_by_hand():
    ones = torch.ones(3, 1, dtype=D)
    assert [one.item() for one in theory._averages(MovingAverage(0.5, reading="sample"), ones)] == [0.5, 0.75, 0.875]
    appendix = MovingAverage(0.25, direction="appendix", reading="sample")
    assert [one.item() for one in theory._averages(appendix, ones)] == [0.25, 0.4375, 0.578125]


@pytest.mark.parametrize(("reading", "own", "latest"), [("sample", 100.0, 100.0), ("batch", None, None)])
def test_whose_logits_an_average_has(reading, own, latest):
    found = theory.history(reading, seed=1, images=12, batch=4, epochs=3)
    known = {"own earlier logits with a weight, %": own, "latest logits are the image's own, %": latest}
    for name, value in known.items():
        assert found[name] == value if value else found[name] < 60
    alone = theory.history(reading, seed=1, images=1, batch=1, epochs=3)  # an image that is alone meets itself
    assert [float(value) for value in alone.values()] == [100.0, 100.0, pytest.approx(100)]


def test_distances_of_a_linear_model_by_hand():
    model = Linear(2, 3, bias=False).to(D)
    model.head.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -3.0]], dtype=D)
    x = torch.tensor([[2.0, 0.0], [-1.0, 4.0]], dtype=D)
    distance, directions = theory_margins._to_others(model, x)
    assert distance.tolist() == pytest.approx([2 / 10**0.5, 1.0])
    assert directions[1].tolist() == [[1.0, 0.0], [0.0, 0.0], pytest.approx([1 / 10**0.5, -3 / 10**0.5])]


@pytest.mark.parametrize("factor", [1.0, 0.9])
def test_the_search_finds_the_distance_and_no_other_number(monkeypatch, factor):
    def subject(kind, seed, points):
        model = models.build("linear", inputs=2, classes=2, generator=torch.Generator().manual_seed(seed)).double()
        x = torch.randn(points, 2, generator=torch.Generator().manual_seed(seed), dtype=D)
        return model, x, factor * theory_margins._to_others(model, x)[0]

    monkeypatch.setattr(theory_margins, "subject", subject)
    found = theory_margins.distances("linear", seed=0, points=100, drawn=10).metrics
    assert (found["crafted: largest gap, points"] <= 1e-9) == (factor == 1)
    assert found["random: gap at the median distance, points"] > 10


class Results:
    """Metrics of all rows, as they were measured for one seed."""

    def __init__(self, rows):
        self.rows = rows

    def metric(self, row, name):
        return np.array([float(self.rows[row][name])])


def test_claims_read_the_rows_and_say_what_arithmetic_says(monkeypatch):
    load = datasets.load

    def digits(name, split, size, seed):
        """The digits, in the middle of an image of MNIST's size."""
        found = load("digits", split, size=min(size, 1000 if split == "train" else 300), seed=seed)
        return replace(found, x=functional.pad(found.x, (10, 10, 10, 10)))

    monkeypatch.setattr(datasets, "load", digits)
    smaller = {"size": 1000, "epochs": 15, "shown": 100, "points": 60, "drawn": 3}
    rows = {}
    for row, (function, given) in theory.ROWS.items():
        found = function(seed=0, **{name: smaller.get(name, value) for name, value in given.items()})
        rows[row] = found.metrics if isinstance(found, Outcome) else found
    assert all(np.isfinite(float(value)) for found in rows.values() for value in found.values())
    at = {theory.NAME: Results(rows)}
    held = {id_: all(part.held.all() for part in evidence.read(at)) for id_, evidence in EVIDENCE.items()}
    refuted = {"lma-s4-positive-quantity", "lma-s4-squared-stronger", "lma-t15-small-alpha-sensitive"}
    assert {id_ for id_, holds in held.items() if not holds} == {*refuted, "lma-a1-ema-keeps-history"}


class Along:
    """Records of three seeds: probabilities and gradients of two images at two epochs."""

    def __init__(self, right=(1.0, 1.0, 1.0)):
        self.right = np.array(right)

    def samples(self, row, name):
        if name == "clean, last":
            return np.arange(100) < 100 * self.right[:, None]
        if name.startswith("probability"):
            return np.array([[[0.1, 0.2], [0.5, 0.995]]] * 3)
        return np.array([[[1.0, 1.0], [4.0, 100.0]]] * 3)

    def diverged(self, row):
        return np.array([False] * 3)


def test_saturated_images_are_left_out_of_the_second_mean():
    found = input_gradient.means(Along(), "ST")
    assert found["all images"][0].tolist() == pytest.approx([0.15, (2 + 99.5) / 2])
    assert found["not saturated"][0].tolist() == pytest.approx([0.15, 2.0])
    (part, other) = input_gradient.EVIDENCE["lma-a2-at-reduces-input-gradient"][1].read({input_gradient.CIFAR: Along()})
    assert "CNN, AT, all images" in part.label and other.values.tolist() == pytest.approx([1.85] * 3)


def test_a_network_that_guesses_is_left_out():
    guesses, evidence = Along(right=(0.1, 0.3, 0.9)), input_gradient.EVIDENCE["lma-a2-at-reduces-input-gradient"][1]
    assert input_gradient.learned(guesses, "AT").tolist() == [False, True, True]
    for part in evidence.read({input_gradient.CIFAR: guesses}):
        assert np.isnan(part.values).tolist() == [True, False, False] and (part.failed, part.opposed) == (0, 1)
    guesses.right[:] = 0.1
    assert page({"c": evidence.read({input_gradient.CIFAR: guesses})}, "laptop")["c"].outcome == "undecided"
