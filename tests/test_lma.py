"""LMA's experiments: what its moving average adds, and what the claims read from the table on MNIST."""

import numpy as np
import pytest
import torch

from margins.claims import Difference, Missing
from margins.experiments import EXPERIMENTS, results
from margins.papers.lma import mnist, mnist_evidence, moving_average
from margins.papers.lma.mnist_evidence import ALONE, BASELINES, LMA
from margins.penalties.moving_average import MovingAverage
from margins.search import best


class Table:
    """Results of a table whose images are given: row -> column -> (S, N) bool."""

    def __init__(self, rows, diverged=()):
        self.rows, self.lost = rows, diverged

    def samples(self, row, column):
        return self.rows[row][column]

    def diverged(self, row):
        return np.array([(row, seed) in self.lost for seed in range(3)])


def table(seed=0, **diverged):
    rng = np.random.default_rng(seed)
    names = (LMA, ALONE, *BASELINES)
    rows = {}
    for i, name in enumerate(names):
        clean = rng.random((3, 200)) < 0.95 - 0.01 * i
        rows[name] = {"clean": clean, "PGD-20": clean & (rng.random((3, 200)) < 0.8)}
        rows[name]["AutoAttack"] = (rows[name]["PGD-20"] & (rng.random((3, 200)) < 0.9))[:, :50]
    return Table(rows, **diverged)


def read(id_, given):
    return mnist_evidence.EVIDENCE[id_].read({mnist.NAME: given})


def test_gaps_are_clean_minus_robust_accuracy_on_the_same_images():
    given = table()
    parts = read("lma-abs-gap-reduced", given)
    assert isinstance(parts[-1], Missing) and len(parts) == 2 * len(BASELINES) + 1
    for part, (attack, images), row in (
        (parts[0], ("PGD-20", 200), "AT"),
        (parts[5], ("AutoAttack", 50), "MART"),
    ):
        assert isinstance(part, Difference) and part.relation == "<" and row in part.label and attack in part.label
        for seed in range(3):
            ours, theirs = (given.rows[name] for name in (LMA, row))
            gaps = [100 * (r["clean"][seed][:images].mean() - r[attack][seed].mean()) for r in (ours, theirs)]
            assert part.values[seed] == pytest.approx(gaps[0] - gaps[1])


def test_the_balance_is_the_mean_of_clean_and_autoattack_on_the_same_images():
    given = table()
    part = read("lma-abs-favourable-balance", given)[1]
    assert "TRADES" in part.label and part.relation == ">"
    rows = (given.rows[name] for name in (LMA, "TRADES"))
    ours, theirs = ((row["clean"][:, :50].mean(1) + row["AutoAttack"].mean(1)) / 2 for row in rows)
    assert part.values == pytest.approx(100 * (ours - theirs))


def test_averaging_is_judged_by_autoattack_with_little_clean_accuracy_lost():
    given = table()
    robust, clean = read("lma-s1-logit-averaging-helps", given)
    apart = given.rows[LMA]["AutoAttack"].mean(1) - given.rows[ALONE]["AutoAttack"].mean(1)
    assert robust.values == pytest.approx(100 * apart) and (robust.relation, robust.delta) == (">", 0)
    assert clean.images.shape == (200,) and clean.delta == -0.5


def test_a_diverged_seed_counts_against_its_row():
    ours, theirs = table(diverged=((LMA, 1),)), table(diverged=(("AT", 1),))
    part = read("lma-abs-favourable-balance", ours)[0]
    assert np.isnan(part.values).tolist() == [False, True, False] and (part.failed, part.opposed) == (1, 0)
    part = read("lma-abs-favourable-balance", theirs)[0]
    assert (part.failed, part.opposed) == (0, 1)
    assert part.images.mean() == pytest.approx(np.nanmean(part.values))


def test_an_images_own_past_is_all_of_a_memory_by_image_and_chance_by_position():
    assert moving_average.own_share(MovingAverage(0.3, reading="sample"), 12, 4, seed=0) == pytest.approx(1)
    # By hand: the average at a position is the sum of (1 - tau) tau^s over the images that were there s steps ago
    index, tau = moving_average._batches(12, 4, seed=1), 0.3
    shares = []
    for step in range(6, 9):
        weights = {s: (1 - tau) * tau ** (step - 1 - s) for s in range(step)}
        own = torch.stack([w * (index[s] == index[step]).double() for s, w in weights.items()]).sum(0)
        shares.append(own / sum(weights.values()))
    found = moving_average.own_share(MovingAverage(tau, reading="batch"), 12, 4, seed=1)
    assert found == pytest.approx(torch.cat(shares).mean().item(), abs=1e-12)


def test_the_recorded_choice_of_beta_is_the_one_that_the_table_uses():
    found = results(mnist.SEARCH, "laptop")
    for tau, chosen in ((0.2, mnist.CHOSEN), (0.0, mnist.CHOSEN_ALONE)):
        rows = {row: found.records[row] for row in found.records if row.startswith(f"tau {tau}")}
        means = {row: found.metric(row, "validation PGD-10").mean() for row in rows}
        top = max(means, key=means.get)
        assert top == f"tau {tau}, beta {chosen}"
    assert best(found, "validation PGD-10") in found.records


def test_rows_differ_in_what_their_names_say_and_share_all_else():
    units = EXPERIMENTS[mnist.NAME].units("laptop")
    trainings = {unit.row: unit.config for unit in units if unit.part == "training"}
    shared = [{k: v for k, v in config.items() if k != "method"} for config in trainings.values()]
    assert all(config == shared[0] for config in shared)
    methods = [str(config["method"]) for config in trainings.values()]
    assert len(set(methods)) == len(methods)
