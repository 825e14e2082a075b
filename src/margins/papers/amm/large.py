"""AMM's large tables: six nets on CIFAR-10, CIFAR-100 and SVHN (Tables 4 to 6), one table of methods each."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from margins import datasets, methods, paths
from margins.methods import Row
from margins.papers.amm.mnist import FGSM, amm
from margins.penalties.context import Threat
from margins.search import grid
from margins.tables import Columns, table, tuning
from margins.training import Recipe

#: Pixels a side after enlarging, and as the nets see them (section 4.1.2).
ENLARGED, SIDE = 36, 32
#: Images held out of the training ones, and as many as the paper's for the search; the last weights are evaluated.
VALIDATION, SEARCHED = 500, 5000
SEEDS = (0, 1, 2)
#: The ball of the robust accuracy that comes with an evaluation; the tables have none.
THREAT = Threat(norm=2, eps=0.25, step_size=0.05, steps=10)
#: How many of CIFAR-100's classes the regulariser looks at: DeepFool's released code has this; the paper is silent.
CANDIDATES = 10
#: The shares of images and epochs at the scale gpu.
GPU_IMAGES, GPU_EPOCHS = 20_000, 0.25
REFERENCE, ON, OURS = "reference", "reference, trained on", "MIN+EXP"


@dataclass(frozen=True)
class Net:
    """A net of the tables: its model, and the milliseconds of a forward of one image on a thread of a server's CPU.

    That is a third of what an image takes in a plain training, in batches of 50, measured beside other work.
    """

    model: Mapping[str, Any]
    ms: float
    #: Whether it has BatchNorm, which AMM freezes.
    normed: bool = False


@dataclass(frozen=True)
class Images:
    """A data set of the tables: its name in experiments, in `margins.datasets`, and whether images are flipped."""

    name: str
    data: str
    flip: bool

    @property
    def classes(self) -> int:
        return datasets.SETS[self.data][0]

    @property
    def images(self) -> int:
        """To train on, at the scale paper."""
        return datasets.SETS[self.data][1][0] - VALIDATION


#: By the paper's names.
NETS = {
    "LeNet": Net({"name": "convnet"}, 0.33),
    "NIN": Net({"name": "nin"}, 5.1),
    "LiuNet": Net({"name": "liunet"}, 4.0),
    "ResNet-20": Net({"name": "resnet-cifar", "depth": 20}, 1.0, normed=True),
    "ResNet-56": Net({"name": "resnet-cifar", "depth": 56}, 3.0, normed=True),
    "DenseNet-40": Net({"name": "densenet-cifar"}, 5.0, normed=True),
}
SETS = {
    "CIFAR-10": Images("cifar10", "cifar10", flip=True),
    "CIFAR-100": Images("cifar100", "cifar100", flip=True),
    "SVHN": Images("svhn", "svhn-extra", flip=False),
}
#: Forwards' worth a sample and step of MIN+EXP, by the number of classes: `margins.training.cost` of the ConvNet after
#: some epochs on a few thousand images. It is less with fewer errors.
FORWARDS = {10: 28.0, 100: 50.0}


def settings() -> dict[tuple[str, str], dict[str, str]]:
    """(data, net) -> the line of the paper's Appendix, Table 2."""
    with open(paths.note(paths.DATA / "paper" / "amm" / "app-table2.csv"), encoding="utf-8", newline="") as file:
        return {(line["dataset"], line["model"]): line for line in csv.DictReader(file)}


def recipe(line: Mapping[str, str], flip: bool, **given) -> Recipe:
    """That line's recipe, its drops as multipliers of the initial rate; `given` are other fields."""
    epochs = int(line["epochs"])
    drops = tuple((int(line[f"lr_drop{i}_epoch"]) / epochs, float(line[f"lr_drop{i}_multiplier"])) for i in (1, 2))
    told = {"lr": float(line["initial_lr"]), "weight_decay": 1e-4, "drops": drops, "clip": 10.0, "flip": flip}
    told |= {"window": SIDE, "attack_validation": False, "batch_size": int(line["batch_size"]), "epochs": epochs}
    told |= given
    return Recipe(**told, select_every=max(1, told["epochs"] // 40))


def rows(net: Net, classes: int, scratch: bool) -> dict[str, Row]:
    """What is compared: trained from scratch, or from the reference, whose BatchNorm layers then stay as they are.

    MIN+EXP with MNIST's lambda, c and d, since the paper gives none for these data.
    """
    reference, ours = methods.plain(), amm("MIN", "EXP", candidates=CANDIDATES if classes > CANDIDATES else None)
    if scratch:
        return {REFERENCE: reference, OURS: ours}
    kept = {"frozen_norms": True} if net.normed else {}
    on = replace(reference, start=reference, recipe={**reference.recipe, **kept})
    return {REFERENCE: reference, ON: on, OURS: replace(ours, start=reference, recipe={**ours.recipe, **kept})}


def forwards(row: str, classes: int) -> float:
    """A sample and step's worth of forwards."""
    return FORWARDS[classes] if row == OURS else 3.0


def minutes(net: Net, forwards: float, images: int, epochs: float = 1) -> float:
    """Of so many forwards an image and epoch, on one thread."""
    return net.ms * forwards * images * epochs / 60_000


def model(net: str, classes: int) -> dict[str, Any]:
    """What `models.build` is asked for; CIFAR-100 has its own LiuNet."""
    variant = {"variant": "cifar100" if classes == 100 else "cifar10"} if net == "LiuNet" else {}
    return {**NETS[net].model, **variant, "shape": (3, SIDE, SIDE), "classes": classes}


def name(data: str, net: str) -> str:
    """Of the experiment, as amm/cifar10-lenet."""
    return f"amm/{SETS[data].name}-{net.lower()}"


def _register(data: str, net: str, line: Mapping[str, str], number: int) -> None:
    of, images = NETS[net], SETS[data]
    paper = recipe(line, images.flip)
    scales = {
        "quick": (50, recipe(line, images.flip, epochs=1, batch_size=25)),
        "gpu": (GPU_IMAGES, recipe(line, images.flip, epochs=round(GPU_EPOCHS * paper.epochs))),
        "paper": (images.images, paper),
    }
    compared = rows(of, images.classes, line["from_scratch"] == "yes")
    mean = sum(forwards(row, images.classes) for row in compared) / len(compared)
    tested = minutes(of, 3 * images.classes, datasets.SETS[images.data][1][1])  # some three steps, over all classes
    table(
        name(data, net),
        title=f"AMM on {data} with {net}",
        source=f"AMM, section 4.4, Table {number}; Appendix, Table 2",
        model=model(net, images.classes),
        data=images.data,
        validation=VALIDATION,
        threat=THREAT,
        rows=compared,
        columns={"test": Columns(FGSM, weights="last", deepfool={})},
        scales=scales,
        images={"quick": {"test": 10}},
        seeds=SEEDS,
        minutes={
            scale: {"training": minutes(of, mean, size, given.epochs), "test": tested}
            for scale, (size, given) in scales.items()
            if scale != "quick"
        },
        centre=True,
        resize=ENLARGED,
    )


LINES = settings()
for number, data in enumerate(SETS, 4):
    for net in NETS:
        _register(data, net, LINES[data, net], number)

#: "lambda, c and d are casually tuned on the held-out validation set" (section 4.4.2): of the ConvNet on CIFAR-10.
SEARCH = "amm/cifar10-search"
_line = LINES["CIFAR-10", "LeNet"]
_scales = {
    "quick": (50, recipe(_line, True, epochs=1, batch_size=25)),
    "gpu": (GPU_IMAGES, recipe(_line, True, epochs=round(GPU_EPOCHS * int(_line["epochs"])))),
    "paper": (SETS["CIFAR-10"].images + VALIDATION - SEARCHED, recipe(_line, True)),
}
tuning(
    SEARCH,
    title="AMM's lambda, c and d on held-out images of CIFAR-10, with its LeNet",
    source="AMM, section 4.4.2",
    candidates=grid({"coefficient": [8.0, 32.0], "c": [2.0, 10.0], "d": [1.0, 5.0]}),
    row=methods.amm,
    model=model("LeNet", 10),
    data="cifar10",
    validation=SEARCHED,
    threat=THREAT,
    scales=_scales,
    seeds=(100, 101),
    minutes={
        scale: minutes(NETS["LeNet"], FORWARDS[10], size, given.epochs)
        for scale, (size, given) in _scales.items()
        if scale != "quick"
    },
    centre=True,
    resize=ENLARGED,
)
