"""A checkout of the reference AutoAttack (it is not on PyPI), found through PYTHONPATH: --reference FOLDER."""

from autoattack import AutoAttack


def versions() -> dict:
    return {}


def _attacker(model, s) -> AutoAttack:
    norm = "L2" if s.norm == 2 else "Linf"
    return AutoAttack(model, norm=norm, eps=s.eps, seed=s.seed, version="standard", device="cpu", verbose=False)


def _stage(name: str):
    def run(model, x, y, s):
        attacker = _attacker(model, s)
        if name == "apgd":
            attacker.apgd.n_iter, attacker.apgd.loss = s.steps, "ce"
            return attacker.apgd.perturb(x, y)
        if name == "apgd_t":
            attacker.apgd_targeted.n_iter, attacker.apgd_targeted.n_target_classes = s.steps, s.targets
            return attacker.apgd_targeted.perturb(x, y)
        if name == "fab_t":
            attacker.fab.n_iter, attacker.fab.n_target_classes, attacker.fab.targeted = s.steps, s.targets, True
            return attacker.fab.perturb(x, y)
        attacker.square.n_queries = s.queries
        return attacker.square.perturb(x, y)

    return run


def _autoattack(model, x, y, s):
    return _attacker(model, s).run_standard_evaluation(x, y, bs=len(x))


ATTACKS = {name: _stage(name) for name in ("apgd", "apgd_t", "fab_t", "square")} | {"autoattack": _autoattack}
