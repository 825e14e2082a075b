"""One look for every figure of the book, and the few drawing helpers that two pages share."""

from collections.abc import Iterable
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Okabe and Ito's eight colours, as seaborn orders them: told apart by readers with any common colour blindness.
PALETTE: tuple[str, ...] = tuple(sns.color_palette("colorblind", 8).as_hex())
#: A different marker with each colour, so that no figure speaks by colour alone.
MARKERS: tuple[str, ...] = ("o", "s", "^", "D", "v", "P", "X", "*")

#: 6.4 inches shown 360 pixels wide on a phone shrink a 12 point letter to about 9 pixels: no text goes below 11 points.
_RC = {
    "figure.figsize": (6.4, 4.0),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "figure.labelsize": 12,
    "figure.titlesize": 12,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.6,
    "svg.hashsalt": "margins",  # the same figure gives the same bytes
}


def style() -> None:
    """Set the book's look for all figures that follow (matplotlib's global settings). May be called again."""
    sns.set_theme(context="notebook", style="whitegrid", palette=PALETTE, rc=_RC)


@contextmanager
def styled():
    """The book's look inside a `with` block only; matplotlib's settings are as before afterwards, also on an error."""
    with mpl.rc_context():
        style()
        yield


def panels(count: int, columns: int = 2, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of so many, each `height` inches high, and its axes in reading order."""
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(7.0, height * rows), squeeze=False)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def legend(figure: Figure, axes: Iterable[Axes], columns: int = 3) -> None:
    """One legend above all panels: each label once, in the order in which the panels have them."""
    named = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(named.values(), named, loc="outside upper center", ncols=columns)
