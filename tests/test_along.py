"""Weights that a recipe keeps along the training, what is measured of them, and columns with a budget of their own."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import THREAT, Net, data, recipe

from margins import datasets, experiments, methods, models, paths
from margins.attacks.race import race
from margins.checkpoints import Checkpoint, OutOfTime
from margins.errors import MarginsError
from margins.experiments import results
from margins.margin import deepfool_margin
from margins.penalties.context import Threat
from margins.recording import record
from margins.records import Store
from margins.tables import Along, Columns, table
from margins.tables.along import (
    approximate_weights,
    effective_cosine,
    effective_weights,
    gap,
    gradient,
    race_margin,
)  # fmt: skip
from margins.training import Recipe, train, train_together

MODEL = {"name": "mlp", "inputs": 64, "hidden": (8,), "classes": 10}
KEPT = (1, 2, 4)
MEASURES = {"gap": {"measure": "gap"}, "DeepFool": {"measure": "deepfool"}, "slope": {"measure": "gradient"}}
PGD = {"attack": "pgd", "steps": 5, "step_size": 0.5, "loss": "margin"}


def test_the_weights_that_are_kept_are_those_of_shorter_trainings():
    known, model = data(40), Net()
    kept = train(model, methods.plain(), known, recipe=recipe(epochs=4, snapshots=KEPT), threat=THREAT, seed=0)
    assert tuple(kept.snapshots) == KEPT
    for epochs in KEPT:
        short = train(Net(), methods.plain(), known, recipe=recipe(epochs=epochs), threat=THREAT, seed=0)
        assert all(torch.equal(kept.snapshots[epochs][name], value) for name, value in short.last.items())


def test_runs_that_are_trained_at_once_keep_their_own():
    known, settings = data(40), {"recipe": recipe(epochs=4, snapshots=KEPT), "threat": THREAT}
    both = train_together([Net(seed=s) for s in (0, 1)], methods.plain(), known, seeds=(0, 1), **settings)
    for seed, found in enumerate(both):
        alone = train(Net(seed=seed), methods.plain(), known, seed=seed, **settings)
        assert tuple(found.snapshots) == KEPT
        for epoch in KEPT:
            torch.testing.assert_close(found.snapshots[epoch], alone.snapshots[epoch])


def test_a_stopped_training_keeps_what_it_had(tmp_path):
    settings = {"recipe": recipe(epochs=4, snapshots=KEPT), "threat": THREAT, "seed": 0}
    whole = train(Net(), methods.plain(), data(40), **settings)
    checkpoint, found = Checkpoint(tmp_path / "state.pt"), None
    checkpoint.deadline = 0.0  # every tick stops it
    for _ in range(100):
        try:
            found = train(Net(), methods.plain(), data(40), **settings, checkpoint=checkpoint)
            break
        except OutOfTime:
            continue
    assert found is not None and tuple(found.snapshots) == KEPT
    for epoch in KEPT:
        assert all(torch.equal(found.snapshots[epoch][name], one) for name, one in whole.snapshots[epoch].items())


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(experiments, "EXPERIMENTS", {})

    def made(columns, row=None, **given):
        settings = {"epochs": 4, "batch_size": 20, "lr": 0.3, "snapshots": KEPT} | given
        table(
            "test/along", title="t", source="s", model=MODEL, data="digits", validation=50,
            threat=Threat(2, 1.0, 0.5, 3), rows={"ST": row or methods.plain()}, columns=columns,
            scales={"quick": (100, Recipe(**settings))}, seeds=(0, 1),
        )  # fmt: skip
        assert record("test/along", scale="quick", results=tmp_path / "results") == 0
        return results("test/along", "quick", Store(tmp_path / "results"))

    return made


def test_what_is_measured_is_recorded_an_epoch_and_image(make):
    found = make({
        "last": Columns({"PGD": PGD}, images=30, weights="last", deepfool={}),
        "along": Along(MEASURES, images=30),
        "along, train": Along(MEASURES, images=30, split="train"),
        "ends": Along({"estimate": {"measure": "estimate", "points": 4}}, images=5, ends=True),
    })  # fmt: skip
    gaps = found.samples("ST", "gap, along")
    assert gaps.shape == found.samples("ST", "slope, along, train").shape == (2, len(KEPT), 30)
    assert found.samples("ST", "estimate, along").shape == (2, 2, 5)
    assert ((gaps[:, -1] > 0) == found.samples("ST", "clean, last")).all()
    assert np.array_equal(found.samples("ST", "DeepFool, along")[:, -1], found.samples("ST", "DeepFool distance, last"))
    assert (found.samples("ST", "gap, along, train")[:, -1] > 0).mean() > (gaps[:, 0] > 0).mean()
    assert (found.samples("ST", "slope, along") > 0).all()


def test_a_column_may_have_a_budget_of_its_own(make):
    columns = {f"eps {eps}": Columns({f"PGD {eps}": PGD}, images=40, eps=eps) for eps in (0.2, 3.0)}
    found = make(columns | {"table's": Columns({"PGD": PGD}, images=40)})
    kept = [found.metric("ST", name).mean() for name in ("PGD 0.2", "PGD", "PGD 3.0")]
    assert kept[0] > kept[1] > kept[2]
    assert "eps" not in Columns({"PGD": PGD}).settings()  # nor do records change of columns without one


def test_which_epochs_are_looked_at():
    begun = (({"begin": 0}, (0, *KEPT)), ({"begin": 2}, (2, 4)), ({"begin": 9}, (4,)))
    for settings, expected in (({}, KEPT), ({"ends": True}, (1, 4)), *begun):
        assert Along(MEASURES, images=3, **settings).epochs(KEPT) == expected
    assert "begin" not in Along(MEASURES, images=3).settings()


def test_epoch_0_is_the_untrained_network(make):
    measures = {"p": {"measure": "probability"}, "slope": {"measure": "gradient"}}
    found = make({"along": Along(measures, images=30, begin=0)})
    test = datasets.load("digits", "test", size=30, seed=0)
    settings = dict(MODEL)
    for seed, (p, slope) in enumerate(zip(*(found.samples("ST", f"{name}, along") for name in measures), strict=True)):
        assert p.shape == (1 + len(KEPT), 30) and p[-1].mean() > p[0].mean()
        given = {name: value for name, value in settings.items() if name != "name"}
        model = models.build(settings["name"], **given, generator=torch.Generator().manual_seed(seed)).double()
        x = test.x.double().requires_grad_()
        own = model(x).softmax(1).gather(1, test.y[:, None])[:, 0]
        (rows,) = torch.autograd.grad(own.sum(), x)
        np.testing.assert_allclose(p[0], own.detach(), rtol=1e-5)
        np.testing.assert_allclose((p * slope)[0], rows.flatten(1).norm(dim=1), rtol=1e-4)


def test_epoch_0_of_a_row_that_starts_from_another_is_its_best(make):
    row = replace(methods.plain(), start=methods.plain())
    found = make({"along": Along({"gap": {"measure": "gap"}}, images=30, begin=0)}, row=row)
    other = make({"along": Along({"gap": {"measure": "gap"}}, images=30, begin=0)})
    assert not np.array_equal(found.samples("ST", "gap, along")[:, 0], other.samples("ST", "gap, along")[:, 0])


@pytest.mark.filterwarnings("ignore:overflow")
def test_of_a_diverged_row_nothing_is_known(make):
    found = make({"along": Along(MEASURES, images=30)}, lr=1e30)
    assert found.diverged("ST").all()
    assert np.isnan(found.metric("ST", "gap, along")).all()


def test_measures_are_those_of_their_names():
    known, model = data(20), Net()
    logits, top = model(known.x), model(known.x).argmax(1)
    other = torch.stack([torch.cat([row[:k], row[k + 1 :]]).max() for row, k in zip(logits, known.y, strict=True)])
    torch.testing.assert_close(
        gap(model, known.x, known.y), (logits.gather(1, known.y[:, None])[:, 0] - other).detach()
    )
    x = known.x.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(x), known.y, reduction="sum").backward()
    torch.testing.assert_close(gradient(model, known.x, known.y), x.grad.flatten(1).norm(dim=1))
    assert next(model.parameters()).dtype == torch.float64
    signs = torch.where(top == known.y, 1.0, -1.0)
    raced = race_margin(model, known.x, known.y, norm=2, steps=20)
    assert torch.equal(raced, signs * race(model, known.x, top, norm=2, steps=20).distance)
    free = race_margin(model, known.x, known.y, norm=2, steps=20, box=False)
    assert torch.equal(free, signs * race(model, known.x, top, norm=2, steps=20, bounds=None).distance)
    assert torch.equal(deepfool_margin(model, known.x, known.y) < 0, signs < 0)
    linear = models.Linear(known.x.shape[1], 10).double()
    weights = effective_weights(linear, known.x, known.y)
    torch.testing.assert_close(weights, linear.head.weight.detach().square().sum().expand(20))


def test_rows_of_effective_weights_are_those_of_a_linear_net():
    known, linear = data(6), models.Linear(4, 3).double()
    rows = torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [3.0, 3.0, 0.0, 0.0]]).double()
    with torch.no_grad():
        linear.head.weight.copy_(rows)
    x, y = known.x[:, :4], known.y
    # right angles between the first two, 45 degrees between each of them and the third
    expected = torch.full((6,), 2 * math.sqrt(0.5) / 3).double()
    torch.testing.assert_close(effective_cosine(linear, x, y), expected)
    with torch.no_grad():
        linear.head.weight.copy_(torch.eye(3, 4) + 5.0)  # alike but for what all have
    torch.testing.assert_close(effective_cosine(linear, x, y, centred=True), torch.full((6,), -0.5).double())
    assert (effective_cosine(linear, x, y) > 0.9).all()
    with torch.no_grad():
        linear.head.weight.copy_(rows)
    parts = {part: effective_weights(linear, x, y, part=part) for part in ("all", "seen", "mean")}
    torch.testing.assert_close(parts["seen"] + parts["mean"], parts["all"])
    torch.testing.assert_close(parts["mean"], 3 * rows.mean(0).square().sum().expand(6))
    with pytest.raises(MarginsError, match="part must be one of 'all', 'seen', 'mean'"):
        effective_weights(linear, x, y, part="rest")
    for temperature in (0.1, 1.0, 1e9):
        share = (linear(x).detach() / temperature).softmax(1)
        expected = (share @ rows).square().sum(1)
        torch.testing.assert_close(approximate_weights(linear, x, y, temperature=temperature), expected)


def test_a_measure_may_have_a_norm_of_its_own(make):
    given = {"measure": "effective"}
    found = make({"along": Along({"l2": given | {"norm": 2}, "table's": given, "linf": given | {"norm": math.inf}}, 9)})
    lengths = {name: np.abs(found.samples("ST", f"{name}, along")) for name in ("l2", "table's", "linf")}
    assert (lengths["linf"] < lengths["l2"]).all()
    assert np.array_equal(lengths["table's"], lengths["l2"])


def test_a_short_gradient_is_told_in_float64_of_a_model_in_float32():
    model = models.Linear(2, 2)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[100.0, 0.0], [0.0, 0.0]]))
        model.head.bias.zero_()
    found = gradient(model, torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert found.item() == pytest.approx(100 * math.exp(-100), rel=1e-9)
    assert model.head.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Along({"a": {"measure": "fmn"}}, images=3), "measure of a must be one of 'deepfool'"),
        (lambda: Along({"a": {"measure": "gap", "steps": 3}}, images=3), "measure of a: steps not among model, x, y"),
        (lambda: Along(MEASURES, images=3, begin=-1), "begin must be a whole number of at least 0"),
        (lambda: Along(MEASURES, images=0), "images must be a whole number of at least 1"),
        (lambda: Columns({"PGD": PGD}, eps=0.0), "eps must be a finite number greater than 0"),
        (lambda: recipe(epochs=3, snapshots=(1, 4)), "there is no epoch 4 among 3"),
    ],
)
def test_bad_settings_are_named(call, words):
    with pytest.raises(MarginsError, match=words):
        call()


def test_recipes_sort_what_they_keep_and_records_without_stay():
    assert recipe(epochs=5, snapshots=(4, 1, 4)).snapshots == (1, 4)
    described = methods.rows.describe(recipe(epochs=5))
    assert "snapshots" not in described
    assert methods.rows.describe(replace(recipe(epochs=5), snapshots=(1,)))["snapshots"] == [1]
