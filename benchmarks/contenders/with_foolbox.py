"""Foolbox. Its CW-linf is its PGD with the loss overridden, as it invites users to do."""

from importlib import metadata

import eagerpy
import foolbox
import torch
from foolbox import attacks


def versions() -> dict:
    return {"foolbox": metadata.version("foolbox")}


def _run(attack, model, x, y, epsilons, bounds=(0, 1)):
    return attack(foolbox.PyTorchModel(model, bounds=bounds, device="cpu"), x, y, epsilons=epsilons)[1]


def _pgd(model, x, y, s):
    kind = attacks.L2PGD if s.norm == 2 else attacks.LinfPGD
    attack = kind(abs_stepsize=s.step_size, steps=s.steps, random_start=s.start == "uniform")
    return _run(attack, model, x, y, s.eps)


def _cw(model, x, y, s):
    class OnMargin(attacks.LinfPGD):
        def get_loss_fn(self, wrapped, labels):
            def loss(inputs):
                logits = wrapped(inputs).raw
                own = logits.gather(1, labels.raw[:, None])[:, 0]
                others = logits.scatter(1, labels.raw[:, None], -torch.inf).amax(1)
                return eagerpy.astensor((others - own).clamp(max=s.kappa).sum())

            return loss

    return _run(OnMargin(abs_stepsize=s.step_size, steps=s.steps, random_start=True), model, x, y, s.eps)


def _deepfool(model, x, y, s):
    attack = attacks.L2DeepFoolAttack(steps=s.steps, candidates=10, overshoot=s.overshoot)
    return _run(attack, model, x, y, None, (0, 1) if s.box else (-100, 100))


def _nearest(model, x, y, s):
    kind = attacks.DDNAttack if s.norm == 2 else attacks.LInfFMNAttack
    return _run(kind(steps=s.steps), model, x, y, None)


ATTACKS = {
    "pgd": _pgd,
    "pgd_l2": _pgd,
    "cw": _cw,
    "deepfool": _deepfool,
    "deepfool_free": _deepfool,
    "nearest": _nearest,
}
