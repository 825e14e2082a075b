"""AMR beside Deep Defense, adversarial training and MMR: Table 2 (section 5.3, appendix F)."""

from dataclasses import replace

from margins import methods
from margins.papers.amr import networks
from margins.papers.amr.networks import CIFAR, MNIST, RACE, Images, recipe, register
from margins.tables import Columns

LENET, CONVNET, SMALL, SMALL_CIFAR = "amr/lenet", "amr/convnet", "amr/lenet-small", "amr/cifar-lenet-small"
#: Appendix F: tau of LeNet and LeNetSmall, and of ConvNet.
TAU = {"LeNet": 40.0, "LeNetSmall": 40.0, "ConvNet": 50.0}
#: MMR's lambda and its two gammas: those of its authors' released l2 models of these data; AMR's paper gives none.
MMR = {"mnist": (3.0, 0.45, 0.45), "cifar10": (1.5, 0.2, 0.2)}


def ours(tau: float) -> dict[str, methods.Row]:
    """AMR by its equation and by the released code, with its learning rate."""
    compared = networks.rows(tau, tau, slow=True)
    return {label: compared[label] for label in ("AMR, Eq. 15", "AMR, released")}


def rows(tau: float) -> dict[str, methods.Row]:
    """The methods of Table 2. "Adv" is adversarial training as published, "Adv, proper" with steps that reach."""
    return {
        "Std": methods.plain(),
        "DD": methods.deep_defense(start=methods.plain()),
        "Adv": methods.adv(),
        "Adv, proper": methods.adv(None),
    } | ours(tau)


def _table(
    name: str, images: Images, model: dict, compared: dict[str, methods.Row], sizes: dict, augmented=False, **given
) -> None:
    """sizes: scale -> (training images, epochs). augmented: by random crops and flips."""
    more = {"crop": 2, "flip": True} if augmented else {}
    scales = {
        scale: (size, recipe(epochs, attack_validation=True, select_every=epochs, **more))
        for scale, (size, epochs) in {"quick": (256, 1), **sizes}.items()
    }
    train = Columns({RACE: {"attack": "race"}}, images=500, weights="last", deepfool={}, split="train")
    register(
        name, images, model, compared, "AMR and other defences", scales, columns={"distances, train": train},
        source="AMR, section 5.3, Table 2", **given,
    )  # fmt: skip


#: Deep Defense by the table's own recipe, from the start and not from a trained network.
SCRATCH = "DD, from scratch"
_table(
    LENET,
    MNIST,
    {"name": "lenet", "shape": (1, 28, 28), "classes": 10},
    rows(TAU["LeNet"]) | {SCRATCH: replace(methods.deep_defense(), recipe={}, note="")},
    {"laptop": (10_000, 8), "paper": (MNIST.images, 200)},
    minutes=(8, 0.7),
)
_table(
    CONVNET,
    CIFAR,
    {"name": "convnet", "shape": (3, 32, 32), "classes": 10},
    rows(TAU["ConvNet"]),
    {"gpu": (20_000, 40), "paper": (CIFAR.images, 200)},
)
for name, images, shape, sizes, more in (
    (SMALL, MNIST, (1, 28, 28), {"laptop": (5000, 12), "paper": (MNIST.images, 100)}, {"minutes": (10, 0.3)}),
    (SMALL_CIFAR, CIFAR, (3, 32, 32), {"gpu": (20_000, 30), "paper": (CIFAR.images, 100)}, {"augmented": True}),
):
    _table(
        name,
        images,
        {"name": "lenet-small", "shape": shape, "classes": 10},
        {"MMR": methods.mmr(*MMR[images.data]), **ours(TAU["LeNetSmall"])},
        sizes,
        **more,
    )
