"""AMM on MNIST: Tables 1 to 3 and Figures 2 to 5 as tables of methods (sections 3.3.3, 4.3 and 4.4.1)."""

from margins import methods
from margins.methods import Row
from margins.penalties.context import Threat
from margins.tables import Columns, table
from margins.training import Recipe

AGGREGATION, GRADIENTS, LENET = "amm/aggregation", "amm/gradients", "amm/lenet"
MLP = {"name": "mlp", "inputs": 784, "hidden": (800, 800), "classes": 10, "initial": "he"}
#: The ball of the robust accuracies; DeepFool needs none.
THREAT = Threat(norm=2, eps=1.0, step_size=0.25, steps=10)
#: Held out of the 60,000, so that "paper" trains on 55,000.
VALIDATION = 5000
SEEDS = (0, 1, 2)
#: Appendix, Table 1: lambda, c, d of each pair.
CHOSEN = {
    ("AVG", "LIN"): (1.0, 4.0, 4.0),
    ("AVG", "INV"): (32.0, 4.0, 2.0),
    ("AVG", "EXP"): (32.0, 2.0, 2.0),
    ("MIN", "LIN"): (1.0, 0.5, 4.0),
    ("MIN", "INV"): (32.0, 1.0, 0.5),
    ("MIN", "EXP"): (32.0, 2.0, 1.0),
}


def recipe(epochs: int, select_every: int = 1) -> Recipe:
    """Appendix, Table 2, for any number of epochs: a tenth of the rate after half of them, a hundredth after 80 %."""
    drops = ((0.5, 0.1), (0.8, 0.01))
    given = {"lr": 5e-3, "weight_decay": 1e-4, "drops": drops, "clip": 10.0, "attack_validation": False}
    return Recipe(epochs=epochs, batch_size=100, select_every=select_every, **given)


def amm(aggregation: str, shrinkage: str, **more) -> Row:
    """AMM with the paper's settings for a pair."""
    coefficient, c, d = CHOSEN[aggregation, shrinkage]
    return methods.amm(coefficient, aggregation=aggregation, shrinkage=shrinkage, c=c, d=d, **more)


REFERENCE = methods.plain()
OURS = amm("MIN", "EXP")
BOTH = {"reference": REFERENCE, "MIN+EXP": OURS}
PAIRS = {f"{a}+{s}": amm(a, s) for a, s in CHOSEN}
PGD = {"attack": "pgd", "steps": 40, "step_size": 0.1}
FGSM = {"FGSM": {"attack": "fgsm"}}
COLUMNS = {
    "test": Columns(FGSM, weights="last", deepfool={}),
    "train": Columns(FGSM, images=5000, weights="last", deepfool={}, split="train"),
    "strong": Columns(
        {
            "PGD cross-entropy": PGD | {"loss": "cross-entropy"},
            "PGD margin": PGD | {"loss": "margin"},
            "Race": {"attack": "race"},
        },
        images=1000,
        weights="last",
    ),
}
QUICK = {"test": 100, "train": 100, "strong": 20}


def register(name: str, rows: dict[str, Row], title: str, source: str, minutes: float, **given) -> None:
    """A table on MNIST with the columns of all.

    minutes: of a training at laptop scale; evaluations take little. sizes: training images and epochs of the scales.
    """
    sizes = {"quick": (400, 2)} | given.pop("sizes", {"laptop": (20_000, 30), "paper": (55_000, 100)})
    settings = {"model": MLP, "columns": COLUMNS, "images": {"quick": QUICK}} | given
    table(
        name,
        title=title,
        source=source,
        data="mnist",
        validation=VALIDATION,
        threat=THREAT,
        rows=rows,
        scales={scale: (size, recipe(epochs)) for scale, (size, epochs) in sizes.items()},
        seeds=SEEDS,
        minutes={"quick": 0.05, "laptop": {"training": minutes} | dict.fromkeys(COLUMNS, 0.4)},
        centre=True,
        **settings,
    )


register(
    AGGREGATION,
    {"reference": REFERENCE, **PAIRS},
    "AMM's aggregations and shrinkages: an MLP on MNIST",
    "AMM, section 3.3.3, Table 1 and Figure 2",
    minutes=7,
)
register(
    LENET,
    BOTH,
    "AMM on MNIST with LeNet",
    "AMM, section 4.4.1, Table 3",
    minutes=8,
    model={"name": "lenet", "shape": (1, 28, 28), "classes": 10},
    sizes={"laptop": (20_000, 15), "paper": (55_000, 100)},
)
#: Figure 4's sizes; the largest leaves room for what is held out. A laptop trains on FEWER, and on 20,000 for Table 1.
SIZES = {f"amm/less-data-{size // 1000}k": size for size in range(5000, 60_000, 5000)}
FEWER = (5000, 10_000)
#: AMM on a third of the images, as 20,000 are of 60,000; at the paper's scale 20,000.
THIRD = "amm/less-data-third"
#: Figure 5's shares of random labels, by the name of its point (thousands of the paper's 60,000), and a laptop's.
NOISE = {f"amm/noise-{5 * k}k": k / 12 for k in range(1, 13)}
NOISIER = (3 / 12, 6 / 12, 9 / 12, 11 / 12)

for name, size in SIZES.items():
    register(
        name,
        BOTH,
        f"AMM on {size:,} images of MNIST",
        "AMM, section 4.3.2, Figure 4",
        minutes=7 * size / 20_000,
        sizes=({"laptop": (size, 30)} if size in FEWER else {}) | {"paper": (size, 100)},
    )
register(
    THIRD,
    {"MIN+EXP": OURS},
    "AMM on a third of MNIST's images",
    "AMM, section 4.3.2",
    minutes=2.3,
    sizes={"laptop": (6667, 30), "paper": (20_000, 100)},
)
for name, noise in NOISE.items():
    register(
        name,
        BOTH,
        f"AMM on MNIST with {100 * noise:.0f} % random labels",
        "AMM, section 4.3.3, Figure 5",
        minutes=7,
        sizes=({"laptop": (20_000, 30)} if noise in NOISIER else {}) | {"paper": (55_000, 100)},
        random_labels=noise,
    )
