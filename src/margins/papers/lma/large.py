"""LMA-AT's tables on CIFAR-10, CIFAR-100 and TinyImageNet: one table of methods each (Tables 2 to 16).

All rows share the paper's recipe and start of the attack, so that they differ in what the paper says they differ in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from margins import methods
from margins.claims import published
from margins.methods import PGD, Row
from margins.papers.cifar import ALL, FEW, NETS, QUICK, THREAT, columns
from margins.papers.lma.mnist import LEFT
from margins.tables import Along, table
from margins.tables.response import BETWEEN, THERE
from margins.training import Recipe

VALIDATION = 1000
#: As many as the paper's.
SEEDS = tuple(range(6))
EPOCHS = 130
#: alpha by network and data; beta by data, for CIFAR-100 that of Table 8's row, which is Table 5's at 86.
ALPHA, BETA = {"ResNet-18": 5.345, "WRN-34-10": 2.345}, {"cifar10": 86.0, "cifar100": 86.0, "tiny-imagenet": 96.0}
TAUS, BETAS, ALPHAS = (0.0, 0.1, 0.2, 0.7, 0.9), range(80, 94, 2), [round(1.345 + k, 3) for k in range(7)]
#: Beyond the printed ones, for whether beta does anything.
WIDE_BETAS = (10, 40, 100)
TINY_BETAS, DELTAS = range(90, 100, 2), (0.1, 0.3, 0.5, 0.9, 5.0)
#: MART's coefficient of its KL: the paper has it on WRN-34-10 too, for which MART's code has 6.
MART = 5.0


@dataclass(frozen=True)
class Images:
    """A data set: its name in the paper, pixels a side, classes, training images."""

    label: str
    side: int
    classes: int
    train: int


DATA = {
    "cifar10": Images("CIFAR-10", 32, 10, 50_000),
    "cifar100": Images("CIFAR-100", 32, 100, 50_000),
    "tiny-imagenet": Images("TinyImageNet", 64, 200, 100_000),
}
AT = methods.at(PGD())


def ours(net: str, data: str) -> Callable[..., Row]:
    """LMA-AT with the paper's settings for a network and data set; other settings: those of `methods.ours`."""
    alpha = ALPHA[net] if data != "tiny-imagenet" else 6.345

    def row(base: Row | None = None, **given) -> Row:
        settings = {"alpha": alpha, "beta": BETA[data]} | given
        return methods.lma_at(**settings) if base is None else methods.ours(base, **settings)

    return row


def compared(net: str, data: str) -> dict[str, Row]:
    """The methods of Tables 6 to 9, and with the margin loss alone (Table 14)."""
    lma, trades, mart = ours(net, data), methods.trades(), methods.mart(MART)
    return {
        "vanillaAT": AT,
        "TRADES": trades,
        "MART": mart,
        "vanillaAT + Ours": lma(AT),
        "TRADES + Ours": lma(trades),
        "MART + Ours": lma(mart),
        "LMA-AT(Ours)": lma(),
        "vanillaAT + L'_i": lma(AT, beta=0.0),
        "TRADES + L'_i": lma(trades, beta=0.0),
        "MART + L'_i": lma(mart, beta=0.0),
    }


def margin_methods() -> dict[str, Row]:
    """Those of Table 10 by their authors' settings; it does not say which MAIL is meant, nor has WAT any code."""
    return {
        "MMA": methods.mma(),
        "MAIL": methods.mail_at(),
        "MAIL-TRADES": methods.mail_trades(),
        "GAIRAT": methods.gairat(),
    }


def options(net: str, data: str) -> dict[str, Row]:
    """Those of Table 11 but C, which is LMA-AT, and the one that differs from C in what is crafted alone."""
    lma = ours(net, data)
    return {"A": lma(AT, inner=False), "A'": lma(inner=False), "B": lma(outer=False), "D": lma(beta=0.0)}


def margin_alone(net: str, data: str) -> dict[str, Row]:
    """Adversarial training on the margin loss without the cross-entropy, crafted as with both (appendix A, 8.2.3)."""
    both = ours(net, data)(AT, beta=0.0)
    return {"L'_i alone": replace(both, terms=both.terms[:1])}


def controls(net: str, data: str) -> dict[str, Row]:
    """What the moving average amounts to, with plain pairing at the same strength; and its other readings."""
    lma, beta = ours(net, data), BETA[data]
    return {
        "tau 0, 0.64 of beta": lma(tau=0.0, beta=LEFT * beta),
        "appendix's direction": lma(direction="appendix"),
        "tau 0, 0.04 of beta": lma(tau=0.0, beta=0.04 * beta),
        "of the same image": lma(reading="sample"),
        "of the class": lma(reading="class"),
    }


def named(setting: str, value: float) -> str:
    """The row of LMA-AT with another value of a setting, as "tau 0.1"."""
    return f"{setting} {value:g}"


def sensitivity(net: str, data: str, **values: tuple[float, ...]) -> dict[str, Row]:
    """LMA-AT with other values of one setting each, but for its own."""
    lma = ours(net, data)
    (own,) = (term.function for term in lma().terms if hasattr(term.function, "tau"))
    known = {"tau": own.tau, "alpha": own.alpha, "beta": BETA[data], "delta": 0.9}
    return {
        named(setting, value): lma(**{setting: float(value)})
        for setting, several in values.items()
        for value in several
        if value != known[setting]
    }


NAMES = {
    ("cifar10", "ResNet-18"): "lma/cifar10-resnet18",
    ("cifar10", "WRN-34-10"): "lma/cifar10-wrn",
    ("cifar100", "ResNet-18"): "lma/cifar100-resnet18",
    ("tiny-imagenet", "ResNet-18"): "lma/tiny-imagenet-resnet18",
}


def rows(data: str, net: str) -> dict[str, Row]:
    """All that the paper's tables have of a data set and network, and controls."""
    found = compared(net, data)
    if (data, net) == ("cifar10", "ResNet-18"):
        wide = sensitivity(net, data, tau=TAUS, beta=(*BETAS, *WIDE_BETAS), alpha=ALPHAS, delta=DELTAS)
        return found | options(net, data) | margin_alone(net, data) | wide | controls(net, data)
    if net == "WRN-34-10":
        return found | margin_methods()
    if data == "cifar100":
        return found | sensitivity(net, data, tau=TAUS, beta=BETAS) | controls(net, data)
    return found | sensitivity(net, data, beta=TINY_BETAS)


def recipe(epochs: int = EPOCHS, **given) -> Recipe:
    """MART's on ResNet-18 with batches of 100, for all: the second drop's factor, which is not given, is ten too."""
    drops = ((75 / 130, 0.1), (90 / 130, 0.01))
    told = {"lr": 0.01, "momentum": 0.9, "weight_decay": 3.5e-3, "batch_size": 100, "drops": drops}
    return Recipe(epochs=epochs, **{**told, "crop": 4, "flip": True, **given})


COLUMNS = columns(step_size=1 / 255, start="uniform", steps=(20, 100))
#: How the ablation's networks respond to PGD-20, by the name of the column.
RESPONSES = {of: {"measure": "response", "of": of, "eps": THREAT.eps, "step_size": 1 / 255} for of in THERE + BETWEEN}


def _register(data: str, net: str) -> None:
    images, of = DATA[data], NETS[net]
    train = images.train - VALIDATION
    more = {"responses": Along(RESPONSES, images=1000)} if (data, net) == ("cifar10", "ResNet-18") else {}
    table(
        NAMES[data, net],
        title=f"LMA-AT on {images.label} with {net}",
        source="LMA, section 5 and Appendix B",
        model=of.build(images.side, images.classes),
        data=data,
        validation=VALIDATION,
        threat=THREAT,
        rows=rows(data, net),
        columns=COLUMNS | more,
        scales={
            "quick": (20, recipe(QUICK, batch_size=10, snapshots=(QUICK,))),
            "paper": (train, recipe(precision="bf16", compiled=True, snapshots=(EPOCHS,))),
        },
        images={"quick": FEW | dict.fromkeys(more, 4), "paper": ALL},
        seeds=SEEDS,
        minutes={"paper": of.minutes(train, EPOCHS, images.side) | dict.fromkeys(more, 0.3)},
    )


for key in NAMES:
    _register(*key)


#: Those that print results.
TABLES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16)
#: What has neither code nor a text that says enough.
LEFT_OUT = ("PMHR-AT", "WAT")


def row_of(line: Mapping[str, str]) -> str:
    """The row of the experiment that a printed line is about."""
    own = "LMA-AT(Ours)"
    for setting, known in (("tau", 0.2), ("alpha", 5.345), ("beta", BETA[_data(line)])):
        if setting in line:
            value = float(line[setting])
            return own if value == known else named(setting, value)
    return own if line["method"] == "C" else line["method"]


def _data(line: Mapping[str, str]) -> str:
    return next(name for name, images in DATA.items() if images.label == line["dataset"])


def lines(number: int) -> list[tuple[str, str, dict[str, str]]]:
    """The lines of a printed table: the experiment, its row, and what is printed there. Those LEFT_OUT are not."""
    told = published("lma", f"table{number}").to_dict("records")
    nets = {"ResNet18": "ResNet-18"}
    return [
        (NAMES[_data(line), nets.get(line["model"], line["model"])], row_of(line), line)
        for line in told
        if line["method"] not in LEFT_OUT
    ]
