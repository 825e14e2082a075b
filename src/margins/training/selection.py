"""Selection of the best epoch on held-out samples, by PGD-10, and what else is kept of an epoch's weights."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from margins.attacks.pgd import pgd
from margins.datasets import Data
from margins.errors import MarginsError
from margins.models import frozen
from margins.penalties.context import Threat
from margins.training.recipe import Recipe

STEPS = 10
#: Steps as long as PGD-10's are in the papers: a quarter of eps.
TRAVEL = 2.5


class Selection:
    """The best weights so far, and `snapshots` of the recipe's epochs.

    `epoch` counts from 1 and is 0 where nothing was validated.

    Better is more robust accuracy under PGD-10 from a uniform start (the same noise for every epoch), then more clean
    accuracy, then later; with `by` "clean", which standard training is selected by, clean accuracy comes first: its
    robust accuracy is largest while it has learned nothing. The `begin` epochs before a row's last phase don't count.
    Costs 22 forwards a held-out sample that is right; 1 where they are not `attacked`, which "clean" can do without.
    Raises MarginsError where "PGD-10" is to.
    """

    def __init__(
        self, validation: Data | None, threat: Threat, by: str = "PGD-10", begin: int = 0, attacked: bool = True
    ):
        if by == "PGD-10" and not attacked:
            raise MarginsError("attack_validation: a row that crafts adversaries is selected by PGD-10, and needs it")
        self.validation, self.threat, self.by, self.begin, self.attacked = validation, threat, by, begin, attacked
        self.epoch, self.score = 0, (-1.0, -1.0)
        self.weights: dict[str, Tensor] | None = None
        self.snapshots: dict[int, dict[str, Tensor]] = {}

    def numbers(self, model: Callable[[], nn.Module], epoch: int, recipe: Recipe) -> dict[str, float]:
        """Look at an epoch: its accuracies by the curves' names, nan where it is left out, none without samples."""
        if epoch in recipe.snapshots:
            self.snapshots[epoch] = weights(model())
        if self.validation is None:
            return {}
        robust = clean = math.nan
        if epoch % recipe.select_every == 0 or epoch == recipe.epochs:
            robust, clean = self.look(model(), epoch)
        return {"validation PGD-10": robust, "validation clean": clean}

    def look(self, model: nn.Module, epoch: int) -> tuple[float, float]:
        """(robust, clean) accuracy on the held-out samples in %, and keep the weights if they are the best.

        Nan, and nothing is kept, where a logit is not finite: the training is about to diverge.
        """
        x, y = self.validation.x, self.validation.y
        with frozen(model), torch.no_grad():
            logits = torch.cat([model(part) for part in x.split(1000)])
        if not logits.isfinite().all():
            return math.nan, math.nan
        clean = (logits.argmax(1) == y).double().mean().item() * 100
        robust = self._robust(model, x, y) if self.attacked else 0.0
        score = (robust, clean) if self.by == "PGD-10" else (clean, robust)
        if epoch > self.begin and score >= self.score:
            self.epoch, self.score, self.weights = epoch, score, weights(model)
        return robust if self.attacked else math.nan, clean

    def _robust(self, model: nn.Module, x: Tensor, y: Tensor) -> float:
        eps, given = self.threat.eps, zip(x.split(1000), y.split(1000), strict=True)
        settings = {"norm": self.threat.norm, "eps": eps, "steps": STEPS, "step_size": TRAVEL * eps / STEPS}
        broken = torch.cat([pgd(model, *part, **settings).success for part in given])
        return (~broken).double().mean().item() * 100

    def state(self) -> dict:
        kept = {"weights": self.weights, "snapshots": self.snapshots}
        return {"epoch": self.epoch, "score": list(self.score), **kept}

    def load(self, state: dict) -> None:
        self.epoch, self.score, self.weights = state["epoch"], tuple(state["score"]), state["weights"]
        self.snapshots = state["snapshots"]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
