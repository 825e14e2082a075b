"""torchattacks. Its DeepFool always clips to the box.

Its AutoAttack "standard" is another attack than the reference's: 10 steps each of APGD, APGD-T and FAB.
"""

from importlib import metadata

import torchattacks


def versions() -> dict:
    return {"torchattacks": metadata.version("torchattacks")}


def _norm(s) -> str:
    return "L2" if s.norm == 2 else "Linf"


def _pgd(model, x, y, s):
    kind = torchattacks.PGDL2 if s.norm == 2 else torchattacks.PGD
    return kind(model, eps=s.eps, alpha=s.step_size, steps=s.steps, random_start=s.start == "uniform")(x, y)


def _deepfool(model, x, y, s):
    return torchattacks.DeepFool(model, steps=s.steps, overshoot=s.overshoot)(x, y)


def _apgd(model, x, y, s):
    return torchattacks.APGD(model, norm=_norm(s), eps=s.eps, steps=s.steps, seed=s.seed)(x, y)


def _apgd_t(model, x, y, s):
    attack = torchattacks.APGDT(model, norm=_norm(s), eps=s.eps, steps=s.steps, seed=s.seed, n_classes=s.targets + 1)
    return attack(x, y)


def _fab_t(model, x, y, s):
    given = dict(norm=_norm(s), eps=s.eps, steps=s.steps, seed=s.seed, n_classes=s.targets + 1)
    return torchattacks.FAB(model, multi_targeted=True, **given)(x, y)


def _square(model, x, y, s):
    given = dict(norm=_norm(s), eps=s.eps, n_queries=s.queries, seed=s.seed, resc_schedule=False)
    return torchattacks.Square(model, **given)(x, y)


def _spsa(model, x, y, s):
    given = dict(eps=s.eps, delta=s.delta, lr=s.lr, nb_iter=s.steps, nb_sample=s.probes)
    return torchattacks.SPSA(model, **given)(x, y)


def _autoattack(model, x, y, s):
    return torchattacks.AutoAttack(model, norm=_norm(s), eps=s.eps, n_classes=10, seed=s.seed)(x, y)


ATTACKS = {
    "pgd": _pgd,
    "pgd_l2": _pgd,
    "deepfool": _deepfool,
    "apgd": _apgd,
    "apgd_t": _apgd_t,
    "fab_t": _fab_t,
    "square": _square,
    "spsa": _spsa,
    "autoattack": _autoattack,
}
