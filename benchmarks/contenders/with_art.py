"""The Adversarial Robustness Toolbox. Its DeepFool attacks the prediction, not the label; its AutoAttack is another
attack than the standard one (no APGD-T, no FAB-T) and not run here.
"""

from importlib import metadata

import numpy as np
import torch
from art.attacks import evasion
from art.estimators.classification import PyTorchClassifier


def versions() -> dict:
    return {"adversarial-robustness-toolbox": metadata.version("adversarial-robustness-toolbox")}


def _classifier(model, x, box: bool = True) -> PyTorchClassifier:
    return PyTorchClassifier(
        model,
        torch.nn.CrossEntropyLoss(),
        tuple(x.shape[1:]),
        10,
        clip_values=(0.0, 1.0) if box else None,
        device_type="cpu",
    )


def _run(attack, x, y) -> np.ndarray:
    return attack.generate(x.numpy(), y.numpy())


def _pgd(model, x, y, s):
    attack = evasion.ProjectedGradientDescent(
        _classifier(model, x),
        norm=s.norm,
        eps=s.eps,
        eps_step=s.step_size,
        max_iter=s.steps,
        num_random_init=int(s.start == "uniform"),
        batch_size=len(x),
        verbose=False,
    )
    return _run(attack, x, y)


def _deepfool(model, x, y, s):
    given = dict(max_iter=s.steps, epsilon=s.overshoot, nb_grads=10, batch_size=len(x), verbose=False)
    return _run(evasion.DeepFool(_classifier(model, x, s.box), **given), x, y)


def _apgd(model, x, y, s):
    attack = evasion.AutoProjectedGradientDescent(
        _classifier(model, x),
        norm=s.norm,
        eps=s.eps,
        eps_step=2 * s.eps,
        max_iter=s.steps,
        nb_random_init=1,
        batch_size=len(x),
        loss_type="cross_entropy",
        verbose=False,
    )
    return _run(attack, x, y)


def _square(model, x, y, s):
    given = dict(norm=s.norm, eps=s.eps, max_iter=s.queries, nb_restarts=1, batch_size=len(x), verbose=False)
    return _run(evasion.SquareAttack(_classifier(model, x), **given), x, y)


ATTACKS = {
    "pgd": _pgd,
    "pgd_l2": _pgd,
    "deepfool": _deepfool,
    "deepfool_free": _deepfool,
    "apgd": _apgd,
    "square": _square,
}
