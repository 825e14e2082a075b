"""The packages of the wheel: a list cannot be both found and added to in pyproject.toml, where everything else is."""

from setuptools import find_packages, setup

setup(packages=[*find_packages("src"), "margins._data"])
