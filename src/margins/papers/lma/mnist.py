"""A first table of methods: a small CNN on MNIST, linf 0.2, with LMA-AT beside what its moving average amounts to."""

import math
from collections.abc import Callable
from dataclasses import replace

from margins import methods
from margins.methods import PGD, Row
from margins.models.heads import Head
from margins.penalties.context import Threat
from margins.search import name_of
from margins.tables import Columns, table, tuning
from margins.training import Recipe

NAME, SEARCH = "lma/mnist", "lma/mnist-search"
EPS = 0.2
#: At half its width, so that the table takes a laptop little more than an hour.
MODEL = {"name": "lenet-small", "shape": (1, 28, 28), "classes": 10, "channels": (8, 16)}
THREAT = Threat(norm=math.inf, eps=EPS, step_size=EPS / 4, steps=10, ramp=0.3)

#: What LMA's beta is multiplied by where tau is 0.2: (1 - tau)^2, what is left of it in mHuber's quadratic range.
LEFT = 0.64
#: The paper's beta, for CIFAR; with tau 0 its control is 0.64 of it.
BETA = 86.0
#: The methods whose coefficient is chosen on held-out images, and the candidates: as many for each.
TUNED: dict[str, tuple[Callable[[float], Row], tuple[float, ...]]] = {
    "LMA-AT": (lambda beta: methods.lma_at(beta=beta), (0.25, 1.0, 4.0, 16.0)),
    "LMA-AT, tau 0": (lambda beta: methods.lma_at(tau=0.0, beta=beta), (0.16, 0.64, 2.56, 10.24)),
    "TRADES": (methods.trades, (1.0, 3.0, 6.0, 12.0)),
    "MART": (methods.mart, (1.0, 2.5, 5.0, 10.0)),
}
#: What the search chose: the highest mean over its seeds. Its records say the same, and a test compares.
CHOSEN = {"LMA-AT": 0.25, "LMA-AT, tau 0": 2.56, "TRADES": 6.0, "MART": 2.5}


def recipe(epochs: int, select_every: int = 1) -> Recipe:
    """One for all rows; the ramp of eps keeps so small a net from ending as a constant."""
    given = {"lr": 0.05, "weight_decay": 5e-4, "schedule": "one-cycle", "select_every": select_every}
    return Recipe(epochs=epochs, batch_size=100, **given)


def candidate(method: str, beta: float) -> Row:
    """A row of the search; beta 0, of LMA-AT, is its margin loss and BCE alone (option D)."""
    return TUNED[method][0](beta)


def searched(method: str, beta: float) -> str:
    """The search's name for a candidate."""
    return name_of({"method": method, "beta": beta})


#: Crafted from the same start as the other rows: x and a little noise.
AT = methods.at(PGD())
EMR = methods.emr(AT, 3 / 128, 40.0)
ROWS = {
    "ST": methods.plain(),
    "AT": AT,
    "TRADES": candidate("TRADES", CHOSEN["TRADES"]),
    "MART": candidate("MART", CHOSEN["MART"]),
    "MAIL-TRADES": methods.mail_trades(),
    "AT+EMR": EMR,
    "LMA-AT, the paper's beta": candidate("LMA-AT", BETA),
    "LMA-AT, tau 0, 0.64 of that": candidate("LMA-AT, tau 0", LEFT * BETA),
    "LMA-AT": candidate("LMA-AT", CHOSEN["LMA-AT"]),
    "LMA-AT, tau 0": candidate("LMA-AT, tau 0", CHOSEN["LMA-AT, tau 0"]),
    "LMA-AT, tau 0, scaled beta": candidate("LMA-AT, tau 0", LEFT * CHOSEN["LMA-AT"]),
    "AT+EMR, centred head": replace(EMR, head=Head("centred")),
}
ATTACK = {"attack": "pgd", "start": "uniform", "step_size": EPS / 8}
PGD20 = ATTACK | {"loss": "cross-entropy", "steps": 20, "keep": "last"}
MARGIN = ATTACK | {"loss": "margin", "steps": 40, "keep": "best"}
COLUMNS = {
    "attacks": Columns({"PGD-20": PGD20, "margin PGD": MARGIN}, images=5000),
    "last": Columns({"margin PGD": MARGIN}, images=2000, weights="last"),
    "AutoAttack": Columns({"AutoAttack": {"attack": "autoattack"}}, images=500),
}
table(
    NAME,
    title="Training methods on MNIST with a small CNN",
    source="LMA, Tables 2 and 6, on another data set and network",
    model=MODEL,
    data="mnist",
    validation=1000,
    threat=THREAT,
    rows=ROWS,
    columns=COLUMNS,
    scales={"quick": (400, recipe(3)), "laptop": (20_000, recipe(15))},
    images={"quick": {"attacks": 100, "last": 100, "AutoAttack": 10}},
    seeds=(0, 1, 2),
    minutes={"quick": 0.02, "laptop": {"training": 3.3, "attacks": 0.4, "last": 0.1, "AutoAttack": 0.8}},
)
# Validated once, at the end, so that no maximum over epochs enters; on more images than the table holds out.
tuning(
    SEARCH,
    title="The coefficients of LMA-AT, TRADES and MART on held-out images of MNIST",
    source="LMA, section 5.1",
    candidates=[
        {"method": "LMA-AT", "beta": 0.0},
        *({"method": method, "beta": beta} for method, (_, betas) in TUNED.items() for beta in betas),
    ],
    row=candidate,
    model=MODEL,
    data="mnist",
    validation=5000,
    threat=THREAT,
    scales={"quick": (400, recipe(2, 2)), "laptop": (10_000, recipe(8, 8))},
    seeds=(100, 101),
    minutes={"quick": 0.02, "laptop": 0.9},
)
