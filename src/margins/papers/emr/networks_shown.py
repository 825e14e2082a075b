"""What the page on EMR's MLP and CNN shows: rows beside the printed ones, and curves along the training."""

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from margins.experiments import find
from margins.intervals import of_mean
from margins.papers.emr.networks_reading import (
    NETS,
    average,
    best,
    clean,
    margin,
    margins,
    method,
    of,
    printed,
    robust,
    strong,
)  # fmt: skip
from margins.papers.paired import mean, said
from margins.papers.shown import Tables


class Shown(Tables):
    """Of EMR's networks."""

    nets = NETS

    def attack(self, name: str) -> str:
        """The paper's."""
        return NETS[name][1]

    def lines(self, name: str) -> pd.DataFrame:
        """A line a row: accuracies in %, and mean effective margins in input units, as printed and as measured."""
        paper, found, lines = printed(name), self.found[name], []
        sound = self.sound(name)
        for row in find(name).rows:
            values = {"row": row}
            for column, told, measure in (("clean", "clean", clean), (self.attack(name), "pgd", robust)):
                values[f"{column}, paper"] = paper[told].get(row)
                values[column] = said(mean(found, row, measure), 1) if row in sound else None
            values["strong"] = said(mean(found, row, strong), 1) if row in sound else None
            for split in ("train", "test"):
                values[f"{split} margin, paper"] = paper[f"m_{split}"].get(row)
                values[f"{split} margin"] = said(of_mean(margin(found, row, split))) if row in sound else None
            lines.append(values)
        return pd.DataFrame(lines).dropna(axis=1, how="all")

    def epochs(self, name: str) -> list[int]:
        """Those whose weights were looked at."""
        return list(find(name).scales[self.scale]["recipe"]["snapshots"])

    def best(self, name: str) -> dict[str, str]:
        """Of each method the most robust row by the paper's attack, where one has not collapsed."""
        found = self.found[name]
        methods = dict.fromkeys(method(row) for row in self.sound(name))
        return {one: best(found, [one], robust) for one in methods if of(found, one)}

    def widths(self, name: str, row: str, split: str = "test") -> np.ndarray:
        """(S, E) the mean effective margin of correct images, epoch by epoch."""
        return average(margins(self.found[name], row, split))

    def lengths(self, name: str, row: str) -> np.ndarray:
        """(S, E) the root of the mean of what EMR penalises, on training images."""
        return self.found[name].samples(row, "weights, along, train").astype(float).mean(2) ** 0.5

    def true(self, name: str, row: str) -> tuple[np.ndarray, np.ndarray]:
        """(S, N) effective margins of the last weights and distances by Race, in l2; nan of wrong images."""
        distance = self.found[name].samples(row, "Race, along")[:, -1].astype(float)
        effective = margins(self.found[name], row)[:, -1, : distance.shape[1]]
        kept = (distance > 0) & np.isfinite(distance)
        return tuple(np.where(kept, values, np.nan) for values in (effective, distance))

    def order(self, name: str, row: str) -> float:
        """Spearman's correlation of those two over images, the mean of the seeds with three of them that are right."""
        pairs = [(a[~np.isnan(a)], b[~np.isnan(b)]) for a, b in zip(*self.true(name, row), strict=True)]
        return float(np.mean([spearmanr(*pair).statistic for pair in pairs if len(pair[0]) > 2] or [np.nan]))
