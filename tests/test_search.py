"""Searches on a validation split: candidates that are declared, and the choice among them."""

import math

import numpy as np
import pytest
import sums

from margins import paths, recording
from margins.errors import MarginsError
from margins.experiments import EXPERIMENTS, Outcome, results
from margins.records import Store
from margins.search import Range, Search, best, draw, grid, search


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return Store(tmp_path / "results")


def run_search(store, monkeypatch, candidates, run=sums.parabola, seeds=(0, 1, 2)):
    made = search(candidates, name="test/found", title="t", source="s", scales={"quick": {}}, seeds=seeds, run=run)
    monkeypatch.setitem(EXPERIMENTS, made.name, made)
    return recording.record(made.name, scale="quick", results=store.root)


def test_a_grid_is_every_combination():
    assert grid({"x": [1, 2], "y": ["a", "b"]}) == [
        {"x": 1, "y": "a"}, {"x": 1, "y": "b"}, {"x": 2, "y": "a"}, {"x": 2, "y": "b"}
    ]  # fmt: skip
    with pytest.raises(MarginsError, match="space: lr is a range"):
        grid({"x": [1], "lr": Range(0, 1)})


def test_draws_are_the_same_everywhere():
    space = {"lr": Range(1e-4, 1.0, log=True), "beta": Range(1, 10), "head": ["plain", "cosine"]}
    assert draw(space, 2, seed=3) == [
        {"lr": 0.000895, "beta": 5.9, "head": "plain"},
        {"lr": 0.026, "beta": 6.63, "head": "plain"},
    ]
    assert draw(space, 9, seed=3)[:2] == draw(space, 2, seed=3) != draw(space, 2, seed=4)


def test_draws_are_even_on_their_scale():
    found = draw({"lr": Range(1e-4, 1.0, log=True), "beta": Range(1, 10), "head": ["a", "b"]}, 3000, seed=0)
    assert all(1e-4 <= one["lr"] <= 1 and 1 <= one["beta"] <= 10 for one in found)
    for share in (0.25, 0.5, 0.75):  # of 3000 draws, within four standard errors
        assert abs(sum(one["lr"] < 10 ** (-4 + 4 * share) for one in found) / 3000 - share) < 0.037
        assert abs(sum(one["beta"] < 1 + 9 * share for one in found) / 3000 - share) < 0.037
    assert abs(sum(one["head"] == "a" for one in found) / 3000 - 0.5) < 0.037
    names = {(one["lr"], one["beta"], one["head"]) for one in found}
    assert len(names) == 3000 and all(float(f"{one['lr']:.3g}") == one["lr"] for one in found)


def test_bad_spaces():
    with pytest.raises(MarginsError, match="count: 5 candidates asked for, but the space has about 4"):
        draw({"x": [0, 1], "y": [0, 1]}, 5)
    for low, high, log in [(1, 1, False), (2, 1, False), (0, 1, True), (0, math.inf, False), (math.nan, 1, False)]:
        with pytest.raises(MarginsError, match="range: from"):
            Range(low, high, log)
    with pytest.raises(MarginsError, match="candidates: 2 given with 1 names"):
        search([{"x": 1}, {"x": 1}])
    with pytest.raises(MarginsError, match="candidates: 0 given"):
        search([])


def test_a_row_is_what_the_factory_makes_of_a_candidate():
    given = {"name": "test/rows", "title": "t", "source": "s", "scales": {"quick": {}}, "seeds": (0,)}
    made = search([{"x": 1}, {"x": 2}], row=lambda c: {"x": c["x"], "twice": 2 * c["x"]}, run=sums.parabola, **given)
    assert isinstance(made, Search)
    assert [unit.config for unit in made.units("quick")] == [{"x": 1, "twice": 2}, {"x": 2, "twice": 4}]
    assert list(made.rows) == ["x 1", "x 2"]


def test_the_best_is_the_top_of_a_parabola(store, monkeypatch):
    assert run_search(store, monkeypatch, grid({"x": [0, 2, 5], "y": [0, 1]})) == 0
    found = results("test/found", "quick", store)
    assert found.metric("x 2, y 1", "validation accuracy").tolist() == [100, 101, 102]
    assert best(found, "validation accuracy") == "x 2, y 1"


def test_a_candidate_that_diverged_is_not_chosen(store, monkeypatch):
    def run(units, checkpoint):
        (unit,) = units
        x = unit.config["x"]
        if x > 8 and unit.seed == 1:
            return [Outcome({"validation accuracy": math.nan if x == 9 else 1000.0}, status="diverged")]
        return [Outcome({"validation accuracy": float(x + (unit.seed if x == 3 else 1))})]

    assert run_search(store, monkeypatch, [{"x": x} for x in (1, 3, 9, 10)], run) == 0
    found = results("test/found", "quick", store)
    assert found.metric("x 3", "validation accuracy").mean() == 4
    assert best(found, "validation accuracy") == "x 3"
    assert run_search(store, monkeypatch, [{"x": 3}, {"x": 9}], run, seeds=(0, 2)) == 0  # where it did not
    assert best(results("test/found", "quick", store), "validation accuracy") == "x 9"
    assert run_search(store, monkeypatch, [{"x": 9}, {"x": 10}], run, seeds=(1,)) == 0
    with pytest.raises(MarginsError, match="validation accuracy: every candidate of test/found diverged"):
        best(results("test/found", "quick", store), "validation accuracy")


def test_equal_means_go_to_the_first_declared(store, monkeypatch):
    assert run_search(store, monkeypatch, [{"x": x, "y": 1} for x in (0, 3, 1)]) == 0  # 3 and 1 are equally far from 2
    assert best(results("test/found", "quick", store), "validation accuracy") == "x 3, y 1"


@pytest.mark.parametrize("kind", ["metrics", "curves", "arrays"])
def test_a_run_that_reports_anything_but_validation_fails(store, monkeypatch, capsys, kind):
    value = {"metrics": 1.0, "curves": [1.0], "arrays": np.ones(2)}[kind]

    def run(units, checkpoint):
        return [Outcome(**{"metrics": {"validation loss": 1.0}, kind: {"test accuracy": value}})]

    assert run_search(store, monkeypatch, [{"x": 1}], run) == 1
    assert "test/found is a search: test accuracy must begin with 'validation'" in capsys.readouterr().err
    assert not store.all("test/found")


def test_nothing_is_chosen_by_the_results_of_an_ordinary_experiment(store):
    assert recording.record(sums.SUM, scale="quick", results=store.root) == 0
    with pytest.raises(MarginsError, match="results: test/sum is not a search"):
        best(results(sums.SUM, "quick", store), "total")
