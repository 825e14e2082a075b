"""Records of a row and seed in parts: each saved when it is there, none made twice, and all about the same weights."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sums
from stores import contents

from margins import paths, recording
from margins.errors import MarginsError
from margins.experiments import EXPERIMENTS, Experiment, NotRecorded, Outcome, results
from margins.records import Store, key_of


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def record(store, **given):
    return recording.record(sums.PARTS, scale="quick", results=store.root, **given)


def test_a_part_s_configuration_is_the_row_s_and_its_own():
    units = EXPERIMENTS[sums.PARTS].units("quick")
    assert [(u.row, u.seed, u.part) for u in units[:4]] == [
        ("one", 0, "training"), ("one", 0, "PGD"), ("one", 0, "AutoAttack"), ("two", 0, "training")
    ]  # fmt: skip
    row = {"epochs": 4, "value": 1.0}
    assert units[0].config == {**row, "part": "training"}
    assert units[1].config == {**row, "part": "PGD", "strength": 0.25}
    assert units[2].config == {**row, "part": "AutoAttack", "strength": 0.5, "images": 5}
    assert units[2].key == key_of(sums.PARTS, "one", 0, "quick", units[2].config, {})
    assert len({unit.key for unit in units}) == len(units) == 12
    assert str(units[1]) == "test/parts quick 'one' seed 0, PGD"
    laptop = EXPERIMENTS[sums.PARTS].units("laptop")
    assert laptop[2].config == {"epochs": 40, "value": 1.0, "part": "AutoAttack", "strength": 0.5, "images": 100}


def test_what_changes_in_one_part_leaves_the_keys_of_the_others():
    made = EXPERIMENTS[sums.PARTS]
    scales = {"quick": {"epochs": 4, "parts": {"AutoAttack": {"images": 6}}}}
    parts = {**made.parts, "PGD": {"strength": 1.0}, "noise": {"radius": 2}}
    keys = {(u.row, u.seed, u.part): u.key for u in made.units("quick")}
    other = {(u.row, u.seed, u.part): u.key for u in replace(made, scales=scales, parts=parts).units("quick")}
    assert {part for (row, seed, part), key in keys.items() if other[row, seed, part] != key} == {"PGD", "AutoAttack"}
    assert {row: key for row, key in other.items() if row not in keys}.keys() == {
        (row, seed, "noise") for row in ("one", "two") for seed in (0, 1)
    }


def test_results_look_in_all_parts(cache, tmp_path):
    store = Store(tmp_path / "results")
    assert record(store, rows=("one",)) == 0
    with pytest.raises(NotRecorded, match=r"6 of 12 .*'two' seed 0, training"):
        results(sums.PARTS, "quick", store)
    assert record(store) == 0
    found = results(sums.PARTS, "quick", store)
    # Weights are 4 epochs of (value + seed); an attack takes 3 of its strength
    assert found.metric("two", "loss").tolist() == [1 / 8, 1 / 12]
    assert found.metric("two", "accuracy under PGD").tolist() == [7.25, 11.25]
    assert found.metric("two", "accuracy under AutoAttack").tolist() == [6.5, 10.5]
    assert found.curve("one", "epoch").tolist() == [[1, 2], [1, 2]]
    assert found.samples("one", "right under PGD").tolist() == [[True, False]] * 2
    assert found.diverged("one").tolist() == [False, False]
    with pytest.raises(MarginsError, match="no 'accuracy'; it has loss, accuracy under PGD, accuracy under AutoAttack"):
        found.metric("one", "accuracy")
    assert [r.config["part"] for r in found.records["one"]] == ["training", "PGD", "AutoAttack"] * 2


def test_an_attack_added_later_only_adds_its_records(cache, tmp_path, monkeypatch):
    store, log = Store(tmp_path / "results"), cache / "log"
    record(store)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*.*")}
    made = EXPERIMENTS[sums.PARTS]
    monkeypatch.setitem(EXPERIMENTS, sums.PARTS, replace(made, parts={**made.parts, "FAB": {"strength": 1.0}}))
    log.touch()
    assert record(store) == 0
    assert {line.split()[0] for line in log.read_text().splitlines()} == {"FAB"}
    assert before.items() <= {path: path.stat().st_mtime_ns for path in store.root.rglob("*.*")}.items()
    assert len(store.all(sums.PARTS)) == 16
    assert results(sums.PARTS, "quick", store).metric("one", "accuracy under FAB").tolist() == [1, 5]


def test_a_part_that_diverged_or_failed_leaves_the_others(cache, tmp_path, monkeypatch, capsys):
    def run(units, checkpoint):
        for unit in units:
            if (unit.part, unit.row) == ("PGD", "two"):
                raise ValueError("no gradient")
            status = "diverged" if unit.part == "PGD" and unit.seed == 1 else "done"
            yield Outcome({unit.part: 1.0}, status=status)

    monkeypatch.setitem(EXPERIMENTS, sums.PARTS, replace(EXPERIMENTS[sums.PARTS], run=run))
    store = Store(tmp_path / "results")
    assert record(store) == 1
    said = capsys.readouterr()
    assert "[3/4] test/parts quick 'one' seed 1 (training, PGD, AutoAttack): diverged (" in said.out
    assert "margins: test/parts quick 'two' seed 0, PGD and 1 more: ValueError: no gradient\n" in said.err
    assert len(store.all(sums.PARTS)) == 3 + 3 + 1 + 1
    monkeypatch.setitem(EXPERIMENTS, sums.PARTS, replace(EXPERIMENTS[sums.PARTS], rows={"one": {"value": 1.0}}))
    assert results(sums.PARTS, "quick", store).diverged("one").tolist() == [False, True]


def test_each_record_has_its_own_seconds_and_is_there_before_the_next_part_begins(cache, tmp_path, monkeypatch):
    now, there = [0.0], []
    store = Store(tmp_path / "results")

    def run(units, checkpoint):
        for unit in units:
            there.append(len(store.all(sums.PARTS)))
            now[0] += {"training": 100.0, "PGD": 10.0, "AutoAttack": 1.0}[unit.part]
            yield Outcome({unit.part: 1.0}, facts={"weights": "abc"})

    monkeypatch.setattr("margins.running.time.monotonic", lambda: now[0])
    monkeypatch.setitem(EXPERIMENTS, sums.PARTS, replace(EXPERIMENTS[sums.PARTS], run=run))
    assert record(store, rows=("one",), seeds=(0,)) == 0
    assert there == [0, 1, 2]
    provenance = {record.config["part"]: record.provenance for record in store.all(sums.PARTS)}
    seconds = {part: found["seconds"] for part, found in provenance.items()}
    assert seconds == {"training": 100, "PGD": 10, "AutoAttack": 1}
    assert {found["weights"] for found in provenance.values()} == {"abc"}


def test_no_part_begins_after_the_time_budget(cache, tmp_path, monkeypatch, capsys):
    now, begun = [0.0], []

    def run(units, checkpoint):
        for unit in units:
            begun.append(unit.part)
            now[0] += 60.0
            yield Outcome({unit.part: 1.0})

    monkeypatch.setattr("margins.running.time.monotonic", lambda: now[0])
    monkeypatch.setitem(EXPERIMENTS, sums.PARTS, replace(EXPERIMENTS[sums.PARTS], run=run))
    store, asked = Store(tmp_path / "results"), {"rows": ("one",), "seeds": (0,), "budget": 100.0}
    assert record(store, **asked) == recording.UNFINISHED
    assert begun == ["training", "PGD"] and len(store.all(sums.PARTS)) == 2
    assert "(training, PGD, AutoAttack): stopped at the time budget" in capsys.readouterr().out
    assert record(store, **asked) == 0
    assert begun == ["training", "PGD", "AutoAttack"]


def test_a_dry_run_lists_the_parts(cache, tmp_path, capsys):
    assert record(Store(tmp_path / "results"), rows=("two",), seeds=(1,), dry_run=True) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "test/parts at scale quick: 0 of 3 records are there; 1 runs to do, about 8.0 minutes on one thread, and 1 of"
        " unknown length",
        "  test/parts quick 'two' seed 1, training: about 2.0 minutes",
        "  test/parts quick 'two' seed 1, PGD: unknown",
        "  test/parts quick 'two' seed 1, AutoAttack: about 6.0 minutes",
    ]


def test_weights_that_differ_between_parts_are_told_with_the_way_out(cache, tmp_path):
    store = Store(tmp_path / "results")
    record(store)
    (made,) = (r for r in store.all(sums.PARTS) if (r.config["part"], r.row, r.seed) == ("training", "two", 1))
    older = {**made.provenance, "weights": "f" * 64, "recorded": "2020-01-01T00:00:00+00:00"}
    store.save(replace(made, provenance=older), {})
    with pytest.raises(MarginsError) as caught:
        results(sums.PARTS, "quick", store)
    said = str(caught.value)
    assert said.startswith("test/parts quick 'two' seed 1: training and what") and "different weights" in said
    assert said.endswith("margins record test/parts --scale quick --rows two --seeds 1")
    record(store)
    assert results(sums.PARTS, "quick", store).metric("two", "loss").tolist() == [1 / 8, 1 / 12]


def test_names_that_two_parts_have_are_told(cache, tmp_path, monkeypatch):
    def run(units, checkpoint):
        yield from (Outcome({"accuracy": 1.0}) for unit in units)

    monkeypatch.setitem(EXPERIMENTS, sums.PARTS, replace(EXPERIMENTS[sums.PARTS], run=run))
    store = Store(tmp_path / "results")
    record(store)
    with pytest.raises(MarginsError, match="metric: test/parts 'one' has 'accuracy' in 3 parts"):
        results(sums.PARTS, "quick", store).metric("one", "accuracy")


def test_facts_that_would_hide_another_are_refused(cache, tmp_path, monkeypatch, capsys):
    def run(units, checkpoint):
        yield from (Outcome({unit.part: 1.0}, facts={"commit": "mine"}) for unit in units)

    monkeypatch.setitem(EXPERIMENTS, sums.PARTS, replace(EXPERIMENTS[sums.PARTS], run=run))
    assert record(Store(tmp_path / "results")) == 1
    assert "facts: commit of test/parts quick 'one' seed 0, training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": {"training": {}, "PGD": {"value": 1}}}, "PGD sets value, as 'one' does at quick"),
        ({"parts": {"training": {"epochs": 1}}}, "training sets epochs, as 'one' does"),
        ({"settings": {"part": 1}}, "sets part, as 'one' does"),
        ({"scales": {"quick": {"parts": {"FAB": {}}}}}, "parts of test/parts at quick: FAB not among training"),
        ({"minutes": {"quick": {"FAB": 1.0}}}, "minutes of test/parts at quick: FAB not among"),
        ({"stack": lambda unit: 0}, "stack of test/parts"),
    ],
)
def test_parts_that_contradict_the_rest_are_refused(changes, message):
    made = EXPERIMENTS[sums.PARTS]
    given = {"parts": made.parts, "scales": {"quick": {"epochs": 4}}, "minutes": {}, **changes}
    with pytest.raises(MarginsError, match=message):
        replace(made, **given)
    with pytest.raises(MarginsError, match="FAB not among none"):
        Experiment("x", "t", "s", {}, {"quick": {"parts": {"FAB": {}}}}, (0,), run=made.run)


def recorder(store, cache):
    """Another process that records the parts."""
    command = [sys.executable, str(Path(sums.__file__)), sums.PARTS, str(store.root)]
    return subprocess.run(command, env={**os.environ, "MARGINS_CACHE": str(cache)}, capture_output=True, text=True)


def test_killed_in_an_evaluation_the_training_stays_and_the_rest_goes_on(cache, tmp_path, monkeypatch):
    store, log = Store(tmp_path / "results"), cache / "log"
    log.touch()
    (cache / "die at training one 0 2").touch()
    (cache / "die at PGD one 0 1").touch()
    left = []
    for _ in range(2):
        assert recorder(store, cache).returncode == -signal.SIGKILL
        left.append(sorted(json.loads(path.read_text())["config"]["part"] for path in store.root.rglob("*.json")))
    assert left == [[], ["training"]]
    done = recorder(store, cache)
    assert done.returncode == 0, done.stderr
    steps = [line for line in log.read_text().splitlines() if " one 0 " in line]
    training = [f"training one 0 {step}" for step in (0, 1, 2, 2, 3)]
    attack = [f"PGD one 0 {step}" for step in (0, 1, 1, 2)]
    assert steps == [*training, *attack, *(f"AutoAttack one 0 {step}" for step in range(3))]
    assert not list((cache / "checkpoints").rglob("*.pt"))
    monkeypatch.setattr(paths, "CACHE", tmp_path / "another cache")
    other = Store(tmp_path / "undisturbed")
    assert record(other) == 0
    assert contents(store.root) == contents(other.root)
