"""What EMR's claims on its tables are read from: measures on known arrays, and verdicts on known tables."""

import numpy as np
import pytest

from margins.experiments import find
from margins.papers.emr import networks_evidence as evidence
from margins.papers.emr import networks_reading as reading
from margins.papers.emr.networks import CNN, MLP, MORE, TWO, named
from margins.papers.emr.networks_reading import printed
from margins.papers.emr.networks_shown import Shown
from margins.verdicts import page

S, N = 3, 200
#: row -> clean and robust accuracy in %, mean margin of correct images: like the paper's Table 1.
TABLE = {
    "ST, 0": (98, 5, 0.7), "ST, 0.0001": (98, 5, 0.8), "ST, 0.001": (98, 25, 1.1), "ST, 0.01": (96, 45, 1.3),
    "ST, 0.1": (40, 35, 1.0), "ST+LSoftmax, 0.0001": (98, 30, 1.35), "ST+LSoftmax, 0.001": (98, 50, 1.8),
    "ST+LSoftmax, 0.01": (98, 60, 1.9), "ST+EMR, 0.001": (97, 86, 2.2), "ST+EMR, 0": (97, 80, 1.9),
    "ST+EMR, one probe, 0.001": (97, 85, 2.2), "AT, 0.001": (98, 90, 2.3), "AT+LSoftmax, 0.001": (98, 90, 2.3),
    "AT+EMR, 0.001": (98, 95, 2.4),
}  # fmt: skip


def right(share, images, seed):
    """(S, N) of which each seed has nearly that share in %."""
    order = (np.arange(images) * 7 + seed) % images
    return np.stack([order < share / 100 * images + s for s in range(S)])


class Results:
    """Of the MLP's table, with what TABLE says."""

    experiment = find(MLP)
    seeds = (0, 1, 2)

    def __init__(self, **changed):
        self.table = TABLE | changed
        self.records = {
            row: [type("Record", (), {"config": {"recipe": {"snapshots": [1, 5, 10]}}})] for row in self.table
        }

    def diverged(self, row):
        return np.zeros(S, dtype=bool)

    def curve(self, row, name):
        assert name == "cross_entropy at clean"
        return np.tile(np.geomspace(1.0, 0.01, 10), (S, 1))

    def samples(self, row, name):
        clean, kept, width = self.table[row]
        correct = right(clean, N, 0)
        if name.startswith("effective"):
            epochs = np.array([0.9, 1.0, 1.0])[:, None]
            noise = 0.01 * np.arange(S)[:, None, None]
            return np.where(correct[:, None], width * epochs, -1.0) + noise
        if name.startswith("weights"):
            return np.ones((S, 3, N)) * np.array([1.0, 4.0, 9.0])[:, None]
        if name == "Race distance, last":
            return np.where(right(kept - 2, N, 0), 0.2, 0.05)
        return {"clean, last": correct, "PGD, last": right(kept, N, 0), "margin PGD, last": right(kept - 1, N, 0)}[name]


def test_margins_are_means_over_correct_images():
    values = np.array([[1.0, 3.0, -5.0], [-1.0, -2.0, -3.0]])
    assert reading.average(values).tolist() == [2.0, 0.0]
    assert reading.margin(Results(), "ST, 0") == pytest.approx([0.7, 0.71, 0.72], abs=1e-3)


def test_the_strong_attack_is_the_worse_of_two():
    found = reading.strong(Results(), "AT, 0.001")
    assert found.mean(1) == pytest.approx([88.0, 88.5, 89.0], abs=0.6)


def test_the_best_of_some_rows_has_not_collapsed():
    assert reading.of(Results(), "ST") == ["ST, 0", "ST, 0.0001", "ST, 0.001", "ST, 0.01"]
    assert reading.best(Results(), ["ST"], reading.robust) == "ST, 0.01"
    assert reading.best(Results(), ["ST", "ST+LSoftmax"], reading.robust) == "ST+LSoftmax, 0.01"
    assert reading.method("ST+EMR, one probe, 0.001") == "ST+EMR, one probe" and named("AT", 1e-4) == "AT, 0.0001"


def outcome(id_, results):
    (mlp, *_) = evidence.EVIDENCE[id_]
    return page({"c": list(mlp.read({MLP: results}))}, "laptop")["c"].outcome


@pytest.mark.parametrize(
    ("id_", "changed"),
    [
        ("emr-s1-wd-alone-not-robust", {"ST, 0.01": (96, 89, 1.3)}),
        ("emr-s1-emr-and-at-complementary", {"AT+EMR, 0.001": (98, 80, 2.4)}),
        ("emr-s3-margin-predicts-robustness", {"AT+EMR, 0.001": (98, 5, 2.4), "ST, 0": (98, 99, 0.7)}),
        ("emr-f1b-emr-margin-like-at", {"ST+EMR, 0.001": (97, 86, 1.5)}),
        ("emr-f1b-emr-robust-like-at", {"ST+EMR, 0.001": (97, 70, 2.2)}),
        ("emr-f1d-wd-margin-mnist", {"ST, 0.01": (96, 45, 0.6)}),
        ("emr-f2-lsoftmax-helps-mlp", {"ST+LSoftmax, 0.01": (98, 60, 1.2)}),
        ("emr-f2-emr-highest-margin", {"ST, 0.01": (96, 45, 2.6)}),
        ("emr-t1-wd-below-lsoftmax-emr", {"ST, 0.01": (96, 75, 1.3)}),
        ("emr-t1-emr-beats-lsoftmax", {"ST+LSoftmax, 0.01": (98, 84, 1.9)}),
        ("emr-t12-emr-needs-wd", {"ST+EMR, 0": (97, 90, 1.9)}),
        ("emr-t1-at-emr-robust", {"AT, 0.001": (98, 100, 2.3), "AT+EMR, 0.001": (98, 90, 2.4)}),
        ("emr-f2-at-margin-mlp", {"AT, 0.001": (98, 90, 2.7)}),
        (
            "emr-t12-gain-smaller-in-at",
            {"AT+EMR, 0.001": (98, 99, 4.4), "AT, 0.001": (98, 60, 2.3), "AT+LSoftmax, 0.001": (98, 60, 2.3)},
        ),
    ],
)
def test_a_table_like_the_papers_supports_a_claim_and_another_contradicts_it(id_, changed):
    assert outcome(id_, Results()) == "supported"
    assert outcome(id_, Results(**changed)) == "contradicted"


def test_loss_falls_and_weights_grow_but_not_the_margin():
    parts = evidence._grows(MLP, Results())
    # learned at the first epoch: the loss from 1 to 0.01, lengths of weights from 1 to 3, margins from 0.9 to 1
    assert [np.exp(part.values[0]) for part in parts] == pytest.approx([0.01, 3.0, 1 / 0.9], rel=1e-2)
    assert page({"c": parts}, "laptop")["c"].outcome == "supported"


def test_a_training_has_failed_whose_images_are_wrong():
    def accuracy(right):
        parts = evidence._two_fails(CNN, Results(**{TWO: (right, 5, 0.7)}))
        assert [part.label for part in parts[1:]] == ["other annealings, m = 3 and 4"]
        assert parts[0].relation == "<" and parts[0].delta == 20
        return parts[0].values

    assert accuracy(10) == pytest.approx([10.0] * S, abs=1) and accuracy(90) == pytest.approx([90.0] * S, abs=1)
    found = Results(**{TWO: (90, 5, 0.7)})
    found.samples = lambda row, name: np.full((S, 3, N), np.nan)  # it diverged
    assert evidence._two_fails(CNN, found)[0].values == pytest.approx([0.0] * S)


def test_where_all_rows_of_a_method_collapsed_nothing_is_decided():
    gone = {row: (12, 5, 0.1) for row in TABLE if row.startswith("ST+LSoftmax")}
    assert outcome("emr-t1-emr-beats-lsoftmax", Results(**gone)) == "undecided"
    (mlp, *_) = evidence.EVIDENCE["emr-t1-emr-beats-lsoftmax"]
    (part,) = mlp.read({MLP: Results(**gone)})
    assert part.label == "MLP: no row of ST+LSoftmax that has not collapsed"


def test_a_net_that_never_learns_has_no_such_part():
    parts = evidence._grows(MLP, Results(**{"ST, 0": (40, 5, 0.7)}))
    assert all(np.isnan(part.values).all() and part.failed == S for part in parts)


def test_claims_about_the_cnn_wait_for_a_gpu():
    for found in evidence.EVIDENCE.values():
        for one in found:
            assert one.since == ("quick" if one.experiments == (MLP,) else "gpu")


def test_the_page_shows_printed_and_measured_numbers_at_their_rows():
    shown = Shown("laptop", {MLP: Results()})
    lines = shown.lines(MLP).set_index("row")
    assert list(lines.index) == list(find(MLP).rows)
    assert lines["PGD-20, paper"]["AT+EMR, 0.001"] == "92.78" and lines["test margin, paper"]["ST, 0.1"] == "1.02"
    assert lines["clean"]["ST, 0"].startswith("98.5") and lines["test margin"]["ST, 0"].startswith("0.71")
    assert lines["clean, paper"].isna()["ST+EMR, 0"]  # which the paper does not have
    assert set(printed(MLP).index) <= set(find(MLP).rows) | set(find(MORE).rows)
    assert shown.epochs(MLP) == [1, 2, 4, 6, 8, 10]
    assert shown.best(MLP)["ST"] == "ST, 0.01" and shown.best(MLP)["ST+EMR"] == "ST+EMR, 0.001"
    assert shown.lengths(MLP, "ST, 0")[0].tolist() == [1.0, 2.0, 3.0]


def test_effective_margins_stand_beside_the_distances_of_correct_images():
    class Near(Results):
        def samples(self, row, name):
            found = super().samples(row, name if name != "Race, along" else "effective, along")
            return 0.5 * found[:, [0, -1], :50] if name == "Race, along" else found

    shown = Shown("laptop", {MLP: Near()})
    effective, distance = shown.true(MLP, "ST, 0.1")
    assert effective.shape == (S, 50) and np.isnan(effective).any()
    assert np.nanmax(abs(effective / distance - 2)) < 0.1 and np.array_equal(np.isnan(effective), np.isnan(distance))
