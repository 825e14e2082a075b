"""Recording that is killed or interrupted: the same command goes on and ends in the same records."""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import sums
from stores import contents

from margins import recording
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


def test_a_killed_worker_takes_no_other_run_with_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MARGINS_CACHE", str(tmp_path / "cache"))
    store, given = Store(tmp_path / "results"), {"scale": "quick", "results": tmp_path / "results"}
    assert recording.record(sums.KILLS, jobs=2, **given) == 1
    told = capsys.readouterr()
    assert "margins: a process was killed; what it took with it begins again" in told.err
    assert "'bad' seed 0 and 1 more: its process was killed, perhaps for its memory" in told.err
    assert told.out.count(": recorded (") == 4 and told.out.count("'bad' seed ") == told.out.count(": failed (") == 2
    assert {(r.row, r.seed) for r in store.all(sums.KILLS)} == {("one", 0), ("one", 1), ("two", 0), ("two", 1)}


def test_a_worker_that_is_killed_once_is_begun_again(tmp_path, monkeypatch, capsys):
    cache, given = tmp_path / "cache", {"scale": "quick", "results": tmp_path / "results"}
    monkeypatch.setenv("MARGINS_CACHE", str(cache))
    cache.mkdir()
    (cache / "die at two 1 3").touch()
    assert recording.record(sums.SUM, jobs=2, **given) == 0
    told = capsys.readouterr()
    assert told.err.count("what it took with it begins again") == 1 and told.out.count(": recorded (") == 6
    assert len(Store(tmp_path / "results").all(sums.SUM)) == 6


def test_an_exception_ends_the_workers_and_what_waits_for_them():
    pool = ProcessPoolExecutor(2, get_context("spawn"))
    with pytest.raises(KeyboardInterrupt), recording.stopping(pool):
        waiting = [pool.submit(time.sleep, 15) for _ in range(6)]
        while not waiting[0].running():
            time.sleep(0.05)
        start = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - start < 5


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
