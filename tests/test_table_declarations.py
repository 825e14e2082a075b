"""What a table of methods can't be is refused when it is declared."""

import math

import pytest
from test_tables import COLUMNS, PGD, ROWS

from margins import losses, methods
from margins.errors import MarginsError
from margins.penalties.context import Threat
from margins.tables import Columns, table
from margins.training import Recipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"columns": {"a": Columns({"clean": PGD})}}, "clean would name two numbers"),
        ({"columns": {"a": Columns({"P": PGD}), "b": Columns({"P": PGD})}}, "P would name two numbers"),
        ({"rows": {"AT": "AT"}}, "rows must be Rows"),
        ({"seeds": (0, 0)}, "seeds must differ"),
        ({"images": {"quik": {}}}, "no scale quik"),
        ({"data": "mnits"}, "data must be one of"),
        ({"validation": 0}, "validation must be"),
        ({"model": {"name": "resnet99"}}, "model's name must be one of"),
        ({"rows": {"MAIL": methods.mail_at()}}, "of 1 none is left for the phase"),
        ({"scales": {"quick": (1400, Recipe(epochs=1))}}, "more than digits's 1437"),
    ],
)
def test_a_table_that_cannot_be_is_refused_when_it_is_declared(given, message):
    declared = {
        "title": "t", "source": "s", "model": {"name": "mlp", "inputs": 64, "hidden": (8,), "classes": 10},
        "data": "digits", "validation": 50, "threat": Threat(math.inf, 0.05, 0.02, 3), "rows": ROWS,
        "columns": COLUMNS, "scales": {"quick": (100, Recipe(epochs=1))}, "seeds": (0,),
    }  # fmt: skip
    with pytest.raises(MarginsError, match=message):
        table("test/wrong", **declared | given)


@pytest.mark.parametrize(
    "given",
    [
        {"attack": "pgd"}, PGD | {"stepz": 3}, PGD | {"eps": 0.1}, {"attack": "pdg"}, {"steps": 3},
        PGD | {"loss": "hinge"}, PGD | {"steps": 0}, {"attack": "autoattack", "queries": -1},
    ],
)  # fmt: skip
def test_an_attack_that_cannot_be_called_is_refused_when_it_is_declared(given):
    with pytest.raises(MarginsError, match="attack of P"):
        Columns({"P": given})


def test_an_attack_that_a_record_could_not_name_is_refused():
    with pytest.raises(MarginsError, match=r"loss must be one of .*'margin-cross-entropy'"):
        Columns({"P": PGD | {"loss": losses.margin_cross_entropy}})
    assert Columns({"P": PGD | {"loss": "margin-cross-entropy"}}).settings()["attacks"]["P"]["attack"] == "pgd"


def test_an_evaluation_needs_an_attack():
    with pytest.raises(MarginsError, match="attacks must be at least one"):
        Columns({}, deepfool={})


@pytest.mark.parametrize("images", [0, -5, 2.5])
def test_a_number_of_test_images_that_cannot_be_is_refused(images):
    with pytest.raises(MarginsError, match="images must be a whole number of at least 1"):
        Columns({"P": PGD}, images=images)
