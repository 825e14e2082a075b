"""This package's attacks, each imported when it is asked for."""

from importlib import import_module, metadata

import torch


def versions() -> dict:
    return {"margins": metadata.version("margins-book")}


def _attack(place: str, *names: str, **renamed: str):
    """The attack `place` = "module.function", given these settings (`renamed`: ours = the setting's name)."""
    module, function = place.split(".")

    def run(model, x, y, s):
        given = {name: getattr(s, name) for name in names} | {ours: getattr(s, name) for ours, name in renamed.items()}
        generator = torch.Generator().manual_seed(s.seed)
        return getattr(import_module(f"margins.attacks.{module}"), function)(
            model, x, y, **given, generator=generator
        ).x_adv

    return run


def _fab_t(model, x, y, s):
    found = _attack("fab.fab_t", "norm", "eps", "steps", "targets")(model, x, y, s)
    far = torch.linalg.vector_norm((found - x).flatten(1), s.norm, dim=1) > s.eps * (1 + 1e-6)
    return torch.where(far.reshape(-1, *[1] * (x.ndim - 1)), x, found)  # asked for eps: what is farther is no answer


def _deepfool(model, x, y, s):
    from margins.attacks.deepfool import deepfool

    bounds = (0.0, 1.0) if s.box else None
    given = dict(norm=s.norm, steps=s.steps, overshoot=s.overshoot, bounds=bounds)
    return deepfool(model, x, y, linearise_at="overshot", **given).x_adv  # as the others do


def _effective_margin(model, x, y, s):
    from margins.margin import effective_margin

    return effective_margin(model, x, y, norm=s.norm)


_pgd = _attack("pgd.pgd", "norm", "eps", "steps", "step_size", "start", "keep")

ATTACKS = {
    "pgd": _pgd,
    "pgd_l2": _pgd,
    "pgd_best": _pgd,
    "pgd_l2_best": _pgd,
    "cw": _attack("pgd.cw", "eps", "steps", "step_size", "kappa", "keep"),
    "spsa": _attack("spsa.spsa", "norm", "eps", "steps", "delta", "lr", samples="probes"),
    "deepfool": _deepfool,
    "deepfool_free": _deepfool,
    "nearest": _attack("race.race", "norm", "steps"),
    "apgd": _attack("apgd.apgd", "norm", "eps", "steps"),
    "apgd_t": _attack("apgd.apgd_t", "norm", "eps", "steps", "targets"),
    "fab_t": _fab_t,
    "square": _attack("square.square", "norm", "eps", "queries"),
    "autoattack": _attack("autoattack.autoattack", "norm", "eps", "steps", "queries"),
    "effective_margin": _effective_margin,
}
