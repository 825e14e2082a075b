"""LMA-AT and EMR beside their controls on CIFAR-10, by one recipe: a small network on a laptop, ResNet-18 on a GPU.

Neither paper has such a table; its questions are theirs (LMA, section 4.3 and Table 2; EMR, section 5).
"""

from collections.abc import Mapping
from dataclasses import replace

from margins import methods
from margins.methods import PGD, Row
from margins.models.heads import Head
from margins.papers import cifar
from margins.papers.lma.large import BETA, ours
from margins.papers.lma.mnist import LEFT
from margins.penalties.context import Threat
from margins.search import Range, draw
from margins.tables import Along, Columns, table, tuning
from margins.training import Recipe

SMALL, ONE_CYCLE, SEARCH = "lma/cifar10-small", "lma/cifar10-one-cycle", "lma/cifar10-search"
#: Half of the papers' ball, for a network of so few weights.
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
        CONTROL: lma(tau=0.0, beta=LEFT * BETA["cifar10"]),
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


def on_resnet(name: str, compared: Mapping[str, Row], columns: Mapping[str, Columns | Along], **given) -> None:
    """A table of ResNet-18 in few epochs, attacked as `attacks` say, by AutoAttack, and by `columns`.

    given: title, source; kept: the epochs whose weights are kept; minutes: of the columns.
    """
    kept, minutes = given.pop("kept", ()), given.pop("minutes", {})
    every = attacks(cifar.THREAT, 1000) | {"AutoAttack": Columns({"AutoAttack": {"attack": "autoattack"}}, images=1000)}
    every |= columns
    fast = {"batch_size": 128, "precision": "bf16", "compiled": True}
    table(
        name,
        model=cifar.NETS["ResNet-18"].build(32, 10),
        data="cifar10",
        validation=1000,
        threat=cifar.THREAT,
        rows=compared,
        columns=every,
        scales={
            "quick": (20, recipe(1, 0.2, batch_size=10, snapshots=kept[:1])),
            "gpu": (49_000, recipe(30, 0.2, **fast, snapshots=kept)),
        },
        images={"quick": dict.fromkeys(every, 4)},
        seeds=(0, 1, 2),
        minutes={"gpu": {"training": 5, "PGD": 0.3, "APGD": 0.5, "AutoAttack": 1} | minutes},
        **given,
    )


#: With and without a random start, last iterates, as EMR's attacks are.
STARTS = {
    f"PGD-{steps}, {named}": {"attack": "pgd", "keep": "last", "start": start, "steps": steps, "step_size": 2 / 255}
    for steps in (10, 100)
    for named, start in (("from the image", "none"), ("random start", "uniform"))
}
#: What the rows craft with, on the cross-entropy and on LMA's sum, against one and the same network.
CRAFTED = {
    f"PGD-10, {named}": {"attack": "pgd", "keep": "last", "start": "normal", "steps": 10, "step_size": 2 / 255} | given
    for named, given in (("CE", {}), ("CE + L'", {"loss": "margin-cross-entropy"}))
}
on_resnet(
    ONE_CYCLE,
    rows(),
    {
        "starts": Columns(STARTS, images=2000, deepfool={}),
        "crafted": Columns(CRAFTED, images=10_000),
    },
    minutes={"starts": 0.6, "crafted": 0.3},
    title="LMA-AT and EMR beside their controls on CIFAR-10 with ResNet-18, in few epochs",
    source="LMA, sections 4.3 and 5; EMR, section 5; by another recipe",
)
#: The paper's ranges; of the weight decay, which it has from above 0 on, from a hundredth of the usual one.
SPACE = {
    "beta": Range(1.0, 100.0),
    "tau": Range(0.0, 0.999),
    "delta": Range(0.0, 1.0),
    "alpha": [round(1.345 + k, 3) for k in range(9)],
    "weight_decay": Range(5e-6, 0.2, log=True),
}
CANDIDATES = 32


def candidate(weight_decay: float, **settings: float) -> Row:
    """LMA-AT with these settings; the weight decay is the recipe's."""
    return replace(methods.lma_at(**settings), recipe={"weight_decay": weight_decay})


tuning(
    SEARCH,
    title="LMA-AT's settings on held-out images of CIFAR-10, with ResNet-18",
    source="LMA, section 5.1",
    candidates=draw(SPACE, CANDIDATES),
    row=candidate,
    model=cifar.NETS["ResNet-18"].build(32, 10),
    data="cifar10",
    validation=2000,
    threat=cifar.THREAT,
    scales={
        "quick": (20, recipe(1, 0.2, batch_size=10)),
        "gpu": (20_000, recipe(15, 0.2, batch_size=128, precision="bf16", compiled=True)),
    },
    seeds=(100,),
    minutes={"gpu": 1.5},
)
