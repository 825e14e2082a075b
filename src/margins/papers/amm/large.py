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
#: Images held out of the training ones, and of those of the search, as many as the paper's.
VALIDATION, SEARCHED = 500, 5000
SEEDS = (0, 1, 2)
#: The ball of the robust accuracy that comes with an evaluation; the tables have none.
THREAT = Threat(norm=2, eps=0.25, step_size=0.05, steps=10)
#: How many of CIFAR-100's classes the regulariser looks at: DeepFool's released code has this; the paper is silent.
CANDIDATES = 10
#: Images at the scale gpu, and its share of the epochs.
GPU_IMAGES, GPU_EPOCHS = 20_000, 0.25
REFERENCE, ON, OURS = "reference", "reference, trained on", "MIN+EXP"
#: What an image and epoch of MIN+EXP is worth in forwards, by the number of classes: `margins.training.cost` of the
#: ConvNet when it has 62 % and 46 % of some training images right. With fewer errors it is less.
FORWARDS = {10: 28.6, 100: 31.5}


@dataclass(frozen=True)
class Net:
    """A net of the tables: its model, and the milliseconds of a forward of one image on one thread of a server's CPU.

    That is a third of its plain training step. normed: whether it has BatchNorm, which AMM freezes.
    """

    model: Mapping[str, Any]
    ms: float
    normed: bool = False

    def minutes(self, forwards: float, images: int, epochs: int = 1) -> float:
        """Of so many forwards an image and epoch, on one thread."""
        return self.ms * forwards * images * epochs / 60_000


@dataclass(frozen=True)
class Images:
    """A data set of the tables: its name in experiments and in `margins.datasets`, whether images are flipped, its nets
    by the paper's names."""

    name: str
    data: str
    flip: bool
    nets: Mapping[str, Net]

    @property
    def classes(self) -> int:
        return datasets.SETS[self.data][0]

    @property
    def images(self) -> int:
        """To train on, at the scale paper."""
        return datasets.SETS[self.data][1][0] - VALIDATION

    def model(self, net: str) -> dict[str, Any]:
        """What `models.build` is asked for."""
        return {**self.nets[net].model, "shape": (3, SIDE, SIDE), "classes": self.classes}

    def experiment(self, net: str) -> str:
        """Its name, as amm/cifar10-lenet."""
        return f"amm/{self.name}-{net.lower()}"


NETS = {
    "LeNet": Net({"name": "convnet"}, 0.24),
    "NIN": Net({"name": "nin"}, 4.8),
    "LiuNet": Net({"name": "liunet", "variant": "cifar10"}, 5.6),
    "ResNet-20": Net({"name": "resnet-cifar", "depth": 20}, 1.1, normed=True),
    "ResNet-56": Net({"name": "resnet-cifar", "depth": 56}, 3.5, normed=True),
    "DenseNet-40": Net({"name": "densenet-cifar"}, 10.8, normed=True),
}
WIDER = NETS | {"LiuNet": Net({"name": "liunet", "variant": "cifar100"}, 18.7)}
SETS = {
    "CIFAR-10": Images("cifar10", "cifar10", True, NETS),
    "CIFAR-100": Images("cifar100", "cifar100", True, WIDER),
    "SVHN": Images("svhn", "svhn-extra", False, NETS),
}


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


def scales(line: Mapping[str, str], flip: bool, images: int) -> dict[str, tuple[int, Recipe]]:
    """quick: whether it runs; gpu: a part of the images and epochs; paper: all of them."""
    epochs = round(GPU_EPOCHS * int(line["epochs"]))
    return {
        "quick": (20, recipe(line, flip, epochs=1, batch_size=10)),
        "gpu": (GPU_IMAGES, recipe(line, flip, epochs=epochs)),
        "paper": (images, recipe(line, flip)),
    }


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
    """What an image and epoch is worth."""
    return FORWARDS[classes] if row == OURS else 3.0


def _register(data: str, net: str, line: Mapping[str, str], number: int) -> None:
    of, images = SETS[data].nets[net], SETS[data]
    compared = rows(of, images.classes, line["from_scratch"] == "yes")
    sizes = scales(line, images.flip, images.images)
    mean = sum(forwards(row, images.classes) for row in compared) / len(compared)
    tested = of.minutes(3 * images.classes, datasets.SETS[images.data][1][1])  # some three steps over all classes
    table(
        images.experiment(net),
        title=f"AMM on {data} with {net}",
        source=f"AMM, section 4.4, Table {number}; Appendix, Table 2",
        model=images.model(net),
        data=images.data,
        validation=VALIDATION,
        threat=THREAT,
        rows=compared,
        columns={"test": Columns(FGSM, weights="last", deepfool={})},
        scales=sizes,
        images={"quick": {"test": 4}},
        seeds=SEEDS,
        minutes={
            scale: {"training": of.minutes(mean, sizes[scale][0], sizes[scale][1].epochs), "test": tested}
            for scale in ("gpu", "paper")
        },
        centre=True,
        resize=ENLARGED,
    )


LINES = settings()
for number, data in enumerate(SETS, 4):
    for net in SETS[data].nets:
        _register(data, net, LINES[data, net], number)

#: "lambda, c and d are casually tuned on the held-out validation set" (section 4.4.2): of the ConvNet on CIFAR-10.
SEARCH = "amm/cifar10-search"
_sizes = scales(LINES["CIFAR-10", "LeNet"], True, SETS["CIFAR-10"].images + VALIDATION - SEARCHED)
tuning(
    SEARCH,
    title="AMM's lambda, c and d on held-out images of CIFAR-10, with its LeNet",
    source="AMM, section 4.4.2",
    candidates=grid({"coefficient": [8.0, 32.0], "c": [2.0, 10.0], "d": [1.0, 5.0]}),
    row=methods.amm,
    model=SETS["CIFAR-10"].model("LeNet"),
    data="cifar10",
    validation=SEARCHED,
    threat=THREAT,
    scales=_sizes,
    seeds=(100, 101),
    minutes={
        scale: NETS["LeNet"].minutes(FORWARDS[10], _sizes[scale][0], _sizes[scale][1].epochs)
        for scale in ("gpu", "paper")
    },
    centre=True,
    resize=ENLARGED,
)
