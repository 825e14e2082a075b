"""Tests on published files: they run wherever somebody has these, and can't be lost by accident."""

import os

import pytest

from margins import datasets, published


def needs(*names: str) -> pytest.MarkDecorator:
    """Skips a test where somebody lacks one of these data sets and networks.

    With MARGINS_DATA set, as in CI, it always runs, and fails without them. No stand-in can take their place: what is
    tested is that these very files are read as their authors meant them. They are not ours to commit, the sets are too
    large for it, and no test uses a network.
    """
    lacking = [name for name in names if not (published if name in published.NETWORKS else datasets).available(name)]
    why = (
        f"{', '.join(lacking)}: others' files, not ours to commit, and no stand-in shows that these very files are read"
        " rightly; put them into a FOLDER in torchvision's layout and set MARGINS_DATA=FOLDER, as CI does, which then"
        " fails instead of skipping"
    )
    return pytest.mark.skipif(bool(lacking) and not os.environ.get("MARGINS_DATA"), reason=why)
