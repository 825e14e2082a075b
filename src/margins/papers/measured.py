"""Experiments of numerical checks, whose rows are functions that measure something from a seed; and what they say."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from margins.checkpoints import Checkpoint
from margins.claims import Check, Evidence
from margins.experiments import Experiment, Outcome, Unit, register

_HOLDS = {"<=": np.less_equal, "<": np.less, ">=": np.greater_equal, ">": np.greater}


def measured(rows: Mapping[str, tuple[Callable[..., Mapping | Outcome], Mapping]], minutes: float, **described) -> None:
    """Register an experiment of one scale and three seeds, whose rows are (function, settings).

    function(seed=, **settings) gives a row's metrics, or an Outcome where it has more to keep. minutes: of each.
    """

    def run(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
        (unit,) = units
        found = rows[unit.row][0](seed=unit.seed, **unit.config)
        found = found if isinstance(found, Outcome) else Outcome(found)
        return [replace(found, metrics={name: float(value) for name, value in found.metrics.items()})]

    settings = {row: given for row, (_, given) in rows.items()}
    scale = {"scales": {"quick": {}}, "minutes": {"quick": minutes}, "seeds": (0, 1, 2)}
    register(Experiment(rows=settings, run=run, **scale, **described))


def checked(name: str, rows: Iterable[str], *bounds: tuple[str, str, float]) -> Evidence:
    """That in these rows of an experiment the metrics keep their bounds, (metric, relation, bound) each."""
    chosen = tuple(rows)

    def read(at) -> list[Check]:
        return [
            Check(f"{row}: {metric}", _HOLDS[relation](values, bound), values, f"{relation} {bound:g}")
            for row in chosen
            for metric, relation, bound in bounds
            for values in (at[name].metric(row, metric),)
        ]

    return Evidence((name,), read)
