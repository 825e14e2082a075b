"""LMA's experiments: what its moving average adds, and what the claims read from the table on MNIST."""

import numpy as np
import pytest
import torch

from margins.claims import Difference, Missing
from margins.experiments import EXPERIMENTS, results
from margins.papers.lma import mnist, mnist_evidence, moving_average
from margins.papers.lma.mnist_evidence import ALONE, BASELINES, LMA, SCALED
from margins.penalties.moving_average import MovingAverage


class Table:
    """Results of a table whose images are given: row -> column -> (S, N) bool."""

    experiment = EXPERIMENTS[mnist.NAME]

    def __init__(self, rows, diverged=()):
        self.rows, self.lost = rows, diverged

    def samples(self, row, column):
        return self.rows[row][column]

    def diverged(self, row):
        return np.array([(row, seed) in self.lost for seed in range(3)])


def table(seed=0, **diverged):
    rng = np.random.default_rng(seed)
    names = (LMA, ALONE, SCALED, *BASELINES)
    rows = {}
    for i, name in enumerate(names):
        clean = rng.random((3, 200)) < 0.95 - 0.01 * i
        rows[name] = {"clean": clean, "PGD-20": clean & (rng.random((3, 200)) < 0.8)}
        rows[name]["AutoAttack"] = (rows[name]["PGD-20"] & (rng.random((3, 200)) < 0.9))[:, :50]
    return Table(rows, **diverged)


def read(id_, given):
    return mnist_evidence.EVIDENCE[id_].read({mnist.NAME: given})


@pytest.mark.parametrize(
    ("id_", "attack", "images"),
    [("lma-abs-gap-reduced", "PGD-20", 200), ("lma-abs-gap-reduced-aa", "AutoAttack", 50)],
)
def test_gaps_are_clean_minus_robust_accuracy_on_the_same_images(id_, attack, images):
    given = table()
    parts = read(id_, given)
    assert isinstance(parts[-1], Missing) and len(parts) == len(BASELINES) + 1
    for part, row in zip(parts, BASELINES, strict=False):
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
    robust, clean, scaled = read("lma-s1-logit-averaging-helps", given)
    for part, control in ((robust, ALONE), (scaled, SCALED)):
        apart = given.rows[LMA]["AutoAttack"].mean(1) - given.rows[control]["AutoAttack"].mean(1)
        assert part.values == pytest.approx(100 * apart) and (part.relation, part.delta) == (">", 0)
    assert clean.images.shape == (200,) and clean.delta == -0.5


def test_a_diverged_seed_counts_against_its_row():
    ours, theirs = table(diverged=((LMA, 1),)), table(diverged=(("AT", 1),))
    part = read("lma-abs-favourable-balance", ours)[0]
    assert np.isnan(part.values).tolist() == [False, True, False] and (part.failed, part.opposed) == (1, 0)
    part = read("lma-abs-favourable-balance", theirs)[0]
    assert (part.failed, part.opposed) == (0, 1)
    assert part.images.mean() == pytest.approx(np.nanmean(part.values))
    part = read("lma-abs-favourable-balance", table(diverged=((LMA, 1), ("AT", 1), ("AT", 2))))[0]
    assert (part.failed, part.opposed) == (1, 2)  # a seed that both lost counts against both


def test_a_collapsed_seed_has_no_small_gap_to_show_for_it():
    for name, counts in ((LMA, (1, 0)), ("AT", (0, 1))):
        given = table()
        for kept in given.rows[name].values():
            kept[2] = np.arange(kept.shape[1]) % 10 == 0  # one class of ten, and no attack changes it
        part = read("lma-abs-gap-reduced", given)[0]
        assert np.isnan(part.values).tolist() == [False, False, True] and (part.failed, part.opposed) == counts


def test_an_images_own_past_is_all_of_a_memory_by_image_and_chance_by_position():
    assert moving_average.own_share(MovingAverage(0.3, reading="sample"), 12, 4, seed=0) == pytest.approx(1)
    # By hand: the average at a position is the sum of (1 - tau) tau^s over the images that were there s steps ago
    index, tau = moving_average.batches(12, 4, moving_average.EPOCHS, seed=1), 0.3
    shares = []
    for step in range(6, 9):
        weights = {s: (1 - tau) * tau ** (step - 1 - s) for s in range(step)}
        own = torch.stack([w * (index[s] == index[step]).double() for s, w in weights.items()]).sum(0)
        shares.append(own / sum(weights.values()))
    found = moving_average.own_share(MovingAverage(tau, reading="batch"), 12, 4, seed=1)
    assert found == pytest.approx(torch.cat(shares).mean().item(), abs=1e-12)


def test_the_scaled_control_has_what_is_left_of_beta():
    kept, alone = (
        next(term for term in mnist.ROWS[row].terms if term.name == "MovingAverage") for row in (LMA, SCALED)
    )
    assert (kept.function.tau, alone.function.tau) == (0.2, 0.0)
    assert alone.coefficient == pytest.approx((1 - kept.function.tau) ** 2 * kept.coefficient)


@pytest.mark.parametrize("method", mnist.TUNED)
def test_the_betas_of_the_table_are_those_that_the_search_chose(method):
    found = results(mnist.SEARCH, "laptop")
    rows = {beta: mnist.searched(method, beta) for beta in mnist.TUNED[method][1]}
    means = {beta: found.metric(row, "validation PGD-10").mean() for beta, row in rows.items()}
    assert mnist.CHOSEN[method] == max(means, key=means.get)


def test_rows_differ_in_what_their_names_say_and_share_all_else():
    units = EXPERIMENTS[mnist.NAME].units("laptop")
    trainings = {unit.row: unit.config for unit in units if unit.part == "training"}
    shared = [{k: v for k, v in config.items() if k != "method"} for config in trainings.values()]
    assert all(config == shared[0] for config in shared)
    methods = [str(config["method"]) for config in trainings.values()]
    assert len(set(methods)) == len(methods)
