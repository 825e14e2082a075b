"""The verdict rule against what is known: scipy's t-test, a hand-worked Holm table, and simulated truths."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from margins.claims import Check, Claim, Difference, Evidence, Missing
from margins.errors import MarginsError
from margins.intervals import holm, interval, of_mean, spreads
from margins.verdicts import page, verdicts

RNG = np.random.default_rng


def decide(*parts, scale="quick"):
    """The verdict of one claim that is alone on its page."""
    return page({"c": list(parts)}, scale)["c"]


def of(d):
    return interval(d, *spreads([d])[id(d)])


def test_without_images_and_pool_it_is_the_t_test():
    a, b = RNG(0).normal([[1.0], [0.6]], 0.3, (2, 7))
    found = of(Difference("a - b", a - b, ">"))
    for expected in (stats.ttest_rel(a, b), stats.ttest_1samp(a - b, 0.0)):
        low, high = expected.confidence_interval(0.95)
        assert found[:4] == pytest.approx([np.mean(a - b), low, high, 6])
        assert found.p_for == pytest.approx(expected.pvalue) and found.p_against == 1
    shifted = of(Difference("a - b", a - b, "<", 0.1))
    assert shifted.p_against == pytest.approx(stats.ttest_1samp(a - b, 0.1).pvalue) and shifted.p_for == 1


def test_the_mean_of_a_row_has_the_t_interval_of_what_varies():
    seeds, images = RNG(2).normal(60.0, 0.5, 4), RNG(3).normal(60.0, 20.0, 200)
    low, high = stats.ttest_1samp(seeds, 0.0).confidence_interval(0.95)
    assert of_mean(seeds)[:4] == pytest.approx([seeds.mean(), low, high, 3])
    low, high = stats.ttest_1samp(images, 0.0).confidence_interval(0.95)
    assert of_mean([images.mean()], images)[:4] == pytest.approx([images.mean(), low, high, 199])
    both = of_mean(seeds + images.mean() - seeds.mean(), images)
    wider = np.hypot(stats.t.ppf(0.975, 3) * stats.sem(seeds), stats.t.ppf(0.975, 199) * stats.sem(images))
    assert both.high - both.estimate == pytest.approx(wider)


def test_given_weights_have_the_t_test_over_images():
    images = RNG(1).normal(0.3, 1.0, 300)
    verdict = decide(Difference("a - b", [images.mean()], ">", images=images, these_weights=True))
    expected = stats.ttest_1samp(images, 0.0)
    assert verdict.these_weights and verdict.outcome == "supported" and verdict.p == pytest.approx(expected.pvalue)
    part = verdict.parts[0]
    assert [part.low, part.high] == pytest.approx([*expected.confidence_interval(0.95)])
    assert (part.seeds, part.images, part.df) == (1, 300, 299)


def test_a_verdict_is_about_given_weights_only_where_no_part_is_about_others():
    images = RNG(1).normal(0.3, 1.0, 300)
    given = Difference("a - b", [images.mean()], ">", images=images, these_weights=True)
    trained = Difference("c - d", [0.3, 0.31, 0.29], ">")
    assert decide(given, Missing("e - f")).these_weights and not decide(given, trained).these_weights


def test_both_variances_add_with_their_own_quantiles():
    values, images = np.array([1.0, 2.0, 3.0]), np.array([0.0, 4.0] * 8)
    seeds, over = 1 / 3, np.var(images, ddof=1) / 16
    half = np.sqrt(stats.t.ppf(0.975, 2) ** 2 * seeds + stats.t.ppf(0.975, 15) ** 2 * over)
    found = of(Difference("d", values, ">", images=images))
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))


@pytest.mark.parametrize("relation, delta", [(">", 0.1), ("<", 0.1), ("within", 0.4)])
def test_p_values_and_interval_say_the_same(relation, delta):
    rng = RNG(2)
    for _ in range(300):
        images = rng.normal(rng.normal(0, 0.7), 1.0, 40)
        values = images.mean() + stats.zscore(rng.normal(size=4)) * rng.choice([0.01, 0.3])
        found = of(Difference("d", values, relation, delta, images=images))
        above, below = found.low > delta, found.high < delta
        inside = {">": above, "<": below, "within": below and found.low > -delta}[relation]
        out = {">": below, "<": above, "within": above or found.high < -delta}[relation]
        assert (found.p_for < 0.05) == inside and (found.p_against < 0.05) == out


def test_holm_by_hand():
    # 4 x 0.01 = 0.04; 3 x 0.02 = 0.06; 2 x 0.02 is below the one before, so 0.06; 0.9
    assert holm([0.9, 0.02, 0.01, 0.02]) == pytest.approx([0.9, 0.06, 0.04, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([]) == []


def test_holm_takes_a_verdict_back_and_says_so():
    def near(t):  # 3 seeds with a t value of t
        return Difference("d", np.sqrt(3) * np.array([-1.0, 0.0, 1.0]) + t, ">")

    alone, both = page({"a": [near(5.0)]}, "quick"), page({"a": [near(5.0)], "b": [near(0.0)]}, "quick")
    assert alone["a"].outcome == "supported" and alone["a"].p_holm == alone["a"].p
    assert both["a"].outcome == "undecided" and both["a"].p < 0.05 < both["a"].p_holm
    assert both["a"].parts[0].outcome == "supported" and "Holm" in both["a"].reason
    exact = page({"a": [near(5.0)], "b": [Check("c", np.ones(1, bool), 1.0, "1")]}, "quick")
    assert exact["a"].outcome == "supported" and exact["b"].p is None  # exact checks are outside the family


def test_pooling_by_hand():
    a, b, wild = np.array([0.0, 1.0, 2.0]), np.array([3.0, 1.0, -1.0]), np.array([0.0, 90.0, 10.0])
    one, two = Difference("a", a, ">", pool=("e", "m")), Difference("b", b, ">", pool=("e", "m"))
    # variances 1 and 4; the two move as one (correlation -1), so they have the 2 degrees of freedom of one
    assert spreads([one, two])[id(one)] == pytest.approx((2.5, 2.0))
    apart = Difference("b", np.array([1.0, -1.0, 1.0]), ">", pool=("e", "m"))  # variance 4/3, correlation 0 with a
    assert spreads([one, apart])[id(one)] == pytest.approx((7 / 6, 2 * (7 / 3) ** 2 / (1 + 16 / 9)))
    # another pool, no pool, over 10 times the variance, a seed that is missing: its own
    for other in (Difference("b", b, ">", pool=("f", "m")), Difference("b", b, ">"),
                  Difference("w", wild, ">", pool=("e", "m")),
                  Difference("n", [*b, np.nan], ">", pool=("e", "m"), failed=1)):  # fmt: skip
        assert spreads([one, other])[id(one)] == (1.0, 2)
    # an equal comparison that stands in two claims counts once
    again = Difference("a", a, ">", pool=("e", "m"))
    assert spreads([one, again])[id(one)] == pytest.approx((1.0, 2.0))


def test_the_resolution_is_the_floor_and_without_one_zero_variance_is_exact():
    equal = np.full(4, 0.5)
    assert spreads([d := Difference("d", equal, ">", resolution=0.1)])[id(d)] == (pytest.approx(0.01), 3)
    assert decide(Difference("d", equal, ">")).outcome == "supported" and decide(Difference("d", equal, ">")).p == 0
    assert decide(Difference("d", equal, "<")).outcome == "contradicted"
    assert decide(Difference("d", equal, ">", 0.5)).outcome == "undecided"
    assert decide(Difference("d", equal, "within", 0.5)).outcome == "undecided"
    assert decide(Difference("d", equal, ">", resolution=0.5)).outcome == "undecided"


def test_diverged_seeds():
    good, nan = [5.0, 5.1, 4.9], [np.nan]
    one = decide(Difference("d", good + nan, ">", failed=1))
    assert one.outcome == "undecided" and "1 of 4 seeds diverged" in one.reason and one.parts[0].estimate == 5.0
    assert decide(Difference("d", good + nan, "<", failed=1)).outcome == "contradicted"
    assert decide(Difference("d", good + nan, ">", opposed=1)).outcome == "supported"
    assert decide(Difference("d", good + nan, "<", opposed=1)).outcome == "undecided"
    assert decide(Difference("d", good + nan * 4, ">", failed=4)).outcome == "contradicted"
    assert decide(Difference("d", nan * 3, ">", failed=3)).outcome == "contradicted"
    assert decide(Difference("d", nan * 3, ">", failed=3, opposed=3)).outcome == "undecided"
    assert decide(Difference("d", good[:2] + nan, ">", opposed=1)).reason == "d: fewer than 3 seeds, as 1 of 3 diverged"
    assert decide(Difference("d", good + nan, "within", 9.0, opposed=1)).outcome == "undecided"
    assert decide(Difference("d", good + nan * 4, "within", 9.0, opposed=4)).outcome == "contradicted"


def test_fewer_than_three_seeds_decide_nothing():
    for values in ([9.0], [9.0, 9.0]):
        verdict = decide(Difference("d", values, ">", images=np.full(50, 9.0)))
        assert verdict.outcome == "undecided" and verdict.p is None and verdict.reason == "d: fewer than 3 seeds"
    weights = decide(Difference("d", [9.0], ">", these_weights=True))
    assert weights.outcome == "undecided" and weights.these_weights and "per image" in weights.reason


def test_a_claim_is_the_conjunction_of_its_parts():
    rng = RNG(3)
    up, down, flat = (Difference(k, m + rng.normal(0, 0.1, 5), ">") for k, m in (("u", 9), ("d", -9), ("f", 0)))
    holds, fails = Check("h", np.ones(3, bool), np.arange(3), "all"), Check("x", np.zeros(3, bool), 0.5, "< 0.1")
    mixed = Check("m", np.array([True, False]), "text", "both")
    outcome = {
        (up,): "supported", (up, holds): "supported", (up, flat): "undecided", (flat,): "undecided",
        (up, down): "contradicted", (flat, down): "contradicted", (up, fails): "contradicted", (up, mixed): "undecided",
        (mixed, down): "contradicted", (holds,): "supported", (fails,): "contradicted", (mixed,): "undecided",
    }  # fmt: skip
    assert {parts: decide(*parts).outcome for parts in outcome} == outcome
    single = decide(down).p
    assert decide(down, flat).p == pytest.approx(2 * single) and decide(fails).p is None
    assert [p.measured for p in decide(holds, fails, mixed).parts] == ["0 to 2", "0.5", "text"]
    assert decide(mixed).reason == "m: held in 1 of 2 replicates"


def test_intervals_cover_the_truth():
    rng, hits = RNG(4), np.zeros(3)
    for _ in range(2000):
        seeds, images = rng.normal(0, 1, 4), rng.normal(0, 5, 30)
        values = seeds + images.mean()
        kinds = (
            Difference("t", values, ">"),  # about the mean of these images
            Difference("t", values, ">", images=images - images.mean() + values.mean()),
            Difference("t", [images.mean()], ">", images=images, these_weights=True),
        )
        truths = (images.mean(), 0.0, 0.0)
        hits += [found.low < truth < found.high for found, truth in zip(map(of, kinds), truths, strict=True)]
    exact, both, weights = hits / 2000
    error = 2 * np.sqrt(0.05 * 0.95 / 2000)
    assert abs(exact - 0.95) < error and abs(weights - 0.95) < error
    assert both > 0.95 - error


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_random_subsets_cover_the_truth_of_the_population(share):
    rng, hits, size = RNG(5), 0, 200
    for _ in range(1000):
        full = rng.exponential(1.0, size) - 1.0
        means = [rng.choice(full, int(share * size), replace=False).mean() for _ in range(5)]
        found = of(Difference("mean", means, ">", fraction=share))
        hits += found.low < 0 < found.high
    assert hits / 1000 >= 0.93


def simulated_page(rng, seeds, images, pooled, binary):
    """A page of 10 claims of which every verdict is false: differences exactly at their bound, comparable ones at the

    edge, and conjunctions; 8 rows share their seeds and images. Rows 0-3 and 4-7 are equal among themselves.
    """
    rows = np.zeros(8) if binary else np.repeat([0.0, 0.5], 4)
    shape = (8, seeds, images or 1)
    latent = rows[:, None, None] + rng.normal(size=(1, 1, shape[2])) + 0.3 * rng.normal(size=(1, seeds, 1))
    latent = latent + 0.3 * rng.normal(size=(8, seeds, 1)) + 0.7 * bool(images) * rng.normal(size=(8, 1, shape[2]))
    x = 100.0 * (latent + 0.5 * rng.normal(size=shape) > 0) if binary else latent + 0.5 * rng.normal(size=shape)

    def null(a, b):
        gap = rows[a] - rows[b]
        relation = rng.choice([">", "<", "within"]) if gap else rng.choice([">", "<"])
        return Difference(
            f"{a} - {b}",
            (d := x[a] - x[b]).mean(1),
            relation,
            abs(gap) if relation == "within" else gap,
            pool=("e", "m") if pooled else (),
            images=d.mean(0) if images else None,
            resolution=100 / images if binary else 0.0,
        )

    true = Difference("large", (x[4] - x[0]).mean(1), ">", -500.0, pool=("e", "m") if pooled else ())
    claims = {f"against row 0: {b}": [null(b, 0)] for b in range(1, 8)}
    return claims | {"two": [null(1, 2), null(5, 6)], "with": [null(6, 7), true], "all": [null(k, 7) for k in range(4)]}


@pytest.mark.parametrize(
    "seeds, images, pooled, binary",
    [(3, 0, False, False), (3, 50, False, False), (5, 0, True, False), (3, 200, True, True)],
)
def test_a_page_has_a_false_verdict_in_at_most_5_percent(seeds, images, pooled, binary):
    rng, false, tables = RNG(6), 0, 1000
    for _ in range(tables):
        found = page(simulated_page(rng, seeds, images, pooled, binary), "quick")
        false += any(verdict.outcome != "undecided" for verdict in found.values())
    assert false / tables <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / tables)


def test_large_effects_are_decided_on_a_full_page():
    rng = RNG(7)
    claims = {}
    for k in range(10):
        images = rng.normal(10 * (-1) ** k, 3.0, 200)
        values = images.mean() + rng.normal(0, 0.2, 3)
        claims[f"{k}"] = [Difference("d", values, ">", images=images + values.mean() - images.mean(), pool=("e",))]
    assert [v.outcome for v in page(claims, "quick").values()] == ["supported", "contradicted"] * 5


def claim(id_, least="quick", kind="ordering", group="g"):
    return Claim("amm", id_, group, "s", "says", kind, {}, "p", least, "")


def test_columns_are_the_paper_s_scale_and_the_largest_that_was_run():
    def read(at):
        return [Difference("d", at["amm/e"].values, ">")]

    def results(name, scale):
        values = {"quick": [-9.0, -9.1, -9.2], "gpu": [9.0, 9.1, 9.2]}.get(scale) if name == "amm/e" else None
        return values and SimpleNamespace(values=values)

    names = {"low": "quick", "high": "gpu", "paper": "paper", "number": "quick"}
    claims = [claim(f"amm-{k}", v, "number" if k == "number" else "ordering") for k, v in names.items()]
    claims += [claim("amm-none"), claim("amm-part")]
    evidence = {f"amm-{k}": Evidence(("amm/e",), read) for k in names}
    evidence["amm-part"] = Evidence(("amm/e", "amm/other"), read)
    found = verdicts(claims, evidence, results)
    assert {k: (v.largest.outcome, v.largest.scale) for k, v in found.items()} == {
        "amm-low": ("supported", "gpu"), "amm-high": ("supported", "gpu"), "amm-paper": ("not run", "paper"),
        "amm-number": ("not run", "quick"), "amm-none": ("not run", "quick"), "amm-part": ("not run", "quick"),
    }  # fmt: skip
    assert {v.paper.outcome for v in found.values()} == {"not run"}
    assert found["amm-low"].largest.experiments == ("amm/e",)
    assert found["amm-none"].largest.reason == "no experiment yet"
    at_paper = verdicts(claims, evidence, lambda name, scale: results(name, "gpu") if scale == "paper" else None)
    assert at_paper["amm-number"].paper.outcome == "supported" == at_paper["amm-low"].paper.outcome
    assert at_paper["amm-low"].paper == at_paper["amm-low"].largest


def test_scales_and_pages_are_families_of_their_own():
    weak = [1.0, 3.2, 2.1]  # p about 0.08 / 2 claims

    def read(at):
        return [Difference("d", at["amm/e"], ">", -1.7)]

    ids = {"amm-a": "g", "amm-b": "g", "amm-c": "h"}
    found = verdicts(
        [claim(id_, group=group) for id_, group in ids.items()],
        {id_: Evidence(("amm/e",), read) for id_ in ids},
        lambda name, scale: np.array(weak) if scale in ("quick", "laptop") else None,
    )
    alone, shared = found["amm-c"].largest, found["amm-a"].largest
    assert alone.scale == "laptop" and alone.p_holm == alone.p and shared.p_holm == pytest.approx(2 * shared.p)


def test_wrong_evidence_is_named():
    with pytest.raises(MarginsError, match="amm-typo is not in the ledger"):
        verdicts([claim("amm-a")], {"amm-typo": Evidence(("amm/e",), lambda at: [])}, lambda *_: 1)
    with pytest.raises(MarginsError, match=r"evidence of amm-a: read gives \[\]"):
        verdicts([claim("amm-a")], {"amm-a": Evidence(("amm/e",), lambda at: [])}, lambda *_: 1)
    with pytest.raises(ZeroDivisionError) as caught:
        verdicts([claim("amm-a")], {"amm-a": Evidence(("amm/e",), lambda at: 1 / 0)}, lambda *_: 1)
    assert caught.value.__notes__ == ["while reading the evidence of amm-a"]


def test_what_was_not_run_keeps_support_away_but_not_contradiction():
    for_, against = Difference("d", [1.0, 1.1, 0.9], ">"), Difference("d", [-1.0, -1.1, -0.9], ">")
    missing = Missing("the other networks")
    assert decide(for_).outcome == "supported" and decide(against).outcome == "contradicted"
    open_ = decide(for_, missing)
    assert open_.outcome == "undecided" and open_.reason == "not run: the other networks"
    assert open_.parts[1].outcome == "not run" and open_.parts[0].outcome == "supported"
    assert decide(against, missing).outcome == "contradicted"
    assert decide(Check("c", [False], 2.0, "< 1"), missing).outcome == "contradicted"


def test_what_was_not_run_of_an_existence_keeps_contradiction_away_but_not_support():
    for_, against = Difference("d", [1.0, 1.1, 0.9], ">"), Difference("d", [-1.0, -1.1, -0.9], ">")
    missing = Missing("the other networks", exists=True)
    assert decide(for_, missing).outcome == "supported"
    assert decide(against, missing).outcome == "undecided"
    assert decide(Check("c", [False], 2.0, "< 1"), missing).outcome == "undecided"


def test_a_claim_about_several_networks_is_read_from_those_that_were_run():
    def of(name, **given):
        return Evidence((name,), lambda at: [Difference(name, at[name], ">")], **given)

    good, bad = np.array([9.0, 9.1, 9.2]), np.array([-9.0, -9.1, -9.2])
    run = {("amm/a", "laptop"): good, ("amm/published", "paper"): good}
    evidence = {"amm-x": (of("amm/a"), of("amm/b"), of("amm/large", since="gpu"), of("amm/published", fixed="paper"))}

    def decide_it():
        return verdicts([claim("amm-x", "laptop")], evidence, lambda *which: run.get(which))["amm-x"]

    both = decide_it()
    assert (both.largest.scale, both.largest.outcome) == ("laptop", "undecided")  # two of three; at paper one of four
    assert [part.outcome for part in both.largest.parts] == ["supported", "supported", "not run"]
    assert both.largest.sources == (("amm/a", "laptop"), ("amm/published", "paper"))
    assert both.largest.experiments == ("amm/a", "amm/b", "amm/large", "amm/published")
    assert (both.paper.scale, both.paper.outcome, len(both.paper.parts)) == ("paper", "undecided", 4)
    run["amm/b", "laptop"] = good
    assert decide_it().largest.outcome == "supported"
    run["amm/b", "laptop"] = bad
    assert decide_it().largest.outcome == "contradicted"
    run["amm/b", "paper"] = run["amm/a", "paper"] = good  # as many as at laptop: the larger scale
    assert (decide_it().largest.scale, decide_it().largest.outcome) == ("paper", "undecided")
    with pytest.raises(MarginsError, match="evidence: since is 'big'"):
        of("amm/a", since="big")
