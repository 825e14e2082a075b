"""EMR's approximation beside the exact penalty: what is declared, what is chosen by what, and how claims are read."""

from types import SimpleNamespace

import numpy as np
import pytest

from margins.claims import published
from margins.experiments import find
from margins.papers.emr import approximate, networks_numbers
from margins.papers.emr.approximate import OF_CNN, OF_MLP, SOFT, WARM, Kind, chosen, coefficients, named, nearest
from margins.papers.emr.networks import CNN, MLP, MORE
from margins.papers.emr.networks_reading import printed
from margins.verdicts import page

S, N = 3, 10_000
EXACT, WARMED = Kind("AT", None), Kind("AT", WARM)


def row(held=50.0, kept=60.0, length=1.0, cosine=0.5, width=1.0, clean=90.0):
    """What is recorded of a row: accuracy in % on held-out and test images, weights, cosine, margin."""
    return SimpleNamespace(held=held, kept=kept, length=length, cosine=cosine, width=width, clean=clean)


class Results:
    """A table in which all rows are alike but for those that are given."""

    def __init__(self, name, **rows):
        self.experiment = find(name)
        self.rows = {label: rows.get(label, row()) for label in self.experiment.rows}
        self.records = self.rows
        self.gone = ()

    def diverged(self, label):
        return np.full(S, label in self.gone)

    def curve(self, label, name):
        assert name == "validation PGD-10"
        return np.tile([0.0, self.rows[label].held], (S, 1)) + 0.01 * np.arange(S)[:, None]

    def samples(self, label, name):
        told, seeds = self.rows[label], np.arange(S)[:, None]
        if name in ("PGD, last", "clean, last"):
            share = told.kept if name == "PGD, last" else told.clean
            return (np.arange(N) * 7 + seeds) % N < share / 100 * N
        if name in ("Race distance, last", "margin PGD, last"):
            return np.ones((S, N))
        value = {"weights": told.length, "cosine": told.cosine, "effective": told.width}[name.removesuffix(", along")]
        return (value + 0.001 * seeds)[:, :, None] * np.ones((S, 2, N))


def outcome(id_, results, evidence=None):
    evidence = (evidence or approximate.EVIDENCE)[id_]
    (one,) = [one for one in evidence if one.experiments == (results.experiment.name,)]
    return page({"c": list(one.read({results.experiment.name: results}))}, "paper")["c"].outcome


@pytest.mark.parametrize(("name", "net"), [(OF_MLP, MLP), (OF_CNN, CNN)])
def test_rows_differ_in_the_penalty_alone(name, net):
    declared = find(name).rows
    assert find(name).settings["model"] == find(net).settings["model"]
    printed_ = {float(v) for v in published("emr", "table1" if net == MLP else "table2")["lambda_emr"] if v}
    for kind, values in coefficients(net).items():
        if kind.temperature is None:
            assert printed_ & set(values)
        for value in values:
            given = declared[named(kind, value)]["method"]
            (*_, penalty) = given["phases"][0]["terms"]
            assert penalty["coefficient"] == value and given["recipe"] == declared["ST"]["method"]["recipe"]
            assert penalty["function"].get("temperature") == kind.temperature
            assert penalty["at"] == ("adversarial" if kind.beside == "AT" else "clean")
            assert (given.get("head") or {}).get("kind") == ("centred" if kind.centred else None)


def test_a_coefficient_is_chosen_on_held_out_images_and_never_on_test_images():
    first, second = (named(WARMED, value) for value in coefficients(MLP)[WARMED])
    found = Results(OF_MLP, **{first: row(held=70, kept=10), second: row(held=60, kept=99)})
    assert chosen(found, WARMED) == first
    assert chosen(found, EXACT, WARMED) == first
    found.gone = (first,)
    assert chosen(found, WARMED) == second
    found.gone = (first, second)
    assert chosen(found, WARMED) in (first, second)  # a diverged row, which then counts against the kind


def test_the_exact_row_that_is_compared_has_gradients_about_as_long():
    one, other = (named(EXACT, value) for value in coefficients(MLP)[EXACT])
    about = named(WARMED, coefficients(MLP)[WARMED][0])
    found = Results(OF_MLP, **{one: row(length=1.0), other: row(length=10.0), about: row(length=4.0)})
    assert nearest(found, about) == other


def test_claims_on_the_approximation_are_read_from_the_chosen_rows():
    ours, exact = (named(kind, coefficients(MLP)[kind][0]) for kind in (WARMED, EXACT))
    alike = {ours: row(held=90, kept=70, cosine=0.2), exact: row(held=90, kept=70)}
    found = Results(OF_MLP, **alike)
    assert (
        outcome("emr-s4-approx-comparable", found) == outcome("emr-s4-cross-terms-lower-cosine", found) == "supported"
    )
    weaker = Results(OF_MLP, **alike | {ours: row(held=90, kept=65, cosine=0.8)})
    assert outcome("emr-s4-approx-comparable", weaker) == "contradicted"
    assert outcome("emr-s4-cross-terms-lower-cosine", weaker) == "contradicted"


def test_on_the_cnn_only_a_loss_counts_in_adversarial_training():
    ours, exact = (named(kind, coefficients(CNN)[kind][0]) for kind in (Kind("AT", SOFT), EXACT))
    ahead = Results(OF_CNN, **{ours: row(held=90, kept=75), exact: row(held=90, kept=70)})
    assert outcome("emr-s4-approx-comparable", ahead) == outcome("emr-s4-approx-better-cnn-at", ahead) == "supported"
    behind = Results(OF_CNN, **{ours: row(held=90, kept=65), exact: row(held=90, kept=70)})
    assert {outcome(f"emr-s4-approx-{one}", behind) for one in ("comparable", "better-cnn-at")} == {"contradicted"}


@pytest.mark.parametrize(("id_", "name"), [("emr-t1-numbers", MLP), ("emr-t1-numbers", MORE), ("emr-t2-numbers", CNN)])
def test_printed_numbers_are_met_or_not(id_, name):
    paper = printed(name)
    told = {
        label: row(kept=float(line["pgd"]), clean=float(line["clean"]), width=float(line["m_test"]))
        for label, line in paper.iterrows()
        if label in find(name).rows
    }
    assert told
    assert outcome(id_, Results(name, **told), networks_numbers.EVIDENCE) == "supported"
    (first, one), *_ = told.items()
    for changed in ({"kept": one.kept - 10}, {"clean": one.clean - 10}, {"width": 1.5 * one.width}):
        moved = Results(name, **told | {first: row(**vars(one) | changed)})
        assert outcome(id_, moved, networks_numbers.EVIDENCE) == "contradicted"


def test_all_printed_rows_are_judged():
    assert set(printed(MLP).index) <= {*find(MLP).rows, *find(MORE).rows}
    assert set(printed(CNN).index) <= set(find(CNN).rows)
