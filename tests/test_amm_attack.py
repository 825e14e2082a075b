"""AMM's attack: what is counted and compared where it is known exactly, whose weights, and what the verdicts read."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from real import needs
from tiny import data, network

from margins import datasets, experiments, paths, training
from margins.attacks.deepfool import deepfool
from margins.checkpoints import Checkpoint
from margins.experiments import EXPERIMENTS, find
from margins.models import MLP, Linear
from margins.papers.amm import attack, mnist
from margins.papers.amm import attack_evidence as evidence
from margins.tables.job import Job
from margins.verdicts import page


def steep():
    """A small net, and samples that take one to several steps."""
    model, x = network("cnn").eval(), data(20).x
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.5
        model.head.bias -= model(x).mean(0)
    return model, x


def test_iterations_and_lengths_are_those_of_shorter_attacks():
    model, x = steep()
    y = attack.classes(model, x)
    found = attack.walks(model, x, y)
    assert found.iterations.min() == 1 and found.iterations.max() > 1
    for steps in range(1, int(found.iterations.max()) + 1):
        shorter = deepfool(model, x, y, steps=steps, reference="prediction")
        assert torch.equal(shorter.success, found.iterations <= steps)
        torch.testing.assert_close(shorter.distance[shorter.success], found.distance[shorter.success])
    torch.testing.assert_close(found.early, found.distance)


def test_after_u_steps_the_length_counts_whether_the_class_changed_or_not(monkeypatch):
    model, x = steep()
    y = attack.classes(model, x)
    monkeypatch.setattr(attack, "LIMIT", 1)
    found = attack.walks(model, x, y)
    (first, *_) = deepfool(model, x, y, steps=1, reference="prediction", trace=True).path
    torch.testing.assert_close(found.early[first.samples], 1.02 * first.move.flatten(1).norm(dim=1))
    assert (found.early < found.distance).any()


def test_a_class_that_never_changes_counts_as_more_steps_than_there_are():
    model = Linear(4, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([1.0, 0.0]))
    found = attack.walks(model, torch.rand(3, 4), torch.zeros(3, dtype=torch.int64))
    assert (found.iterations == attack.STEPS + 1).all() and found.distance.isinf().all()
    assert attack.within(found.iterations, "test")["test: within 6"] == 0


def test_shares_percentiles_ratios_and_ranks():
    told = attack.within(torch.tensor([1] * 90 + [3] * 9 + [51]), "test")
    assert [told[f"test: within {k}"] for k in attack.WITHIN] == [90, 90, 99, 99]
    assert (told["test: 5th percentile"], told["test: 95th percentile"], told["test: longest"]) == (1, 3, 51)
    best = torch.tensor([0.5, 1.0, 3.0, 2.0])
    assert attack.near("a", 1.5 * best, best) == {"a: median ratio": 1.5, "a: rank correlation": pytest.approx(1)}
    assert attack.near("a", 1 / best, best)["a: rank correlation"] == pytest.approx(-1)
    lost = torch.tensor([0.5, 1.0, 3.0, torch.inf])
    assert attack.near("a", lost, best)["a: median ratio"] == 1


def test_where_distances_are_known_deepfool_is_as_near_as_it_can_be():
    linear, tiny = (
        attack.EXACT[row][0](next(u for u in find(attack.NAME).units("quick") if u.row == row), None).metrics
        for row in ("linear", "tiny ReLU net")
    )
    assert linear["largest |ratio - 1.02|"] < 1e-12 and linear["points: longest"] == 1
    assert linear["Race: median ratio"] == pytest.approx(1, abs=1e-4)
    for name in (attack.U6, attack.U50):
        assert 1.02 <= tiny[f"{name}: median ratio"] < 1.25 and tiny[f"{name}: rank correlation"] > 0.8
    assert 1 <= tiny["Race: median ratio"] < 1.01


@pytest.mark.parametrize("scale", ["quick", "laptop", "paper"])
def test_the_weights_are_the_tables(scale):
    units = {(unit.row, unit.seed): unit for unit in find(attack.NAME).units(scale)}
    for row, net in attack.NETS.items():
        made = attack.NETS[row].job(units[row, 1])
        tables = [u for u in find(net.table).units(scale if "ConvNet" not in row else dict(net.scales)[scale])]
        unit = next(u for u in tables if u.row == net.label and u.seed == 1 and u.part == "training")
        own = Job(net.row, made.recipe, made.threat, unit)._path(net.row, 1)
        shorter = bool(dict(net.epochs).get(scale))
        assert (made._path(net.row, 1) == own) == (not shorter)
        assert unit.config["method"] == net.row.describe()
        if shorter:
            assert made.recipe.epochs < unit.config["recipe"]["epochs"]


def test_a_first_epoch_is_that_of_the_longer_training():
    known = datasets.load("digits", "train", size=400)
    curves = [
        training.train(
            MLP(64, (20,), 10), mnist.OURS, known, recipe=mnist.recipe(epochs), threat=mnist.THREAT, seed=3
        ).curves
        for epochs in (1, 4)
    ]
    for name in ("cross_entropy at clean", "DeepFoolMargin at clean", "rate"):
        assert len(curves[0][name]) == 1 and curves[0][name][0] == curves[1][name][0]


@needs("mnist")
def test_a_trained_net_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    row = f"MLP, MIN+EXP{attack.FIRST}"
    unit = next(u for u in find(attack.NAME).units("quick") if u.row == row)
    unit = replace(unit, config={**unit.config, "images": 10, "test": 40})
    (outcome,) = EXPERIMENTS[attack.NAME].run([unit], Checkpoint(tmp_path / "run" / "state.pt"))
    told, arrays = outcome.metrics, outcome.arrays
    assert arrays["test iterations"].shape == (40,) and arrays["train iterations"].shape == (100,)
    assert told["test: within 1"] == 100 * (arrays["test iterations"] <= 1).mean()
    assert all(arrays[name].shape == (10,) for name in (attack.U6, attack.U50, attack.RACE))
    assert 1 <= told["Race: median ratio"] <= told[f"{attack.U50}: median ratio"]
    same = arrays["train iterations"] == arrays["train iterations, AMM's walk"]
    assert (~same).sum() <= told["wrong training images"] < 100  # right images are walked alike
    assert "weights" in outcome.facts and not attack.NETS[unit.row].job(unit).lost()


def results(test=3, walk=6, ratio=1.1, off=0.0, images=1000, seeds=3):
    """Results of the experiment in which all rows and seeds are alike."""
    records = {
        row: [SimpleNamespace(config={"trained": {"paper": {"size": images}}})] for row in EXPERIMENTS[attack.NAME].rows
    }

    def metric(row, name):
        return np.full(seeds, off if "|ratio" in name else ratio) + 1e-9 * np.arange(seeds)

    def samples(row, name):
        value = walk if "walk" in name else test if "iterations" in name else ratio
        return np.full((seeds, images), value)

    return SimpleNamespace(
        metric=metric,
        samples=samples,
        diverged=lambda row: np.zeros(seeds, dtype=bool),
        records=records,
        scale="paper",
    )


@pytest.mark.parametrize(
    ("given", "outcomes"),
    [
        ({}, ("supported", "supported", "supported", "supported", "undecided")),
        ({"test": 4}, ("supported", "supported", "contradicted", "contradicted", "undecided")),
        ({"walk": 7}, ("supported", "supported", "supported", "supported", "contradicted")),
        ({"ratio": np.inf}, ("contradicted", None, "supported", "supported", "undecided")),
        ({"ratio": 1.3}, ("supported", "contradicted", "supported", "supported", "undecided")),
        ({"off": 0.01}, ("supported", "contradicted", "supported", "supported", "undecided")),
    ],
)
def test_what_the_verdicts_read(given, outcomes):
    at = {attack.NAME: results(**given)}
    wanted = dict(zip(evidence.EVIDENCE, outcomes, strict=True))
    parts = {name: evidence.EVIDENCE[name].read(at) for name, outcome in wanted.items() if outcome}
    assert {name: verdict.outcome for name, verdict in page(parts, "paper").items()} == {
        name: outcome for name, outcome in wanted.items() if outcome
    }


def test_all_images_of_mnist_are_counted_at_the_papers_scale():
    unit = next(u for u in experiments.find(attack.NAME).units("paper") if u.row == "LeNet, reference")
    assert unit.config["test"] == 10_000 and unit.config["train"] is None
