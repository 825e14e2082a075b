"""What the pages on large tables show alike: printed lines beside what was measured, and what a row takes to run."""

from collections.abc import Iterable, Sequence

import pandas as pd

from margins.experiments import Results, find, results
from margins.papers.cifar_numbers import Line
from margins.papers.cifar_reading import COLUMNS, measured
from margins.papers.paired import mean, said


def recorded(lines: Iterable[Line], scale: str) -> dict[str, Results]:
    """What is there of the lines' experiments at a scale, by name."""
    return {name: results(name, scale, partial=True) for name in dict.fromkeys(name for name, *_ in lines)}


def printed(lines: Sequence[Line], scale: str, settings: Sequence[str] = ()) -> pd.DataFrame:
    """A line each, in the printed order: accuracies in % as printed, and as measured where the row was run.

    settings: printed columns that tell lines of one method apart, such as tau.
    """
    found = recorded(lines, scale)
    several = len({line["model"] for *_, line in lines}) > 1
    shown = []
    for name, row, line in lines:
        values = {"network": line["model"]} if several else {}
        values |= {"method": line["method"]} | {setting: line[setting] for setting in settings}
        of = found[name]
        known = row in of.records and not of.diverged(row).any()
        for key, called in COLUMNS.items():
            if key in line:
                values[f"{called}, paper"] = line[key]
                values[called] = said(mean(of, row, measured(called)), 1) if known else None
        shown.append(values)
    return pd.DataFrame(shown).dropna(axis=1, how="all")


def missing(lines: Sequence[Line], scale: str) -> str:
    """Which rows were not run, and the command for each experiment, as a line of text each; "" where all were."""
    notes = []
    for name, of in recorded(lines, scale).items():
        if gone := {row for one, row, _ in lines if one == name and row not in of.records}:
            command = f"`margins record {name} --scale {scale} --rows ROW`"
            notes.append(f"**Not run**: {len(gone)} of the rows of {find(name).title}; each is made by {command}.")
    return "\n\n".join(notes)


def costs(names: Iterable[str], scale: str) -> pd.DataFrame:
    """What a row of each experiment takes by estimate, in hours: one seed, trained and evaluated."""
    lines = []
    for name in names:
        declared = find(name)
        minutes = declared.minutes[scale]
        rest = sum(minutes.values()) - minutes["training"]
        lines.append(
            {
                "experiment": name,
                "rows": len(declared.rows),
                "seeds": len(declared.seeds),
                "training": minutes["training"] / 60,
                "evaluation": rest / 60,
            }
        )
    return pd.DataFrame(lines)
