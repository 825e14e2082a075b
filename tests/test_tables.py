"""A table of methods is trained, attacked and recorded; what is there is not run again, and what is added is added."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import small_table
import torch

from margins import checkpoints, experiments, methods, paths
from margins.experiments import results
from margins.models.heads import Head
from margins.penalties.context import Threat
from margins.recording import record
from margins.records import Store
from margins.search import best
from margins.tables import Columns, job, table, tuning
from margins.training import Recipe

PGD = {"attack": "pgd", "steps": 5, "step_size": 0.02, "start": "none"}
COLUMNS = {
    "attacks": Columns({"PGD-5": PGD, "margin PGD": PGD | {"loss": "margin"}}),
    "last": Columns({"PGD-5": PGD}, weights="last"),
    "AutoAttack": Columns({"AutoAttack": {"attack": "autoattack", "steps": 3, "queries": 10}}, images=20),
}
ROWS = {
    "ST": methods.plain(),
    "LMA-AT": methods.lma_at(beta=1.0),
    "ST, then AT": replace(methods.at(), start=methods.plain()),
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(experiments, "EXPERIMENTS", {})

    def made(rows=ROWS, columns=COLUMNS, lr=0.3, images=60):
        return table(
            "test/table", title="t", source="s", model={"name": "mlp", "inputs": 64, "hidden": (8,), "classes": 10},
            data="digits", validation=50, threat=Threat(math.inf, 0.05, 0.02, 3), rows=rows, columns=columns,
            scales={"quick": (100, Recipe(epochs=5, batch_size=20, lr=lr))}, seeds=(0, 1),
            images={"quick": {name: images for name in ("attacks", "last") if name in columns}},
        )  # fmt: skip

    def go(store=tmp_path / "results", **given):
        return record("test/table", scale="quick", results=store, **given)

    return made, go, tmp_path


def keys(folder):
    return {path.stem for path in (folder / "results").rglob("*.json")}


def test_a_table_is_recorded_and_read_as_one(make, capsys):
    made, go, folder = make
    made()
    assert go() == 0
    found = results("test/table", "quick", Store(folder / "results"))
    for row in ROWS:
        for name in ("clean", "PGD-5", "margin PGD", "clean, last", "PGD-5, last"):
            images = found.samples(row, name)
            assert images.shape == (2, 60) and images.dtype == bool
            assert np.allclose(found.metric(row, name), 100 * images.mean(1))
        assert found.samples(row, "AutoAttack").shape == (2, 20)
        assert (found.samples(row, "PGD-5") <= found.samples(row, "clean")).all()
        assert np.isin(found.metric(row, "best epoch"), range(1, 6)).all()
        assert found.curve(row, "validation PGD-10").shape == (2, 5)
    assert (found.metric("ST", "clean") > 30).all()
    count = len(keys(folder))
    assert count == 3 * 2 * 4
    evaluated = [record for record in found.records["ST"] if record.config["part"] in COLUMNS]
    assert all(f"failed checks of {record.config['part']}" in record.provenance for record in evaluated)
    assert go() == 0 and "0 runs to do" in capsys.readouterr().out


def test_failed_checks_are_counted_by_check_part_and_row():
    facts = {
        "ST": [("PGD", "zero gradients; clean accuracy"), ("PGD", "zero gradients")],
        "AT": [("PGD", ""), ("AutoAttack", "clean accuracy")],
    }
    records = {
        row: [SimpleNamespace(provenance={"seconds": 1.0, f"failed checks of {part}": text}) for part, text in said]
        for row, said in facts.items()
    }
    found = experiments.Results(SimpleNamespace(seeds=(0, 1), rows=facts), "quick", records, None).failed_checks()
    assert found == {
        ("zero gradients", "PGD"): {"ST": 2},
        ("clean accuracy", "PGD"): {"ST": 1},
        ("clean accuracy", "AutoAttack"): {"AT": 1},
    }


def test_evaluations_of_fewer_images_are_of_the_first_of_those_of_all(make):
    made, go, folder = make
    fgsm = {"attack": "fgsm"}
    made(rows={"ST": ROWS["ST"]}, columns={"all": Columns({"FGSM": fgsm}), "few": Columns({"same": fgsm}, images=90)})
    go()
    found = results("test/table", "quick", Store(folder / "results"))
    assert found.samples("ST", "FGSM").shape == (2, 360)
    assert (found.samples("ST", "FGSM")[:, :90] == found.samples("ST", "same")).all()
    assert 0 < found.samples("ST", "FGSM").mean() < 1


def test_an_attack_added_later_adds_records_and_trains_nothing(make, monkeypatch):
    made, go, folder = make
    made(columns={"attacks": COLUMNS["attacks"]})
    go()
    before = keys(folder)
    made()

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(job, "train", never)
    assert go() == 0
    assert before < keys(folder) and len(keys(folder)) == 2 * len(before)


def test_lost_weights_are_trained_again_to_the_same(make, monkeypatch, capsys):
    made, go, folder = make
    made(rows={"ST": ROWS["ST"]}, columns={"attacks": COLUMNS["attacks"]})
    go()
    made(rows={"ST": ROWS["ST"]})
    capsys.readouterr()
    assert go(dry_run=True) == 0 and "again" not in capsys.readouterr().out
    for path in (folder / "cache" / "weights").iterdir():
        path.unlink()
    assert go(dry_run=True) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    for seed in (0, 1):  # so it says beforehand
        plan = [line.partition(": ")[0] for line in lines if f"seed {seed}" in line]
        assert [line.partition(", ")[2] for line in plan] == ["training, again", "last", "AutoAttack"]
    store, train, now = Store(folder / "results"), job.train, [0.0]
    before = {record.key for record in store.all("test/table")}

    def slow(*given, **settings):
        now[0] += 1000.0
        return train(*given, **settings)

    monkeypatch.setattr(job, "train", slow)
    monkeypatch.setattr("time.monotonic", lambda: now[0])  # a clock that only trainings move
    assert go() == 0 and now[0] == 2000.0
    assert results("test/table", "quick", store).samples("ST", "AutoAttack").shape == (2, 20)
    new = [record for record in store.all("test/table") if record.key not in before]
    assert len(new) == 4 and all(record.provenance["seconds"] == 0 for record in new)  # without the training again


def test_weights_that_are_trained_again_to_others_as_on_another_machine_are_measured_anew(make, monkeypatch, capsys):
    made, go, folder = make
    made(rows={"ST": ROWS["ST"]}, columns={"attacks": COLUMNS["attacks"]})
    go()
    store = Store(folder / "results")
    before = {record.key: record.provenance["weights"] for record in store.all("test/table")}
    made(rows={"ST": ROWS["ST"]})
    for path in (folder / "cache" / "weights").iterdir():
        path.unlink()
    train = job.train
    monkeypatch.setattr(job, "train", lambda *given, **more: train(*given, **more | {"seed": more["seed"] + 10}))
    assert go() == 0
    found = {record.key: record.provenance["weights"] for record in store.all("test/table")}
    assert set(before) < set(found) and not set(before.values()) & set(found.values())
    assert results("test/table", "quick", store).samples("ST", "AutoAttack").shape == (2, 20)
    capsys.readouterr()
    assert go(dry_run=True) == 0 and "0 runs to do" in capsys.readouterr().out


def test_settings_of_the_training_change_all_keys_and_those_of_a_column_its_own(make):
    made, _, _ = make

    def parts(experiment):
        return {(unit.row, unit.seed, unit.part): unit.key for unit in experiment.units("quick")}

    first, other, fewer = parts(made()), parts(made(lr=0.4)), parts(made(images=50))
    assert not set(first.values()) & set(other.values())
    assert {name for name in first if first[name] != fewer[name]} == {n for n in first if n[2] in ("attacks", "last")}
    beta = parts(made(rows=ROWS | {"LMA-AT": methods.lma_at(beta=2.0)}))
    assert {name for name in first if first[name] != beta[name]} == {name for name in first if name[0] == "LMA-AT"}


def test_a_row_that_starts_from_another_begins_with_its_weights(make):
    made, go, folder = make
    later = {"later": replace(methods.at(), start=methods.plain(), recipe={"lr": 1e-12})}
    columns = {"attacks": COLUMNS["attacks"]}
    made(rows=later, columns=columns)
    go()
    made(rows={"ST": methods.plain()}, columns=columns)
    go()
    store = Store(folder / "results")
    ended = results("test/table", "quick", store).samples("ST", "clean")
    made(rows=later, columns=columns)
    assert (results("test/table", "quick", store).samples("later", "clean") == ended).all()


def test_a_diverged_row_is_recorded_as_such(make):
    made, go, folder = make
    made(rows={"ST": methods.plain()}, lr=1e30)
    assert go() == 0
    found = results("test/table", "quick", Store(folder / "results"))
    assert found.diverged("ST").all() and np.isnan(found.metric("ST", "AutoAttack")).all()


def test_a_budget_stops_it_anywhere_and_it_goes_on_to_the_same_records(make, monkeypatch):
    made, go, folder = make
    made(rows={"LMA-AT": ROWS["LMA-AT"]})
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    stops, budget = 0, 0.15
    while (status := go(budget=budget)) != 0:
        assert status == 3
        stops, budget = stops + 1, 1.1 * budget  # on a machine that is busy it may be too little for any step
    assert stops > 0
    assert go(store=folder / "undisturbed") == 0
    a, b = (results("test/table", "quick", Store(folder / name)) for name in ("results", "undisturbed"))
    for name in ("clean", "PGD-5", "margin PGD", "PGD-5, last", "AutoAttack"):
        assert (a.samples("LMA-AT", name) == b.samples("LMA-AT", name)).all()
    assert torch.equal(torch.tensor(a.curve("LMA-AT", "rate")), torch.tensor(b.curve("LMA-AT", "rate")))


def test_other_processes_find_the_table_and_the_search_that_a_module_declares(tmp_path, monkeypatch):
    monkeypatch.setenv("MARGINS_CACHE", str(tmp_path / "cache"))
    store = Store(tmp_path / "results")
    for experiment in (small_table.TABLE, small_table.SEARCH):
        assert record(experiment.name, scale="quick", jobs=2, results=store.root) == 0
    assert results(small_table.TABLE.name, "quick", store).samples("AT", "PGD-5").shape == (1, 60)
    found = results(small_table.SEARCH.name, "quick", store)
    means = {row: found.metric(row, "validation PGD-10").mean() for row in found.records}
    assert best(found, "validation PGD-10") == max(means, key=means.get)
    assert set(found.records["beta 1.0"][0].metrics) == {"validation PGD-10", "validation clean"}


def test_what_starts_from_a_diverged_row_has_diverged(make):
    made, go, folder = make
    start = replace(methods.plain(), recipe={"lr": 1e30})
    made(rows={"later": replace(methods.at(), start=start)}, columns={"attacks": COLUMNS["attacks"]})
    assert go() == 0
    assert results("test/table", "quick", Store(folder / "results")).diverged("later").all()


def test_a_row_with_a_head_that_starts_from_one_with_the_same(make):
    made, go, folder = make
    head = Head("centred")
    row = replace(methods.at(), head=head, start=replace(methods.plain(), head=head))
    made(rows={"later": row}, columns={"attacks": COLUMNS["attacks"]})
    assert go() == 0
    assert not results("test/table", "quick", Store(folder / "results")).diverged("later").any()


def test_one_diverged_seed_leaves_the_others_numbers(make, monkeypatch):
    made, go, folder = make
    real = job.train

    def train(model, *given, seed, **settings):
        if seed == 1:
            settings["recipe"] = replace(settings["recipe"], lr=1e30)
        return real(model, *given, seed=seed, **settings)

    monkeypatch.setattr(job, "train", train)
    made(rows={"ST": ROWS["ST"]})
    assert go() == 0
    found = results("test/table", "quick", Store(folder / "results"))
    assert found.diverged("ST").tolist() == [False, True]
    for name, count in (("clean", 60), ("PGD-5", 60), ("AutoAttack", 20), ("PGD-5, last", 60)):
        images = found.samples("ST", name)
        assert images.shape == (2, count) and np.isnan(images[1]).all() and np.isin(images[0], (0, 1)).all()
        assert np.isnan(found.metric("ST", name)).tolist() == [False, True]
    for name in ("validation PGD-10", "cross_entropy at clean"):
        assert np.isfinite(found.curve("ST", name)[0]).all()
    assert np.isnan(found.metric("ST", "validation PGD-10")[1])


def test_a_candidate_of_a_search_that_diverges_at_once_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(experiments, "EXPERIMENTS", {})
    tuning(
        "test/search", title="t", source="s", candidates=[{"beta": 6.0}, {"beta": 1e30}], row=methods.trades,
        model={"name": "mlp", "inputs": 64, "hidden": (8,), "classes": 10}, data="digits", validation=50,
        threat=Threat(math.inf, 0.05, 0.02, 3), seeds=(0,),
        scales={"quick": (100, Recipe(epochs=2, batch_size=20, lr=0.3))},
    )  # fmt: skip
    assert record("test/search", scale="quick", results=tmp_path / "results") == 0
    found = results("test/search", "quick", Store(tmp_path / "results"))
    assert found.diverged("beta 1e+30").all() and np.isnan(found.metric("beta 1e+30", "validation PGD-10")).all()
    assert best(found, "validation PGD-10") == "beta 6.0"


def test_an_evaluation_that_other_code_began_begins_again(make, monkeypatch):
    made, go, _ = make
    columns = {"AutoAttack": Columns({"AutoAttack": {"attack": "autoattack", "steps": 3, "queries": 10}}, images=20)}
    made(rows={"ST": ROWS["ST"]}, columns=columns)
    real, seen = job.evaluate, []

    def evaluate(*given, **settings):
        found = real(*given, **settings)
        seen.append(settings["resume"])
        if len(seen) == 1:  # out of time when its last batch is on the disk
            raise checkpoints.OutOfTime
        return found

    monkeypatch.setattr(job, "evaluate", evaluate)
    assert go(seeds=(0,)) == 3 and seen[0].exists()
    monkeypatch.setattr(job.identity, "code", lambda: "after a change")
    assert go(seeds=(0,)) == 0 and len(set(seen)) == 2
    assert not any(path.exists() for path in seen)


def test_weights_of_another_revision_are_not_used(make, monkeypatch):
    made, go, folder = make
    made(rows={"ST": ROWS["ST"]}, columns={"attacks": COLUMNS["attacks"]})
    go()
    before = set((folder / "cache" / "weights").iterdir())
    monkeypatch.setitem(job.REVISIONS, "losses", 99)
    made(rows={"ST": ROWS["ST"]}, columns={"attacks": COLUMNS["attacks"]})
    assert go() == 0
    assert len(before) == 2 and len(set((folder / "cache" / "weights").iterdir()) - before) == 2
