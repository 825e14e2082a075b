"""Recording under torchrun: several processes take part in each run, and one of them writes and speaks."""

import os
import subprocess
import sys
from pathlib import Path

import small_table
import sums
from stores import contents

from margins import paths, recording
from margins.experiments import results
from margins.records import Store


def torchrun(folder: Path, *given: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *given]
    environment = {**os.environ, "MARGINS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.path.dirname(__file__)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_two_processes_make_the_records_of_one(tmp_path, monkeypatch):
    store = Store(tmp_path / "results")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "log").touch()
    done = torchrun(tmp_path, sums.__file__, sums.SUM, str(store.root))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": recorded (") == 6 and done.stdout.count("6 runs to do") == 1
    assert "Warning" not in done.stderr
    steps = (tmp_path / "cache" / "log").read_text().splitlines()
    assert len(steps) == 2 * 6 * 5 and all(steps.count(step) == 2 for step in steps)  # both took part in every run
    monkeypatch.setattr(paths, "CACHE", tmp_path / "another cache")
    assert recording.record(sums.SUM, scale="quick", results=tmp_path / "undisturbed") == 0
    assert contents(store.root) == contents(tmp_path / "undisturbed")


def test_two_processes_train_a_table_together_and_one_evaluates_it(tmp_path, monkeypatch):
    command = ["-m", "margins", "record", small_table.TABLE.name, "--module", "small_table", "--scale", "quick"]
    done = torchrun(tmp_path, *command, "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(paths, "CACHE", tmp_path / "another cache")
    assert recording.record(small_table.TABLE.name, scale="quick", results=tmp_path / "one") == 0
    two, one = (results(small_table.TABLE.name, "quick", Store(tmp_path / name)) for name in ("results", "one"))
    for row in ("ST", "AT"):
        for name in ("clean", "PGD-5"):
            assert abs(two.metric(row, name) - one.metric(row, name)) <= 100 / 60  # float32: at most an image
        assert two.curve(row, "validation clean").shape == (1, 5)


def test_a_failure_in_one_process_ends_them_all(tmp_path):
    done = torchrun(tmp_path, sums.__file__, sums.BAD, str(tmp_path / "results"))
    assert done.returncode == 1 and "ValueError: only here" in done.stderr


def test_a_row_that_they_cannot_share_is_told_and_the_others_are_trained(tmp_path):
    store = Store(tmp_path / "results")
    command = ["-m", "margins", "record", "test/mixed-table", "--module", "small_table", "--scale", "quick"]
    done = torchrun(tmp_path, *command, "--results", str(store.root))
    assert done.returncode == 1
    assert "'GAIRAT' seed 0, training: failed (" in done.stdout and "'AT' seed 0, training: recorded (" in done.stdout
    assert done.stderr.count("looks at the whole batch: train this row in one process") == 1
    assert [record.row for record in store.all("test/mixed-table")] == ["AT"]
