"""What AMM's settings on MNIST are chosen from: its grid's neighbours, rates of the reference, Elsayed's threshold."""

from dataclasses import replace

from margins import methods
from margins.methods import Row
from margins.papers.amm.mnist import CHOSEN, MLP, THREAT, VALIDATION, recipe
from margins.tables import tuning

GRID, RATES, ELSAYED = "amm/grid", "amm/reference-search", "amm/elsayed-search"
#: Half and twice the printed value of each setting, one at a time: the least that makes it the best of a grid.
FACTORS = (0.5, 2.0)


def neighbours() -> list[dict[str, float | str]]:
    """The printed lambda, c, d of each pair, and those with one of them halved or doubled."""
    names, found = ("coefficient", "c", "d"), []
    for (aggregation, shrinkage), values in CHOSEN.items():
        printed = {"pair": f"{aggregation}+{shrinkage}"} | dict(zip(names, values, strict=True))
        found += [printed, *({**printed, name: printed[name] * factor} for name in names for factor in FACTORS)]
    return found


def candidate(pair: str, coefficient: float, c: float, d: float) -> Row:
    """AMM with these settings."""
    aggregation, shrinkage = pair.split("+")
    return methods.amm(coefficient, aggregation=aggregation, shrinkage=shrinkage, c=c, d=d)


def reference(lr: float, weight_decay: float) -> Row:
    """Standard training at another rate or weight decay."""
    return replace(methods.plain(), recipe={"lr": lr, "weight_decay": weight_decay})


#: The reference's printed rate and weight decay, and others.
PRINTED = {"lr": 5e-3, "weight_decay": 1e-4}
ALTERNATIVES = [
    *({**PRINTED, "lr": lr} for lr in (1e-3, 1e-2, 5e-2)),
    *({**PRINTED, "weight_decay": decay} for decay in (1e-5, 5e-4)),
]
THRESHOLDS = [{"gamma": gamma, "coefficient": coefficient} for gamma in (0.5, 1, 2, 4) for coefficient in (0.5, 2, 8)]


def search(name: str, title: str, source: str, candidates, row, laptop: tuple[int, int], minutes: float) -> None:
    """A search on held-out images of MNIST; laptop: training images and epochs, minutes of each training."""
    sizes = {"quick": (400, 2), "laptop": laptop, "paper": (55_000, 100)}
    tuning(
        name,
        title=title,
        source=source,
        candidates=candidates,
        row=row,
        model=MLP,
        data="mnist",
        validation=VALIDATION,
        threat=THREAT,
        scales={scale: (size, recipe(epochs, select_every=epochs)) for scale, (size, epochs) in sizes.items()},
        seeds=(100, 101),
        minutes={"quick": 0.03, "laptop": minutes},
        centre=True,
    )


search(
    GRID,
    "AMM's lambda, c and d beside their halves and doubles, on held-out images",
    "AMM, section 4.2, Appendix A",
    neighbours(),
    candidate,
    (10_000, 10),
    1.2,
)
search(
    RATES,
    "Rates and weight decays of AMM's reference, on held-out images",
    "AMM, section 4.2, Appendix B",
    [PRINTED, *ALTERNATIVES],
    reference,
    (20_000, 30),
    1.2,
)
search(
    ELSAYED,
    "Threshold and coefficient of Elsayed et al.'s margin, on held-out images",
    "AMM, section 4.3.1; Elsayed et al. 2018",
    THRESHOLDS,
    methods.elsayed,
    (10_000, 10),
    0.9,
)
