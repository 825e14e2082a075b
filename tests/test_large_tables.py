"""The large tables of EMR and LMA-AT: every printed line has a row, rows can be trained, claims read what is there."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from margins import models
from margins.claims import Check, Difference, published
from margins.datasets import Data
from margins.experiments import find
from margins.papers import cifar, cifar_numbers, cifar_reading
from margins.papers.emr import large as emr
from margins.papers.emr import large_evidence as emr_evidence
from margins.papers.emr import temperature
from margins.papers.lma import cost, short
from margins.papers.lma import large as lma
from margins.papers.lma import large_evidence as lma_evidence
from margins.tables.job import DEEPFOOL
from margins.training import train

EMR_NAMES = [emr.name_of(net, family) for net in (emr.WRN, emr.RESNET) for family in emr.FAMILIES]
S, N = 3, 40


@pytest.mark.parametrize("number", lma.TABLES)
def test_every_line_that_lma_prints_has_a_row(number):
    found = lma.lines(number)
    left = sum(line["method"] in lma.LEFT_OUT for line in published("lma", f"table{number}").to_dict("records"))
    assert found and len(found) + left == len(published("lma", f"table{number}"))
    assert all(row in find(name).rows for name, row, _ in found)
    settings = {2: "tau", 3: "tau", 4: "beta", 5: "beta", 15: "alpha", 16: "beta"}
    if number in settings:  # each value is another row, whose setting is the printed one
        assert len({row for _, row, _ in found}) == len(found)
        for name, row, line in found:
            assert float(line[settings[number]]) == _setting(find(name).rows[row], settings[number])


def _setting(row, name):
    (term,) = (term for term in row["method"]["phases"][0]["terms"] if "tau" in (term["function"] or {}))
    return term["coefficient"] if name == "beta" else term["function"][name]


@pytest.mark.parametrize("number", [3, 4])
def test_every_line_that_emr_prints_has_a_row(number):
    found = emr.lines(number)
    assert len(found) == len(published("emr", f"table{number}"))
    assert len({(name, row) for name, row, _ in found}) == len(found)
    assert all(row in find(name).rows for name, row, _ in found)
    clean = [row for _, row, line in found if "clean" in line["method"]]
    assert clean == ["TRADES+EMR, clean"] * len(clean)


@pytest.mark.parametrize("name", [*lma.NAMES.values(), *EMR_NAMES])
def test_what_a_row_takes_is_known_of_all_its_parts(name):
    declared = find(name)
    assert set(declared.minutes["paper"]) == set(declared.parts) and min(declared.minutes["paper"].values()) > 0


def told(paper, experiment, setting):
    lines = published(paper, "settings").query("experiment == @experiment and setting == @setting")
    return lines["value"].iloc[0]


def test_lmas_recipe_and_ball_are_the_papers():
    recipe = lma.recipe()
    assert (recipe.epochs, recipe.batch_size) == (int(told("lma", "all", "epochs")), 100)
    assert recipe.lr == float(told("lma", "all", "initial learning rate"))
    assert recipe.weight_decay == float(told("lma", "all", "weight decay"))
    rates = [recipe.rate(epoch * 5, 5) for epoch in (74, 75, 89, 90)]
    assert rates == pytest.approx([0.01, 0.001, 0.001, 0.0001])
    assert cifar.THREAT.eps == 8 / 255 and cifar.THREAT.step_size == 2 / 255 and cifar.THREAT.steps == 10
    for net, data, experiment in (
        ("ResNet-18", "cifar10", "ResNet-18, CIFAR-10 and CIFAR-100"), ("WRN-34-10", "cifar10", "WRN-34-10"),
        ("ResNet-18", "tiny-imagenet", "ResNet-18, TinyImageNet"),
    ):  # fmt: skip
        row = find(lma.NAMES[data, net]).rows["LMA-AT(Ours)"]
        assert _setting(row, "alpha") == float(told("lma", experiment, "alpha"))
        assert _setting(row, "beta") == lma.BETA[data]


def test_emrs_recipes_are_the_papers():
    for family, epochs, rates in (("at", 100, {59: 0.1, 60: 0.01, 90: 0.001}), ("trades", 130, {60: 0.01, 120: 1e-3})):
        recipe = find(emr.name_of(emr.WRN, family)).scales["paper"]["recipe"]
        assert recipe["epochs"] == epochs and recipe["batch_size"] == 128 and recipe["lr"] == 0.1
        _, count, drops, decay = emr.FAMILIES[family]
        built = emr.recipe(count, drops, decay)
        assert {epoch: built.rate(epoch * 3, 3) for epoch in rates} == pytest.approx(rates)
    rows = emr.trades_rows()
    assert rows["TRADES+EMR"].recipe == {"weight_decay": 1e-3} == rows["TRADES, as beside EMR"].recipe
    plain, beside = rows["TRADES, as beside EMR"], rows["TRADES+EMR"]
    assert plain.craft == beside.craft and plain.terms == beside.terms[: len(plain.terms)]
    for row in ("AT+MAIL", "TRADES+MAIL"):
        without, with_ = (emr.mail_rows()[name] for name in (row, f"{row}+EMR"))
        assert [len(phase.terms) + 1 for phase in without.phases] == [len(phase.terms) for phase in with_.phases]


def rows_to_train():
    """Each row once: those that are alike in two tables are the same work."""
    seen = set()
    for rows in (*(lma.rows(data, net) for data, net in lma.NAMES), *(made() for made, *_ in emr.FAMILIES.values())):
        for label, row in rows.items():
            if (key := repr(row.describe())) not in seen:
                seen.add(key)
                yield pytest.param(row, id=label)


@pytest.mark.parametrize("row", list(rows_to_train()))
def test_every_row_takes_two_steps_in_all_its_phases(row):
    """By the paper's recipe, in its ball, on a ResNet-18 that is narrow and images that are small."""
    model = models.build("resnet-18-cifar", shape=(3, 8, 8), classes=10, width=4)
    if row.head is not None:
        row.head.put_on(model)
    generator = torch.Generator().manual_seed(1)
    data = Data(torch.rand(8, 3, 8, 8, generator=generator), torch.arange(8), "random", 10)
    begin = {phase.begin for phase in row.phases}
    recipe = replace(lma.recipe(epochs=2 if len(begin) > 1 else 1), batch_size=4, crop=1)
    late = replace(row, later=tuple(replace(phase, begin=0.5) for phase in row.later))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = train(model, late, data, recipe=recipe, threat=cifar.THREAT, seed=0)
    assert found.status == "done"
    assert all(np.isfinite(curve).any() for curve in found.curves.values())  # of a term: in the phase that has it
    assert any(not torch.equal(found.last[name], value) for name, value in before.items() if value.ndim > 1)


@pytest.mark.parametrize("name", [lma.NAMES["cifar10", "WRN-34-10"], emr.name_of(emr.WRN, "trades")])
def test_the_papers_own_network_takes_a_step(name):
    declared = find(name)
    model = models.build(**declared.settings["model"] | {"shape": (3, 8, 8)})
    data = Data(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(2), "random", 10)
    row = lma.ours("WRN-34-10", "cifar10")() if name.startswith("lma") else emr.trades_rows()["TRADES+EMR"]
    recipe = replace(lma.recipe(epochs=1), batch_size=2, crop=1)
    assert train(model, row, data, recipe=recipe, threat=cifar.THREAT, seed=0).status == "done"


class Results:
    """Of a table: a row's columns are as right as `level(row)` says, in %."""

    def __init__(self, name, level):
        self.experiment, self.level = find(name), level
        self.records = self.experiment.rows

    def diverged(self, row):
        assert row in self.records
        return np.zeros(S, dtype=bool)

    def samples(self, row, column):
        assert row in self.records, row
        parts = self.experiment.parts.values()
        if column.endswith(", along"):
            assert any(column.removesuffix(", along") in part.get("measures", ()) for part in parts), column
            return np.full((S, 1, N), float(self.level(row, column)))
        known = {name for part in parts for name in part.get("attacks", ())}
        assert column in ("clean", "Race distance", DEEPFOOL) or column in known, column
        share = self.level(row, column)
        if column in ("Race distance", DEEPFOOL):
            return share / 100 + 0.01 * np.random.default_rng(len(row)).random((S, N))
        return (np.arange(N) * 7 + np.arange(S)[:, None]) % N < share / 100 * N

    def metric(self, row, name):
        assert row in self.records and name.endswith(": time over AT")
        return np.full(S, self.level(row, name))


def evidence():
    for found in (lma_evidence.EVIDENCE, emr_evidence.EVIDENCE):
        for id_, several in found.items():
            for one in several:
                yield pytest.param(one, id=f"{id_} {one.experiments[0]}")


@pytest.mark.parametrize("one", list(evidence()))
def test_claims_compare_rows_and_columns_that_are_there(one):
    (name,) = one.experiments
    parts = one.read({name: Results(name, lambda row, column: 40.0 + 3 * (sum(map(ord, row)) % 17))})
    compared = [part for part in parts if isinstance(part, Difference)]
    assert all(np.isfinite(part.values).all() for part in compared)
    assert len({(part.label, part.relation, part.delta) for part in compared}) == len(compared)
    assert compared or any(isinstance(part, Check) for part in parts)
    assert one.since in ("gpu", "paper")


def levels(**rows):
    return lambda row, column: rows.get(row, {}).get(column, 50.0)


def test_differences_are_of_the_first_minus_the_second():
    found = Results(short.ONE_CYCLE, levels(AT={"clean": 80.0, "AutoAttack": 45.0}, TRADES={"clean": 70.0}))
    pair = [("AT", "TRADES")]
    clean, robust = cifar_reading.compared(pair, ["clean", "AutoAttack"])("net", found)
    assert clean.values == pytest.approx([10.0] * S) and robust.values == pytest.approx([-5.0] * S)
    assert clean.label == "AT - TRADES, net, clean" and clean.relation == ">"
    (both,) = cifar_reading.mean(pair, ("clean", "AutoAttack"), 1.0)("net", found)
    assert both.values == pytest.approx([2.5] * S) and both.delta == 1.0
    (wider,) = cifar_reading.gap(pair, "clean", "AutoAttack", ">", 3.0)("net", found)
    assert wider.values == pytest.approx([15.0] * S)


def test_most_columns_are_those_of_which_enough_are_ahead():
    ahead = dict.fromkeys(("PGD-20", "margin PGD", "APGD-CE"), 60.0)
    found = Results(short.ONE_CYCLE, levels(AT=ahead | {"APGD-T": 40.0}))
    columns = ("PGD-20", "margin PGD", "APGD-CE", "APGD-T")
    for count, expected in ((3, 10.0), (4, -10.0)):
        (part,) = cifar_reading.most([("AT", "TRADES")], columns, count)("net", found)
        assert part.values == pytest.approx([expected] * S)


def test_a_trend_is_a_rank_correlation_with_the_setting():
    rows = [(1.0, "AT"), (2.0, "TRADES"), (3.0, "MART")]
    found = Results(short.ONE_CYCLE, levels(AT={"clean": 40.0}, MART={"clean": 60.0}))
    (part,) = cifar_reading.trend(rows, "clean", ">")("net", found)
    assert part.values == pytest.approx([1.0] * S)
    (part,) = cifar_reading.trend(rows[::-1], "clean", "<")("net", found)
    assert part.values == pytest.approx([1.0] * S) and part.relation == "<"


def test_boundaries_are_farther_by_the_median():
    name = lma.NAMES["cifar10", "ResNet-18"]
    found = Results(name, levels(TRADES={"Race distance": 80.0}))
    (part,) = cifar_reading.farther([("TRADES", "vanillaAT")])(name, found)
    assert part.values == pytest.approx([0.3] * S, abs=0.01)


def test_a_printed_number_is_met_by_the_mean_of_the_seeds():
    told = [
        (lma.NAMES["cifar10", "ResNet-18"], row, {"clean": "50.5", "cw": "x", "spsa": ""}) for row in ("TRADES", "MART")
    ]
    found = Results(told[0][0], levels(MART={"clean": 52.5}))
    parts = cifar_numbers.numbers(lambda: [*told, ("lma/other", "AT", {"clean": "1"})], ("clean", "spsa"), 1.0)(
        "", found
    )
    assert [part.label for part in parts] == ["TRADES - 50.5, clean", "MART - 50.5, clean"]
    assert [part.values.mean() for part in parts] == pytest.approx([-0.5, 2.0])
    assert all(part.relation == "within" and part.delta == 1 and part.images is None for part in parts)


def test_a_printed_gain_is_that_of_the_first_row_over_the_second():
    name = lma.NAMES["cifar10", "ResNet-18"]
    told = [(name, "TRADES", {"clean": "50", "cw": "40"}), (name, "MART", {"clean": "60", "cw": ""})]
    found = Results(name, levels(MART={"clean": 55.0}))
    (part,) = cifar_numbers.gains(lambda: told, [("MART", "TRADES")], ("clean", "cw"), 1.5)("", found)
    assert part.values == pytest.approx([5.0 - 10.0] * S) and part.delta == 1.5


def test_two_columns_of_a_row_are_compared():
    found = Results(short.ONE_CYCLE, levels(AT={"clean": 60.0, "PGD-20": 40.0}))
    (part,) = cifar_reading.apart(["AT"], "clean", "PGD-20")("net", found)
    assert part.values == pytest.approx([20.0] * S)
    weaker = next(iter(emr_evidence.EVIDENCE["emr-s2-deepfool-weaker-than-pgd"]))
    far, near = (Results(short.ONE_CYCLE, levels(AT={DEEPFOOL: 100 * eps, "PGD-20": 40.0})) for eps in (1.0, 0.001))
    assert weaker.read({short.ONE_CYCLE: far})[0].values == pytest.approx([60.0] * S)
    assert weaker.read({short.ONE_CYCLE: near})[0].values == pytest.approx([-40.0] * S)


def test_what_is_measured_of_images_is_compared_at_the_end_of_the_training():
    name, column = lma.NAMES["cifar10", "ResNet-18"], "logits, along"
    found = Results(name, levels(D={column: 8.0}))
    found.samples = lambda row, _: np.stack([np.zeros((S, N)), np.full((S, N), found.level(row, column))], 1)
    (part,) = cifar_reading.along([("MART", "D")], "logits", "<", "squared logits")("net", found)
    assert part.values == pytest.approx([50.0 - 8.0] * S) and part.unit == "squared logits"


def test_a_step_is_dearer_by_less_than_a_quarter():
    (one,) = lma_evidence.EVIDENCE["lma-abs-extra-data-cost"]
    for ratio, held in ((1.1, True), (1.3, False)):
        (part,) = one.read({cost.NAME: Results(cost.NAME, lambda row, name, ratio=ratio: ratio)})
        assert part.relation == "<" and (part.values < part.delta).all() == held


def test_a_loss_is_a_column_whose_interval_lies_below_zero():
    columns = ("clean", "PGD-20")
    for level, held in ((20.0, False), (50.0, True), (90.0, True)):
        found = Results(short.ONE_CYCLE, levels(AT={"clean": level}))
        (part,) = cifar_reading.no_loss([("AT", "TRADES")], columns)("net", found)
        assert part.held.tolist() == [held] and part.measured == ("none" if held else "clean")


class Drawn(Results):
    """Levels and what each seed adds to them, in points of N = 1000 images."""

    def __init__(self, name, level, seeds):
        super().__init__(name, level)
        self.seeds = seeds

    def samples(self, row, column):
        return np.arange(1000) < 10 * (self.level(row, column) + np.asarray(self.seeds)[:, None])


@pytest.mark.parametrize(("seeds", "held"), [((0, 0.1, -0.1), True), ((0, 9.0, -9.0), False)])
def test_a_setting_matters_where_seeds_do_not_explain_what_it_does(seeds, held):
    found = Drawn(short.ONE_CYCLE, levels(AT={"clean": 52.0}), seeds)
    (part,) = cifar_reading.spread(["AT", "TRADES", "MART"], ["clean", "PGD-20"], 1.0)("net", found)
    assert part.held.tolist() == [held] and "clean 2.00" in part.measured
    (part,) = cifar_reading.spread(["AT", "TRADES"], ["clean"], 3.0)("net", found)
    assert not part.held.any()


@pytest.mark.parametrize(("seed", "held"), [(0.0, [True, True]), (0.1, [False, False]), (0.03, [False, True])])
def test_the_narrowest_interval_decides(seed, held):
    found = Drawn(short.ONE_CYCLE, levels(), (-seed, seed, -seed, seed, -seed, seed))
    found.samples = lambda row, column: 0.5 + np.asarray(found.seeds)[:, None] / 100 + np.zeros((1, 10))
    (part,) = cifar_reading.narrow(["AT"], ["clean", "PGD-20"], 0.05 / 2, 0.1 / 2)("net", found)
    assert part.held.tolist() == held


def test_temperatures_are_chosen_on_held_out_images():
    best, other = temperature.named(10.0, 1 / 128), temperature.named(1.0, 9 / 128)

    class Held(Results):
        def curve(self, row, name):
            assert name == "validation PGD-10"
            return np.full((S, 2), {best: 60.0, other: 55.0}.get(row, 50.0))

    found = Held(temperature.NAME, levels(**{best: {"AutoAttack": 70.0}}))
    assert temperature.chosen(found) == best and temperature.chosen(found, temperature.PLAIN) == other
    robust, _ = temperature.EVIDENCE["emr-s4-temperature-matters"].read({temperature.NAME: found})
    assert robust.values == pytest.approx([20.0] * S) and robust.relation == ">"
    centred = [row for row in temperature.rows() if "centred" in row]
    assert len(centred) == len(temperature.COEFFICIENTS)


def test_the_search_has_the_papers_ranges():
    told_of = {name: told("lma", "all", f"search range {name}") for name in ("beta", "tau", "delta", "weight decay")}
    assert told_of == {"beta": "[1, 100]", "tau": "[0, 1)", "delta": "[0, 1]", "weight decay": "(0, 0.2]"}
    found = find(short.SEARCH)
    assert (
        len(found.rows) == short.CANDIDATES and [unit.seed for unit in found.units("gpu")] == [100] * short.CANDIDATES
    )
    for row in found.rows.values():
        assert 0 < row["method"]["recipe"]["weight_decay"] <= 0.2
        assert 1 <= _setting(row, "beta") <= 100 and 0 <= _setting(row, "tau") < 1
        assert 1.345 <= _setting(row, "alpha") <= 9.345
