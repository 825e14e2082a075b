"""EMR on CIFAR-10's large networks: the rows of Tables 3 and 4, and what else than EMR tells them apart (section 5).

One table a recipe: adversarial training and MART, TRADES, MAIL. All rows of a table share network, recipe and start of
the evaluation. Where the released code of a row with EMR differs from the plain row in more than EMR, both are there
with either setting.
"""

from collections.abc import Mapping
from dataclasses import replace

from margins import methods
from margins.claims import published
from margins.methods import METHODS, PGD, Row
from margins.methods.table import MAIL_DROPS, TRADES_DROPS
from margins.models.heads import Head
from margins.papers.cifar import ALL, FEW, NETS, QUICK, THREAT, columns
from margins.penalties.emr import ApproximateEMR
from margins.tables import Columns, table
from margins.training import Recipe

#: Held out of the training images, but for MAIL's rows, whose last weights the paper takes.
VALIDATION = 2000
SEEDS = (0, 1, 2)
#: Of the released scripts, by 128 images a batch.
LAMBDA, TEMPERATURE = {"AT": 3 / 128, "TRADES": 1 / 128}, {"AT": 40.0, "TRADES": 1.0}
#: Coefficients of the sweep that IGR needs, whose authors have none for CIFAR-10.
IGR = (0.1, 1.0, 10.0)


def centred(row: Row) -> Row:
    """With the mean logit taken off in the last layer, so that a penalty on that alone has nothing to do."""
    return replace(row, head=Head("centred"))


def at_clean(row: Row) -> Row:
    """With EMR's penalty at the clean images (Table 4)."""
    return replace(
        row, terms=tuple(replace(t, at="clean") if isinstance(t.function, ApproximateEMR) else t for t in row.terms)
    )


def decayed(row: Row, weight_decay: float) -> Row:
    return replace(row, recipe={**row.recipe, "weight_decay": weight_decay})


def at_rows() -> dict[str, Row]:
    at, emr = methods.at(), METHODS["AT+EMR"]
    return {
        "AT": at,
        **{f"AT, weight decay {decay:g}": decayed(at, decay) for decay in (2e-4, 1e-3)},
        **{f"AT+IGR, {value:g}": methods.igr(value, at) for value in IGR},
        "AT+HE": METHODS["AT+HE"],
        "AT+EMR": emr,
        "AT+EMR, centred head": centred(emr),
        "AT+EMR, t = 1": methods.emr(at, LAMBDA["TRADES"], 1.0, ((60 / 100, 0.1), (90 / 100, 0.01))),
        "MART": methods.mart(6.0),
        "MART+EMR": METHODS["MART+EMR"],
    }


def trades_rows() -> dict[str, Row]:
    trades, released = methods.trades(), methods.trades(12.0, PGD(start="uniform"))
    given = LAMBDA["TRADES"], TEMPERATURE["TRADES"], TRADES_DROPS
    return {
        "TRADES": trades,
        **{f"TRADES+IGR, {value:g}": methods.igr(value, trades) for value in IGR},
        "TRADES+HE": METHODS["TRADES+HE"],
        "TRADES+EMR": decayed(METHODS["TRADES+EMR"], 1e-3),
        "TRADES+EMR, clean": decayed(at_clean(METHODS["TRADES+EMR"]), 1e-3),
        "TRADES, as beside EMR": decayed(released, 1e-3),
        "TRADES+EMR, as TRADES": methods.emr(trades, *given),
    }


def mail_rows() -> dict[str, Row]:
    at, trades = METHODS["MAIL-AT+EMR"], METHODS["MAIL-TRADES+EMR"]
    return {
        "AT+MAIL": without(at),
        "AT+MAIL+EMR": at,
        "TRADES+MAIL": without(trades),
        "TRADES+MAIL+EMR": trades,
        "AT+MAIL, its authors'": methods.mail_at(),
        "TRADES+MAIL, its authors'": methods.mail_trades(),
    }


def without(row: Row) -> Row:
    """The row without EMR's penalty, in all its phases."""

    def kept(phase):
        return replace(phase, terms=tuple(t for t in phase.terms if not isinstance(t.function, ApproximateEMR)))

    return replace(kept(row), later=tuple(map(kept, row.later)), note="", source=row.source.split("; EMR")[0])


def recipe(epochs: int, drops: tuple[tuple[float, float], ...], weight_decay: float, **given) -> Recipe:
    told = {"lr": 0.1, "momentum": 0.9, "weight_decay": weight_decay, "batch_size": 128, "drops": drops}
    return Recipe(epochs=epochs, **{**told, "crop": 4, "flip": True, **given})


#: Family -> rows, epochs, drops of the rate, weight decay.
FAMILIES = {
    "at": (at_rows, 100, ((0.6, 0.1), (0.9, 0.01)), 5e-4),
    "trades": (trades_rows, 130, TRADES_DROPS, 5e-4),
    "mail": (mail_rows, 100, MAIL_DROPS, 2e-4),
}
#: The paper's networks: WideResNet-34-10 in the variant of its code.
WRN, RESNET = "WRN-34-10, madry", "ResNet-18"
COLUMNS = columns(step_size=THREAT.step_size, start="none", steps=(10, 100))
#: Of Figure 3, in 255ths: its own are to be read off the curves; and the images that AutoAttack looks at there.
BUDGETS, AT_EACH = (2, 4, 6, 8, 10, 12), 500


def at_budget(budget: int) -> str:
    """The column of AutoAttack in a ball of so many 255ths."""
    return f"AutoAttack, eps {budget}/255"


def columns_of(family: str) -> dict[str, Columns]:
    """Figure 3 is about MAIL's rows."""
    found = {
        at_budget(k): Columns({at_budget(k): {"attack": "autoattack"}}, images=AT_EACH, eps=k / 255) for k in BUDGETS
    }
    return COLUMNS | (found if family == "mail" else {})


def name_of(net: str, family: str) -> str:
    return f"emr/cifar10-{'wrn' if net == WRN else 'resnet18'}-{family}"


def _register(net: str, family: str) -> None:
    rows, epochs, drops, decay = FAMILIES[family]
    of, train, told, every = NETS[net], 50_000 - VALIDATION, (drops, decay), columns_of(family)
    minutes = of.minutes(train, epochs)
    more = dict.fromkeys(set(every) - set(COLUMNS), minutes["AutoAttack"] * AT_EACH / ALL["AutoAttack"])
    table(
        name_of(net, family),
        title=f"EMR on CIFAR-10 with {net.split(',')[0]}: {family.upper()}",
        source="EMR, section 5",
        model=of.build(32, 10),
        data="cifar10",
        validation=VALIDATION,
        threat=THREAT,
        rows=rows(),
        columns=every,
        scales={
            "quick": (20, recipe(QUICK, *told, batch_size=10)),
            "paper": (train, recipe(epochs, *told, precision="bf16", compiled=True)),
        },
        images={"quick": FEW | dict.fromkeys(more, 4), "paper": ALL},
        seeds=SEEDS,
        minutes={"paper": minutes | more},
    )


for net in (WRN, RESNET):
    for family in FAMILIES:
        _register(net, family)


def lines(number: int) -> list[tuple[str, str, dict[str, str]]]:
    """The lines of Table 3 or 4: the experiment, its row, and what is printed there; of IGR the middle coefficient."""
    return [(*_of(line), line) for line in published("emr", f"table{number}").to_dict("records")]


def _of(line: Mapping[str, str]) -> tuple[str, str]:
    method = line["method"].removesuffix(" (ours)").replace("EWR-clean", "EMR, clean").replace("EWR-adv", "EMR")
    net = RESNET if line["model"] == "ResNet18" else WRN
    family = "mail" if "MAIL" in method else "trades" if method.startswith("TRADES") else "at"
    return name_of(net, family), f"{method}, {IGR[1]:g}" if method.endswith("IGR") else method
