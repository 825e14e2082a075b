"""A small table of methods on the digits, in a module of its own, which other processes can import."""

import math

from margins import methods
from margins.penalties.context import Threat
from margins.tables import Columns, table, tuning
from margins.training import Recipe

MODEL = {"name": "mlp", "inputs": 64, "hidden": (8,), "classes": 10}
THREAT = Threat(math.inf, 0.05, 0.02, 3)
SCALES = {"quick": (100, Recipe(epochs=5, batch_size=20, lr=0.3))}
PGD = {"attack": "pgd", "steps": 5, "step_size": 0.02, "start": "none"}

TABLE = table(
    "test/small-table", title="t", source="s", model=MODEL, data="digits", validation=50, threat=THREAT,
    rows={"ST": methods.plain(), "AT": methods.at()}, columns={"attacks": Columns({"PGD-5": PGD}, images=60)},
    scales=SCALES, seeds=(0,),
)  # fmt: skip
MIXED = table(
    "test/mixed-table", title="t", source="s", model=MODEL, data="digits", validation=50, threat=THREAT,
    rows={"GAIRAT": methods.gairat(begin=0.0), "AT": methods.at()}, columns={}, scales=SCALES, seeds=(0,),
)  # fmt: skip
SEARCH = tuning(
    "test/small-search", title="t", source="s", candidates=[{"beta": 1.0}, {"beta": 6.0}], row=methods.trades,
    model=MODEL, data="digits", validation=50, threat=THREAT, scales=SCALES, seeds=(7,),
)  # fmt: skip
