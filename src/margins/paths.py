"""Where things lie: in a checkout, or beside the installed package; and what a page has read."""

import os
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parents[1]

#: The checkout that the package runs from; None when it was installed as a wheel.
REPO: Path | None = _CHECKOUT if (_CHECKOUT / "_toc.yml").is_file() else None
#: Published tables, claims and our records (read-only when installed as a wheel).
DATA: Path = REPO / "data" if REPO else _HERE / "_data"
#: Downloads, checkpoints, executed notebooks, the site; safe to delete.
CACHE: Path = Path(
    os.environ.get("MARGINS_CACHE") or (REPO / "data" / "cache" if REPO else Path.home() / ".cache" / "margins")
).absolute()


def note(path: Path) -> Path:
    """Return `path`, after noting it for the book: a page is executed again when something that it read has changed.

    Notes go to the file named by the environment variable MARGINS_TRACE, one path a line; without it, nowhere.
    """
    if trace := os.environ.get("MARGINS_TRACE"):
        with open(trace, "a", encoding="utf-8") as file:
            file.write(f"{Path(path).resolve()}\n")
    return path
