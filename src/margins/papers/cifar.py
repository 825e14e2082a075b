"""What EMR's section 5 and LMA-AT share: networks, the ball of 8/255, attacks, and what their runs take."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from margins.penalties.context import Threat
from margins.tables import Columns

THREAT = Threat(norm=math.inf, eps=8 / 255, step_size=2 / 255, steps=10)


@dataclass(frozen=True)
class Net:
    """A network: its model without shape and classes; gflops: of a forward of a 32 x 32 image, multiply-adds twice."""

    model: Mapping[str, Any]
    gflops: float

    def build(self, side: int, classes: int) -> dict[str, Any]:
        """What `models.build` is asked for."""
        return {**self.model, "shape": (3, side, side), "classes": classes}

    def minutes(self, images: int, epochs: int, side: int = 32) -> dict[str, float]:
        """Of a row and seed at `SPEED`, by part: the training on so many images, and what `columns` evaluate."""
        worth = {"training": FORWARDS * images * epochs} | {part: 10_000 * worth for part, worth in TESTED.items()}
        return {part: forwards * self.gflops * (side / 32) ** 2 / SPEED / 60 for part, forwards in worth.items()}


#: What an image is worth in forwards: in an epoch of the dearest kind of row, and in each of `columns`.
FORWARDS = 27
TESTED = {"white box": 250, "margin": 82, "last": 122, "AutoAttack": 2500, "black box": 900, "distances": 20}
#: What an H200 is taken to do in a second in bfloat16, in GFLOP: an estimate until steps were measured there.
SPEED = 130e3
NETS = {
    "ResNet-18": Net({"name": "resnet-18-cifar"}, 1.11),
    "WRN-34-10": Net({"name": "wide-resnet", "depth": 34, "width": 10}, 10.5),
    "WRN-34-10, madry": Net({"name": "wide-resnet", "depth": 34, "width": 10, "variant": "madry"}, 10.4),
    "ResNet-8": Net({"name": "resnet-cifar", "depth": 8, "width": 8}, 0.006),
}
#: What is stronger than the papers' PGD, and looked at on the best and on the last weights.
MARGIN = {"attack": "pgd", "loss": "margin", "steps": 40, "step_size": THREAT.eps / 8}
PGD = {"attack": "pgd", "keep": "last"}
SPSA = {"attack": "spsa", "delta": 0.001, "samples": 100, "steps": 20, "lr": 0.01}


def columns(step_size: float, start: str, steps: tuple[int, ...]) -> dict[str, Columns]:
    """A paper's attacks and stronger ones; FGSM takes one step of eps, as its name says.

    step_size, start: of PGD, with so many steps each, and of CW. All of them look at 10,000 test images but for the
    black boxes, AutoAttack, and the distances.
    """
    white = {f"PGD-{count}": PGD | {"steps": count, "step_size": step_size, "start": start} for count in steps}
    cw = {"attack": "cw", "keep": "last", "steps": 20, "step_size": step_size, "start": start}
    return {
        "white box": Columns({"FGSM": {"attack": "fgsm"}} | white | {"CW": cw}, images=10_000),
        "margin": Columns({"margin PGD": MARGIN}, images=10_000),
        "last": Columns({"PGD-20": PGD | {"steps": 20, "step_size": step_size, "start": start}, "margin PGD": MARGIN},
                        images=10_000, weights="last"),
        "AutoAttack": Columns({"AutoAttack": {"attack": "autoattack"}}, images=1000),
        "black box": Columns({"Square": {"attack": "square"}, "SPSA": SPSA}, images=1000),
        "distances": Columns({"Race": {"attack": "race"}}, images=1000),
    }  # fmt: skip


#: Images of AutoAttack at the scale paper.
ALL = {"AutoAttack": 10_000}
#: Of a scale that only asks whether everything runs.
FEW = dict.fromkeys(TESTED, 4)
#: Epochs there: with fewer, methods of two phases have none left for the second.
QUICK = 4
