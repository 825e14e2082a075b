"""`margins record`: nothing lost, doubled or half-written, whatever happens to the runs, the disk or the records."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sums
import torch
from stores import contents

from margins import checkpoints, experiments, paths, recording
from margins.errors import MarginsError
from margins.estimates import makespan
from margins.experiments import EXPERIMENTS, Outcome
from margins.records import Store


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """Sums of two rows and three seeds, with a cache of their own."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return EXPERIMENTS[sums.SUM]


def test_results_are_complete_or_say_what_is_missing(experiment, tmp_path):
    store = Store(tmp_path / "results")
    with pytest.raises(experiments.NotRecorded, match=r"6 of 6 records.*margins record test/sum --scale quick"):
        experiments.results("test/sum", "quick", store)
    assert recording.record("test/sum", scale="quick", rows=("one",), results=store.root) == 0
    with pytest.raises(experiments.NotRecorded, match="3 of 6"):
        experiments.results("test/sum", "quick", store)
    part = experiments.results("test/sum", "quick", store, partial=True)
    assert (list(part.records), part.missing) == (["one"], ("two",))
    assert recording.record("test/sum", scale="quick", results=store.root) == 0
    assert experiments.results("test/sum", "quick", store, partial=True).missing == ()
    results = experiments.results("test/sum", "quick", store)
    assert results.metric("two", "total").tolist() == [10, 10, 10]
    assert results.samples("one", "seed").tolist() == [[0], [1], [2]]
    with pytest.raises(MarginsError, match="no 'three'; it has one, two"):
        results.metric("three", "total")
    with pytest.raises(MarginsError, match="no 'sum'; it has total"):
        results.metric("one", "sum")


def test_what_is_there_is_not_run_again(experiment, tmp_path, capsys):
    recording.record("test/sum", scale="quick", results=tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    recording.record("test/sum", scale="quick", results=tmp_path)
    assert "6 of 6 records are there; 0 runs to do" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}


def test_a_higher_revision_makes_old_records_stale(experiment, tmp_path, monkeypatch):
    store = Store(tmp_path)
    recording.record("test/sum", scale="quick", results=tmp_path)
    monkeypatch.setitem(experiments.EXPERIMENTS, "test/sum", replace(experiment, revisions={"sum": 2}))
    assert len([record for record in experiments.stale(store) if record.experiment == "test/sum"]) == 6
    with pytest.raises(experiments.NotRecorded):
        experiments.results("test/sum", "quick", store)


def test_a_failing_run_does_not_stop_the_others(experiment, tmp_path, monkeypatch, capsys):
    rows = {"bad": {"value": -1.0}, **experiment.rows}
    monkeypatch.setitem(experiments.EXPERIMENTS, "test/sum", replace(experiment, rows=rows))
    assert recording.record("test/sum", scale="quick", results=tmp_path) == 1
    said = capsys.readouterr().err
    assert said.endswith("margins: test/sum quick 'bad' seed 0 and 2 more: ValueError: a negative value\n")
    assert 'raise ValueError("a negative value")' in said
    assert len(Store(tmp_path).all("test/sum")) == 6


def test_a_time_budget_stops_and_goes_on(experiment, tmp_path, monkeypatch, capsys):
    clock = iter(range(10_000))
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: float(next(clock)))
    for _ in range(40):
        status = recording.record("test/sum", scale="quick", results=tmp_path, budget=12)
        if status == 0:
            break
        assert status == recording.UNFINISHED
    assert "stopped at the time budget" in capsys.readouterr().out
    assert experiments.results("test/sum", "quick", Store(tmp_path)).metric("two", "total").tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "gpu"}, "no 'gpu'; it has quick, laptop"),
        ({"scale": "quick", "rows": ("three",)}, "rows: test/sum has no .'three'.; it has one, two"),
        ({"scale": "quick", "seeds": (0, 7)}, r"seeds: \[7\] are not among the declared seeds \[0, 1, 2\]"),
        ({"scale": "quick", "jobs": 0}, "jobs: 0 given"),
    ],
)
def test_bad_arguments(experiment, tmp_path, arguments, message):
    with pytest.raises(MarginsError, match=message):
        recording.record("test/sum", results=tmp_path, **arguments)
    assert not list(tmp_path.rglob("*.json"))


def test_an_unknown_experiment_lists_those_there_are():
    with pytest.raises(MarginsError, match="no 'amm/table9'; there are"):
        recording.record("amm/table9", scale="quick")


def test_an_unreadable_record_stops_before_any_run(experiment, tmp_path):
    recording.record("test/sum", scale="quick", rows=("one",), results=tmp_path)
    broken = next(tmp_path.rglob("*.json"))
    broken.write_text(broken.read_text()[:-40])
    before = contents_of(tmp_path)
    with pytest.raises(MarginsError, match=f"{broken.name}: unreadable record"):
        recording.record("test/sum", scale="quick", results=tmp_path)
    assert contents_of(tmp_path) == before


def test_altered_arrays_are_told(experiment, tmp_path):
    recording.record("test/sum", scale="quick", results=tmp_path)
    next(tmp_path.rglob("*.npz")).write_bytes(b"something else")
    with pytest.raises(MarginsError, match="unreadable arrays of a record"):
        experiments.results("test/sum", "quick", Store(tmp_path)).samples("one", "seed")
        experiments.results("test/sum", "quick", Store(tmp_path)).samples("two", "seed")


def test_lost_arrays_are_recorded_again(experiment, tmp_path):
    recording.record("test/sum", scale="quick", results=tmp_path)
    before = contents(tmp_path)
    lost = next(tmp_path.rglob("*.npz"))
    lost.unlink()
    recording.record("test/sum", scale="quick", results=tmp_path)
    assert contents(tmp_path) == before


def test_a_checkpoint_of_another_kind_is_told(tmp_path):
    torch.save({"other": 1}, tmp_path / "run.pt")
    with pytest.raises(MarginsError, match=r"run\.pt: unreadable checkpoint \(ValueError: it has no step\); delete it"):
        checkpoints.Checkpoint(tmp_path / "run.pt").load("step")
    (tmp_path / "run.pt").write_bytes(b"junk")
    with pytest.raises(MarginsError, match=r"run\.pt: unreadable checkpoint"):
        checkpoints.Checkpoint(tmp_path / "run.pt").load()


def test_a_folder_that_cannot_be_written_is_told_before_any_run(experiment, tmp_path, monkeypatch):
    (tmp_path / "results").write_text("a file, not a folder")
    monkeypatch.setattr(recording, "_run_all", None)
    with pytest.raises(MarginsError, match=r"results: .* can't be written to"):
        recording.record("test/sum", scale="quick", results=tmp_path / "results")


def contents_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts}


def test_a_full_disk_is_told_and_loses_nothing(experiment, tmp_path, monkeypatch, capsys):
    recording.record("test/sum", scale="quick", rows=("one",), results=tmp_path)
    before = contents_of(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("margins.files.os.fsync", full)
        assert recording.record("test/sum", scale="quick", results=tmp_path) == 1
        assert "No space left on device" in capsys.readouterr().err
    assert contents_of(tmp_path) == before
    assert recording.record("test/sum", scale="quick", results=tmp_path) == 0
    assert len(Store(tmp_path).all("test/sum")) == 6


def test_two_processes_do_not_record_the_same_experiment(experiment, tmp_path):
    with recording._lock("test/sum"), pytest.raises(MarginsError, match="being recorded by another process"):
        recording.record("test/sum", scale="quick", results=tmp_path)


def test_the_units_of_the_first_seed_run_first():
    rows = {"one": {"value": 1.0}, "alone": {"value": 2.0, "seeds": (7,)}, "two": {"value": 3.0}}
    made = replace(EXPERIMENTS[sums.SUM], rows=rows, seeds=(4, 2))
    units = made.units("quick")
    assert [(unit.row, unit.seed) for unit in units] == [("one", 4), ("alone", 7), ("two", 4), ("one", 2), ("two", 2)]
    assert made.groups("quick") == [[unit] for unit in units]
    stacked = replace(made, stack=lambda unit: unit.row == "two")
    assert [[unit.seed for unit in group] for group in stacked.groups("quick")] == [[4, 7, 2], [4, 2]]


def test_a_diverged_run_is_recorded_and_told(experiment, tmp_path, monkeypatch, capsys):
    rows = {"one": {"value": 1.0}, "wild": {"value": 1e9}}
    monkeypatch.setitem(EXPERIMENTS, "test/sum", replace(experiment, rows=rows, seeds=(0,)))
    assert recording.record("test/sum", scale="quick", results=tmp_path) == 0
    said = capsys.readouterr()
    assert "[1/2] test/sum quick 'one' seed 0: recorded (" in said.out
    assert "[2/2] test/sum quick 'wild' seed 0: diverged (" in said.out
    found = experiments.results("test/sum", "quick", Store(tmp_path))
    assert [found.diverged(row).tolist() for row in rows] == [[False], [True]]
    assert "test/sum quick 'one' seed 0: the total is 5.0\n" in said.err  # what a run says of its progress


def test_curves_of_runs_that_ended_early_are_filled_with_nan(experiment, tmp_path, monkeypatch):
    def short(units, checkpoint):
        return [Outcome({}, curves={"loss": [1.0, 0.5, 0.25][: 3 - units[0].seed]})]

    monkeypatch.setitem(EXPERIMENTS, "test/sum", replace(experiment, run=short))
    recording.record("test/sum", scale="quick", results=tmp_path)
    curve = experiments.results("test/sum", "quick", Store(tmp_path)).curve("one", "loss")
    np.testing.assert_array_equal(curve, [[1, 0.5, 0.25], [1, 0.5, np.nan], [1, np.nan, np.nan]])


@pytest.mark.parametrize(("count", "message"), [(0, "no outcome for test/sum"), (2, "more outcomes than the 1 units")])
def test_a_run_that_returns_another_number_of_outcomes_fails(experiment, tmp_path, monkeypatch, capsys, count, message):
    monkeypatch.setitem(EXPERIMENTS, "test/sum", replace(experiment, run=lambda units, _: [Outcome({})] * count))
    assert recording.record("test/sum", scale="quick", results=tmp_path) == 1
    assert f"RuntimeError: {message}" in capsys.readouterr().err


def test_a_dry_run_says_how_long_each_run_and_all_will_take(experiment, tmp_path, monkeypatch, capsys):
    def dry(jobs=1):
        assert recording.record("test/sum", scale="quick", results=tmp_path, dry_run=True, jobs=jobs) == 0
        return capsys.readouterr().out.splitlines()[1:]

    lines = dry()
    assert lines[0] == "test/sum at scale quick: 0 of 6 records are there; 6 runs to do"
    assert lines[1:3] == ["  test/sum quick 'one' seed 0: unknown", "  test/sum quick 'two' seed 0: unknown"]
    monkeypatch.setitem(EXPERIMENTS, "test/sum", replace(experiment, minutes={"quick": 2.0}))
    lines = dry(jobs=4)
    assert lines[0].endswith("6 runs to do, about 12.0 minutes on one thread, about 4.0 minutes with 4 jobs")
    assert lines[1] == "  test/sum quick 'one' seed 0: about 2.0 minutes"
    rows = {**experiment.rows, "three": {"value": 3.0}}
    monkeypatch.setitem(EXPERIMENTS, "test/sum", replace(experiment, rows=rows, minutes={"quick": 2.0}))
    store = Store(tmp_path)
    recording.record("test/sum", scale="quick", rows=("one",), seeds=(0, 1), results=tmp_path)
    recording.record("test/sum", scale="quick", rows=("two",), seeds=(0,), results=tmp_path)
    for made in store.all("test/sum"):
        seconds = {("one", 0): 60.0, ("one", 1): 600.0, ("two", 0): 90.0}[made.row, made.seed]
        store.save(replace(made, provenance={**made.provenance, "seconds": seconds}), store.arrays(made))
    capsys.readouterr()
    lines = dry(jobs=2)  # the row's own median, or that of all three
    assert lines[0].endswith("6 runs to do, about 13.0 minutes on one thread, about 7.0 minutes with 2 jobs")
    assert lines[1:] == [
        "  test/sum quick 'three' seed 0: about 1.5 minutes",
        "  test/sum quick 'two' seed 1: about 1.5 minutes",
        "  test/sum quick 'three' seed 1: about 1.5 minutes",
        "  test/sum quick 'one' seed 2: about 5.5 minutes",
        "  test/sum quick 'two' seed 2: about 1.5 minutes",
        "  test/sum quick 'three' seed 2: about 1.5 minutes",
    ]
    assert len(store.all("test/sum")) == 3


def test_how_long_runs_take_that_are_begun_in_order():
    assert makespan([3.0, 1.0, 1.0, 4.0], 1) == 9
    assert makespan([3.0, 1.0, 1.0, 4.0], 2) == 6  # 3 | 1, 1, 4
    assert makespan([3.0, 1.0, 1.0, 4.0], 9) == 4


def test_states_of_one_run_in_files_of_their_own(tmp_path):
    checkpoint = checkpoints.Checkpoint(tmp_path / "run.pt", deadline=0.0)
    for number, one in enumerate([checkpoint, checkpoint.beside("PGD"), checkpoint.beside("eps = 8/255")]):
        with pytest.raises(checkpoints.OutOfTime):
            one.tick(lambda number=number: {"number": number})
    assert [checkpoint.load(), checkpoint.beside("PGD").load()] == [{"number": 0}, {"number": 1}]
    assert checkpoint.beside("eps = 8/255").load("number") == {"number": 2}
    other = tmp_path / "run2.pt"
    other.write_bytes(b"of another run")
    checkpoint.clear()
    assert list(tmp_path.iterdir()) == [other]
