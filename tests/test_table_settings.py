"""Of tables: distances beside attacks, evaluations of training images, a mean that is subtracted, random labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from margins import datasets, experiments, methods, models, paths
from margins.errors import MarginsError
from margins.experiments import Unit, results
from margins.margin import deepfool_margin
from margins.models import Centred
from margins.penalties.context import Threat
from margins.recording import record
from margins.records import Store
from margins.tables import Columns, job, table
from margins.training import Recipe
from margins.training.selection import Selection

MODEL = {"name": "mlp", "inputs": 64, "hidden": (8,), "classes": 10, "initial": "he"}
FGSM = {"FGSM": {"attack": "fgsm"}}
COLUMNS = {
    "test": Columns(
        FGSM | {"Race": {"attack": "race", "steps": 10}}, images=30, weights="last", deepfool={"steps": 20}
    ),
    "train": Columns(FGSM, images=40, weights="last", deepfool={}, split="train"),
}
RECIPE = Recipe(epochs=5, batch_size=20, lr=0.3, attack_validation=False)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Declares, records and returns the results and the trained network."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(experiments, "EXPERIMENTS", {})

    def make(**given):
        name = "test/settings"
        table(
            name, title="t", source="s", model=MODEL, data="digits", validation=50, threat=Threat(2, 0.5, 0.2, 3),
            rows={"ST": methods.plain()}, columns=COLUMNS, scales={"quick": (100, RECIPE)}, seeds=(0,), **given,
        )  # fmt: skip
        folder = tmp_path / f"results{len(given)}"
        record(name, scale="quick", results=folder)
        unit = next(iter(experiments.find(name).units("quick")))
        one = job.Job(methods.plain(), RECIPE, Threat(2, 0.5, 0.2, 3), unit)
        model = one._model(methods.plain(), 0)
        model.load_state_dict(one._weights(methods.plain(), 0)["last"])
        return results(name, "quick", Store(folder)), model.eval(), unit

    return make


def test_distances_are_those_of_the_attacks_and_lengths_count_whatever_the_sign(made):
    found, model, _ = made()
    for split, ending, images, steps in (("test", ", last", 30, 20), ("train", ", train, last", 40, 50)):
        data = datasets.load("digits", split, size=images, seed=job.PERMUTATION)
        expected = deepfool_margin(model, data.x, data.y, steps=steps).numpy()
        (distances,) = found.samples("ST", f"DeepFool distance{ending}")
        np.testing.assert_allclose(distances, expected, rtol=1e-5)
        (mean,) = found.metric("ST", f"DeepFool distance{ending}")
        assert mean == pytest.approx(np.abs(expected[np.isfinite(expected)]).mean(), rel=1e-5)
        (right,) = found.samples("ST", f"clean{ending}")
        np.testing.assert_array_equal(right, (model(data.x).argmax(1) == data.y).numpy())
        np.testing.assert_array_equal(right, distances > 0)
    (race,) = found.samples("ST", "Race distance, last")
    (right,) = found.samples("ST", "clean, last")
    assert (race[right] > 0).all() and (race[~right] == 0).all()


def test_the_mean_of_the_training_images_is_subtracted_in_the_model(made):
    _, model, unit = made(centre=True)
    x = datasets.load("digits", "train", size=150, seed=job.PERMUTATION).x
    assert isinstance(model, Centred) and unit.config["centre"] is True
    torch.testing.assert_close(model.mean, x[:100].mean(0))
    torch.testing.assert_close(model(x), model.head(model.net.features(x - model.mean)))


def test_random_labels_are_a_share_of_the_training_images_and_the_same_for_all_seeds(made):
    _, _, unit = made(random_labels=0.4)
    data, held = job.Job(methods.plain(), RECIPE, Threat(2, 0.5, 0.2, 3), unit)._data()
    other, _ = job.Job(methods.plain(), RECIPE, Threat(2, 0.5, 0.2, 3), replace(unit, seed=1))._data()
    true = datasets.load("digits", "train", size=150, seed=job.PERMUTATION)
    changed = data.y != true.y[:100]
    assert torch.equal(data.x, true.x[:100]) and torch.equal(held.y, true.y[100:]) and torch.equal(data.y, other.y)
    assert not changed[40:].any() and 30 <= changed[:40].sum() < 40  # a tenth of random labels is true


def test_what_is_off_is_in_no_key(made):
    _, _, plain = made()
    _, _, spelled = made(centre=False, random_labels=0.0)
    assert isinstance(plain, Unit) and plain.key == spelled.key and "centre" not in plain.config


def test_validation_without_attacks_selects_by_clean_accuracy_alone(made):
    found, _, _ = made()
    clean, robust = (found.curve("ST", f"validation {name}")[0] for name in ("clean", "PGD-10"))
    assert np.isnan(robust).all() and found.metric("ST", "best epoch")[0] == len(clean) - clean[::-1].argmax()
    with pytest.raises(MarginsError, match="attack_validation: a row that crafts adversaries is selected by PGD-10"):
        Selection(None, Threat(2, 0.5, 0.2), "PGD-10", attacked=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deepfool": {"step": 3}}, "deepfool: .*unexpected keyword argument 'step'"),
        ({"deepfool": {"steps": 0}}, "deepfool: steps must be a whole number of at least 1"),
        ({"split": "validation"}, "split must be one of 'train', 'test'"),
    ],
)
def test_bad_columns_are_refused(settings, message):
    with pytest.raises(MarginsError, match=message):
        Columns(FGSM, **settings)


def test_a_share_of_labels_is_no_more_than_all(made):
    with pytest.raises(MarginsError, match="random_labels must be"):
        made(random_labels=1.5)


def test_centred_needs_a_head_and_initial_weights_have_names():
    with pytest.raises(MarginsError, match="net must have a last layer called head, which Flatten lacks"):
        Centred(nn.Flatten(), torch.zeros(1))
    with pytest.raises(MarginsError, match="initial must be one of 'uniform', 'he', but is 'normal'"):
        models.build("mlp", inputs=4, hidden=(3,), classes=2, initial="normal")
    wide = models.build("mlp", inputs=400, hidden=(500,), classes=2, initial="he")
    assert wide.hidden[0].weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.01)
    assert not wide.hidden[0].bias.any()
