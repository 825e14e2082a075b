"""Every attack, margin and evaluation, with the arguments of a good call: for the tests of what all of them promise."""

import math

import pytest
import torch

import margins
from margins import attacks, margin

BUDGET = {"norm": math.inf, "eps": 0.1}
#: function -> the arguments of a good call
FUNCTIONS = {
    attacks.fgsm: BUDGET,
    attacks.pgd: BUDGET | {"steps": 2, "step_size": 0.05},
    attacks.cw: {"eps": 0.1, "steps": 2, "step_size": 0.05},
    attacks.spsa: BUDGET | {"steps": 1, "samples": 4},
    attacks.deepfool: {"steps": 3},
    attacks.race: {"steps": 3},
    attacks.apgd: BUDGET | {"steps": 3},
    attacks.apgd_t: BUDGET | {"steps": 3},
    attacks.fab_t: {"norm": 2, "steps": 3},
    attacks.square: BUDGET | {"queries": 3},
    attacks.autoattack: BUDGET | {"steps": 3, "queries": 3},
    margin.effective_margin: {},
    margin.deepfool_margin: {"steps": 3},
    margin.lipschitz_margin: {"radius": 0.5, "points": 4},
    margin.bracket: {"steps": 3},
    margins.evaluate: BUDGET | {"attacks": "quick", "margins": {}},
}

EACH = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)


def good():
    g = torch.Generator().manual_seed(0)
    return torch.rand(6, 1, 3, 4, generator=g), torch.arange(6) % 5


def values(function, found):
    """What a function says of each sample."""
    name = {margin.lipschitz_margin: "margin", margin.bracket: "lower", margins.evaluate: "robust"}
    return found if isinstance(found, torch.Tensor) else getattr(found, name.get(function, "x_adv"))
