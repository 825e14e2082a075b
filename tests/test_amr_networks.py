"""AMR's tables: what they declare is what the paper prints, and claims are read from the right numbers."""

from types import SimpleNamespace

import numpy as np
import pytest

from margins import models
from margins.claims import Missing, published
from margins.experiments import EXPERIMENTS, find
from margins.papers.amr import (
    EVIDENCE,
    defences,
    defences_evidence,
    networks,
    networks_evidence,
    networks_numbers,
    networks_reading,
)
from margins.papers.amr.networks_reading import AMR, LCR, RELEASED, STD, epochs, robust
from margins.verdicts import page

SEEDS, IMAGES = 3, 1000
KEPT = (1, 2, 5, 10)
#: Counted by hand: weights and biases of each layer.
PARAMETERS = {
    networks.LR: 784 * 10 + 10,
    networks.MLP: 784 * 1024 + 1024 + 1024 * 10 + 10,
    networks.CNN: (9 + 1) * 32 + (288 + 1) * 32 + (288 + 1) * 64 + (576 + 1) * 64 + 1025 * 200 + 201 * 200 + 201 * 10,
    networks.CIFAR_LR: 3072 * 10 + 10,
    networks.CIFAR_MLP: 3072 * 1024 + 1024 + 1024 * 10 + 10,
    networks.CIFAR_CNN: 28 * 64 + 577 * 64 + 577 * 128 + 1153 * 128 + 3201 * 256 + 257 * 256 + 257 * 10,
    defences.LENET: 431_080,
    defences.CONVNET: 145_578,
    defences.SMALL: 166_406,
}
TABLES = [*networks_reading.NETS]


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_papers_parameters(name):
    net = dict(find(name).settings["model"])
    assert sum(p.numel() for p in models.build(net.pop("name"), **net).parameters()) == PARAMETERS[name]
    assert net.get("dropout", 0) == (0.5 if name == networks.CIFAR_CNN else 0)


def told(setting):
    lines = published("amr", "settings").query("setting == @setting")
    return lines["value"].iloc[0]


@pytest.mark.parametrize("name", TABLES)
def test_settings_are_those_of_the_paper(name):
    declared, taus = find(name), {}
    recipe = declared.scales["paper"]["recipe"]
    assert (recipe["lr"], recipe["momentum"], recipe["nesterov"], recipe["batch_size"]) == (0.01, 0.9, True, 128)
    for row in AMR:
        (margin, *rest) = declared.rows[row]["method"]["phases"][0]["terms"][1:]
        assert margin["coefficient"] == float(told("lambda")) and rest[-1]["coefficient"] == 1e-3
        taus[row] = margin["function"]["tau"]
    by_name = {
        networks.LR: "tau, MNIST-LR and MNIST-MLP", networks.MLP: "tau, MNIST-LR and MNIST-MLP",
        networks.CNN: "tau, MNIST-CNN", networks.CIFAR_LR: "tau, CIFAR-LR",
        networks.CIFAR_MLP: "tau, CIFAR-MLP and CIFAR-CNN", networks.CIFAR_CNN: "tau, CIFAR-MLP and CIFAR-CNN",
        defences.CONVNET: "tau, ConvNet",
    }  # fmt: skip
    assert taus["AMR, Eq. 15"] == float(told(by_name.get(name, "tau, LeNet and LeNetSmall")))
    if name in networks_evidence.ALL:
        assert recipe["epochs"] == int(told("epochs, LR" if "lr" in name else "epochs, MLP and CNN"))
    if "mlp" in name or "cnn" in name:
        assert list(recipe["snapshots"]) == [
            int(n) for n in told("epochs, nonlinear models").replace(" and", ",").split(",")
        ]
    paper = published("amr", "table1")
    columns = [c for c in paper if c.startswith("pgd_eps") and paper.query("dataset == 'MNIST'")[c].ne("").any()]
    assert networks.MNIST.eps == tuple(float(c.removeprefix("pgd_eps")) for c in columns)


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_attack_is_its_own(name):
    images = networks_reading.NETS[name][1]
    for eps in images.attacked:
        part = find(name).parts[networks.at_eps(networks.ATTACK, eps)]
        ((attack),) = part["attacks"].values()
        assert (part["eps"], attack["steps"], attack["step_size"], attack["keep"]) == (eps, 1000, 0.01, "last")
        assert (attack["loss"], attack["start"], attack["floor"]) == ("cross-entropy", "image", 1e-6)
    threat = find(name).settings["threat"]
    assert threat["eps"] == images.eps[-1] and threat["step_size"] * threat["steps"] == pytest.approx(
        2.5 * images.eps[-1]
    )


def test_the_two_adversarial_trainings_differ_in_their_steps_alone():
    rows = defences.rows(40.0)
    published_, proper = rows["Adv"].craft, rows["Adv, proper"].craft
    assert (published_.steps, published_.step_size, published_.start) == (40, 0.01, "image")
    assert (proper.steps, proper.step_size, proper.start, proper.floor) == (40, None, "image", 0.0)
    assert rows["DD"].start == rows["Std"]


class Table:
    """Results of a table: row -> column -> (S, ...)."""

    def __init__(self, name, rows, scale="laptop"):
        self.experiment, self.rows, self.scale = SimpleNamespace(name=name), rows, scale
        config = {"recipe": {"snapshots": KEPT}}
        self.records = {row: [SimpleNamespace(config=config)] for row in rows}

    def samples(self, row, column):
        return self.rows[row][column]

    def curve(self, row, name):
        return self.rows[row][name]

    def diverged(self, row):
        return np.zeros(SEEDS, bool)


def row(images, rate=0.0, level=1.0, clean=0.97, sure=False, seed=0):
    """What is recorded of a row whose margins, about `level`, change by `rate` in the logarithm of the epoch."""
    rng = np.random.default_rng(seed)
    shape = level * images.eps[1] * np.tile(0.4 + 1.2 * rng.random(IMAGES), (SEEDS, 1)) + 1e-3 * rng.random((SEEDS, 1))
    wrong = np.tile(np.arange(IMAGES) >= clean * IMAGES, (SEEDS, 1))
    signed = np.where(wrong, -shape, shape)
    growth = 1 + rate * np.log(KEPT)[None, :, None]
    found = {
        f"{name}, along{split}": signed[:, None] * growth for name in ("Race", "DeepFool") for split in ("", ", train")
    }
    found["estimate, along"] = 0.9 * found["Race, along"][:, [0, -1]]
    found |= {f"gap, along{split}": signed[:, None] * growth for split in ("", ", train")}
    far = np.where(wrong, 0.0, shape)
    found |= {"Race distance, last": far, "Race distance": 1.2 * far, "clean, last": ~wrong}
    found["DeepFool distance, train, last"] = signed
    found["validation clean"] = np.tile(97.0 + np.linspace(0, 1, 20), (SEEDS, 1))
    for eps in images.eps:
        kept = far > eps
        found[f"{networks.at_eps(networks.MARGIN, eps)}, last"] = kept[:, :500]
        found[f"{networks.at_eps(networks.ATTACK, eps)}, last"] = (far > 0 if sure else kept)[:, :300]
    return found


def read(evidence, id_, rows_of, scale="laptop"):
    """The parts of a claim from all its networks; rows_of(images) -> row -> numbers."""
    nets, parts = networks_reading.NETS, []
    for one in evidence[id_]:
        (name,) = one.experiments
        parts += one.read({name: Table(name, rows_of(nets[name][1]), scale)})
    return parts


def as_printed(images):
    """Networks that are what the paper says of them."""
    found = {STD: row(images, -0.05), LCR: row(images, 0.0, 1.3, 0.94), "MMR": row(images, 0.0, 1.1, 0.93)}
    found |= {name: row(images, 0.0, 1.6, 0.94) for name in AMR}
    return found | {
        "DD": row(images, 0.0, 1.3, 0.97),
        defences.SCRATCH: row(images, 0.0, 1.1, 0.96),
        "Adv": row(images, 0.0, 1.4, 0.96),
        "Adv, proper": row(images, 0.0, 1.4, 0.96),
    }


def turned(images):
    """Networks of which the reverse holds."""
    found = {STD: row(images, 0.05, 1.8, 0.94), LCR: row(images, 0.0, 1.0, 0.97), "MMR": row(images, 0.0, 1.8, 0.98)}
    found |= {name: row(images, -0.1, 0.7, 0.96) for name in AMR}
    return found | {
        "DD": row(images, 0.0, 1.7, 0.90),
        defences.SCRATCH: row(images, 0.0, 1.9, 0.95),
        "Adv": row(images, 0.0, 1.7, 0.90),
        "Adv, proper": row(images, 0.0, 1.8, 0.93),
    }


@pytest.mark.parametrize(
    "id_",
    [
        "amr-abs-min-margin-rises", "amr-abs-avg-margin-falls", "amr-abs-regularizer-more-robust",
        "amr-s52-early-stopping-helps", "amr-s52-early-stopping-not-enough", "amr-s52-avg-is-better-indicator",
        "amr-f3-no-sacrifice", "amr-f3-avg-margin-higher", "amr-t1-beats-lcr-large-eps",
        "amr-t1-lcr-helps-at-small-eps", "amr-t1-margin-term-needed", "amr-t1-avg-margin-highest",
        "amr-t1-clean-cost-mlp", "amr-f5-no-overfitting-nets", "amr-s53-pgd1000-good-approximation",
        "amr-f6-avg-margin-falls-mnist", "amr-f7-histograms-shift-left-mnist",
        "amr-s52-avg-falls-after-error-saturates",
    ],
)  # fmt: skip
def test_networks_as_the_paper_says_support_its_claims(id_):
    parts = read(networks_evidence.EVIDENCE, id_, as_printed)
    assert page({id_: parts}, "laptop")[id_].outcome == "supported", [vars(part) for part in parts]


@pytest.mark.parametrize(
    "id_",
    [
        "amr-abs-avg-margin-falls", "amr-abs-regularizer-more-robust", "amr-s52-early-stopping-not-enough",
        "amr-f3-no-sacrifice", "amr-f3-avg-margin-higher", "amr-t1-comparable-to-lcr-small-eps",
        "amr-t1-beats-lcr-large-eps", "amr-t1-lcr-helps-at-small-eps", "amr-t1-margin-term-needed",
        "amr-t1-avg-margin-highest", "amr-t1-clean-cost-mlp", "amr-f6-avg-margin-falls-mnist",
    ],
)  # fmt: skip
def test_networks_of_which_the_reverse_holds_contradict_them(id_):
    parts = read(networks_evidence.EVIDENCE, id_, turned)
    assert page({id_: parts}, "laptop")[id_].outcome == "contradicted"


def test_early_stopping_is_judged_on_the_images_that_both_weights_were_attacked_on():
    """Those after them say the reverse: only more images of one of the two, in the same order."""

    def fewer(images):
        found = as_printed(images)
        early = found[STD]["Race distance"]
        return found | {STD: found[STD] | {"Race distance": np.where(np.arange(IMAGES) < 300, early, 0.0)}}

    def fewest(images):
        found = fewer(images)
        return found | {STD: found[STD] | {"Race distance": found[STD]["Race distance"][:, :300]}}

    id_ = "amr-s52-early-stopping-helps"
    whole, cut = (read(networks_evidence.EVIDENCE, id_, rows) for rows in (fewer, fewest))
    assert page({id_: cut}, "laptop")[id_].outcome == "supported"
    assert page({id_: whole}, "laptop")[id_].outcome == "contradicted"
    at = networks_reading.NETS[TABLES[0]][1]
    gained = 0.2 * as_printed(at)[STD]["Race distance, last"][:, :300].mean(1)
    assert cut[0].values == pytest.approx(gained)


def test_other_defences_are_read_alike():
    for id_, outcome in (
        ("amr-t2-beats-std", "supported"),
        ("amr-t2-mnist-best-overall", "supported"),
        ("amr-t2-beats-mmr", "supported"),
        ("amr-t2-mnist-behind-at-small-eps", "undecided"),
        ("amr-s53-dd-only-fine-tuning", "supported"),
    ):
        parts = read(defences_evidence.EVIDENCE, id_, as_printed)
        found = page({id_: parts}, "laptop")[id_]
        assert found.outcome == outcome, (id_, found)
    for id_ in ("amr-t2-beats-std", "amr-t2-mnist-best-overall", "amr-t2-beats-mmr", "amr-s53-dd-only-fine-tuning"):
        parts = read(defences_evidence.EVIDENCE, id_, turned)
        assert page({id_: parts}, "laptop")[id_].outcome == "contradicted"


def test_a_stalled_attack_contradicts_that_it_is_a_good_one():
    id_ = "amr-s53-pgd1000-good-approximation"
    parts = read(networks_evidence.EVIDENCE, id_, lambda images: as_printed(images) | {STD: row(images, sure=True)})
    found = page({id_: parts}, "laptop")[id_]
    assert found.outcome == "contradicted"
    against = [part.label for part in found.parts if part.outcome == "contradicted"]
    assert against and all(", Std, eps" in label for label in against)


def test_robust_is_the_worst_of_margin_pgd_and_race():
    images = networks.MNIST
    rows = as_printed(images)
    column = f"{networks.at_eps(networks.MARGIN, 1.0)}, last"
    rows[STD][column] = np.ones_like(rows[STD][column])
    table = Table(networks.MLP, rows)
    assert np.array_equal(robust(1.0)(table, STD) > 0, rows[STD]["Race distance, last"][:, :500] > 1.0)
    rows[STD][column] = np.zeros_like(rows[STD][column])
    assert not robust(1.0)(table, STD).any()


def test_a_network_of_which_the_attack_found_nothing_has_its_longest_way():
    found = as_printed(networks.MNIST)
    found[STD]["Race, along"][0, 0, 0] = np.inf
    table = Table(networks.MLP, found)
    values = networks_reading.along(table, STD)
    assert np.isfinite(values).all() and values[0, 0, 0] == np.abs(values).max()
    assert epochs(table) == list(KEPT)


def test_epochs_at_which_a_row_has_hardly_begun_to_learn_are_left_out_of_its_curves_alone():
    found = as_printed(networks.MNIST)
    ends = (found[LCR]["gap, along, train"][0, -1] > 0).sum()
    gap = np.full((SEEDS, len(KEPT), IMAGES), -1.0)
    for epoch, seeds in ((0, (1, 1, 0.49)), (1, (0.51, 1, 1)), (2, (1, 1, 1)), (3, (1, 1, 1))):
        for seed, share in enumerate(seeds):
            gap[seed, epoch, : round(share * ends)] = 1.0
    found[LCR]["gap, along, train"] = gap
    table = Table(networks.MLP, found)
    assert epochs(table) == epochs(table, RELEASED) == list(KEPT)
    assert epochs(table, LCR) == epochs(table, STD, LCR) == list(KEPT[1:])
    assert networks_reading.along(table, LCR).shape == (SEEDS, 3, IMAGES)
    one = networks_reading.along(table, STD, "gap", at=[5])
    np.testing.assert_array_equal(one[:, 0], found[STD]["gap, along"][:, KEPT.index(5)])


def test_the_small_ones_decide_on_a_laptop_and_the_others_on_a_gpu():
    since = {one.experiments[0]: one.since for one in networks_evidence.EVIDENCE["amr-abs-regularizer-more-robust"]}
    assert since == {
        networks.MLP: "quick",
        networks.CNN: "quick",
        networks.CIFAR_MLP: "quick",
        networks.CIFAR_CNN: "gpu",
    }
    fixed = [one.fixed for one in EVIDENCE["amr-t1-beats-lcr-large-eps"]]
    assert fixed.count("paper") == 1 and fixed[-1] == "paper"  # the authors' own networks
    (part,) = EVIDENCE["amr-t1-lcr-worse-than-std-at-large-eps"][:1]
    (_, missing) = part.read({networks.CNN: Table(networks.CNN, as_printed(networks.MNIST))})
    assert isinstance(missing, Missing) and missing.exists
    assert {name for parts in EVIDENCE.values() for one in parts for name in one.experiments} <= set(EXPERIMENTS)


def at_print(name, off=False):
    """Rows of which the paper's attack leaves what the paper prints, and whose estimate is the printed one, or not."""
    images, table = networks_reading.NETS[name][1], "table2" if name in (defences.LENET, defences.CONVNET) else "table1"
    rng, found = np.random.default_rng(0), {}
    for label in find(name).rows:
        line = networks_reading.printed(table, name).loc[networks_reading.as_printed(label)]
        share = (float(line[f"pgd_eps{images.eps[-1]}"]) + (20 if off else 0)) / 100
        kept = np.arange(2000) < 2000 * share + rng.integers(-1, 2, (SEEDS, 1))
        found[label] = row(images) | {f"{networks.at_eps(networks.ATTACK, images.eps[-1])}, last": kept}
        if table == "table1":
            values = float(line["avg_margin"]) * (1 + 0.01 * rng.standard_normal((SEEDS, 2, 500)))
            values *= 3.0 if off and label == STD else 1.0
            found[label]["estimate, along"] = values
    return Table(name, found, "paper")


@pytest.mark.parametrize("id_", [id_ for id_ in networks_numbers.EVIDENCE if "factor" not in id_])
def test_printed_numbers_are_met_by_what_measures_them_and_by_nothing_else(id_):
    meets, misses = (
        [part for one in networks_numbers.EVIDENCE[id_] for n in one.experiments for part in one.read({n: made(n)})]
        for made in (at_print, lambda name: at_print(name, off=True))
    )
    assert page({id_: meets}, "paper")[id_].outcome == "supported", [vars(part) for part in meets]
    assert page({id_: misses}, "paper")[id_].outcome == "contradicted"


@pytest.mark.parametrize(
    ("id_", "factors"),
    [
        ("amr-f3-lr-mlp-factor-2-to-3", {2.0: True, 3.2: True, 1.6: False, 3.6: False}),
        ("amr-f3-cnn-factor-1.5-to-2", {1.5: True, 2.1: True, 1.2: False, 2.4: False}),
    ],
)
def test_the_factor_of_the_average_margin_is_judged_network_by_network(id_, factors):
    for factor, held in factors.items():
        parts = []
        for one in networks_numbers.EVIDENCE[id_]:
            (name,) = one.experiments
            ours = networks_numbers.ran(Table(name, {}))
            rows = {STD: row(networks.MNIST), ours: row(networks.MNIST, level=factor)}
            parts += one.read({name: Table(name, rows, "paper")})
        assert page({id_: parts}, "paper")[id_].outcome == ("supported" if held else "contradicted"), factor
