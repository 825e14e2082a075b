"""What the pages on AMR's Tables 1 and 2 show alike: accuracies beside the printed ones, and those at every eps."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from margins.experiments import find
from margins.papers.amr.networks import ATTACK, MARGIN, Images, at_eps
from margins.papers.amr.networks_reading import NETS, as_printed, attacked, clean, count, distance, printed, robust
from margins.papers.paired import Measure, mean, said
from margins.papers.shown import Tables


class Shown(Tables):
    """Of AMR's networks."""

    nets = NETS

    def images(self, name: str) -> Images:
        return NETS[name][1]

    def accuracies(self, name: str, table: str, ways: bool = False) -> pd.DataFrame:
        """A line a row: accuracies in % as printed in the paper's table, by the paper's attack, and in the worst case.

        ways: with Race's mean distance to a wrong class too.
        """
        eps, paper, lines = self.images(name).eps, printed(table, name), []
        for row in find(name).rows:
            values = {
                "row": row,
                "clean, paper": paper.loc[as_printed(row), "clean"],
                "clean": self._said(name, row, clean, 2),
            }
            for one in eps:
                values[f"eps {one:g}, paper"] = paper.loc[as_printed(row), f"pgd_eps{one}"]
                if one in self.images(name).attacked:
                    values[f"eps {one:g}, paper's attack"] = self._said(name, row, attacked(one))
                values[f"eps {one:g}"] = self._said(name, row, robust(one))
            if ways:
                values["distance"] = self._said(name, row, distance, 2, "input units")
            lines.append(values)
        return pd.DataFrame(lines).dropna(axis=1, how="all")

    def _said(self, name: str, row: str, measure: Measure, digits: int = 1, unit: str = "points") -> str | None:
        return said(mean(self.found[name], row, measure, unit), digits) if row in self.sound(name) else None

    def caption(self, name: str) -> str:
        """What `accuracies` are of."""
        of = self.images(name)
        weak, strong = (
            count(name, self.scale, at_eps(attack, eps))
            for attack, eps in ((ATTACK, of.attacked[0]), (MARGIN, of.eps[0]))
        )
        return (
            f"{self.label(name)}: accuracy in %, as printed, under the paper's attack on {weak} images, and "
            f"the worst case of PGD on the margin and Race on {strong}; l2, with 95 % intervals over "
            f"{len(self.found[name].seeds)} seeds and the images"
        )

    def every_eps(self, name: str) -> Iterator[tuple[str, np.ndarray, list[float], list[float]]]:
        """Of each sound row: accuracies in % at every eps of `grid` by Race, and by the two attacks within a budget.

        Those are PGD on the margin at the data's budgets, and the paper's attack at those at which it was run.
        """
        of, table = self.images(name), self.found[name]
        for row in self.sound(name):
            far = distance(table, row)
            race = np.array([100 * (far > eps).mean() for eps in self.grid(name)])
            strong = [100 * table.samples(row, f"{at_eps(MARGIN, eps)}, last").mean() for eps in of.eps]
            yield row, race, strong, [attacked(eps)(table, row).mean() for eps in of.attacked]

    def grid(self, name: str) -> np.ndarray:
        """Budgets from none to beyond the largest of the data."""
        return np.linspace(0, 1.4 * self.images(name).eps[-1], 200)
