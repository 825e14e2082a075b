"""EMR's cost: what is compared, what is measured, and what the verdicts read."""

import numpy as np
import pytest

from margins import datasets
from margins.experiments import EXPERIMENTS
from margins.methods import exact_emr, plain
from margins.papers.emr import cost
from margins.penalties.emr import EMR

CONFIG = {
    "model": {"name": "mlp", "inputs": 64, "hidden": (8,), "classes": 3}, "data": "digits",
    "batch": {"quick": 5}, "reps": {"quick": 2},
}  # fmt: skip


def test_a_nets_ways_are_measured():
    found = cost.measure(CONFIG, cost.WAYS, cost.THREATS[cost.MLP], "quick", 0)
    forwards = {way: found.metrics.get(f"{way}: forwards") for way in cost.WAYS}
    assert forwards == {
        "ST": 3, "ST+EMR": 3 + 3 * 3, "ST+EMR, chain": None, "ST+EMR, one probe": 6, "ST+Approx-EMR": 6,
        "AT": 43, "AT+EMR": 43 + 3 * 3,
    }  # fmt: skip
    for way in cost.WAYS:
        assert found.metrics[f"{way}: time over plain"] == pytest.approx(np.median(found.curves[way]))
        assert found.metrics[f"{way}: memory over plain"] >= 1
    assert found.metrics["ST: time over plain"] == 1 and found.metrics["penalty alone, eval: ms"] > 0


def test_labels_are_of_the_classes_that_the_net_has(monkeypatch):
    seen = []
    monkeypatch.setattr(cost, "seconds", lambda model, row, data, batch, **given: seen.append(data) or 1.0)
    cost.measure(CONFIG, {"ST": plain()}, cost.THREATS[cost.MLP], "quick", 0)
    assert seen[0].classes == 3 and len(seen[0].x) == 5 * cost.STEPS
    assert set(seen[0].y.tolist()) <= {0, 1, 2} and datasets.load("digits", "train").classes == 10


def test_the_ways_are_the_penalty_by_both_routes_and_a_probe():
    parts = {way: row.terms[-1].function for way, row in cost.WAYS.items()}
    assert (parts[cost.EXACT], parts[cost.CHAIN], parts[cost.PROBE]) == (EMR(), EMR(route="chain"), EMR(probes=1))
    assert cost.WAYS[cost.EXACT] == exact_emr(plain(), 0.1)
    assert set(EXPERIMENTS[cost.NAME].rows) == set(cost.NETS)


class Results:
    """Times that are known: of k classes the penalty takes 2 k ms, the approximation 3 ms, and so on."""

    def metric(self, net, name):
        way, _, what = name.partition(": ")
        if way.startswith("penalty alone"):
            return {"train": 1.2, "eval": 1.0}[way[-5:].strip(", ")] + np.array([0.0, 0.01, -0.01])
        if what == "time over plain":
            return np.array([3.0, 3.1, 2.9])
        added = {"ST": 0.0, "ST+EMR": 2.0 * int(net.split()[0]), "ST+Approx-EMR": 3.0}[way]
        return np.array([1.0, 1.1, 0.9]) + added


def test_the_evidence_reads_ratios_and_exponents():
    at = {cost.NAME: Results()}
    parts = {id_: evidence.read(at) for id_, evidence in cost.EVIDENCE.items()}
    assert cost.power(Results()) == pytest.approx([1, 1, 1])
    exponent, growth = parts["emr-s4-exact-cost-grows-with-classes"]
    assert (exponent.relation, exponent.delta) == (">", 0.7) and growth.values == pytest.approx([0, 0, 0])
    assert (growth.relation, growth.delta) == ("within", pytest.approx(np.log(1.25)))
    (modes,) = parts["emr-s4-eval-mode-faster"]
    assert modes.values[0] == pytest.approx(np.log(1.2)) and modes.delta == pytest.approx(np.log(1.05))
    assert [(part.values.mean(), part.delta) for part in parts["emr-s1-at-costs-more"]] == [
        (pytest.approx(3.0), 2.0)
    ] * 2
