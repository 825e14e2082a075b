"""What goes wrong for a user of the command line: one clear message, exit status 1, and nothing lost."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from margins import claims, cli, papers, paths, provenance
from margins.experiments import EXPERIMENTS
from margins.records import Store

RECORD = ["record", "amr/logistic-regression", "--scale", "quick", "--rows", "all images", "--seeds", "0"]
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture
def user(tmp_path, monkeypatch, capsys):
    """A place of its own for data, cache and records, no network; `user(line)` gives (status, what stderr says)."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("MARGINS_OFFLINE", "1")
    monkeypatch.setenv("MARGINS_DATA", str(tmp_path))
    monkeypatch.setattr(provenance, "commit", lambda: ("0" * 40, ""))

    def run(*line: str) -> tuple[int, str]:
        status = cli.main([*line, "--results", str(tmp_path / "results")])
        return status, capsys.readouterr().err

    return run


def test_a_missing_data_set(user, tmp_path):
    status, said = user(*RECORD)
    assert status == 1 and said.count("\n") == 1
    assert said.startswith("margins: amr/logistic-regression quick 'all images' seed 0: mnist was not found")
    assert str(tmp_path / "MNIST") in said and "MARGINS_DATA" in said
    assert not list((tmp_path / "results").rglob("*.json"))


def test_a_truncated_data_file(user, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).write_bytes(b"the beginning of a file")
    before = {path: path.read_bytes() for path in raw.iterdir()}
    status, said = user(*RECORD)
    assert status == 1 and said.count("\n") == 1
    assert "truncated" in said and any(name in said for name in FILES) and "bytes" in said
    assert {path: path.read_bytes() for path in raw.iterdir()} == before
    assert not list((tmp_path / "results").rglob("*.json"))


def linear(*rows: str) -> list[str]:
    """Records of statements that need no data from files."""
    return ["record", "amm/linear", "--scale", "paper", "--rows", *(rows or ("shrinkage", "mean difference"))]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_unreadable_record(user, tmp_path):
    assert user(*linear("shrinkage")) == (0, "")
    broken = next((tmp_path / "results").rglob("*.json"))
    broken.write_bytes(broken.read_bytes()[:100])
    before = contents(tmp_path / "results")
    status, said = user(*linear())
    assert status == 1 and said.count("\n") == 1
    assert said.startswith(f"margins: {broken}: unreadable record")
    assert contents(tmp_path / "results") == before


def full_after(calls: int):
    """In the place of os.fsync: fails as on a full disk, after a few calls."""
    left = iter(range(calls))

    def fsync(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fsync


def test_a_full_disk(user, tmp_path, monkeypatch):
    assert user(*linear("shrinkage")) == (0, "")
    before = contents(tmp_path / "results")

    with monkeypatch.context() as patch:
        patch.setattr("margins.files.os.fsync", full_after(0))
        status, said = user(*linear())
    assert status == 1 and "could not be written" in said and os.strerror(errno.ENOSPC) in said
    assert contents(tmp_path / "results") == before
    assert user(*linear()) == (0, "")
    assert len(Store(tmp_path / "results").all("amm/linear")) == 4


def test_the_records_of_the_repository_can_be_read():
    read = [one for evidence in papers.EVIDENCE.values() for one in claims.each(evidence)]
    assert {name for one in read for name in one.experiments} <= set(EXPERIMENTS)
    found = [record for name in EXPERIMENTS for record in Store().all(name)]  # some are only declared
    assert len({record.experiment for record in found}) > 5
    for record in found:
        Store().arrays(record)


def test_damaged_records_fail_the_verdicts(tmp_path, monkeypatch, capsys):
    shutil.copytree(paths.DATA / "paper", tmp_path / "paper")
    shutil.copytree(paths.DATA / "results", tmp_path / "results")
    monkeypatch.setattr(paths, "DATA", tmp_path)
    assert cli.main(["verdicts"]) == 0
    damaged = sorted((tmp_path / "results" / "amm" / "toy").glob("*.json"))[0]
    damaged.write_text("{}")
    capsys.readouterr()
    assert cli.main(["verdicts"]) == 1
    assert capsys.readouterr().err.startswith(f"margins: {damaged}: unreadable record")
