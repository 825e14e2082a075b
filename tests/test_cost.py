"""The count of a step's passes: against closed forms, against the arithmetic done, and against what docstrings say."""

import copy
import json
import math
from collections import Counter

import pytest
import torch
from small import Net
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from margins import datasets, models
from margins.methods import METHODS, PGD, amm, amr, baselines, regularised
from margins.penalties.context import Threat
from margins.training import cost as module
from margins.training.cost import Cost, cost, measured

THREAT = Threat(math.inf, 0.01, 0.0025, steps=10)


class Arithmetic(TorchDispatchMode):
    """Adds up the multiplications of matrices that are done within a block."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if formula := flop_registry.get(function._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def drawn(net, right=30, count=40, inputs=1):
    """Samples of which the net, made certain, has so many right in training."""
    with torch.no_grad():
        net.head.weight *= 100
        x = torch.rand(count, inputs, generator=torch.Generator().manual_seed(0), dtype=net.head.weight.dtype)
        y = net.train()(x).argmax(1)
    y[right:] = (y[right:] + 1) % 4
    return datasets.Data(x, y, "drawn", 4)


def narrow():
    """A net whose first layer has next to nothing to do: there a full backward lacks the gradient to the input."""
    return models.build("mlp", inputs=1, hidden=(64, 64, 64), classes=4)


NAMES = ("ST", "AT", "TRADES", "AT+HE", "AT+L-Softmax", "IGR", "TRADES+IGR", "AT+EMR", "LMA-AT", "MMA", "AMM")
ROWS = {name: METHODS[name] for name in NAMES} | {
    "EMR": regularised.exact_emr(METHODS["ST"], 0.1),
    "EMR, 3 probes": regularised.exact_emr(METHODS["AT"], 0.1, probes=3),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_count_is_the_arithmetic_that_is_done(name):
    net = narrow()
    data = drawn(net)
    with Arithmetic() as forward, torch.no_grad():
        net(data.x)
    with Arithmetic() as done:
        found = cost(ROWS[name], net, data, threat=THREAT)
    # it runs two steps, and asks four times for the logits of two samples, AMM's regulariser twice more
    asked = 6 if name == "AMM" else 4
    arithmetic = (done.total / forward.total - asked * 2 / 40) / 2
    assert found.forwards == pytest.approx(arithmetic, rel=0.01)


def test_mma_costs_as_many_samples_as_are_right():
    net = narrow()
    found = cost(METHODS["MMA"], net, drawn(net, right=30), threat=THREAT)
    assert found.passes == {("forward", 40): 2, ("full", 40): 2, ("forward", 30): 20, ("input", 30): 10}
    assert found.forwards == 2 + 2 * 2 + 30 / 40 * (20 + 10)


def test_amr_costs_what_plain_training_does_and_as_released_the_wrong_samples_once_an_epoch():
    net, threat = narrow(), Threat(2, 1.0, 0.1)
    data = drawn(net, right=30)
    for reading, forwards in (("literal", 3), ("shifted", 3), ("released", 3 + 1 + 3 * 10 / 40)):
        assert cost(amr(1.0, reading=reading), net, data, threat=threat).forwards == forwards


def test_deepfool_costs_a_forward_and_a_backward_a_class_and_three_to_differentiate_a_step_that_is_known():
    net = models.build("linear", inputs=3, classes=4).double()  # where the first step changes the class
    row = amm(aggregation="AVG")
    data, threat = drawn(net, right=40, inputs=3), Threat(2, 1.0, 0.1)
    # the forward at x and its backward are the cross-entropy's; three classes' gradients, a look at the overshot point
    assert cost(row, net, data, threat=threat).forwards == 3 + (3 + 1) + 3
    assert cost(amm(aggregation="AVG", candidates=1), net, data, threat=threat).forwards <= 3 + (1 + 1) + 3 + 9
    assert cost(amm(aggregation="AVG", second_order=False), net, data, threat=threat).forwards == 3 + (3 + 1)


def test_an_epoch_of_several_batches_costs_the_same_a_sample_and_nothing_changes():
    net = narrow()
    data, before = drawn(net), copy.deepcopy(net.state_dict())
    whole, parts = (cost(METHODS["AT"], net, data, threat=THREAT, batch_size=size) for size in (None, 20))
    assert parts.passes == {("forward", 20): 22, ("input", 20): 20, ("full", 20): 2}
    assert whole.forwards == parts.forwards == 23 and parts.number("input") == 10
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.head._forward_hooks


B, R = baselines, regularised


@pytest.mark.parametrize(
    ("row", "maker", "words", "forwards", "normed"),
    [
        (B.plain(), B.plain, "Costs 3.", 3, 3), (B.at(), B.at, "Costs 23.", 23, 23),
        (B.boosted(), B.boosted, "Costs 23.", 23, 23), (B.trades(), B.trades, "Costs 26, or 27 with", 26, 27),
        (B.mart(), B.mart, "Costs 26.", 26, 26), (B.alp(), B.alp, "Costs 26.", 26, 26),
        (B.mail_at(), B.mail_at, "Costs 23.", 23, 23), (B.mail_trades(), B.mail_trades, "Costs 26 or 27.", 26, 27),
        (B.mail_mart(), B.mail_mart, "Costs 26.", 26, 26), (B.gairat(), B.gairat, "Costs 23.", 23, 23),
        (B.he_at(), B.he_at, "Costs 23.", 23, 23), (B.he_trades(), B.he_trades, "Costs 26, or 27", 26, 27),
        (B.he_alp(), B.he_alp, "Costs 26.", 26, 26), (B.l_softmax(), B.l_softmax, "Costs 3,", 3, 3),
        (B.l_softmax(craft=PGD()), B.l_softmax, "with a craft (PGD on plain logits) 23.", 23, 23),
        (B.mma(), B.mma, "Costs 36 where all samples are right", 36, 36),
        (B.am_softmax(), B.am_softmax, "Costs 3,", 3, 3),
        (B.am_softmax(craft=PGD()), B.am_softmax, "(PGD without the margin) 23.", 23, 23),
        (R.exact_emr(B.plain(), 0.1), R.exact_emr, "Costs 3 more a class or probe", 15, 16),
        (R.exact_emr(B.plain(), 0.1, probes=1), R.exact_emr, "1 more with BatchNorm", 6, 7),
        (R.exact_emr(B.at(), 0.1), R.exact_emr, "Costs 3 more a class", 35, 36),
        (R.igr(), R.igr, "6 of standard training", 6, 6), (R.igr(row=B.at()), R.igr, "26 of AT.", 26, 26),
        (R.at_emr(), R.at_emr, "Costs 27, or 26 without", 26, 27), (R.lma_at(), R.lma_at, "Costs 26.", 26, 26),
        (R.ours(B.at(), beta=0.0), R.ours, "Costs 23 where", 23, 23), (R.ours(B.at()), R.ours, "else 26.", 26, 26),
    ],
)  # fmt: skip
def test_a_step_costs_what_its_docstring_says(row, maker, words, forwards, normed):
    assert words in " ".join(maker.__doc__.split())
    plain, norm = Net(inputs=1, classes=4), Net(inputs=1, classes=4, norm=True)
    assert cost(row, plain, drawn(plain, right=40), threat=THREAT).forwards == forwards
    assert cost(row, norm, drawn(norm, right=40), threat=THREAT).forwards == normed


def test_records_are_read_into_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MEASURED", tmp_path / "training")
    assert measured() == []
    row = {"forwards": 23.0, "seconds": 0.5, "of_forwards": 1.04, "of_passes": 1.02}
    (tmp_path / "training").mkdir()
    for net in ("b", "a"):
        record = {"net": net, "load": 1.5, "rows": {"AT": row}}
        (tmp_path / "training" / f"{net}.json").write_text(json.dumps(record))
    wanted = {"method": "AT", "forwards": 23.0, "ms": 500.0, "/ forwards": 1.04, "/ passes": 1.02, "load": 1.5}
    assert measured() == [{"net": "a", **wanted}, {"net": "b", **wanted}]


def test_a_pass_of_each_kind_has_its_worth():
    found = Cost(Counter({("forward", 4): 3, ("input", 2): 4, ("full", 4): 1, ("twice", 1): 4}), samples=4)
    assert [found.number(kind) for kind in ("forward", "input", "full", "twice")] == [3, 2, 1, 1]
    assert found.forwards == 3 + 2 + 2 + 2
