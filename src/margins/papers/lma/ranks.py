"""Which class an adversarial image falls to: its rank among the wrong ones by a normally trained network (Figure 1)."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from margins.attacks.pgd import cw, pgd
from margins.checkpoints import Checkpoint
from margins.claims import Difference, Evidence
from margins.experiments import Experiment, Outcome, Results, Unit, register
from margins.papers import cifar
from margins.papers.amm.attack import Net
from margins.papers.lma import short
from margins.penalties.context import Threat
from margins.tables.job import BATCH, REVISIONS, exact

NAME, SMALL = "lma/ranks", "lma/ranks-small"
#: The attack of the paper's white boxes.
ATTACKS = {"PGD-20": pgd, "CW": cw}
STEPS = 20
#: The four most probable wrong classes: the second to the fifth of all, where the true one is the first.
FIRST, LAST = 2, 5


def ranks(logits: Tensor, y: Tensor, fallen: Tensor) -> Tensor:
    """(N,) the rank of class `fallen` by logits (N, K), from 2 on among the wrong ones; 1 where that is y itself."""
    wrong = logits.scatter(1, y[:, None], torch.inf)
    return (wrong > wrong.gather(1, fallen[:, None])).sum(1) + 1


def fallen(attack: str, robust: nn.Module, normal: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """(N,) the ranks by `normal` at x (N, ...) of where the attack moves `robust`; 1 where it stays at y (N,)."""
    settings = {"eps": threat.eps, "steps": STEPS, "step_size": threat.eps / 8, "keep": "last"}
    if ATTACKS[attack] is pgd:
        settings["norm"] = threat.norm
    found = []
    with exact():
        for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            adversaries = ATTACKS[attack](robust, images, labels, **settings).x_adv
            with torch.no_grad():
                found.append(ranks(normal(images), labels, robust(adversaries).argmax(1)))
    return torch.cat(found)


def _nets(table: str, scale: str) -> dict[str, Net]:
    """The network that is attacked, and the normally trained one that ranks the classes."""
    rows, scales = short.rows(), (("quick", "quick"), (scale, scale))
    return {which: Net(table, row, rows[row], scales=scales) for which, row in (("robust", "AT"), ("normal", "ST"))}


NETS = {NAME: _nets(short.ONE_CYCLE, "gpu"), SMALL: _nets(short.SMALL, "laptop")}
THREATS = {NAME: cifar.THREAT, SMALL: short.SMALL_THREAT}
IMAGES = {"quick": 20, "laptop": 10_000, "gpu": 10_000}


def _run(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
    (unit,) = units
    jobs = [
        net.job(replace(unit, config={**unit.config, "trained": unit.config[which]}), checkpoint)
        for which, net in NETS[unit.experiment].items()
    ]
    (robust, kept), (normal, other) = (job.model("last") for job in jobs)
    facts = {"weights": kept["digest"]}
    if "diverged" in (kept["status"], other["status"]):
        return [Outcome({}, status="diverged", facts=facts)]
    data, device = jobs[0].images("test", IMAGES[unit.scale]), jobs[0].device
    rank = fallen(unit.row, robust, normal, data.x.to(device), data.y.to(device), THREATS[unit.experiment])
    metrics = {"misclassified, %": 100.0 * (rank > 1).double().mean().item()}
    return [Outcome(metrics, arrays={"rank": rank.cpu().numpy().astype(np.int8)}, facts=facts)]


for name, scale, minutes in ((NAME, "gpu", 0.3), (SMALL, "laptop", 4)):
    register(
        Experiment(
            name=name,
            title="Which wrong class an adversarial image falls to",
            source="LMA, section 1, Figure 1",
            rows={
                row: {"attack": row, "images": IMAGES} | {which: net.trained() for which, net in NETS[name].items()}
                for row in ATTACKS
            },
            scales={"quick": {}, scale: {}},
            seeds=(0, 1, 2),
            run=_run,
            revisions=REVISIONS | {"ranks": 1},
            minutes={"quick": 0.2, scale: minutes},
        )
    )


def shares(results: Results, row: str) -> np.ndarray:
    """(S, K - 1) of the misclassified images the shares, in %, that fell to rank 2, 3, and so on."""
    rank = results.samples(row, "rank")
    classes = np.arange(FIRST, 11)
    return np.stack([[100.0 * np.mean(one[one > 1] == k) for k in classes] for one in rank])


def _mostly(at: Mapping[str, Results]) -> list[Difference]:
    most = {row: shares(at[NAME], row)[:, : LAST - FIRST + 1].sum(1) for row in ATTACKS}
    return [Difference(f"{row}: share of ranks 2 to 5", values, ">", 50.0, unit="%") for row, values in most.items()]


def _decreasing(at: Mapping[str, Results]) -> list[Difference]:
    parts = []
    for row in ATTACKS:
        found = shares(at[NAME], row)
        parts += [
            Difference(f"{row}: rank {k + FIRST} - rank {k + FIRST + 1}", found[:, k] - found[:, k + 1], ">", unit="%")
            for k in range(LAST - FIRST)
        ]
    return parts


def _alike(at: Mapping[str, Results]) -> list[Difference]:
    one, other = (shares(at[NAME], row)[:, : LAST - FIRST + 1].sum(1) for row in ATTACKS)
    return [Difference("share of ranks 2 to 5, PGD-20 - CW", one - other, "within", 5.0, unit="%")]


EVIDENCE = {
    "lma-f1-second-to-fifth": Evidence((NAME,), _mostly, since="gpu"),
    "lma-f1-decreasing-ranks": Evidence((NAME,), _decreasing, since="gpu"),
    "lma-f1-both-attacks": Evidence((NAME,), _alike, since="gpu"),
}
