"""LMA-AT's cost: the floor's passes, what is measured beside it, and what the verdicts read."""

import numpy as np
import pytest
import torch
from real import needs
from torch import nn

from margins import models
from margins.datasets import Data
from margins.experiments import EXPERIMENTS
from margins.papers import cifar
from margins.papers.lma import cost
from margins.training import Recipe

SMALL = {"name": "resnet-cifar", "shape": (3, 8, 8), "classes": 10, "depth": 8, "width": 2}


class Counting(nn.Module):
    """Calls of a linear net, by whether its weights get a gradient."""

    def __init__(self):
        super().__init__()
        self.body, self.calls = nn.Linear(192, 10), []

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        self.calls.append((self.training, self.body.weight.requires_grad))
        return self.body(x.flatten(1))


def test_the_floor_is_ten_passes_to_the_input_and_a_full_step():
    model = Counting()
    x = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = model.body.weight.detach().clone()
    took = cost.floor(model, Data(x, torch.arange(12) % 10, "random", 10), 3, Recipe(epochs=1, batch_size=3, lr=0.1))
    assert took > 0
    assert model.calls == 4 * ([(False, False)] * cifar.THREAT.steps + [(True, True)])
    assert not torch.equal(model.body.weight, before)


def test_the_floor_leaves_the_network_as_it_is():
    settings = dict(SMALL)
    model = models.build(settings.pop("name"), **settings)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    data = Data(torch.rand(8, 3, 8, 8), torch.arange(8), "random", 10)
    cost.floor(model, data, 2, Recipe(epochs=1, batch_size=2, lr=0.1))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items()) and model.training


@needs("cifar10")
def test_all_ways_are_measured_beside_it():
    config = {"model": SMALL | {"shape": (3, 32, 32)}, "sizes": {"quick": {"batch": 2, "steps": 4, "reps": 1}}}
    found = cost.measure(config, cost.ways(), "quick", 0, torch.device("cpu"))
    forwards = {way: found.metrics[f"{way}: forwards"] for way in cost.ways()}
    assert (forwards["ST"], forwards["AT"], forwards["MART"], forwards[cost.LMA]) == (3, 23, 26, 26)
    assert forwards[cost.WITH_L2] == forwards[cost.LMA] and forwards["TRADES"] == 27 and forwards["AT+EMR"] == 27
    assert found.metrics["AT: time over AT"] == 1 and found.metrics["AT: time over floor"] > 0
    for way in (*cost.ways(), "floor"):
        expected = found.metrics[f"{way}: ms"] * 50_000 / 2 / 1000
        assert found.metrics[f"{way}: seconds an epoch"] == pytest.approx(expected)


def test_the_explicit_penalty_is_that_on_the_weights():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
        model.bias.fill_(2.0)
    assert cost.squares(model).item() == 29.0
    assert set(EXPERIMENTS[cost.NAME].rows) == set(cost.BATCHES)


class Results:
    def metric(self, net, name):
        way = name.partition(": ")[0]
        return {"AT": 1.0, "TRADES": 1.2, cost.LMA: 1.1, cost.WITH_L2: 1.1 * 1.05}[way] + np.zeros(3)


def test_the_evidence_reads_ratios_of_times():
    (more,) = cost.EVIDENCE["lma-s44-no-l2-cheaper"].read({cost.NAME: Results()})
    assert more.values == pytest.approx(np.log([1.05] * 3)) and (more.relation, more.delta) == (">", np.log(1.02))
    parts = cost.EVIDENCE["lma-s44-efficient"].read({cost.NAME: Results()})
    assert [part.label.split(":")[0] for part in parts] == ["ResNet-18"] * 2 + ["WRN-34-10"] * 2
    assert parts[0].values == pytest.approx(np.log([1.1] * 3)) and parts[0].delta == pytest.approx(np.log(1.25))
    assert parts[1].values == pytest.approx(np.log([1.1 / 1.2] * 3)) and (parts[1].relation, parts[1].delta) == ("<", 0)
