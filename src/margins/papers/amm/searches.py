"""What AMM's settings on MNIST are chosen from: its grid's neighbours, rates of the reference, Elsayed's threshold."""

from dataclasses import replace

from margins import methods
from margins.claims import Difference, Evidence, Missing
from margins.experiments import Results
from margins.methods import Row
from margins.papers.amm.mnist import CHOSEN, MLP, NOISE, THREAT, VALIDATION, recipe
from margins.search import name_of
from margins.tables import tuning

GRID, OTHERS, RATES, ELSAYED = "amm/grid", "amm/grid-others", "amm/reference-search", "amm/elsayed-search"
NOISY = "amm/noise-search"
#: The pair of GRID; OTHERS has those of the other five.
OURS = "MIN+EXP"
SEEDS = (100, 101, 102)
#: Half and twice the printed value of each setting, one at a time: the least that makes it the best of a grid.
FACTORS = (0.5, 2.0)


def neighbours(pair: str) -> list[dict[str, float | str]]:
    """The printed lambda, c, d of a pair, and those with one of them halved or doubled."""
    names = ("coefficient", "c", "d")
    printed = {"pair": pair} | dict(zip(names, CHOSEN[tuple(pair.split("+"))], strict=True))
    return [printed, *({**printed, name: printed[name] * factor} for name in names for factor in FACTORS)]


def candidate(pair: str, coefficient: float, c: float, d: float) -> Row:
    """AMM with these settings."""
    aggregation, shrinkage = pair.split("+")
    return methods.amm(coefficient, aggregation=aggregation, shrinkage=shrinkage, c=c, d=d)


def reference(lr: float, weight_decay: float) -> Row:
    """Standard training at another rate or weight decay."""
    return replace(methods.plain(), recipe={"lr": lr, "weight_decay": weight_decay})


def under_noise(coefficient: float, **more) -> Row:
    """AMM at another lambda than printed, the reference at 0; more: other settings of the regulariser."""
    _, c, d = CHOSEN["MIN", "EXP"]
    return methods.amm(coefficient, **{"c": c, "d": d} | more) if coefficient else methods.plain()


#: The reference's printed rate and weight decay, and others.
PRINTED = {"lr": 5e-3, "weight_decay": 1e-4}
ALTERNATIVES = [
    *({**PRINTED, "lr": lr} for lr in (1e-3, 1e-2, 5e-2)),
    *({**PRINTED, "weight_decay": decay} for decay in (1e-5, 5e-4)),
]
#: Lambdas with random labels, 0 for the reference, up to the printed one; and that one without the longest walks, and
#: with hardly any weight of wrong samples.
_LAMBDA = CHOSEN["MIN", "EXP"][0]
STRENGTHS = [
    *({"coefficient": value} for value in (0.0, 0.1, 1.0, _LAMBDA)),
    {"coefficient": _LAMBDA, "longest": 2.0},
    {"coefficient": _LAMBDA, "d": 1e-6},
]
THRESHOLDS = [{"gamma": gamma, "coefficient": coefficient} for gamma in (0.5, 1, 2, 4) for coefficient in (0.5, 2, 8)]


def search(
    name: str, title: str, source: str, candidates, row, laptop: tuple[int, int], minutes: float, **more
) -> None:
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
        seeds=SEEDS,
        minutes={"quick": 0.03, "laptop": minutes},
        centre=True,
        **more,
    )


search(
    GRID,
    "MIN+EXP's lambda, c and d beside their halves and doubles, on held-out images",
    "AMM, section 4.2, Appendix A",
    neighbours(OURS),
    candidate,
    (10_000, 10),
    1.2,
)
search(
    OTHERS,
    "The other pairs' lambda, c and d beside their halves and doubles, on held-out images",
    "AMM, section 4.2, Appendix A",
    [one for a, s in CHOSEN if f"{a}+{s}" != OURS for one in neighbours(f"{a}+{s}")],
    candidate,
    (10_000, 10),
    1.6,
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
search(
    NOISY,
    "MIN+EXP's lambda with random labels, on held-out images with true ones",
    "AMM, section 4.3.3, Figure 5",
    STRENGTHS,
    under_noise,
    (10_000, 30),
    3,
    random_labels=NOISE["amm/noise-45k"],
)


def _not_better(results: Results, first: dict, others: list[dict], slack: float) -> list[Difference]:
    """That no other candidate has a lower error on held-out images than the first, by more than `slack` points."""

    def error(one):
        return 100.0 - results.metric(name_of(one), "validation clean")

    return [
        Difference(
            f"held-out error, {name_of(other)} - {name_of(first)}",
            error(other) - error(first),
            ">",
            -slack,
            pool=(results.experiment.name, "held-out error"),
            unit="points",
            resolution=100 / VALIDATION,
            failed=int(results.diverged(name_of(first)).sum()),
            opposed=int(results.diverged(name_of(other)).sum()),
        )
        for other in others
    ]


def _best_of_the_grid(at):
    printed, *others = neighbours(OURS)
    return [*_not_better(at[GRID], printed, others, 0.1), Missing("the other five pairs")]


def _well_tuned(at):
    return [*_not_better(at[RATES], PRINTED, ALTERNATIVES, 0.1), Missing("ConvNet on CIFAR-10")]


EVIDENCE = {
    "amm-appt1-grid-search-optimum": Evidence((GRID,), _best_of_the_grid),
    "amm-s42-reference-well-tuned": Evidence((RATES,), _well_tuned),
}
