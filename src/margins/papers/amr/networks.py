"""AMR's networks as tables of methods: Table 1 and Figures 2, 3 and 5 to 8 (sections 5.2 and 5.3, appendix F)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from margins import methods
from margins.methods import Row
from margins.methods.average_margin import FLOOR
from margins.penalties.context import Threat
from margins.tables import Along, Columns, table
from margins.training import Recipe

LR, MLP, CNN = "amr/mnist-lr", "amr/mnist-mlp", "amr/mnist-cnn"
CIFAR_LR, CIFAR_MLP, CIFAR_CNN = "amr/cifar-lr", "amr/cifar-mlp", "amr/cifar-cnn"
#: Held out of the training images, so that "paper" trains on 59,000 of MNIST's: early stopping selects on them.
VALIDATION = 1000
SEEDS = (0, 1, 2)
#: Appendix F; its estimates are made at these epochs.
ESTIMATED = (1, 10, 20, 30, 40, 50, 80, 120, 160, 200)


@dataclass(frozen=True)
class Images:
    """A data set of the tables: what it can train on, the budgets of Tables 1 and 2, l2 in input units."""

    data: str
    images: int
    eps: tuple[float, ...]

    @property
    def threat(self) -> Threat:
        """What is trained adversarially against: the largest budget; a step is 2.5 / steps of it."""
        return Threat(norm=2, eps=self.eps[-1], step_size=2.5 * self.eps[-1] / 40, steps=40)

    @property
    def attacked(self) -> tuple[float, ...]:
        """The budgets at which the paper's attack is run here."""
        return self.eps[1::2]


MNIST = Images("mnist", 59_000, (0.5, 1.0, 1.5, 2.0))
CIFAR = Images("cifar10", 49_000, (0.1, 0.2, 0.3, 0.4))

#: The attack of appendix F, with loss, start and floor as in the authors' code (methods C.1).
PAPER = {
    "attack": "pgd", "loss": "cross-entropy", "start": "image", "keep": "last", "steps": 1000, "step_size": 0.01,
    "floor": FLOOR,
}  # fmt: skip
#: The images that it sees but at the scale "paper", where printed numbers are claims.
PAPER_IMAGES = 200
#: The learning rate of AMR in the authors' script, a fifth of the paper's. With the tau of 40 it has to be: with the
#: paper's the logits of the CNN can run away until they are not finite.
SLOW = 0.002
#: Names of columns.
ATTACK, MARGIN, RACE = "paper's attack", "margin PGD", "Race"
CURVES = {
    "DeepFool": {"measure": "deepfool"},
    "Race": {"measure": "race", "steps": 30},
    "gap": {"measure": "gap"},
    "gradient": {"measure": "gradient"},
}


def at_eps(attack: str, eps: float) -> str:
    """The name of a column of an attack within a budget."""
    return f"{attack}, eps {eps}"


def evaluated(images: Images) -> dict[str, Columns]:
    """The columns of Tables 1 and 2.

    Clean accuracy on all test images (with an attack that costs little); distances, of which each tells the robust
    accuracy at every eps; PGD on the margin at all budgets, the paper's attack at two.
    """
    race = {RACE: {"attack": "race"}}
    columns = {
        "test": Columns({"FGSM": {"attack": "fgsm"}}, weights="last"),
        "distances": Columns(race, images=1000, weights="last", deepfool={}),
    }
    for eps in images.eps:
        margin = {"attack": "pgd", "loss": "margin", "start": "uniform", "steps": 40, "step_size": 2.5 * eps / 40}
        columns[at_eps(MARGIN, eps)] = Columns({at_eps(MARGIN, eps): margin}, images=500, weights="last", eps=eps)
    for eps in images.attacked:
        paper = {at_eps(ATTACK, eps): PAPER}
        columns[at_eps(ATTACK, eps)] = Columns(paper, images=PAPER_IMAGES, weights="last", eps=eps)
    return columns


def looked(stopped: int = 1000, estimated: int = 100, points: int = 256, begin: int = 1) -> dict[str, Columns | Along]:
    """The columns of the epoch that early stopping chooses, and of those that the recipe keeps."""
    return {
        "stopped": Columns({RACE: {"attack": "race"}}, images=stopped),
        "along": Along(CURVES, images=500),
        "along, train": Along(CURVES, images=500, split="train"),
        "estimate": Along(
            {"estimate": {"measure": "estimate", "points": points}}, images=estimated, ends=True, begin=begin
        ),
    }


def rows(tau: float, released: float, slow: bool = False) -> dict[str, Row]:
    """The methods of Table 1, and AMR by its equation and by the code that ran it, each with the tau it came with.

    The learning rate is the paper's; slow: of "AMR, released" it is `SLOW`. beta counts twice for every layer with a
    bias, as it did in their runs.
    """
    ran = methods.amr(released, reading="released", doubled=True)
    return {
        "Std": methods.plain(),
        "LCR": methods.lcr(doubled=True),
        "AMR, Eq. 15": methods.amr(tau, doubled=True),
        "AMR, released": replace(ran, recipe={"lr": SLOW}) if slow else ran,
        "AMR, shifted": methods.amr(released, reading="shifted", doubled=True),
    }


def recipe(epochs: int, snapshots: tuple[int, ...] = (), **given) -> Recipe:
    """Appendix F: SGD, 0.01, Nesterov momentum 0.9, batches of 128; no schedule, weight decay or augmentation."""
    told = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "attack_validation": False} | given
    return Recipe(epochs=epochs, batch_size=128, snapshots=snapshots, **told)


def register(
    name: str, images: Images, model: Mapping[str, Any], compared: Mapping[str, Row], title: str, scales, **given
) -> None:
    """A table at these scales: name -> (training images, recipe).

    minutes: of a laptop's (training, evaluation); columns: more than those of all.
    """
    columns = evaluated(images) | given.pop("columns", {})
    in_full = {"estimate": 500} | {at_eps(ATTACK, eps): 2000 for eps in images.attacked}
    minutes = {"quick": 0.05}
    if "minutes" in given:
        training, evaluation = given.pop("minutes")
        minutes["laptop"] = {"training": training} | dict.fromkeys(columns, evaluation)
    table(
        name,
        title=title,
        model=model,
        data=images.data,
        validation=VALIDATION,
        threat=images.threat,
        rows=compared,
        columns=columns,
        images={
            "quick": {column: {"test": 100, "estimate": 2}.get(column, 20) for column in columns},
            "paper": {column: size for column, size in in_full.items() if column in columns},
        },
        scales=scales,
        seeds=SEEDS,
        minutes=minutes,
        **given,
    )


def along(
    name: str, images: Images, model: Mapping[str, Any], compared: Mapping[str, Row], title: str, scales, **given
) -> None:
    """A table whose weights are looked at along the training; scales: name -> (images, epochs, those that are kept)."""
    register(
        name,
        images,
        model,
        compared,
        title,
        {s: (size, recipe(epochs, kept)) for s, (size, epochs, kept) in {"quick": (256, 2, (1, 2)), **scales}.items()},
        source="AMR, section 5 and appendix F",
        **{"columns": looked()} | given,
    )


LINEAR = {"name": "linear", "classes": 10}
ONE_LAYER = {"name": "mlp", "hidden": (1024,), "classes": 10}
#: Carlini and Wagner's; dropout on CIFAR-10 alone.
OF_MNIST = {"name": "cnn", "shape": (1, 28, 28), "blocks": ((32, 32), (64, 64)), "hidden": (200, 200), "classes": 10}
OF_CIFAR = {"name": "cnn", "shape": (3, 32, 32), "blocks": ((64, 64), (128, 128)), "hidden": (256, 256), "classes": 10}
SOME = (1, 2, 5, 10, 20, 50, 100, 200)
OF_CNN = rows(10.0, 40.0, slow=True) | {"AMR, released, rate 0.01": rows(10.0, 40.0)["AMR, released"]}
#: Of convolutional nets, whose gradients take a hundred times as long. In their first epochs some still put every image
#: into one class, and have no boundary near.
FEWER = looked(stopped=500, estimated=50, points=128, begin=5)

along(
    LR,
    MNIST,
    LINEAR | {"inputs": 784},
    rows(5.0, 5.0),
    "AMR and the trade-off on MNIST: logistic regression",
    {"laptop": (MNIST.images, 200, SOME), "paper": (MNIST.images, 1000, (*SOME, 500, 1000))},
    minutes=(2, 0.1),
)
along(
    MLP,
    MNIST,
    ONE_LAYER | {"inputs": 784},
    rows(5.0, 5.0),
    "AMR and the trade-off on MNIST: the MLP of Table 1",
    {"laptop": (MNIST.images, 25, (1, 2, 4, 8, 16, 25)), "paper": (MNIST.images, 200, ESTIMATED)},
    minutes=(7, 0.3),
)
along(
    CNN,
    MNIST,
    OF_MNIST,
    OF_CNN,
    "AMR and the trade-off on MNIST: the CNN of Table 1",
    {"laptop": (10_000, 40, (1, 2, 5, 10, 20, 40)), "paper": (MNIST.images, 200, ESTIMATED)},
    columns=FEWER,
    minutes=(7, 1.0),
)
along(
    CIFAR_LR,
    CIFAR,
    LINEAR | {"inputs": 3072},
    rows(5.0, 5.0),
    "AMR and the trade-off on CIFAR-10: logistic regression",
    {"laptop": (10_000, 200, SOME), "paper": (CIFAR.images, 1000, (*SOME, 500, 1000))},
    minutes=(2, 0.2),
)
along(
    CIFAR_MLP,
    CIFAR,
    ONE_LAYER | {"inputs": 3072},
    rows(10.0, 10.0),
    "AMR and the trade-off on CIFAR-10: the MLP of Table 1",
    {"laptop": (5000, 20, (1, 2, 5, 10, 20)), "paper": (CIFAR.images, 200, ESTIMATED)},
    minutes=(5, 0.4),
)
along(
    CIFAR_CNN,
    CIFAR,
    OF_CIFAR | {"dropout": 0.5},
    rows(10.0, 10.0),
    "AMR and the trade-off on CIFAR-10: the CNN of Table 1",
    {"gpu": (20_000, 50, ESTIMATED[:6]), "paper": (CIFAR.images, 200, ESTIMATED)},
    columns=FEWER,
)
