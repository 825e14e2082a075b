"""The authors' CNNs under attack: the trap that made the printed numbers, runs that go on, and what claims read."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from real import needs

from margins.checkpoints import Checkpoint, OutOfTime
from margins.claims import Check, Difference, ledger
from margins.experiments import EXPERIMENTS, Results
from margins.papers.amr import published_cnn as cnn
from margins.papers.amr.published_cnn_evidence import EVIDENCE, _of_images
from margins.records import Record, Store
from margins.verdicts import page

EXPERIMENT = EXPERIMENTS[cnn.NAME]
CLAIMS = {claim.id: claim for claim in ledger("amr")}


def unit(row, scale="quick"):
    (found,) = (unit for unit in EXPERIMENT.units(scale) if unit.row == row)
    return found


ready = needs("mnist", *cnn.NETWORKS.values())


@ready
def test_the_floor_freezes_the_papers_attack():
    """Methods as in the paper, fewer images and steps: what is left after it is not what withstands an attack."""
    kept = {}
    for attack, steps in (("paper's attack", 20), ("no floor", 20), ("margin loss", 25)):
        config = {**unit(cnn.row("AMR", attack, 2.0)).config, "most_images": 50, "most_steps": steps}
        arrays, calls = cnn.measure({**config, "batch": 50}, 0)
        kept[attack] = 100 * arrays["robust"].mean()
        assert calls.backward <= 50 * steps
    assert kept["paper's attack"] > 80 and kept["margin loss"] < 60


@ready
def test_the_gradients_are_below_the_floor_that_the_attack_has(tmp_path):
    shares, frozen = {}, {}
    for network in cnn.NETWORKS:
        (outcome,) = EXPERIMENT.run([unit(cnn.row(network, "no attack"))], Checkpoint(tmp_path / "none"))
        shares[network] = outcome.metrics["images with a gradient below the floor"]
        assert (outcome.arrays["gap"] >= 0).all() and (outcome.arrays["feature margin"] >= 0).all()
        frozen[network] = outcome.metrics["images that stand still"]
        assert (outcome.arrays["gradient"] > 0).all()  # in float32 many are 0
    assert min(shares["Std"], shares["AMR"]) >= 80 and shares["LCR"] <= 60
    assert min(frozen["Std"], frozen["AMR"]) >= 60 and frozen["LCR"] == 0


@ready
@pytest.mark.parametrize("attack", ["margin loss", "Race"])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_numbers(tmp_path, attack, monkeypatch):
    config = unit(cnn.row("LCR", attack, 1.0 if attack in cnn.BUDGET else None)).config
    config = {**config, "most_images": 12, "most_steps": 4, "batch": 5}
    whole, calls = cnn.measure({**config, "batch": 12}, 0)
    checkpoint = Checkpoint(tmp_path / "run.pt", deadline=time.monotonic() - 1)
    for _ in range(3):
        with pytest.raises(OutOfTime):
            cnn.measure(config, 0, checkpoint)
    monkeypatch.setitem(cnn._ASK, config["attack"], lambda *_: pytest.fail("what is done is done again"))
    again, spent = cnn.measure(config, 0, Checkpoint(tmp_path / "run.pt"))
    assert spent == calls and again.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_allclose(again[name], values, rtol=1e-5)


@ready
def test_fewer_images_are_the_first_of_more():
    config = {**unit(cnn.row("Std", "no attack")).config, "batch": 16}
    few, many = (cnn.measure({**config, "most_images": n}, 0)[0]["gap"] for n in (8, 16))
    np.testing.assert_allclose(few, many[:8], rtol=1e-5)


@ready
def test_the_quick_scale_yields_every_part_of_the_evidence(tmp_path):
    store = Store(tmp_path)
    records = {}
    for asked in EXPERIMENT.units("quick"):
        config = {**asked.config, "most_images": 3, "most_steps": 8}
        (outcome,) = EXPERIMENT.run([SimpleNamespace(config=config, seed=0)], Checkpoint(tmp_path / "none"))
        records[asked.row] = [save(store, asked, outcome.metrics, outcome.arrays)]
    results = Results(EXPERIMENT, "quick", records, store)
    for eps in cnn.EPS:
        assert len(cnn.worst(results, "AMR", eps)) == 3
    shape = results.samples(cnn.row("AMR", "AutoAttack", 2.0), "apgd-ce").shape
    assert shape == (1, 3)
    for evidence in EVIDENCE.values():
        assert evidence.read({cnn.NAME: results})


def save(store, asked, metrics, arrays):
    named = asked.key, cnn.NAME, asked.row, 0, asked.scale, dict(asked.config), dict(EXPERIMENT.revisions)
    return store.save(Record(*named, "done", {name: float(value) for name, value in metrics.items()}), arrays)


@pytest.fixture
def made_up(tmp_path):
    """Records as the experiment makes them, of invented networks: results(shares) with robust shares per attack.

    Each of 400 images has a place from 0 to 1; of an attack with the share s those below s are robust.
    """
    places = np.arange(400) / 400

    def results(shares, distance=None):
        store, records = Store(tmp_path), {}
        for asked in EXPERIMENT.units("paper"):
            network, attack = asked.row.split(", eps")[0].split(": ")
            share = shares.get((network, attack), 0.9)
            far = places[::-1] + 1.5 + (distance or {}).get(network, 0.0)
            kind = asked.config["attack"]
            if kind == "none":
                names = ("gap", "feature margin", "gradient", "gradient at the start")
                arrays = {"correct": places < 0.99} | dict.fromkeys(names, far)
                metrics = {f"norm of {layer}": 1.1 if network == "LCR" else 1.4 for layer in ("conv1", "fc1")}
            elif kind in ("race", "deepfool"):
                arrays, metrics = {"correct": np.ones(400, bool), "distance": far}, {}
            else:
                arrays, metrics = {"robust": places < share}, {}
            records[asked.row] = [save(store, asked, {"images": 400.0, **metrics}, arrays)]
        return Results(EXPERIMENT, "paper", records, store)

    return results


def read(claim, results):
    return EVIDENCE[claim].read({cnn.NAME: results})


def test_the_worst_case_is_per_image_and_over_every_strong_attack(made_up):
    everyone = {("AMR", attack): 0.9 for attack in cnn.BUDGET}
    for attack in cnn.WEAK:
        results = made_up(everyone | {("AMR", attack): 0.3}, {"AMR": 2.0})
        assert cnn.worst(results, "AMR", 2.0).mean() == pytest.approx(0.9)
    for attack in set(cnn.BUDGET) - set(cnn.WEAK):
        results = made_up(everyone | {("AMR", attack): 0.3}, {"AMR": 2.0})
        assert cnn.worst(results, "AMR", 2.0).mean() == pytest.approx(0.3)
    results = made_up(everyone)
    assert cnn.worst(results, "AMR", 2.0).mean() == pytest.approx(0.5, abs=0.01)  # distances go from 1.5 to 2.5
    assert cnn.worst(results, "AMR", 1.0).mean() == pytest.approx(0.9)


def test_a_stalled_attack_gives_the_number_and_not_the_robustness(made_up):
    printed = {"Std": 0.875, "LCR": 0.27, "AMR": 0.9725}
    shares = {(network, attack): share for network, share in printed.items() for attack in cnn.BUDGET}
    shares |= {(network, "margin loss"): 0.25 for network in cnn.NETWORKS}
    results = made_up(shares, {network: 2.0 for network in cnn.NETWORKS})
    number, truth = (read(f"amr-t1-{name}", results) for name in ("numbers-cnn", "cnn-true-robustness"))
    assert [part.values[0] for part in number] == pytest.approx([-0.02, 0.04, -0.08], abs=1e-9)
    assert [part.values[0] for part in truth] == pytest.approx([25 - 87.52, 25 - 26.96, 25 - 97.33], abs=1e-9)
    found = page({"number": number, "truth": truth}, "paper")
    assert found["truth"].outcome == "contradicted" and found["truth"].these_weights
    assert found["number"].outcome != "contradicted"
    approximates = page({"a": read("amr-s53-pgd1000-good-approximation", results)}, "paper")["a"]
    assert approximates.outcome == "contradicted"


def test_an_attack_that_fails_does_not_decide(made_up):
    shares = {("AMR", attack): 0.9 for attack in cnn.BUDGET} | {("LCR", attack): 0.5 for attack in cnn.BUDGET}
    shares |= {("Std", attack): 0.2 for attack in cnn.BUDGET}
    results = made_up(shares, {"Std": 1.0, "LCR": 2.0, "AMR": 3.0})
    parts = read("amr-t1-beats-lcr-large-eps", results)
    assert [part.outcome for part in page({"a": parts}, "paper")["a"].parts] == ["supported"] * 3
    assert page({"a": parts}, "paper")["a"].these_weights
    assert "by the paper's attack +40.0" in parts[0].label
    # Worse than standard training: not these networks, but perhaps others
    assert page({"a": read("amr-t1-lcr-worse-than-std-at-large-eps", results)}, "paper")["a"].outcome == "undecided"
    results = made_up(shares | {("LCR", "margin loss"): 0.0}, {"Std": 1.0, "LCR": 2.0, "AMR": 3.0})
    assert page({"a": read("amr-t1-lcr-worse-than-std-at-large-eps", results)}, "paper")["a"].outcome == "supported"


@pytest.mark.parametrize(("images", "outcome"), [(100, "undecided"), (500, "supported")])
def test_images_that_all_agree_are_not_certain_of_the_others(images, outcome):
    agree = _of_images("agree", np.zeros(images), "within", 0.5)
    (part,) = page({"a": [agree]}, "paper")["a"].parts
    assert part.outcome == outcome and part.high == pytest.approx(196 / images, rel=0.02)


def test_norms_decide_for_these_weights(made_up):
    found = page({"a": read("amr-s4-penalty-gives-unit-norms", made_up({}))}, "paper")["a"]
    assert (found.outcome, found.these_weights) == ("contradicted", True)
    assert [part.outcome for part in found.parts] == ["supported", "contradicted"]


def test_all_evidence_is_of_these_weights_and_about_claims_of_the_mnist_cnn(made_up):
    results = made_up({}, {"Std": 0.1, "LCR": 0.2, "AMR": 0.3})
    for claim in EVIDENCE:
        parts = read(claim, results)
        assert "CNN" in CLAIMS[claim].rows["model"] and "MNIST" in CLAIMS[claim].rows["dataset"]
        assert all(part.these_weights for part in parts if isinstance(part, Difference | Check))
        assert EVIDENCE[claim].fixed == "paper"  # at every scale these are the paper's own networks


def test_spectral_norms_are_those_of_the_flattened_weights(monkeypatch):
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    monkeypatch.setattr(cnn.published, "NETWORKS", {"small": SimpleNamespace(layers=("conv1", "fc1"))})
    monkeypatch.setattr(cnn.published, "load", lambda name: network)
    expected = [np.linalg.norm(layer.weight.detach().flatten(1), 2) for layer in (network[0], network[2])]
    assert cnn._norms("small") == pytest.approx(dict(zip(("norm of conv1", "norm of fc1"), expected, strict=True)))
