"""Two steps of AMM's configuration on a network and eight images: what all the large tables have in common."""

import copy
import math

import torch
from torch import nn

from margins import methods
from margins.datasets import Data
from margins.penalties.context import Threat
from margins.training import Recipe, train


def two_steps(model: nn.Module, data: Data, **recipe) -> None:
    """Train on batches of 4 with MIN+EXP; both terms and both steps must be there, and frozen layers stay."""
    before, row = copy.deepcopy(model.state_dict()), methods.amm(32.0, aggregation="MIN", shrinkage="EXP", c=2.0, d=1.0)
    given = Recipe(epochs=1, batch_size=4, momentum=0.9, weight_decay=1e-4, drops=((0.5, 0.1), (0.8, 0.01)), **recipe)
    assert given.steps(len(data.x)) == 2
    threat = Threat(norm=2, eps=0.5, step_size=0.1, steps=1)
    trained = train(model, row, data, recipe=given, threat=threat, seed=0)
    assert trained.status == "done"
    (entropy,), (penalty,) = (trained.curves[f"{name} at clean"] for name in ("cross_entropy", "DeepFoolMargin"))
    assert 0 < entropy < math.inf and 0 < penalty < math.inf
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    for name, value in trained.last.items():
        moved = not torch.equal(value, before[name])
        assert moved != (given.frozen_norms and name.rpartition(".")[0] in norms), name
