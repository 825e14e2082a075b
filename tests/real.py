"""Tests on the published data sets: they run wherever somebody has the files, and can't be lost by accident."""

import os

import pytest

from margins import datasets


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test where nobody has the set; with MARGINS_DATA set, as in CI, it runs, and fails without it."""
    absent = not os.environ.get("MARGINS_DATA") and not datasets.available(name)
    why = f"{name} is too large to be committed and no test downloads; with MARGINS_DATA=FOLDER this test runs"
    return pytest.mark.skipif(absent, reason=why)
