"""The store: what is written is what is read, and nothing is ever half there."""

import math
from dataclasses import replace

import numpy as np
import pytest

from margins.errors import MarginsError
from margins.files import atomic
from margins.records import Record, Store, key_of


def record(**changes) -> Record:
    made = Record(
        key="",
        experiment="test/one",
        row="a row",
        seed=3,
        scale="quick",
        config={"lr": 0.1, "classes": [0, 1]},
        revisions={"one": 1},
        status="done",
        metrics={"accuracy": 97.5},
        curves={"loss": [1.0, 0.5]},
        provenance={"seconds": 1.0},
    )
    made = replace(made, **changes)
    return replace(made, key=key_of(made.experiment, made.row, made.seed, made.scale, made.config, made.revisions))


def test_what_is_written_is_what_is_read(tmp_path):
    store = Store(tmp_path)
    arrays = {"right": np.array([True, False]), "distance": np.array([0.25, -1e-300])}
    saved = store.save(record(), arrays)
    assert saved == replace(record(), arrays=saved.arrays)
    assert store.load("test/one", record().key) == saved
    read = store.arrays(saved)
    assert all((read[name] == arrays[name]).all() and read[name].dtype == arrays[name].dtype for name in arrays)


def test_curves_of_a_diverged_run_have_nan(tmp_path):
    saved = Store(tmp_path).save(record(curves={"loss": [1.0, math.inf, math.nan]}), {})
    assert saved.curves["loss"][0] == 1.0 and all(map(math.isnan, saved.curves["loss"][1:]))


def test_a_diverged_run_has_nan_where_it_has_no_number(tmp_path):
    saved = Store(tmp_path).save(record(status="diverged", metrics={"accuracy": math.nan}), {})
    assert math.isnan(saved.metrics["accuracy"]) and saved.status == "diverged"
    with pytest.raises(MarginsError, match="accuracy of test/one 'a row' is infinite"):
        Store(tmp_path).save(record(metrics={"accuracy": math.inf}), {})


def test_the_same_run_gives_the_same_bytes(tmp_path):
    arrays = {"x": np.arange(1000) / 7}
    for folder in ("one", "two"):
        Store(tmp_path / folder).save(record(), arrays)
    files = [sorted(path for path in (tmp_path / folder).rglob("*.*")) for folder in ("one", "two")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_the_key_changes_with_everything_that_decides_the_outcome():
    base = ("e/x", "row", 0, "quick", {"lr": 0.1}, {"x": 1})
    others = [
        ("e/y", *base[1:]),
        ("e/x", "other", *base[2:]),
        (*base[:2], 1, *base[3:]),
        (*base[:3], "paper", *base[4:]),
        (*base[:4], {"lr": 0.2}, base[5]),
        (*base[:5], {"x": 2}),
    ]
    keys = {key_of(*arguments) for arguments in [base, *others]}
    assert len(keys) == 7
    assert key_of(*base) == key_of(*base[:4], dict(base[4]), dict(base[5]))
    assert key_of(*base[:4], {"a": (1, 2), "b": 0}, {}) == key_of(*base[:4], {"b": 0, "a": [1, 2]}, {})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "0123456789abcdef"}', '{"metrics": 3}'])
def test_an_unreadable_record_is_told_and_left(tmp_path, text):
    store = Store(tmp_path)
    path = store.path("test/one", record().key)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(MarginsError, match="unreadable record"):
        store.load("test/one", record().key)
    assert path.read_text() == text


def test_a_renamed_record_is_not_taken_for_another(tmp_path):
    store = Store(tmp_path)
    store.save(record(), {})
    store.path("test/one", record().key).rename(store.path("test/one", "f" * 16))
    with pytest.raises(MarginsError, match="unreadable record"):
        store.all("test/one")


@pytest.mark.parametrize("change", [('"seed": 3', '"seed": 4'), ('"lr": 0.1', '"lr": 0.2'), ("quick", "paper")])
def test_a_record_is_of_the_run_that_its_key_stands_for(tmp_path, change):
    store = Store(tmp_path)
    saved = store.save(record(), {})
    path = store.path("test/one", saved.key)
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(MarginsError, match="its configuration is not the one that its key stands for"):
        store.load("test/one", saved.key)


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as file:
        file.write(b"new, half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_what_was_written(tmp_path):
    usual, path = tmp_path / "usual", tmp_path / "file"
    usual.write_bytes(b"")
    with atomic(path) as file:
        file.write(b"new")
    assert path.stat().st_mode == usual.stat().st_mode
