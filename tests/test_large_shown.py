"""The pages' tables of printed lines: what is printed, what was measured, what was not run, and what rows take."""

import numpy as np
import pytest

from margins.experiments import find
from margins.papers import large_shown
from margins.papers.lma import large

S, N = 3, 200
LINES = large.lines(6)
NAME = large.NAMES["cifar10", "ResNet-18"]


class Results:
    """Three seeds of some rows, each right on a quarter of the images, one of them diverged."""

    experiment, seeds = find(NAME), (0, 1, 2)

    def __init__(self, *rows):
        self.records = dict.fromkeys(rows)

    def diverged(self, row):
        return np.full(S, row == "MART")

    def samples(self, row, column):
        return (np.arange(N) + np.arange(S)[:, None]) % 4 == 0


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    monkeypatch.setattr(large_shown, "results", lambda name, scale, partial: Results("vanillaAT", "TRADES", "MART"))


def test_printed_numbers_stand_beside_those_of_rows_that_were_run():
    shown = large_shown.printed(LINES, "paper").set_index("method")
    assert list(shown.index) == [line["method"] for *_, line in LINES]
    assert shown.loc["TRADES", "AutoAttack, paper"] == "49.08" and shown.loc["TRADES", "AutoAttack"].startswith("25.0")
    assert shown["clean"].notna().tolist() == [row in ("vanillaAT", "TRADES") for row in shown.index]  # MART diverged
    assert "network" not in shown and large_shown.printed(large.lines(2), "paper", ["tau"])["tau"].tolist()[1] == "0.1"
    both = large_shown.printed([*LINES, *large.lines(7)], "paper")
    assert set(both["network"]) == {"ResNet-18", "WRN-34-10"}


def test_a_column_that_nothing_has_is_left_out(monkeypatch):
    monkeypatch.setattr(large_shown, "results", lambda name, scale, partial: Results())
    shown = large_shown.printed(LINES, "paper")
    assert [name for name in shown if name != "method"] == [name for name in shown if name.endswith(", paper")]


def test_what_was_not_run_is_told_with_its_command():
    told = large_shown.missing(LINES, "paper")
    assert told == (
        f"**Not run**: {len(LINES) - 3} of the rows of {find(NAME).title}; each is made by"
        f" `margins record {NAME} --scale paper --rows ROW`."
    )
    assert large_shown.missing(LINES[:2], "paper") == ""


def test_what_a_row_takes_is_its_training_and_the_rest():
    (line,) = large_shown.costs([NAME], "paper").to_dict("records")
    minutes = find(NAME).minutes["paper"]
    assert line["training"] + line["evaluation"] == pytest.approx(sum(minutes.values()) / 60)
    assert (line["rows"], line["seeds"]) == (len(find(NAME).rows), 6)
