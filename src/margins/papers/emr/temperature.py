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
from margins.papers import cifar, paired
from margins.papers.cifar_reading import compared, over, trend
from margins.papers.lma.short import on_resnet
from margins.tables import Along, Columns

NAME = "emr/cifar10-temperature"
TEMPERATURES, COEFFICIENTS = (0.1, 1.0, 10.0, 40.0), (1 / 128, 3 / 128, 9 / 128)
#: The temperature that a chosen one is compared with, and the one at which a centred head has nothing to lose.
PLAIN, WARM = 1.0, 40.0
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
    return paired.chosen(results, [named(t, c) for t in other for c in COEFFICIENTS])


def _matters(at) -> list[Difference]:
    found = at[NAME]
    return compared([(chosen(found), chosen(found, PLAIN))], ["AutoAttack", "PGD-100"])("ResNet-18", found)


_PGD = cifar.PGD | {"steps": 100, "step_size": cifar.THREAT.step_size, "start": "none"}
_PARTS = Along({part: {"measure": "weights", "part": part} for part in ("seen", "mean")}, images=500, ends=True)
on_resnet(
    NAME,
    rows(),
    {"PGD-100": Columns({"PGD-100": _PGD}, images=10_000), "parts": _PARTS},
    title="Temperature and coefficient of EMR on CIFAR-10 with ResNet-18",
    source="EMR, sections 4 and 5",
    kept=(1, 30),
    minutes={"PGD-100": 0.5, "parts": 0.1},
)

_GRID = [(t, named(t, c)) for t in TEMPERATURES for c in COEFFICIENTS]
EVIDENCE = {
    "emr-s4-temperature-matters": Evidence((NAME,), _matters, since="gpu"),
    "emr-s53-large-t-at": over([NAME], trend(_GRID, "AutoAttack", ">"), trend(_GRID, "PGD-100", ">")),
}
