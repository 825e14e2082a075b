"""What the pages on AMR's tables show: printed numbers at their rows, measured ones of whole rows, notes on others."""

from types import SimpleNamespace

import numpy as np
import pytest

from margins.experiments import find
from margins.papers.amr import defences, networks, networks_reading
from margins.papers.amr.networks_reading import as_printed, printed
from margins.papers.amr.networks_shown import Shown

NAME, IMAGES = networks.MLP, 1000


class Table:
    """Two rows: one whole, whose distances are i / 250 for i below 1000, in a mixed order; and one diverged."""

    seeds = (0, 1, 2)

    def __init__(self):
        self.records = dict.fromkeys(["Std", "LCR"])

    def diverged(self, row):
        return np.array([False, row == "LCR", False])

    def samples(self, row, column):
        far = np.tile(501 * np.arange(IMAGES) % IMAGES / 250, (3, 1))
        if column == "clean, last":
            return far > 0
        if "distance" in column:
            return far
        return (far > float(column.split("eps ")[1].split(",")[0]))[:, : IMAGES // 2]

    def failed_checks(self):
        return {("no step is zero", "margin PGD"): {"Std": 2, "LCR": 1}}


@pytest.fixture
def shown():
    return Shown("laptop", {NAME: Table()})


def test_accuracies_stand_beside_the_printed_ones(shown):
    lines = shown.accuracies(NAME, "table1", ways=True).set_index("row")
    assert list(lines.index) == list(find(NAME).rows)
    paper = printed("table1", NAME)
    assert lines["eps 2, paper"].tolist() == [paper["pgd_eps2.0"][row.split(",")[0]] for row in lines.index]
    assert lines["clean"]["Std"].startswith("99.90") and lines["eps 1"]["Std"].startswith("74.8")
    assert lines["eps 2, paper's attack"]["Std"].startswith("50.0") and lines["distance"]["Std"].startswith("2.00")
    assert lines.drop("Std")[["clean", "eps 1", "distance"]].isna().all(axis=None)
    assert [column for column in lines if "attack" in column] == ["eps 1, paper's attack", "eps 2, paper's attack"]


def test_the_caption_tells_the_images_of_the_scale(shown):
    assert "attack on 200 images" in shown.caption(NAME) and "Race on 500; l2" in shown.caption(NAME)
    assert "attack on 2000 images" in Shown("paper", shown.found).caption(NAME)


def test_what_is_missing_and_what_diverged_is_told(shown):
    assert shown.sound(NAME) == ["Std"] and shown.drawn == [NAME]
    notes = shown.notes()
    assert "**Not run**: AMR, Eq. 15 of the MNIST MLP; AMR, released" in notes and "Std of the" not in notes
    assert "Diverged: LCR of the MNIST MLP (1 of 3 seeds)." in notes
    assert f"margins record {NAME} --scale laptop" in notes
    (line,) = shown.failed().to_dict("records")
    assert line["failed of"] == "Std (2), LCR (1)" and line["network"] == "MNIST MLP"
    whole = SimpleNamespace(records=dict.fromkeys(find(NAME).rows), diverged=lambda row: np.zeros(3, bool))
    assert Shown("laptop", {NAME: whole}).notes() == "All rows have been run, and none diverged."
    whole.failed_checks = dict
    assert shown.of([NAME], "paper").scale == "paper" and Shown("laptop", {NAME: whole}).failed().empty


def test_curves_go_through_the_budgets(shown):
    ((row, race, strong, weak),) = shown.every_eps(NAME)
    grid = shown.grid(NAME)
    assert row == "Std" and grid[0] == 0 and grid[-1] > max(networks.MNIST.eps)
    np.testing.assert_allclose(race, 100 * (1 - grid / 4), atol=0.2)
    np.testing.assert_allclose(strong, [100 * (1 - eps / 4) for eps in networks.MNIST.eps], atol=0.3)
    np.testing.assert_allclose(weak, [strong[1], strong[3]])


def test_every_network_of_a_table_has_its_lines_in_the_paper():
    for name in networks_reading.NETS:
        table = "table1" if name.endswith(("mlp", "-cnn")) else "table2"
        if not name.endswith("-lr"):  # of which no table tells
            methods = set(printed(table, name).index)
            assert {as_printed(row) for row in find(name).rows} <= methods, name
    assert Shown.of([networks.MLP, networks.CIFAR_CNN, defences.CONVNET], "laptop").found.keys() == {networks.MLP}
