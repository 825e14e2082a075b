"""EMR's theory checks: on nets of which everything is known, and that each claim reads what its rows measure."""

import numpy as np
import pytest
import torch

from margins import losses, models
from margins.models import MLP, Linear
from margins.papers.emr import theory
from margins.papers.emr.theory_evidence import EVIDENCE

D = torch.float64


@pytest.fixture
def small(monkeypatch):
    """Nets that are trained for a moment on the digits."""
    image = {"shape": (1, 8, 8), "classes": 10}
    settings = {
        "linear": {"name": "linear", "inputs": 64, "classes": 10},
        "MLP": {"name": "mlp", "inputs": 64, "hidden": (64, 64), "classes": 10},
        "CNN": {"name": "cnn", "blocks": ((8,),), "hidden": (32,), **image},
        "ResNet": {"name": "resnet-cifar", "depth": 8, **image},
    }
    nets = {kind: (given, "digits", 100 if kind == "ResNet" else 500, 20) for kind, given in settings.items()}
    monkeypatch.setattr(theory, "NETS", nets)


@pytest.fixture
def known(monkeypatch):
    """A linear net with the rows 3 e_1, e_2 and -2 e_3, and samples at the ends of the axes."""
    model = Linear(3, 3, bias=False).to(D)
    model.head.weight.data = torch.diag(torch.tensor([3.0, 1.0, -2.0], dtype=D))
    x = torch.eye(3, dtype=D)
    monkeypatch.setattr(theory, "subject", lambda kind, seed, shown: (model, x, torch.tensor([0, 1, 2])))
    return model


def test_scaled_losses_are_cross_entropies_of_scaled_logits():
    logits, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=D), torch.arange(6) % 4
    expected = torch.stack([losses.cross_entropy(a * logits, y) for a in theory.FACTORS])
    torch.testing.assert_close(theory._scaled_losses(logits, y), expected, rtol=1e-9, atol=1e-12)


def test_effective_weights_of_a_linear_model_are_its_weights(known):
    w, logits = theory.weights(known, torch.ones(2, 3, dtype=D))
    torch.testing.assert_close(w, known.head.weight.detach()[:, None].expand(3, 2, 3))
    torch.testing.assert_close(logits, torch.tensor([[3.0, 1.0, -2.0]] * 2, dtype=D))


def test_temperatures_of_a_linear_model_by_hand(known):
    found = theory.temperatures("linear", 0, 3)
    # logits (3, 0, 0), (0, 1, 0) and (0, 0, -2), of which the first is predicted, the second, and a tie without a gap
    assert found["t = 1e-3: samples"] == 2
    assert found["the predicted row is the largest, %"] == 50
    assert found["t = 1e-3: largest relative difference from the largest row"] == pytest.approx(1 - 1 / 9)
    assert found["t = 1e-3: largest relative difference from the predicted row"] < 1e-12
    # rows are orthogonal: the sum of all products is that of the squares
    assert found["t = 1e8: penalty over the sum of all products"] == pytest.approx(1 / 9)
    assert found["exact over approximate, t = 1e8"] == pytest.approx(9)


def test_kinks_tell_the_sides_of_every_neuron_and_pooling():
    model = models.build("cnn", shape=(1, 4, 4), blocks=((2,),), hidden=(3,), classes=2, padding=1)
    with theory.Kinks() as seen, torch.no_grad():
        model(torch.rand(5, 1, 4, 4))
    assert [tuple(side.shape) for side in seen.sides] == [(5, 2 * 16), (5, 2 * 4), (5, 3)]
    net = MLP(1, (1,), 2)
    net.hidden[0].weight.data.fill_(1.0), net.hidden[0].bias.data.zero_()
    with theory.Kinks() as seen, torch.no_grad():
        net(torch.tensor([[1.0], [-1.0]]))
    assert seen.sides[0].tolist() == [[True], [False]]


def test_beyond_a_kink_a_net_is_another_linear_function(monkeypatch):
    """relu(x) at x = 1: nothing flips as long as x + d > 0."""
    net = MLP(1, (1,), 2).to(D)
    for parameter, value in zip(net.parameters(), ([[1.0]], [0.0], [[1.0], [0.0]], [0.0, 0.0]), strict=True):
        parameter.data = torch.tensor(value, dtype=D)
    monkeypatch.setattr(theory, "subject", lambda *_: (net, torch.tensor([[1.0]], dtype=D), torch.tensor([0])))
    seeds = [seed for seed in range(10) if torch.randn(1, generator=torch.Generator().manual_seed(seed)) < 0]
    found = theory.linear_region("MLP", seeds[0], 1)
    assert found["no flip: largest relative difference"] < 1e-12 and found["median length without a flip"] < 1
    assert found["beyond: median relative difference"] > 1  # f is 0 there, and the linear function below it


def test_l_softmax_of_one_is_softmax_and_keeps_nearly_all():
    found = theory.large_margin(1, seed=0, points=300)
    assert found["kept, %"] > 99 and found["kept: largest rise of the loss"] < 0
    assert theory.large_margin(4, seed=0, points=300)["kept, %"] < found["kept, %"]
    assert found["AM-Softmax: largest change of the loss"] < 1e-12


def measure(row):
    """A row's metrics for one seed, on few samples."""
    function, given = theory.ROWS[row]
    given = {name: min(value, 40) if name in ("shown", "margins") else value for name, value in given.items()}
    found = function(seed=0, **given)
    return {name: float(value) for name, value in getattr(found, "metrics", found).items()}


class Results:
    """Metrics of all rows, as they were measured for one seed."""

    def __init__(self, rows):
        self.rows = rows

    def metric(self, row, name):
        return np.array([self.rows[row][name]])


def test_claims_read_the_rows_and_say_what_is_known_beforehand(small):
    rows = {row: measure(row) for row in theory.ROWS}
    assert all(np.isfinite(value) for found in rows.values() for name, value in found.items() if "not kept" not in name)
    at = {theory.NAME: Results(rows)}
    held = {id_: all(part.held.all() for part in evidence.read(at)) for id_, evidence in EVIDENCE.items()}
    # what is a matter of arithmetic holds of any net; what is about one net's rows and distances is not decided here
    depends = {"emr-s3-margin-is-distance", "emr-s4-limit-t-zero"}
    assert {id_ for id_, holds in held.items() if not holds} <= depends
    rows["scaling, CNN"]["predictions that change"] = 1.0
    assert not all(part.held.all() for part in EVIDENCE["emr-s1-accuracy-scale-invariant"].read(at))
