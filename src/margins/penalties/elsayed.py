"""The linearised margin with a threshold of Elsayed et al. (2018), which AMM is compared with (AMM, section 4.3.1)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from margins import checks
from margins.attacks.found import rivals
from margins.attacks.geometry import length
from margins.errors import MarginsError
from margins.penalties.context import PLACES, Context, Part, Run, in_mode
from margins.penalties.deepfool import check_alone

SCORES = ("logits", "probabilities")
#: Added to a gradient's length, as in the authors' training code.
TINY = 1e-6


@dataclass
class LinearisedMargin(Part):
    """max(0, gamma - d) of each sample, (B,), at most alpha gamma; d is the linearised distance to the nearest rival.

    d = min_k (s_y - s_k) / (|grad (s_y - s_k)| + TINY), negative where a rival k is ahead; no gradient goes through the
    denominator. s: the "logits" (their paper) or the "probabilities" (their released code). gamma: the threshold, in
    units of what is differentiated to. rivals: of how many classes, those of the largest s, None for all. alpha: a
    wrong sample with d below (1 - alpha) gamma has no gradient. norm: of the distance, 2 or math.inf, so that the
    gradient's is 2 or 1. layers: names of modules of the model, of whose outputs the distances are taken too; the mean
    over input and layers is returned.

    As published: scores "probabilities", 1 rival, alpha 4, the output of each convolution beside the input, and no
    other loss. As AMM compares with it, "single-step" and "threshold-based": the logits' distance at the input, added
    to the cross-entropy; all rivals, as in a step of DeepFool. gamma isn't given there.

    Dropout and BatchNorm are in evaluation mode. Costs 2 forwards' worth for each rival and layer, 1 fewer where the
    cross-entropy's forward is shared, and a backward to the parameters.
    Raises MarginsError for a layer that the model lacks, and as `DeepFoolMargin`.
    """

    gamma: float
    scores: str = "logits"
    rivals: int | None = None
    alpha: float = math.inf
    norm: float = 2
    layers: tuple[str, ...] = ()
    places = PLACES
    input_grad = ("eval",)

    def __post_init__(self):
        checks.number("gamma", self.gamma, 0, above=True)
        checks.choice("scores", self.scores, SCORES)
        checks.norm(self.norm, (2, math.inf))
        if self.rivals is not None:
            checks.whole("rivals", self.rivals, 1)
        if self.alpha != math.inf:
            checks.number("alpha", self.alpha, 1)

    def begin(self, run: Run) -> None:
        super().begin(run)
        if run.classes < 2:
            raise MarginsError(f"classes: a distance to another class needs at least 2, but there is {run.classes}")
        check_alone(run.model, run.x[:2])
        self._modules(run.model)

    def __call__(self, context: Context, at: str) -> Tensor:
        if context.modal or context.autocast or self.layers:
            x = (context.x if at == "clean" else context.x_adv).detach().requires_grad_()
            logits, points = self._seen(context.model, x)
        else:
            logits = context.logits(at, "eval", input_grad=True)
            points = [context.input(at, "eval")]
        scores = logits.softmax(1) if self.scores == "probabilities" else logits
        order = rivals(scores.detach(), context.y, self.rivals or scores.shape[1])
        gaps = scores.gather(1, context.y[:, None]) - scores.gather(1, order)
        least = [torch.full_like(gaps[:, 0], math.inf) for _ in points]
        for gap in gaps.unbind(1):
            slopes = torch.autograd.grad(gap.sum(), points, retain_graph=True)
            sizes = [length(slope, 2) if self.norm == 2 else slope.flatten(1).abs().sum(1) for slope in slopes]
            least = [torch.minimum(one, gap / (size + TINY)) for one, size in zip(least, sizes, strict=True)]
        losses = [self.gamma - one.clamp(self.gamma * (1 - self.alpha), self.gamma) for one in least]
        return torch.stack(losses).mean(0)

    def _modules(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        known = dict(model.named_modules())
        if unknown := sorted(set(self.layers) - set(known)):
            raise MarginsError(f"layers: the model has no module {', '.join(unknown)}; it has {', '.join(known)}")
        return [known[name] for name in self.layers]

    def _seen(self, model: torch.nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits, and x with the layers' outputs, which the logits depend on."""
        points, hooks = [x], []
        try:
            for module in self._modules(model):
                hooks.append(module.register_forward_hook(lambda module, given, output: points.append(output)))
            with in_mode(model, "eval"):
                return model(x), points
        finally:
            for hook in hooks:
                hook.remove()
