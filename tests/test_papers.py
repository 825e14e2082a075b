"""The papers' experiments: their records can be made again, and say what the chapters rest on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from real import needs

from margins import papers
from margins.checkpoints import Checkpoint
from margins.claims import each, ledger
from margins.errors import MarginsError
from margins.experiments import EXPERIMENTS, results
from margins.linear.toy import signed_margins
from margins.papers.amm import toy
from margins.papers.amr import logistic
from margins.records import Store


def test_evidence_is_about_claims_and_experiments_that_exist():
    ids = {claim.id for claim in ledger()}
    assert set(papers.EVIDENCE) <= ids
    read = [one for evidence in papers.EVIDENCE.values() for one in each(evidence)]
    assert {name for one in read for name in one.experiments} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_units_have_keys_of_their_own(name):
    experiment = EXPERIMENTS[name]
    units = [unit for scale in experiment.scales for unit in experiment.units(scale)]
    assert len({unit.key for unit in units}) == len(units)
    for scale in experiment.scales:
        grouped = [unit.key for group in experiment.groups(scale) for unit in group]
        assert sorted(grouped) == sorted(unit.key for unit in experiment.units(scale))


@pytest.mark.parametrize(
    "row", [pytest.param(r, marks=[needs("mnist")] * ("MNIST" in r)) for r in EXPERIMENTS["amm/linear"].rows]
)
def test_the_statements_on_linear_classifiers_are_recorded_as_they_come_out(tmp_path, row):
    experiment = EXPERIMENTS["amm/linear"]
    for unit in (unit for unit in experiment.units("paper") if unit.row == row):
        record = Store().load(experiment.name, unit.key)
        (outcome,) = experiment.run([unit], Checkpoint(tmp_path / "none"))
        assert set(outcome.metrics) == set(record.metrics)
        for name, value in record.metrics.items():
            near = 1e-6 if "angle" in name else 1e-12  # the arccosine of nearly 1 has half the digits
            assert outcome.metrics[name] == pytest.approx(value, rel=1e-6, abs=near), name


def test_a_recorded_toy_run_can_be_made_again():
    config = toy.TOY | EXPERIMENTS["amm/toy"].scales["paper"]
    data, epochs, weights = toy.run_toy([0], config)
    recorded = results("amm/toy", "paper")
    assert epochs == recorded.curve("MIN+LIN", "epoch")[0].tolist()
    for p, pair in enumerate(toy.PAIRS):
        curve = signed_margins(weights[:, p, 0], data["train"][0][0], data["train"][1][0]).min(-1).values
        np.testing.assert_allclose(curve, recorded.curve(pair, "margin")[0], atol=1e-6)


def test_figure_1_of_amm():
    recorded = results("amm/toy", "paper")
    for pair in toy.PAIRS:
        if pair.startswith("MIN"):
            assert np.median(recorded.metric(pair, "margin")[:5]) >= 0.97
    assert (recorded.metric("AVG+LIN", "angle to the class means") <= 3).all()
    assert recorded.metric("SVM", "margin") == pytest.approx(0.99, abs=1e-3)  # what the boxes allow


def test_a_diverged_toy_run_is_recorded_as_one(tmp_path):
    experiment = EXPERIMENTS["amm/toy"]
    units = [replace(u, config={**u.config, "lr": 1e200}) for u in experiment.units("quick") if u.seed == 0]
    outcomes = experiment.run([u for u in units if u.row in toy.PAIRS], Checkpoint(tmp_path / "none"))
    assert {outcome.status for outcome in outcomes} == {"diverged"}
    assert all(np.isnan([outcome.metrics["test accuracy"], outcome.metrics["margin"]]).all() for outcome in outcomes)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch_size": 0}, "batch_size: 0 given, allowed: 1 to the 12 samples"),
        ({"batch_size": 20}, "batch_size: 20 given"),
        ({"epochs": 0}, "epochs, halve_every, every"),
        ({"lr": -1.0}, "lr, c, d"),
        ({"c": math.nan}, "lr, c, d"),
    ],
)
def test_toy_settings_that_make_no_sense(changed, said):
    config = toy.TOY | {"epochs": 2, "size": 6, "batch_size": 6} | changed
    with pytest.raises(MarginsError, match=said):
        toy.run_toy([0], config)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"classes": (3,)}, r"classes: \[3\] given, allowed: two different ones"),
        ({"classes": (1, 8, 3)}, "allowed: two different ones"),
        ({"epochs": math.inf}, "epochs: inf given"),
        ({"epochs": 0.0}, "epochs: 0.0 given"),
        ({"lr": -1.0}, "lr: -1.0 given"),
        ({"size": 1}, "size: 1 given, which leaves images of one class only"),
    ],
)
def test_logistic_settings_that_make_no_sense(changed, said):
    config = logistic.LOGISTIC | {"data": "digits", "size": 50, "epochs": 2.0, "short_epochs": 2.0} | changed
    with pytest.raises(MarginsError, match=said):
        logistic.run_logistic(config, 0)


@pytest.mark.parametrize("data", ["digits", pytest.param("mnist", marks=needs("mnist"))])
def test_the_trade_off_of_amr(data):
    config = logistic.LOGISTIC | {"data": data, "size": 250, "epochs": 1e6, "short_epochs": 1.0}
    run = logistic.run_logistic(config, seed=0)
    found = logistic.curves(run)
    assert found["minimum margin"][-1] > found["minimum margin"][0]
    assert found["average margin"][-1] < found["average margin"][0]
    assert max(found["minimum margin"]) <= run.svm.margin * (1 + 1e-9)
    assert run.train[-1].abs().mean() == pytest.approx(found["average margin"][-1])
    assert len(run.x) == 250 and run.at(1) == 1 and run.at(1e99) == len(run.path.epochs) - 1
    index, moved = logistic.examples(run)
    assert run.y[index].tolist() == [0, 1, 0, 1] and moved.shape == (6, 4, run.x.shape[1])
    torch.testing.assert_close((moved[-1] - run.x[index]).norm(dim=1), run.train[-1][index].abs())


def test_replicates_are_random_subsets_and_starts_are_random():
    config = logistic.LOGISTIC | {"data": "digits", "size": None, "epochs": 10.0, "short_epochs": 10.0}
    runs = [logistic.run_logistic(config | {"share": 0.8, "start": 1.0}, seed) for seed in (0, 0, 1)]
    whole = logistic.run_logistic(config, 0)
    assert len(runs[0].x) == round(0.8 * len(whole.x))
    assert torch.equal(runs[0].x, runs[1].x) and not torch.equal(runs[0].x, runs[2].x)
    assert torch.equal(runs[0].path.weights, runs[1].path.weights)
    assert not whole.path.weights[0].any() and runs[0].path.weights[0].any()
