"""AMR's cost: the floor's arithmetic, the ways that are compared, what is measured, and what the verdicts read."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import CLASSES, context, data, gradients, network

from margins.checkpoints import Checkpoint
from margins.datasets import Data
from margins.errors import MarginsError
from margins.experiments import EXPERIMENTS
from margins.models import MLP
from margins.papers.amr import cost
from margins.papers.amr import cost_evidence as evidence
from margins.penalties.amr import WrongMargin
from margins.penalties.deepfool import DeepFoolMargin
from margins.penalties.orthogonality import orthogonality
from margins.verdicts import page

CPU = torch.device("cpu")


def test_the_products_give_the_penaltys_gradient():
    model = MLP(5, (9, 4), CLASSES, generator=torch.Generator().manual_seed(0)).double()  # tall and wide layers
    products = cost.Products(model)
    products()
    orthogonality(model).backward()
    for layer, (weight, _, product) in zip(cost.layers(model).values(), products.outputs, strict=True):
        torch.testing.assert_close(layer.weight.grad, 4 * (product - weight))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_products_are_of_all_layers_and_leave_the_weights(kind):
    model = network(kind)
    before = [parameter.clone() for parameter in model.parameters()]
    products = cost.Products(model)
    products()
    assert len(products.outputs) == len(cost.layers(model)) == 3
    assert all(gram.shape[0] == min(weight.shape) for weight, gram, _ in products.outputs)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_multiplications_are_those_of_the_layers():
    mlp = cost.multiplications(network("mlp"), data(1).x)
    assert list(mlp.values()) == [(2 * 16 * 7, 2 * 7**2 * 16), (3 * 7 * 6, 2 * 6**2 * 7), (3 * 6 * 3, 2 * 3**2 * 6)]
    # a convolution's filters are used at each of 4 x 4 places; pooling leaves 3 x 2 x 2 inputs
    cnn = cost.multiplications(network("cnn"), data(1).x)
    assert list(cnn.values()) == [
        (2 * 16 * 3 * 9, 2 * 3**2 * 9),
        (3 * 12 * 5, 2 * 5**2 * 12),
        (3 * 5 * 3, 2 * 3**2 * 5),
    ]
    assert list(cnn) == list(cost.layers(network("cnn")))


def test_a_net_without_boundaries_is_refused(monkeypatch):
    model, known = network("mlp").float(), data(12)
    known = Data(known.x.float(), known.y, "tiny", CLASSES)
    with torch.no_grad():  # logits hardly depend on the input, and most are wrong
        model.head.weight *= 1e-6
    monkeypatch.setattr(cost, "subject", lambda config, seed, device: (model, known))
    with pytest.raises(MarginsError, match="Deep Defense's penalty"):
        cost.measure({"net": "LeNet", "trained": {"batch": 4, "steps": 3, "reps": 1}}, 0, CPU)


def subject():
    """A small net with convolutions, and data of which it has a quarter wrong."""
    model, x = network("cnn"), data(12).x
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.5
        model.head.bias -= model(x).mean(0)
        y = model(x).argmax(1)
    y[::4] = (y[::4] + 1) % CLASSES
    return model.float(), Data(x.float(), y, "tiny", CLASSES)


def test_the_straightforward_deep_defense_is_the_books():
    model, known = subject()
    model.double()
    ways, found = cost.ways(5.0, 5.0), []
    for name in (cost.WHOLE, cost.DEFENSE):
        step = context(model, count=12)
        step.y = known.y
        value = ways[name].terms[1].function(step, "clean")
        found.append((value, torch.cat([g.flatten() for g in gradients(value.mean(), model)])))
    (whole, slow), (value, fast) = found
    torch.testing.assert_close(whole, value, rtol=1e-9, atol=1e-12)
    assert (slow - fast).abs().max() <= 1e-8 * fast.abs().max() and (value > 0).all()


def test_the_ways_differ_as_they_should():
    ways = cost.NETS["LeNet"].ways
    terms = {name: [term.name for term in row.terms] for name, row in ways.items()}
    assert terms[cost.PLAIN] == ["cross_entropy"] and terms["LCR"] == ["cross_entropy", "orthogonality"]
    assert terms[cost.AMR] == ["cross_entropy", "AverageMargin", "orthogonality"]
    assert terms[cost.RELEASED] == ["cross_entropy", "AverageMargin", "WrongMargin", "orthogonality"]
    assert [ways[name].craft.steps for name in cost.ADV.values()] == list(cost.ADV) == [1, 10, 40]
    own, whole = (ways[name].terms[1] for name in (cost.DEFENSE, cost.WHOLE))
    assert isinstance(own.function, DeepFoolMargin) and own.function.normalised and own.coefficient == whole.coefficient
    for name in ("aggregation", "shrinkage", "c", "d", "steps", "overshoot"):
        assert getattr(own.function, name) == getattr(whole.function, name)
    assert not any(row.recipe or row.start for row in ways.values())  # one recipe for all, from the same weights


@pytest.fixture(scope="module")
def measured():
    """What is measured on a small net with convolutions, and whether its weights stayed."""
    model, known = subject()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "subject", lambda config, seed, device: (model, known))
        given = {"net": "LeNet", "trained": {"batch": 4, "steps": 3, "reps": 2}}
        outcome = cost.measure(given, 0, CPU)
    return outcome, all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_all_ways_are_measured_on_weights_that_stay(measured):
    outcome, stayed = measured
    told = outcome.metrics
    assert stayed and all(math.isfinite(value) and value >= 0 for value in told.values())
    assert told["plain: time over plain"] == 1 and told["plain: forwards"] == 3
    assert [told[f"{name}: forwards"] for name in cost.ADV.values()] == [5, 23, 83]
    assert told["AMR, released: forwards"] == told["AMR, Eq. 15: forwards"] == 3
    assert told[f"{cost.WHOLE}: forwards"] > told[f"{cost.DEFENSE}: forwards"] > 3
    assert told["AMR, released: MiB"] > told["plain: MiB"] and told["PGD 40: ms"] > told["plain: ms"]


def test_ratios_are_taken_run_by_run(measured):
    curves = measured[0].curves
    assert all(len(values) == 2 for values in curves.values())
    floor = np.array(curves["floor: time over plain"])
    assert (floor > 1).all()
    for name in cost.NETS["LeNet"].ways:
        over = np.array(curves[f"{name}: time over plain"]) / curves[f"{name}: time over floor"]
        np.testing.assert_allclose(over, floor)


def test_the_epochs_gradient_is_timed_and_no_part_of_a_step(monkeypatch):
    asked = []
    monkeypatch.setattr(WrongMargin, "start_epoch", lambda part, run: asked.append(len(run.y)) or _gradient(part, run))
    model, known = network("mlp").float(), data(24)
    known = Data(known.x.float(), known.y, "tiny", CLASSES)
    monkeypatch.setattr(cost, "subject", lambda config, seed, device: (model, known))
    cost.measure({"net": "LeNet", "trained": {"batch": 4, "steps": 3, "reps": 1}}, 0, CPU)
    # of all images, twice; and before a first step, which is not timed, in the runs for time and for memory
    assert sorted(asked) == [12, 12, 24, 24]


def _gradient(part, run):
    part.state = {"gradient": torch.zeros(sum(weight.numel() for weight in run.model.parameters()))}


def test_time_is_what_the_work_takes():
    work = []
    assert cost.repeated(lambda: work.append(sum(range(10**5))), CPU, 3) > 0
    assert len(work) == 4


def test_the_scale_gpu_needs_one(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    unit = EXPERIMENTS[cost.NAME].units("gpu")[0]
    with pytest.raises(MarginsError, match="gpu"):
        EXPERIMENTS[cost.NAME].run([unit], Checkpoint(tmp_path / "none"))


@pytest.mark.parametrize("scale", ["quick", "laptop", "gpu"])
def test_every_net_has_images_for_its_steps(scale):
    for unit in EXPERIMENTS[cost.NAME].units(scale):
        given = unit.config["trained"][scale]
        assert given["size"] >= given["batch"] * given["steps"] and given["steps"] > 3
        assert set(unit.config["ways"]) == set(cost.NETS[unit.row].ways)


def _verdicts(times):
    """times: way -> its time over plain, for all nets and seeds or by net."""

    def metric(net, name):
        given = times[name.split(":")[0]]
        return (given[net] if isinstance(given, dict) else given) * np.array([0.99, 1.0, 1.01])

    at = {cost.NAME: SimpleNamespace(metric=metric)}
    found = page({name: one.read(at) for name, one in evidence.EVIDENCE.items()}, "laptop")
    return {name.removeprefix("amr-s53-"): verdict.outcome for name, verdict in found.items()}


USUAL = {"PGD 1": 1.7, "PGD 10": 7.7, "PGD 40": 27.7, cost.AMR: 1.1, cost.DEFENSE: 15.0, cost.WHOLE: 50.0}


def test_the_claims_hold_where_all_is_as_the_paper_says():
    found = _verdicts(USUAL)
    assert (
        found["cheaper-than-adv-and-dd"] == found["adv-costs-pgd-steps"] == found["dd-slower-than-adv"] == "supported"
    )
    assert found["amr-costs-like-std"] == "undecided"  # a network is missing


def test_each_claim_can_fail():
    wide = dict.fromkeys(cost.NETS, 1.1) | {"MNIST MLP": 4.5}
    assert _verdicts(USUAL | {cost.AMR: wide})["amr-costs-like-std"] == "contradicted"
    assert _verdicts(USUAL | {cost.AMR: 20.0})["cheaper-than-adv-and-dd"] == "contradicted"
    assert _verdicts(USUAL | {cost.WHOLE: 20.0})["dd-slower-than-adv"] == "contradicted"
    assert _verdicts(USUAL | {"PGD 40": 60.0})["adv-costs-pgd-steps"] == "contradicted"
    assert _verdicts(USUAL | {"PGD 10": 3.0, "PGD 40": 9.0})["adv-costs-pgd-steps"] == "contradicted"


def test_the_slope_is_that_of_a_line():
    times = {name: 1 + 0.7 * steps for steps, name in cost.ADV.items()}
    results = SimpleNamespace(metric=lambda net, name: np.full(3, times[name.split(":")[0]]))
    np.testing.assert_allclose(evidence.slope(results, "LeNet"), 0.7)
