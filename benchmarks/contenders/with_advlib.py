"""A checkout of adversarial-library, found through PYTHONPATH: --adversarial-library FOLDER.

Its PGD keeps the best iterate and returns the clean input where it fails; its FAB knows no radius, so that what lies
farther than eps is dropped here; its DDN is asked not to round to 256 levels.
"""

import sys
import types

import torch

# adv_lib draws its plots by visdom, which nothing here asks for and which does not install everywhere
sys.modules.setdefault("visdom", types.ModuleType("visdom"))

from adv_lib import attacks  # noqa: E402


def versions() -> dict:
    import adv_lib

    return {"adv-lib": adv_lib.__version__}


def _pgd(model, x, y, s):
    return attacks.pgd_linf(model, x, y, ε=s.eps, steps=s.steps, absolute_step_size=s.step_size)


def _deepfool(model, x, y, s):
    return attacks.df(model, x, y, steps=s.steps, overshoot=s.overshoot, norm=s.norm)


def _nearest(model, x, y, s):
    if s.norm == 2:
        return attacks.ddn(model, x, y, steps=s.steps, levels=None)
    return attacks.fmn(model, x, y, norm=s.norm, steps=s.steps)


def _apgd(model, x, y, s):
    return attacks.apgd(model, x, y, eps=s.eps, norm=s.norm, n_iter=s.steps, loss_function="ce")


def _apgd_t(model, x, y, s):
    return attacks.apgd_targeted(model, x, y, eps=s.eps, norm=s.norm, n_iter=s.steps, num_targets=s.targets)


def _fab_t(model, x, y, s):
    found = attacks.fab(model, x, y, norm=s.norm, n_iter=s.steps, ε=s.eps, targeted_restarts=True)
    far = torch.linalg.vector_norm((found - x).flatten(1), s.norm, dim=1) > s.eps
    return torch.where(far.reshape(-1, *[1] * (x.ndim - 1)), x, found)


ATTACKS = {
    "pgd": _pgd,
    "pgd_best": _pgd,
    "deepfool": _deepfool,
    "nearest": _nearest,
    "apgd": _apgd,
    "apgd_t": _apgd_t,
    "fab_t": _fab_t,
}
