"""A record names the commit and the machine that made it, and beyond quick no other tree than the commit's."""

import subprocess

import pytest
import sums

from margins import paths, provenance, recording
from margins.errors import MarginsError
from margins.experiments import EXPERIMENTS
from margins.records import Store


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """Sums of two rows and three seeds, with a cache of their own."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return EXPERIMENTS[sums.SUM]


def test_beyond_quick_a_dirty_tree_is_refused(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "commit", lambda: ("0" * 40, "there are uncommitted changes (M code.py)"))
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
    commit, problem = provenance.commit()
    assert commit is None and problem.startswith("there is none; MARGINS_COMMIT")
    monkeypatch.setenv("MARGINS_COMMIT", "a" * 40)
    assert provenance.commit() == ("a" * 40, "")
    git("add", "-A")
    git("commit", "-qm", "one")
    commit, change = provenance.commit()
    assert (len(commit), change) == (40, "")
    (tmp_path / "data" / "results").mkdir(parents=True)
    (tmp_path / "data" / "results" / "a.json").write_text("{}")
    assert provenance.commit() == (commit, "")
    (tmp_path / "code.py").write_text("2\n")
    assert provenance.commit() == (commit, "there are uncommitted changes (M code.py)")
    (tmp_path / ".git" / "index").write_bytes(b"damaged")
    found, problem = provenance.commit()
    assert found == commit and problem.startswith("git status fails (")


def test_a_record_says_where_it_comes_from(experiment, tmp_path):
    recording.record("test/sum", scale="quick", results=tmp_path)
    record = Store(tmp_path).all("test/sum")[0]
    assert record.config == {"steps": 5, "value": record.config["value"]}
    assert {"seconds", "device", "threads", "versions", "commit", "recorded", "peak_memory_mib"} <= set(
        record.provenance
    )
    assert {"python", "torch", "numpy"} <= set(record.provenance["versions"])
