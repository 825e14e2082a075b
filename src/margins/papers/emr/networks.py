"""EMR's MLP and CNN as tables of methods: Tables 1 and 2, Figures 1b to 1d and 2 (sections 3 and 4)."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from margins import methods
from margins.experiments import find
from margins.methods import PGD, Row
from margins.penalties.context import Threat
from margins.tables import Along, Columns, table
from margins.training import Recipe

#: Of the paper's networks; the CNN at a quarter of its width, for a laptop; and the other weight decays of Table 1.
MLP, CNN, QUARTER, MORE = "emr/mlp", "emr/cnn", "emr/cnn-quarter", "emr/mlp-more"
#: Held out of the training images, for the curves of accuracy during training.
VALIDATION = 1000
SEEDS = (0, 1, 2)
THREATS = {
    MLP: Threat(math.inf, eps=0.1, step_size=0.01, steps=20),
    CNN: Threat(math.inf, eps=8 / 255, step_size=2 / 255, steps=10),
}


def cnn(width: int) -> dict[str, Any]:
    """What the four convolutions of the missing supplement are read as, with `width` channels in the first of them."""
    blocks, hidden = ((width, width), (2 * width, 2 * width)), (4 * width, 4 * width)
    return {"name": "cnn", "shape": (3, 32, 32), "blocks": blocks, "hidden": hidden, "classes": 10}


#: The paper's lambda beside standard and adversarial training.
PRINTED = {MLP: (0.1, 3e-4), CNN: (0.01, 0.001)}
#: The faster way to the exact penalty on a CPU (`cost`).
ROUTE = {MLP: "gradients", CNN: "chain"}
#: Weight decay of the rows that are compared at one; Table 1's and 2's with EMR.
DECAY = {MLP: 1e-3, CNN: 5e-4}
#: From a random start, with the steps and the step size of the evaluation.
AT = methods.at(PGD(start="uniform"))


def decayed(row: Row, weight_decay: float) -> Row:
    return replace(row, recipe={**row.recipe, "weight_decay": weight_decay})


def named(method: str, weight_decay: float) -> str:
    """The label of a method at a weight decay, as "ST, 0.001"."""
    return f"{method}, {weight_decay:g}"


def l_softmax(margin: int, adversarial: bool = False) -> Row:
    """Annealed as its port does it, since the paper says nothing of that; a margin of 1 has nothing to anneal."""
    more = {"base": 0.0} if margin == 1 else {}
    return methods.l_softmax(margin, **more, craft=AT.craft if adversarial else None)


def rows(net: str, st: tuple[float, ...], soft: tuple[float, ...], at: tuple[float, ...]) -> dict[str, Row]:
    """st, soft, at: the weight decays of standard training, of L-Softmax, and of both beside adversarial training.

    All others have `DECAY`, and EMR also none.
    """
    plain, margin, wd = methods.plain(), 4 if net == MLP else 1, DECAY[net]
    lambda_st, lambda_at = PRINTED[net]
    way = {"route": ROUTE[net]}
    return {
        **{named("ST", decay): decayed(plain, decay) for decay in st},
        **{named("ST+LSoftmax", decay): decayed(l_softmax(margin), decay) for decay in soft},
        named("ST+EMR", wd): decayed(methods.exact_emr(plain, lambda_st, **way), wd),
        named("ST+EMR", 0.0): methods.exact_emr(plain, lambda_st, **way),
        named("ST+EMR, one probe", wd): decayed(methods.exact_emr(plain, lambda_st, probes=1), wd),
        **{named("AT", decay): decayed(AT, decay) for decay in at},
        **{named("AT+LSoftmax", decay): decayed(l_softmax(margin, adversarial=True), decay) for decay in at},
        named("AT+EMR", wd): decayed(methods.exact_emr(AT, lambda_at, **way), wd),
    }


def columns(net: str) -> dict[str, Columns | Along]:
    """The paper's PGD, from the image; a strong attack; distances; effective margins along the training, in l2."""
    threat = THREATS[net]
    paper = {"attack": "pgd", "loss": "cross-entropy", "start": "image", "keep": "last", "steps": threat.steps}
    strong = {"attack": "pgd", "loss": "margin", "start": "uniform", "steps": 40, "step_size": threat.eps / 8}
    of_images = {"effective": {"measure": "effective", "norm": 2}, "weights": {"measure": "weights"}}
    true = {"measure": "race", "norm": 2, "steps": 50, "box": False}  # as the effective margin knows of none
    return {
        "test": Columns({"PGD": paper | {"step_size": threat.step_size}}, images=5000, weights="last"),
        "strong": Columns({"margin PGD": strong, "Race": {"attack": "race"}}, images=500, weights="last"),
        "margins": Along(of_images, images=1000),
        "margins, train": Along(of_images, images=1000, split="train"),
        "distances": Along({"Race": true}, images=300, ends=True),
    }


def recipe(net: str, epochs: int, snapshots: tuple[int, ...]) -> Recipe:
    """SGD with momentum 0.9, 0.01, batches of 100; divided by 10 after 30 of 50 epochs, or 75 and 90 of 100."""
    drops = ((0.6, 0.1),) if net == MLP else ((0.75, 0.1), (0.9, 0.01))
    given = {"lr": 0.01, "momentum": 0.9, "schedule": "steps", "drops": drops}
    return Recipe(epochs=epochs, batch_size=100, snapshots=snapshots, **given)


def register(
    name: str,
    net: str,
    title: str,
    source: str,
    compared: Mapping[str, Row],
    scales: Mapping[str, tuple],
    *,
    more: Mapping[str, Along] | None = None,
    training: float | None = None,
    width: int = 64,
) -> None:
    """A table of the MLP or of a CNN; scales: name -> (training images, epochs, those whose weights are kept).

    more: measured beside `columns`; training: minutes of it at laptop scale; width: of the CNN.
    """
    found = columns(net) | (more or {})
    minutes = {"laptop": {"training": training} | dict.fromkeys(found, 0.5)} if training else {}
    table(
        name,
        title=title,
        source=source,
        model={"name": "mlp", "inputs": 784, "hidden": (1024,) * 4, "classes": 10} if net == MLP else cnn(width),
        data="mnist" if net == MLP else "cifar10",
        validation=VALIDATION,
        threat=THREATS[net],
        rows=compared,
        columns=found,
        scales={
            scale: (size, recipe(net, epochs, kept))
            for scale, (size, epochs, kept) in ({"quick": (300, 2, (1, 2))} | scales).items()
        },
        seeds=SEEDS,
        images={"quick": dict.fromkeys(found, 30)}
        | ({"paper": {"test": 10_000, "strong": 2000}} if "paper" in scales else {}),
        minutes={"quick": 0.1} | minutes,
    )


FULL = {MLP: (59_000, 50, (1, 2, 5, 10, 20, 30, 40, 50)), CNN: (49_000, 100, (1, 2, 5, 10, 20, 50, 75, 100))}
_TABLE1, _TABLE2 = (f"EMR, section 3, Table {k}" for k in (1, 2))
register(
    MLP,
    MLP,
    "Effective margins of an MLP on MNIST",
    _TABLE1,
    rows(MLP, (0.0, 1e-4, 1e-3, 1e-2, 0.1), (1e-4, 1e-3, 1e-2), (1e-3,)),
    {"laptop": (10_000, 10, (1, 2, 4, 6, 8, 10)), "paper": FULL[MLP]},
    training=4,
)
_EVERY = rows(MLP, (), (1e-4, 1e-3, 1e-2, 0.1), (1e-4, 1e-3, 1e-2))
register(
    MORE,
    MLP,
    "Effective margins of an MLP on MNIST: the other weight decays of Table 1",
    _TABLE1,
    {label: row for label, row in _EVERY.items() if label not in find(MLP).rows},
    {"paper": FULL[MLP]},
)
_CNN = rows(CNN, (0.0, 1e-4, 5e-4, 1e-3, 1e-2), (1e-4, 5e-4, 1e-3, 1e-2), (1e-4, 5e-4, 1e-3, 1e-2))
#: A margin above 1, with which the paper says that training fails.
TWO = named("ST+LSoftmax, m = 2", DECAY[CNN])
_TWO = {TWO: decayed(l_softmax(2), DECAY[CNN])}
register(CNN, CNN, "Effective margins of a CNN on CIFAR-10", _TABLE2, _CNN | _TWO, {"paper": FULL[CNN]})
register(
    QUARTER,
    CNN,
    "Effective margins of a CNN of a quarter of the width on CIFAR-10",
    _TABLE2,
    rows(CNN, (0.0, 1e-4, 5e-4, 1e-2), (5e-4,), (5e-4,)) | _TWO,
    {"laptop": (10_000, 20, (1, 2, 5, 10, 15, 20))},
    training=6,
    width=16,
)
