"""AMM's tables on MNIST: what they declare is what the paper prints, and claims are read from the right numbers."""

from types import SimpleNamespace

import numpy as np
import pytest

from margins.claims import Difference, Missing, published
from margins.experiments import EXPERIMENTS
from margins.methods import amm
from margins.papers.amm import EVIDENCE, data_evidence, mnist, searches, variants
from margins.papers.amm.mnist import AGGREGATION, LENET

SEEDS, IMAGES = 3, 400


class Table:
    """Results of a table: row -> column -> (S, N)."""

    def __init__(self, name, rows, scale="laptop"):
        self.experiment, self.rows, self.scale, self.records = SimpleNamespace(name=name), rows, scale, rows

    def samples(self, row, column):
        return self.rows[row][column]

    def metric(self, row, name):
        return self.rows[row][name]

    def diverged(self, row):
        return np.zeros(SEEDS, bool)


def net(errors, distance=1.0, robust=0.5, seed=0):
    """What is recorded of a row with these test errors in %, mean distance and share that withstands attacks."""
    rng = np.random.default_rng(seed)
    clean = np.tile(np.arange(IMAGES) >= IMAGES * errors / 100, (SEEDS, 1))
    found = {"clean, last": clean, "clean, train, last": clean[:, ::-1]}
    lengths = distance * (0.9 + 0.2 * rng.random((SEEDS, IMAGES)))
    for name in ("DeepFool distance, last", "DeepFool distance, train, last", "Race distance, last"):
        found[name] = np.where(clean, lengths, -lengths)
    for name in ("PGD cross-entropy, last", "PGD margin, last", "Race, last"):
        found[name] = clean & (rng.random((SEEDS, IMAGES)) < robust)
    return found


def read(id_, **tables):
    """The parts of a claim; tables: experiment's last name -> row -> numbers."""
    given = {f"amm/{name.replace('_', '-')}": rows for name, rows in tables.items()}
    return EVIDENCE[id_].read({name: Table(name, rows) for name, rows in given.items()})


def test_settings_are_those_of_the_papers_appendix():
    for _, line in published("amm", "app-table1").iterrows():
        assert mnist.CHOSEN[line.aggregation, line.shrinkage] == tuple(float(line[key]) for key in ("lambda", "c", "d"))
        part = mnist.PAIRS[f"{line.aggregation}+{line.shrinkage}"].terms[1]
        assert (part.coefficient, part.function.c, part.function.d) == tuple(
            map(float, (line["lambda"], line.c, line.d))
        )
    table = published("amm", "app-table2")
    (line,) = (one for _, one in table.iterrows() if (one.dataset, one.model) == ("MNIST", "MLP"))
    recipe = mnist.recipe(int(line.epochs))
    assert (recipe.batch_size, recipe.lr) == (int(line.batch_size), float(line.initial_lr))
    assert recipe.drops == tuple(
        (float(line[f"lr_drop{i}_epoch"]) / recipe.epochs, float(line[f"lr_drop{i}_multiplier"])) for i in (1, 2)
    )
    assert (recipe.momentum, recipe.weight_decay, recipe.clip) == (0.9, 1e-4, 10.0)


def test_the_tables_that_a_laptop_records_are_those_that_the_claims_read():
    laptop = {name for name, one in EXPERIMENTS.items() if name.startswith("amm/") and "laptop" in one.scales}
    read = {name for id_, one in EVIDENCE.items() if "-f4-" in id_ or "-f5-" in id_ for name in one.experiments}
    assert read <= laptop and len(data_evidence.NOISY) == 4 and len(data_evidence.FEW) == 2
    assert mnist.NOISE[data_evidence.MOST] == pytest.approx(55 / 60)


@pytest.mark.parametrize(
    ("id_", "rows", "relation", "value"),
    [
        ("amm-t1-avg-lin-worse", {"reference": net(5), "AVG+LIN": net(8)}, "<", -3),
        ("amm-t1-min-lin-beats-avg-lin", {"MIN+LIN": net(4), "AVG+LIN": net(8)}, "<", -4),
        ("amm-t1-min-lin-beats-reference", {"MIN+LIN": net(4), "reference": net(5)}, "<", -1),
    ],
)
def test_an_ordering_is_the_difference_of_errors(id_, rows, relation, value):
    (part,) = read(id_, aggregation=rows)
    assert isinstance(part, Difference) and (part.relation, part.delta) == (relation, 0.0)
    np.testing.assert_allclose(part.values, value)
    assert part.resolution == 100 / IMAGES and part.images.mean() == pytest.approx(value)


def test_far_is_half_of_the_printed_difference_at_the_papers_scale_only():
    rows = {"MIN+LIN": net(4), "AVG+LIN": net(8)}
    (part,) = EVIDENCE["amm-t1-min-lin-beats-avg-lin"].read({AGGREGATION: Table(AGGREGATION, rows, "paper")})
    assert part.delta == -0.5


def test_numbers_are_compared_with_the_published_tables():
    rows = {"reference": net(2), "AVG+LIN": net(2.5), "MIN+EXP": net(1)}
    reference, worse, rise = read("amm-t1-reference-and-avg-lin-numbers", aggregation=rows)
    np.testing.assert_allclose(reference.values, 2 - 1.79)
    np.testing.assert_allclose(worse.values, 2.5 - 2.26)
    np.testing.assert_allclose(rise.values, 0.5 - 0.47)
    near, ratio = read("amm-t1-min-exp-number", aggregation=rows)
    np.testing.assert_allclose(near.values, 1 - 0.90)
    np.testing.assert_allclose(ratio.values, 0.5)
    assert (ratio.relation, ratio.delta) == ("<", 0.62)
    gains = read(
        "amm-t1-relative-gains-numbers", aggregation={pair: net(4 if "LIN" in pair else 2) for pair in mnist.PAIRS}
    )
    printed = [1 - 1.18 / 2.26, 1 - 0.94 / 2.26, 1 - 0.97 / 1.28, 1 - 0.90 / 1.28]
    np.testing.assert_allclose([part.values[0] for part in gains], 0.5 - np.array(printed))


def test_the_numbers_of_the_papers_text_are_those_of_its_settings():
    few, whole = read("amm-f4-numbers", less_data_third={"MIN+EXP": net(2)}, aggregation={"reference": net(2)})
    np.testing.assert_allclose([few.values[0], whole.values[0]], [2 - 1.54, 2 - 1.81])
    (part,) = read("amm-t2-number-without-high-order", gradients={variants.FIRST: net(2)})
    np.testing.assert_allclose(part.values, 2 - 1.46)


def test_larger_margins_are_asked_of_both_attacks_and_both_nets():
    rows = {"reference": net(2, 1.0), "MIN+EXP": net(2, 2.0, 0.9)}
    parts = read("amm-t3-margin-larger", aggregation=rows, lenet=rows)
    assert isinstance(parts[-1], Missing) and len(parts) == 5
    for part in parts[:-1]:
        assert part.relation == ">" and part.unit == "input units" and (part.values > 0.9).all()
    robust = read("amm-s1-amm-more-robust", aggregation=rows, lenet=rows)
    assert len(robust) == 2 and all((part.values > 10).all() for part in robust)


def test_a_distance_that_was_not_found_counts_as_the_longest():
    rows = {"reference": net(2, 1.0), "MIN+EXP": net(2, 1.0)}
    rows["MIN+EXP"]["Race distance, last"][0, -1] = np.inf
    part = next(
        part for part in read("amm-t3-margin-larger", aggregation=rows, lenet=rows) if "MLP, Race" in part.label
    )
    assert np.isfinite(part.values).all() and part.values[0] > 0


def test_margins_predict_by_kendalls_tau_among_nets_that_fit():
    """Four rows whose gap falls as the margin grows, one that does not fit its training images."""
    rows = {f"row {k}": net(8 - k, 1.0 + k) | {"clean, train, last": np.ones((SEEDS, IMAGES), bool)} for k in range(4)}
    for k, row in enumerate(rows.values()):
        row["DeepFool distance, train, last"] = np.full((SEEDS, IMAGES), 1.0 + k)
    part, missing = read("amm-s32-margin-predicts-test-error", aggregation=rows | {"unfit": net(50, 9.0)})
    np.testing.assert_allclose(part.values, -1)
    assert isinstance(missing, Missing) and "8 of 20 nets" in missing.label


def test_noise_has_to_rise_from_point_to_point_and_by_twenty_points():
    tables = {
        name.split("/")[1].replace("-", "_"): {"reference": net(10 * (k + 2))}
        for k, name in enumerate(data_evidence.NOISY)
    }
    parts = read("amm-f5-reference-breaks-with-noise", aggregation={"reference": net(3)}, **tables)
    np.testing.assert_allclose([part.values[0] for part in parts], [17, 10, 10, 10, 47])
    assert [part.delta for part in parts] == [0, 0, 0, 0, 20]


def test_the_grid_is_not_beaten_by_a_neighbour():
    candidates = searches.neighbours(searches.OURS)
    assert len(candidates) == 7 and candidates[0] == {"pair": "MIN+EXP", "coefficient": 32.0, "c": 2.0, "d": 1.0}
    rows = {searches.name_of(one): {"validation clean": np.full(3, 97.0 + k)} for k, one in enumerate(candidates)}
    (*parts, missing) = EVIDENCE["amm-appt1-grid-search-optimum"].read({searches.GRID: Table(searches.GRID, rows)})
    np.testing.assert_allclose([part.values[0] for part in parts], [-1, -2, -3, -4, -5, -6])
    assert all((part.relation, part.delta) == (">", -0.1) for part in parts) and isinstance(missing, Missing)


def test_variants_are_judged_against_table_1():
    ours, first = {"MIN+EXP": net(2, 2.0), "reference": net(5)}, {variants.FIRST: net(3, 1.5)}
    (part,) = read("amm-t2-high-order-helps", gradients=first, aggregation=ours)
    np.testing.assert_allclose(part.values, 1)
    (part,) = read("amm-s311-no-high-order-weaker-on-margin", gradients=first, aggregation=ours)
    assert part.relation == "<" and (part.values < -0.4).all()
    (part,) = read("amm-s334-loss-choice-irrelevant", hinge={"MIN+EXP, hinge": net(2.5)}, aggregation=ours)
    assert (part.relation, part.delta) == ("within", 0.1) and part.values[0] == pytest.approx(0.5)
    assert variants.EVIDENCE and not amm(second_order=False).terms[1].function.second_order
    assert EXPERIMENTS[LENET].rows.keys() == {"reference", "MIN+EXP"}
