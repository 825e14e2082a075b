"""AMM's large tables: recipes as printed, rows as the paper and its control have them, windows of enlarged images."""

from dataclasses import replace

import pytest
import torch
from real import needs
from torch.nn import functional

from margins import datasets, experiments, methods
from margins.checkpoints import Checkpoint
from margins.errors import MarginsError
from margins.experiments import EXPERIMENTS
from margins.papers.amm import large
from margins.penalties.context import Threat
from margins.tables import Columns, table, tuning
from margins.tables.job import Job
from margins.training import Recipe

NORMED = {"ResNet-20", "ResNet-56", "DenseNet-40"}
DECLARED = [(data, net) for data in large.SETS for net in large.NETS]


def found(data, net):
    return experiments.find(large.SETS[data].experiment(net))


def test_recipes_are_those_of_the_papers_appendix():
    """By hand: Appendix, Table 2, and section 4.2. Rates drop to multiples of the first, not of the one before."""
    resnet = large.recipe(large.LINES["CIFAR-10", "ResNet-20"], True)
    assert (resnet.epochs, resnet.batch_size, resnet.flip, resnet.window) == (400, 128, True, 32)
    assert (resnet.momentum, resnet.weight_decay, resnet.clip, resnet.crop) == (0.9, 1e-4, 10.0, 0)
    rates = [resnet.rate(epoch * 7, 7) for epoch in (0, 249, 250, 349, 350, 399)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    lenet = large.recipe(large.LINES["CIFAR-100", "LeNet"], True)
    assert [lenet.rate(epoch, 1) for epoch in (99, 100, 139, 140)] == pytest.approx([5e-3, 5e-4, 5e-4, 5e-5])
    svhn = large.recipe(large.LINES["SVHN", "DenseNet-40"], False)
    assert (svhn.epochs, svhn.batch_size, svhn.lr, svhn.flip) == (100, 128, 5e-3, False)


@pytest.mark.parametrize(("data", "net"), DECLARED)
def test_each_net_is_compared_as_the_paper_has_it_and_with_the_control(data, net):
    declared, scratch = found(data, net), net == "LeNet"
    assert list(declared.rows) == [large.REFERENCE, *[large.ON] * (not scratch), large.OURS]
    assert declared.settings["data"] == {"SVHN": "svhn-extra"}.get(data, data.lower().replace("-", ""))
    assert (declared.settings["resize"], declared.settings["centre"]) == (36, True)
    ours = declared.rows[large.OURS]["method"]
    (entropy, penalty) = ours["phases"][0]["terms"]
    assert penalty["coefficient"] == 32 and entropy["coefficient"] == 1
    named = {"aggregation": "MIN", "shrinkage": "EXP", "c": 2, "d": 1, "steps": 6}
    assert {name: penalty["function"][name] for name in named} == named
    assert ("start" in ours) == (not scratch)
    for row in (large.ON, large.OURS)[scratch:]:
        method = declared.rows[row]["method"]
        assert method["recipe"].get("frozen_norms", False) == (net in NORMED)
        assert scratch or method["start"] == declared.rows[large.REFERENCE]["method"]
    assert "frozen_norms" not in declared.rows[large.REFERENCE]["method"]["recipe"]
    size = declared.scales["paper"]["size"] + declared.settings["validation"]
    assert size == datasets.SETS[declared.settings["data"]][1][0]
    assert declared.settings["model"]["classes"] == (100 if data == "CIFAR-100" else 10)


def test_an_estimate_is_forwards_times_their_time():
    net = large.Net({"name": "convnet"}, ms=0.5)
    assert net.minutes(3, 40_000, 10) == pytest.approx(3 * 40_000 * 10 * 0.5e-3 / 60)
    rows = found("CIFAR-10", "NIN")
    mean = (3 + 3 + large.FORWARDS[10]) / 3
    expected = large.NETS["NIN"].minutes(mean, rows.scales["paper"]["size"], 400)
    assert rows.minutes["paper"]["training"] == pytest.approx(expected)


@needs("cifar10")
def test_a_row_runs_at_its_quick_scale(tmp_path, monkeypatch):
    monkeypatch.setattr("margins.paths.CACHE", tmp_path)
    declared = found("CIFAR-10", "LeNet")
    units = [unit for unit in declared.units("quick") if unit.row == large.OURS and unit.seed == 0]
    training, test = declared.run(units, Checkpoint(tmp_path / "checkpoint"))
    assert training.status == "done"
    assert set(training.curves) >= {"cross_entropy at clean", "DeepFoolMargin at clean", "rate"}
    assert test.arrays["DeepFool distance, last"].shape == (4,) and test.metrics["images of test"] == 4


DIGITS = {
    "title": "t", "source": "s", "data": "digits", "validation": 30, "threat": Threat(2, 0.5, 0.1), "seeds": (0,),
    "model": {"name": "lenet-small", "shape": (1, 8, 8), "classes": 10, "channels": (2, 2), "hidden": 5},
}  # fmt: skip
WINDOWS = {"quick": (50, Recipe(epochs=2, batch_size=25, window=8))}


def test_a_table_on_windows_of_enlarged_images(tmp_path, monkeypatch):
    monkeypatch.setattr("margins.paths.CACHE", tmp_path)
    columns = {"test": Columns({"FGSM": {"attack": "fgsm"}}, images=20, weights="last")}
    rows = {"plain": methods.plain()}
    declared = table("test/windows", **DIGITS, rows=rows, columns=columns, scales=WINDOWS, resize=12, centre=True)
    units = declared.units("quick")
    training, test = declared.run(units, Checkpoint(tmp_path / "checkpoint"))
    assert training.status == test.status == "done" and test.arrays["clean, last"].shape == (20,)

    job = Job(rows["plain"], WINDOWS["quick"][1], DIGITS["threat"], units[0])
    data, held_out = job._data()
    known = datasets.load("digits", size=80)
    larger = functional.interpolate(known.x, size=(12, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(data.x, larger[:50])
    torch.testing.assert_close(held_out.x, larger[50:, :, 2:10, 2:10])
    assert data.x.max() <= 1 and data.x.min() >= 0
    torch.testing.assert_close(job._model(rows["plain"], 0).mean, larger[:50, :, 2:10, 2:10].mean(0))

    plain = table("test/no-windows", **DIGITS, rows=rows, columns=columns, scales={"quick": (50, Recipe(epochs=2))})
    assert not {"resize", "centre"} & set(plain.settings)
    assert plain.units("quick")[0].key != units[0].key
    for name in (declared.name, plain.name):
        del EXPERIMENTS[name]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"resize": 12, "scales": {"quick": (50, Recipe(epochs=2))}}, "window must be 8, not 0"),
        ({"scales": WINDOWS}, "with resize=None the recipe's window must be 0, not 8"),
        ({"resize": 7, "scales": WINDOWS}, "resize must be a whole number of at least 8"),
        ({"resize": 12, "scales": {"quick": (50, replace(WINDOWS["quick"][1], window=6))}}, "must be 8, not 6"),
    ],
)
def test_windows_that_do_not_fit_are_refused_when_they_are_declared(given, words):
    with pytest.raises(MarginsError, match=words):
        table("test/wrong", **DIGITS, rows={"plain": methods.plain()}, columns={}, **given)
    with pytest.raises(MarginsError, match=words):
        tuning("test/wrong", **DIGITS, candidates=[{"beta": 1.0}], row=methods.trades, **given)
