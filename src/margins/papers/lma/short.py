"""LMA-AT and EMR beside their controls on CIFAR-10, by one recipe: a small network on a laptop, ResNet-18 on a GPU.

Neither paper has such a table; its questions are theirs (LMA, section 4.3 and Table 2; EMR, section 5).
"""

from dataclasses import replace

from margins import methods
from margins.methods import PGD, Row
from margins.models.heads import Head
from margins.papers import cifar
from margins.papers.lma.large import ours
from margins.penalties.context import Threat
from margins.tables import Columns, table
from margins.training import Recipe

SMALL, ONE_CYCLE = "lma/cifar10-small", "lma/cifar10-one-cycle"
#: What ResNet-8 of width 8 can bear: at 8/255 it hardly learns.
SMALL_THREAT = Threat(cifar.THREAT.norm, eps=4 / 255, step_size=1 / 255, steps=10)
#: EMR's coefficients, of its code, as the mean over samples has them.
WARM, TRADES_EMR = (3 / 128, 40.0), (1 / 128, 1.0)
LMA, CONTROL = "LMA-AT", "LMA-AT, tau 0, 0.64 of beta"
CENTRED = "AT+EMR, centred head"


def rows() -> dict[str, Row]:
    """All crafted from a normal start; LMA-AT's control has the strength that its moving average leaves of beta."""
    at, lma = methods.at(PGD()), ours("ResNet-18", "cifar10")
    emr = methods.emr(at, *WARM)
    return {
        "ST": methods.plain(),
        "AT": at,
        LMA: lma(),
        CONTROL: lma(tau=0.0, beta=0.64 * 86),
        "TRADES": methods.trades(),
        "AT+EMR": emr,
        CENTRED: replace(emr, head=Head("centred")),
        "MART": methods.mart(),
        "TRADES+EMR": methods.emr(methods.trades(), *TRADES_EMR),
    }


def recipe(epochs: int, lr: float, **given) -> Recipe:
    told = {"schedule": "one-cycle", "weight_decay": 5e-4, "nesterov": True, "crop": 4, "flip": True}
    return Recipe(epochs=epochs, lr=lr, **{**told, "drop_last": True, **given})


def attacks(threat: Threat, images: int) -> dict[str, Columns]:
    """PGD-20 on the cross-entropy and on the margin; `images` under two stages of AutoAttack."""
    step = {"steps": 20, "step_size": threat.eps / 8}
    plain = {"attack": "pgd", "keep": "last"} | step
    return {
        "PGD": Columns({"PGD-20": plain, "margin PGD": {"attack": "pgd", "loss": "margin"} | step}, images=10_000),
        "APGD": Columns({"APGD-CE": {"attack": "apgd"}, "APGD-T": {"attack": "apgd-t"}}, images=images),
    }


table(
    SMALL,
    title="LMA-AT and EMR beside their controls on CIFAR-10 with a ResNet-8",
    source="LMA, sections 4.3 and 5; EMR, section 5; with another network and ball",
    model=cifar.NETS["ResNet-8"].build(32, 10),
    data="cifar10",
    validation=1000,
    threat=SMALL_THREAT,
    rows={label: row for label, row in rows().items() if label != "MART"},
    columns=attacks(SMALL_THREAT, 500),
    scales={"quick": (200, recipe(1, 0.1, batch_size=50)), "laptop": (10_000, recipe(20, 0.1, batch_size=100))},
    images={"quick": {"PGD": 20, "APGD": 4}},
    seeds=(0, 1, 2),
    minutes={"quick": 0.2, "laptop": {"training": 15, "PGD": 2, "APGD": 4}},
)
_TRAIN = 49_000
table(
    ONE_CYCLE,
    title="LMA-AT and EMR beside their controls on CIFAR-10 with ResNet-18, in few epochs",
    source="LMA, sections 4.3 and 5; EMR, section 5; by another recipe",
    model=cifar.NETS["ResNet-18"].build(32, 10),
    data="cifar10",
    validation=1000,
    threat=cifar.THREAT,
    rows=rows(),
    columns=attacks(cifar.THREAT, 1000)
    | {"AutoAttack": Columns({"AutoAttack": {"attack": "autoattack"}}, images=1000)},
    scales={
        "quick": (20, recipe(1, 0.2, batch_size=10)),
        "gpu": (_TRAIN, recipe(30, 0.2, batch_size=128, precision="bf16", compiled=True)),
    },
    images={"quick": {"PGD": 4, "APGD": 4, "AutoAttack": 4}},
    seeds=(0, 1, 2),
    minutes={"gpu": {"training": 5, "PGD": 0.3, "APGD": 0.5, "AutoAttack": 1}},
)
