"""`margins record`: nothing lost, doubled or half-written, whatever happens to the process, the disk or the tree."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from margins import checkpoints, experiments, paths, recording
from margins.errors import MarginsError
from margins.experiments import Experiment, Outcome
from margins.records import Store

KILLS = 4
#: Of the toy: its run gets longer with them, and so more kills hit it.
EPOCHS = 120
#: The part of a run in which it is killed, by jobs: short, so that many kills are needed to get through it.
SHARE = {1: 0.25, 2: 0.35}


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "MARGINS_CACHE": str(cache), "MARGINS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def recorder(results: Path, cache: Path, jobs: int) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(results), str(jobs), str(EPOCHS)]
    return subprocess.Popen(command, env=environment(cache), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def contents(results: Path) -> dict[str, object]:
    """Every file of a store: arrays as bytes, records without what tells of time and machine."""
    found = {}
    for path in sorted(results.rglob("*.*")):
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            del record["provenance"]
            found[str(path.relative_to(results))] = record
        elif path.is_file():
            found[str(path.relative_to(results))] = path.read_bytes()
    return found


@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_random_moments_it_ends_in_the_same_records(tmp_path, jobs):
    seconds = []
    for _ in range(2):  # the second time there is nothing to do: so long it takes to start
        start = time.monotonic()
        undisturbed = recorder(tmp_path / "undisturbed", tmp_path / "cache-1", jobs)
        assert undisturbed.wait(timeout=120) == 0, undisturbed.stderr.read()
        seconds.append(time.monotonic() - start)
        undisturbed.stderr.close()
    moments, hit = random.Random(jobs), 0
    for _ in range(KILLS):
        process = recorder(tmp_path / "killed", tmp_path / "cache-2", jobs)
        time.sleep(seconds[1] + moments.uniform(0, SHARE[jobs]) * (seconds[0] - seconds[1]))
        hit += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    assert hit, "every kill came too late to disturb anything"
    last = recorder(tmp_path / "killed", tmp_path / "cache-2", jobs)
    # A worker of a killed run may hold the lock for half a second more: then the message says so
    while last.wait(timeout=120) != 0 and b"another process" in last.stderr.read():
        last = recorder(tmp_path / "killed", tmp_path / "cache-2", jobs)
    assert last.returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
    last.stderr.close()


def square(units, checkpoint):
    (unit,) = units
    state = checkpoint.load() or {"total": 0.0, "step": 0}
    while state["step"] < unit.config["steps"]:
        state = {"total": state["total"] + unit.config["value"], "step": state["step"] + 1}
        checkpoint.tick(lambda state=state: state)
    if unit.config["value"] < 0:
        raise ValueError("a negative value")
    return [Outcome({"total": state["total"]}, arrays={"seed": np.array([unit.seed])})]


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    made = Experiment(
        name="test/sum",
        title="sums",
        source="a test",
        rows={"one": {"value": 1.0}, "two": {"value": 2.0}},
        scales={"quick": {"steps": 5}, "laptop": {"steps": 50}},
        seeds=(0, 1, 2),
        run=square,
        revisions={"sum": 1},
    )
    monkeypatch.setitem(experiments.EXPERIMENTS, made.name, made)
    return made


def test_results_are_complete_or_say_what_is_missing(experiment, tmp_path):
    store = Store(tmp_path / "results")
    with pytest.raises(experiments.NotRecorded, match=r"6 of 6 records.*margins record test/sum --scale quick"):
        experiments.results("test/sum", "quick", store)
    assert recording.record("test/sum", scale="quick", rows=("one",), results=store.root) == 0
    with pytest.raises(experiments.NotRecorded, match="3 of 6"):
        experiments.results("test/sum", "quick", store)
    assert recording.record("test/sum", scale="quick", results=store.root) == 0
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


def test_an_exception_ends_the_workers_and_what_waits_for_them():
    pool = ProcessPoolExecutor(2, get_context("spawn"))
    with pytest.raises(KeyboardInterrupt), recording.stopping(pool):
        waiting = [pool.submit(time.sleep, 15) for _ in range(6)]
        while not waiting[0].running():
            time.sleep(0.05)
        start = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - start < 5


def test_a_folder_that_cannot_be_written_is_told_before_any_run(experiment, tmp_path, monkeypatch):
    (tmp_path / "results").write_text("a file, not a folder")
    monkeypatch.setattr(recording, "_run_all", None)
    with pytest.raises(MarginsError, match=r"results: .* can't be written to"):
        recording.record("test/sum", scale="quick", results=tmp_path / "results")


def test_interrupted_with_several_processes_it_stops_at_once(tmp_path):
    process = recorder(tmp_path / "results", tmp_path / "cache", 2)
    while not list((tmp_path / "cache").rglob("*.lock")):
        time.sleep(0.05)
    time.sleep(1)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    process.stderr.close()
    assert process.returncode != 0 and time.monotonic() - start < 5
    assert len(list((tmp_path / "results").rglob("*.json"))) < 19


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


def test_beyond_quick_a_dirty_tree_is_refused(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "_commit", lambda: ("0" * 40, "there are uncommitted changes (M code.py)"))
    assert recording.record("test/sum", scale="quick", results=tmp_path) == 0
    with pytest.raises(MarginsError, match=r"scale laptop: .* there are uncommitted changes .M code\.py."):
        recording.record("test/sum", scale="laptop", results=tmp_path)
    assert len(Store(tmp_path).all("test/sum")) == 6


def test_the_tree_of_a_checkout(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], cwd=tmp_path, check=True)

    monkeypatch.setattr(paths, "REPO", tmp_path)
    git("init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    commit, problem = recording._commit()
    assert commit is None and problem.startswith("there is none; MARGINS_COMMIT")
    monkeypatch.setenv("MARGINS_COMMIT", "a" * 40)
    assert recording._commit() == ("a" * 40, "")
    git("add", "-A")
    git("commit", "-qm", "one")
    commit, change = recording._commit()
    assert (len(commit), change) == (40, "")
    (tmp_path / "data" / "results").mkdir(parents=True)
    (tmp_path / "data" / "results" / "a.json").write_text("{}")
    assert recording._commit() == (commit, "")
    (tmp_path / "code.py").write_text("2\n")
    assert recording._commit() == (commit, "there are uncommitted changes (M code.py)")


def test_two_processes_do_not_record_the_same_experiment(experiment, tmp_path):
    with recording._lock("test/sum"), pytest.raises(MarginsError, match="being recorded by another process"):
        recording.record("test/sum", scale="quick", results=tmp_path)


def test_a_record_says_where_it_comes_from(experiment, tmp_path):
    recording.record("test/sum", scale="quick", results=tmp_path)
    record = Store(tmp_path).all("test/sum")[0]
    assert record.config == {"steps": 5, "value": record.config["value"]}
    assert {"seconds", "device", "threads", "versions", "commit", "recorded", "peak_memory_mib"} <= set(
        record.provenance
    )
    assert {"python", "torch", "numpy"} <= set(record.provenance["versions"])
