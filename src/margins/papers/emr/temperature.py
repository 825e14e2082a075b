"""EMR's temperature and coefficient on ResNet-18: a grid, and of each row both parts of the exact penalty (section 4).

What a margin sees of the logits' gradients is what is left of them without their mean; at a high temperature the
approximation penalises the mean's alone, unless the head has none.
"""

from dataclasses import replace

from margins import methods
from margins.claims import Difference, Evidence
from margins.experiments import Results
from margins.methods import PGD, Row
from margins.models.heads import Head
from margins.papers import cifar
from margins.papers.cifar_reading import compared
from margins.papers.lma.short import attacks, recipe
from margins.tables import Along, Columns, table

NAME = "emr/cifar10-temperature"
TEMPERATURES, COEFFICIENTS = (0.1, 1.0, 10.0, 40.0), (1 / 128, 3 / 128, 9 / 128)
#: The temperature that a chosen one is compared with, and the one at which a centred head has nothing to lose.
PLAIN, WARM = 1.0, 40.0
#: What is chosen by.
HELD_OUT = "validation PGD-10"
AT = methods.at(PGD())


def named(temperature: float, coefficient: float) -> str:
    """The row of a temperature and of the released code's coefficient, of a sum over batches of 128."""
    return f"t = {temperature:g}, {128 * coefficient:g} / 128"


def rows() -> dict[str, Row]:
    grid = {named(t, c): methods.emr(AT, c, t) for t in TEMPERATURES for c in COEFFICIENTS}
    centred = {
        f"{named(WARM, c)}, centred head": replace(grid[named(WARM, c)], head=Head("centred")) for c in COEFFICIENTS
    }
    return {"AT": AT} | grid | centred


def chosen(results: Results, temperature: float | None = None) -> str:
    """The row of a temperature, or of any other than `PLAIN`, that withstands PGD best on held-out images."""
    other = [t for t in TEMPERATURES if t != PLAIN] if temperature is None else [temperature]
    having = [named(t, c) for t in other for c in COEFFICIENTS]
    kept = {row: results.curve(row, HELD_OUT)[:, -1].mean() for row in having if not results.diverged(row).any()}
    return max(kept or having, key=lambda row: kept.get(row, 0.0))


def _matters(at) -> list[Difference]:
    found = at[NAME]
    return compared([(chosen(found), chosen(found, PLAIN))], ["AutoAttack", "PGD-100"])("ResNet-18", found)


_PGD = cifar.PGD | {"steps": 100, "step_size": cifar.THREAT.step_size, "start": "none"}
_PARTS = Along({part: {"measure": "weights", "part": part} for part in ("seen", "mean")}, images=500, ends=True)
table(
    NAME,
    title="Temperature and coefficient of EMR on CIFAR-10 with ResNet-18",
    source="EMR, sections 4 and 5",
    model=cifar.NETS["ResNet-18"].build(32, 10),
    data="cifar10",
    validation=1000,
    threat=cifar.THREAT,
    rows=rows(),
    columns=attacks(cifar.THREAT, 1000)
    | {
        "PGD-100": Columns({"PGD-100": _PGD}, images=10_000),
        "AutoAttack": Columns({"AutoAttack": {"attack": "autoattack"}}, images=1000),
        "parts": _PARTS,
    },
    scales={
        "quick": (20, recipe(1, 0.2, batch_size=10, snapshots=(1,))),
        "gpu": (49_000, recipe(30, 0.2, batch_size=128, precision="bf16", compiled=True, snapshots=(1, 30))),
    },
    images={"quick": dict.fromkeys(("PGD", "APGD", "PGD-100", "AutoAttack", "parts"), 4)},
    seeds=(0, 1, 2),
    minutes={"gpu": {"training": 6, "PGD": 0.3, "APGD": 0.5, "PGD-100": 0.5, "AutoAttack": 1, "parts": 0.1}},
)

EVIDENCE = {"emr-s4-temperature-matters": Evidence((NAME,), _matters, since="gpu")}
