"""What is recorded of some tables at a scale, as the pages on them show it: rows, and notes on what is missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import pandas as pd

from margins.experiments import Results, find, results


@dataclass(frozen=True, eq=False)
class Tables:
    """found: name of a table -> its results at the scale, of the rows that are whole; nets: name -> its label first."""

    nets: ClassVar[Mapping[str, tuple[str, object]]]
    scale: str
    found: Mapping[str, Results]

    @classmethod
    def of(cls, names: Sequence[str], scale: str) -> Self:
        """Those of the tables that have the scale."""
        there = [name for name in names if scale in find(name).scales]
        return cls(scale, {name: results(name, scale, partial=True) for name in there})

    def label(self, name: str) -> str:
        return self.nets[name][0]

    def sound(self, name: str) -> list[str]:
        """The rows that were run, and of which no seed diverged."""
        return [row for row in self.found[name].records if not self.found[name].diverged(row).any()]

    @property
    def drawn(self) -> list[str]:
        """The networks with such rows."""
        return [name for name in self.found if self.sound(name)]

    def notes(self) -> str:
        """What is missing, and what diverged, as a line of text each."""
        missing = {name: [row for row in find(name).rows if row not in of.records] for name, of in self.found.items()}
        gone = [f"{row} of the {self.label(name)}" for name, rows in missing.items() for row in rows]
        how = " and ".join(
            f"`margins record {name} --scale {self.scale} --jobs 2`" for name in missing if missing[name]
        )
        diverged = [
            f"{row} of the {self.label(name)} ({of.diverged(row).sum()} of {len(of.diverged(row))} seeds)"
            for name, of in self.found.items()
            for row in of.records
            if of.diverged(row).any()
        ]
        lines = [f"**Not run**: {'; '.join(gone)}. Made by {how}."] * bool(gone)
        lines += [f"Diverged: {'; '.join(diverged)}."] * bool(diverged)
        return "\n\n".join(lines) or "All rows have been run, and none diverged."

    def failed(self) -> pd.DataFrame:
        """The sanity checks that failed, empty where none did."""
        return pd.DataFrame(
            {
                "network": self.label(name),
                "check": check,
                "evaluation": part,
                "failed of": ", ".join(f"{row} ({count})" for row, count in seeds.items()),
            }
            for name in self.found
            for (check, part), seeds in sorted(self.found[name].failed_checks().items())
        )
