"""AMM's cost: what is compared, how memory is counted, and what the verdicts read."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import CLASSES, context, data, gradients, network
from torch import nn

from margins.datasets import Data
from margins.experiments import EXPERIMENTS
from margins.models import MLP
from margins.papers import steps
from margins.papers.amm import cost, mnist
from margins.papers.amm.whole_graph import WholeGraph
from margins.penalties.deepfool import DeepFoolMargin
from margins.verdicts import page


@pytest.fixture(scope="module")
def subject():
    """A small net with convolutions whose samples take several steps, a quarter of them wrong."""
    model = network("cnn")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.5
        x = data(20).x
        model.head.bias -= model(x).mean(0)
        y = model(x).argmax(1)
    y[::4] = (y[::4] + 1) % CLASSES
    return model, Data(x, y, "tiny", CLASSES)


@pytest.mark.parametrize(("aggregation", "shrinkage"), [("MIN", "EXP"), ("AVG", "LIN")])
def test_the_straightforward_way_is_the_books_regulariser(subject, aggregation, shrinkage):
    model, known = subject
    found = []
    for part in (WholeGraph(aggregation, shrinkage, 1.3, 0.4), DeepFoolMargin(aggregation, shrinkage, 1.3, 0.4)):
        step = context(model, count=20)
        step.y = known.y
        value = part(step, "clean")
        found.append((value, torch.cat([g.flatten() for g in gradients(value.mean(), model)])))
    (whole, slow), (value, fast) = found
    torch.testing.assert_close(whole, value, rtol=1e-9, atol=1e-12)
    assert (slow - fast).abs().max() <= 1e-8 * fast.abs().max()
    assert (value > 0).all() == (aggregation == "AVG" and shrinkage == "EXP") and (value != 0).any()


def test_the_ways_differ_in_the_penalty_alone():
    names = {name: [term.name for term in row.terms] for name, row in cost.WAYS.items()}
    assert names[cost.PLAIN] == ["cross_entropy"] and names[cost.WHOLE] == ["cross_entropy", "WholeGraph"]
    whole, ours = (cost.WAYS[name].terms[1] for name in (cost.WHOLE, "MIN+EXP"))
    assert whole.coefficient == ours.coefficient == mnist.CHOSEN["MIN", "EXP"][0]
    for name in ("aggregation", "shrinkage", "c", "d", "steps", "overshoot"):
        assert getattr(whole.function, name) == getattr(ours.function, name)


def test_what_is_alive_is_counted_to_the_byte():
    model = nn.Linear(10, 5)
    with steps.Alive(model.parameters()) as alive:
        assert alive.now == 4 * 55
        x = torch.zeros(3, 10)
        view = x.view(30)
        del x
        assert alive.now == 4 * (55 + 30)  # the view holds it
        y = torch.relu(model(view.view(3, 10)))
        y.sum().backward()
        del view, y
        assert alive.now == 4 * (55 + 55)  # the gradients stay
        assert alive.restart() > alive.now and alive.peak == alive.now


def test_a_plain_steps_memory_is_that_of_weights_gradients_momentum_and_activations():
    model = MLP(16, (400,), CLASSES, generator=torch.Generator().manual_seed(0))
    known = data(4 * cost.STEPS)
    known = Data(known.x.float(), known.y, "tiny", CLASSES)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    found = steps.alive(model, cost.WAYS[cost.PLAIN], known, 4, **cost.GIVEN)
    assert 3 * weights < found < 3 * weights + 40 * 4 * 4 * 400  # a few tensors as wide as the hidden layer
    amm = steps.alive(model, cost.WAYS["MIN+EXP"], known, 4, **cost.GIVEN)
    assert found < amm < steps.alive(model, cost.WAYS[cost.WHOLE], known, 4, **cost.GIVEN)


def test_all_ways_are_measured_on_weights_that_stay(subject, monkeypatch):
    model, known = subject
    monkeypatch.setattr(cost, "subject", lambda config, seed: (model, known))
    before = [parameter.clone() for parameter in model.parameters()]
    outcome = cost.measure({"trained": {"batch": 4, "reps": 2}}, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    told = outcome.metrics
    assert told["plain: time over plain"] == told["plain: memory over plain"] == 1 and told["plain: forwards"] == 3
    assert set(outcome.curves) == set(cost.WAYS) and all(len(one) == 2 for one in outcome.curves.values())
    for name in cost.WAYS:
        assert told[f"{name}: ms"] > 0 and math.isfinite(told[f"{name}: time over plain"])
    forwards = [told[f"{name}: forwards"] for name in ("plain", "MIN+EXP, no second order", "MIN+EXP", cost.WHOLE)]
    assert forwards == sorted(forwards) and told["wrong samples, %"] == 25
    # three classes in all: two rivals are all that there are
    assert told["3 candidates: samples on another path, %"] == 0
    assert told["3 candidates: relative change of the penalty's gradient, largest"] == 0


def test_fewer_candidates_can_take_another_path():
    model, known = network("cnn"), data(20)
    with torch.no_grad():
        model.head.bias -= model(known.x).mean(0)
    told = cost.fewer(model, Data(known.x, model(known.x).argmax(1), "tiny", CLASSES), 10, candidates=1)
    assert told["1 candidates: samples on another path, %"] > 0
    assert told["1 candidates: relative change of the penalty's gradient, largest"] > 1e-3


def _results(whole, ours):
    """Ratios of nets x seeds, for time and memory alike."""
    ratios = {"MIN+EXP": ours, cost.WHOLE: whole}

    def metric(net, name):
        return np.array(ratios[name.split(":")[0]][list(cost.NETS).index(net)])

    return {cost.NAME: SimpleNamespace(metric=metric)}


@pytest.mark.parametrize(
    ("whole", "time", "memory"),
    [
        ([[7, 8, 9], [13, 12, 6], [10, 9, 8], [20, 30, 40]], "supported", "contradicted"),
        ([[7, 8, 9], [13, 12, 6], [15, 16, 17], [20, 30, 40]], "contradicted", "contradicted"),  # half is not most
        ([[7, 8, 3], [13, 12, 3], [10, 9, 3], [20, 30, 3]], "undecided", "undecided"),
        ([[3, 3, 2], [2, 3, 4], [2, 2, 2], [1, 1, 1]], "contradicted", "supported"),
    ],
)
def test_the_claims_need_most_nets_in_the_papers_range(whole, time, memory):
    at = _results(whole, np.ones((4, 3)))
    found = page({name: evidence.read(at) for name, evidence in cost.EVIDENCE.items()}, "laptop")
    assert found["amm-s45-time-6-to-14"].outcome == time
    assert found["amm-s45-memory-2-to-4"].outcome == memory


def test_every_net_is_built_as_declared():
    experiment = EXPERIMENTS[cost.NAME]
    assert {unit.row for unit in experiment.units("laptop")} == set(cost.NETS)
    assert all(unit.config["trained"]["laptop"]["size"] >= cost.STEPS * 20 for unit in experiment.units("laptop"))
