"""AMR beside Deep Defense, adversarial training and MMR: Table 2 (section 5.3, appendix F)."""

from margins import methods
from margins.papers.amr.networks import CIFAR, MNIST, RACE, recipe, register
from margins.tables import Columns

LENET, CONVNET = "amr/lenet", "amr/convnet"
#: Appendix F: tau of LeNet and LeNetSmall, and of ConvNet.
TAU = {"LeNet": 40.0, "ConvNet": 50.0}


def rows(tau: float) -> dict[str, methods.Row]:
    """The methods of Table 2. "Adv" is adversarial training as published, "Adv, proper" with steps that reach."""
    return {
        "Std": methods.plain(),
        "DD": methods.deep_defense(start=methods.plain()),
        "Adv": methods.adv(),
        "Adv, proper": methods.adv(None),
        "AMR, Eq. 15": methods.amr(tau, doubled=True),
        "AMR, released": methods.amr(tau, reading="released", doubled=True),
    }


def _table(name: str, images, model: dict, tau: float, sizes: dict[str, tuple[int, int]], **given) -> None:
    scales = {
        scale: (size, recipe(epochs, attack_validation=True, select_every=epochs))
        for scale, (size, epochs) in {"quick": (256, 1), **sizes}.items()
    }
    train = Columns({RACE: {"attack": "race"}}, images=500, weights="last", deepfool={}, split="train")
    register(
        name, images, model, rows(tau), "AMR and other defences", scales, columns={"distances, train": train},
        source="AMR, section 5.3, Table 2", **given,
    )  # fmt: skip


_table(
    LENET,
    MNIST,
    {"name": "lenet", "shape": (1, 28, 28), "classes": 10},
    TAU["LeNet"],
    {"laptop": (10_000, 8), "paper": (59_000, 200)},
    minutes=(8, 0.7),
)
_table(
    CONVNET,
    CIFAR,
    {"name": "convnet", "shape": (3, 32, 32), "classes": 10},
    TAU["ConvNet"],
    {"gpu": (20_000, 40), "paper": (49_000, 200)},
)
