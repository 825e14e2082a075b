"""Recording on a Ray cluster: the same records as in one process, whatever happens to the workers."""

import gc
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import sums
from stores import contents

from margins import cli, cluster, paths, provenance, recording
from margins.cluster import Cluster
from margins.errors import MarginsError
from margins.experiments import EXPERIMENTS, find, results
from margins.records import Store
from margins.search import best

#: Ray kills its processes and waits a second for their end, which a busy machine may take longer for.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache and an import path that workers share with this process."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("MARGINS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (tmp_path / "cache").mkdir()
    yield tmp_path / "cache"
    gc.collect()  # what is left of Ray goes here, not in another module's test


def undisturbed(name, tmp_path, monkeypatch):
    """The records that one process makes, with a cache of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(paths, "CACHE", tmp_path / "another cache")
        assert recording.record(name, scale="quick", results=tmp_path / "undisturbed") == 0
    return contents(tmp_path / "undisturbed")


def processes() -> list[str]:
    """The command lines of Ray's processes."""
    lines = (" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"]))
    return [line for line in lines if any(name in line for name in ("raylet", "gcs_server", "ray::"))]


def only(before: list[str], seconds: float = 60) -> bool:
    """Whether Ray's processes are those of before, within some time."""
    end = time.monotonic() + seconds
    while processes() != before and time.monotonic() < end:
        time.sleep(0.1)
    return processes() == before


def not_installed(units, checkpoint):
    """A run from a module that the workers lack."""


not_installed.__module__ = "elsewhere"


def test_a_killed_worker_s_runs_are_made_again_on_two_machines(cache, tmp_path, monkeypatch, capfd):
    from ray.cluster_utils import Cluster as Machines

    before = processes()
    store = Store(tmp_path / "results")
    (cache / "die at PGD two 0 1").touch()
    (cache / "log").touch()
    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        machines.add_node(num_cpus=1)
        on = Cluster(machines.address)
        assert recording.record(sums.PARTS, scale="quick", results=store.root, cluster=on) == 0
        said = capfd.readouterr()
        (cache / "die at one 1 2").touch()
        monkeypatch.setattr(cluster, "RETRIES", 0)
        rows = ("one",)
        assert recording.record(sums.SUM, scale="quick", rows=rows, results=store.root, cluster=on) == 1
        assert "'one' seed 1: its worker was lost 1 times" in capfd.readouterr().err
        (cache / "die at x 0, y 1 0").touch()
        rows = ("x 0, y 1",)
        assert recording.record(sums.SEARCH, scale="quick", rows=rows, results=store.root, cluster=on) == 1
        assert "'x 0, y 1' seed 0: its worker was lost 1 times" in capfd.readouterr().err
        monkeypatch.setattr(cluster, "GRACE", 0.0)
        larger = replace(on, cpus=2)
        for name in (sums.SUM, sums.SEARCH):
            status = recording.record(name, scale="quick", results=store.root, cluster=larger, budget=1.0)
            assert status == recording.UNFINISHED
            assert "no machine of the cluster has CPU 2 and GPU 0" in capfd.readouterr().err
        elsewhere = replace(find(sums.SUM), run=not_installed)
        monkeypatch.setitem(EXPERIMENTS, sums.SUM, elsewhere)
        assert recording.record(sums.SUM, scale="quick", rows=("two",), results=store.root, cluster=on) == 1
        assert "and 2 more: ModuleNotFoundError: No module named 'elsewhere'\n" in capfd.readouterr().err
    finally:
        machines.shutdown()
    assert sorted(record.seed for record in store.all(sums.SUM)) == [0, 2]
    log = (cache / "log").read_text().splitlines()
    assert log.count("PGD two 0 1") == 2 and log.count("training two 0 0") == 1
    assert "'two' seed 0 (training, PGD, AutoAttack): its worker was lost (WorkerCrashedError); it runs" in said.err
    assert said.out.count(": recorded (") == 4
    found = {name: file for name, file in contents(store.root).items() if name.startswith(sums.PARTS)}
    assert found == undisturbed(sums.PARTS, tmp_path, monkeypatch)
    assert only(before)


def test_the_runs_of_a_search_are_trials_of_ray_tune(cache, tmp_path, monkeypatch):
    store = Store(tmp_path / "results")
    (cache / "die at x 2, y 1 0").touch()
    assert recording.record(sums.SEARCH, scale="quick", results=store.root, cluster=Cluster()) == 0
    assert contents(store.root) == undisturbed(sums.SEARCH, tmp_path, monkeypatch)
    assert best(results(sums.SEARCH, "quick", store), "validation accuracy") == "x 2, y 1"
    assert not list(cache.glob("tune-*")) and not list(cache.glob("die at*"))


def job(**changes):
    missing = find(sums.SUM).groups("quick")[0]
    given = {"module": "sums", "name": sums.SUM, "group": missing, "missing": missing, "commit": "a" * 40}
    return cluster.Job(**{**given, "until": None, **changes})


def test_a_worker_with_another_commit_refuses(cache, monkeypatch):
    monkeypatch.setattr(provenance, "commit", lambda: ("b" * 40, ""))
    (ended,) = cluster.work(job())
    assert ended.how == "failed" and "b" * 40 in ended.reason and f"the command runs {'a' * 40}" in ended.reason
    monkeypatch.setattr(provenance, "commit", lambda: ("a" * 40, "there are uncommitted changes (M code.py)"))
    assert [type(item).__name__ for item in cluster.work(job())] == ["tuple", "Ended"]  # quick records may be such
    large = find(sums.SUM).groups("laptop")[0]
    (ended,) = cluster.work(job(group=large, missing=large))
    assert ended.how == "failed" and ended.reason.endswith("but there are uncommitted changes (M code.py)")


def test_a_run_that_fails_in_a_worker_is_told_with_its_traceback(cache, monkeypatch):
    monkeypatch.setattr(provenance, "commit", lambda: ("a" * 40, ""))
    monkeypatch.setitem(EXPERIMENTS, sums.SUM, replace(find(sums.SUM), rows={"bad": {"value": -1.0}}))
    (ended,) = cluster.work(job(**dict.fromkeys(("group", "missing"), find(sums.SUM).groups("quick")[0])))
    assert (ended.how, ended.reason) == ("failed", "ValueError: a negative value")
    assert 'raise ValueError("a negative value")' in ended.trace


def test_a_worker_stops_at_the_deadline_of_the_command(cache, monkeypatch):
    monkeypatch.setattr(provenance, "commit", lambda: ("a" * 40, ""))
    (ended,) = cluster.work(job(until=1.0))
    assert (ended.how, ended.unit.row) == ("stopped", "one")


def test_without_ray_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["record", "amm/toy", "--scale", "quick", "--cluster"]) == 1
    assert 'pip install "margins-book[cluster]"' in capsys.readouterr().err


def test_bad_clusters():
    bad = {
        "cpus must be": {"cpus": 0},
        "gpus must be": {"gpus": -1},
        "cluster: ray://a:1 given": {"address": "ray://a:1"},
    }
    for message, given in bad.items():
        with pytest.raises(MarginsError, match=message):
            Cluster(**given)
    with pytest.raises(MarginsError, match=r"cluster: 127\.0\.0\.1:1 can't be joined"), Cluster("127.0.0.1:1").joined():
        pass
    with pytest.raises(MarginsError, match="jobs: 2 given, but on a cluster"):
        recording.record(sums.SUM, scale="quick", jobs=2, cluster=Cluster())


@pytest.mark.parametrize("option", ["--cpus-per-unit 2", "--gpus-per-unit 0.5"])
def test_what_a_run_takes_is_said_for_a_cluster_only(option, capsys):
    assert cli.main(f"record amm/toy --scale quick {option}".split()) == 1
    assert "they are for --cluster" in capsys.readouterr().err
