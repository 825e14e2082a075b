"""Which class an adversarial image falls to: its rank among the wrong ones by a normally trained network (Figure 1)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from margins.attacks.pgd import cw, pgd
from margins.checkpoints import Checkpoint
from margins.claims import Difference, Evidence
from margins.experiments import Experiment, Outcome, Results, Unit, register
from margins.papers import cifar
from margins.papers.amm.attack import Net
from margins.papers.lma import short
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


@dataclass(frozen=True)
class Pair:
    """The robust network that is attacked, and the normally trained one that ranks the classes."""

    robust: Net
    normal: Net


def pair(table: str, scale: str) -> Pair:
    rows, scales = short.rows(), (("quick", "quick"), (scale, scale))
    return Pair(*(Net(table, label, rows[label], scales=scales) for label in ("AT", "ST")))


PAIRS = {NAME: pair(short.ONE_CYCLE, "gpu"), SMALL: pair(short.SMALL, "laptop")}
COUNTS = {"quick": 20, "laptop": 10_000, "gpu": 10_000}


def _run(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
    (unit,) = units
    of, threat = PAIRS[unit.experiment], short.SMALL_THREAT if unit.experiment == SMALL else cifar.THREAT
    jobs = [net.job(_told(unit, which), checkpoint) for which, net in (("robust", of.robust), ("normal", of.normal))]
    (robust, kept), (normal, other) = (job.model("last") for job in jobs)
    facts = {"weights": kept["digest"]}
    if "diverged" in (kept["status"], other["status"]):
        return [Outcome({}, status="diverged", facts=facts)]
    data = jobs[0].images("test", COUNTS[unit.scale])
    found = []
    settings = {"eps": threat.eps, "steps": STEPS, "step_size": threat.eps / 8, "keep": "last"}
    if unit.row != "CW":
        settings["norm"] = threat.norm
    with exact():
        parts = zip(data.x.to(jobs[0].device).split(BATCH), data.y.to(jobs[0].device).split(BATCH), strict=True)
        for x, y in parts:
            adversary = ATTACKS[unit.row](robust, x, y, **settings).x_adv
            with torch.no_grad():
                fallen, logits = robust(adversary).argmax(1), normal(x)
            found.append(ranks(logits, y, fallen))
    rank = torch.cat(found).cpu().numpy().astype(np.int8)
    metrics = {"misclassified, %": 100.0 * float((rank > 1).mean())}
    return [Outcome(metrics, arrays={"rank": rank}, facts=facts)]


def _told(unit: Unit, which: str) -> Unit:
    """The unit as one of the pair's nets takes it."""
    return replace(unit, config={**unit.config, "trained": unit.config[which]})


def _rows(of: Pair) -> dict[str, dict[str, Any]]:
    nets = {"robust": of.robust.trained(), "normal": of.normal.trained()}
    return {name: {"attack": name, "images": COUNTS, **nets} for name in ATTACKS}


for name, scale, minutes in ((NAME, "gpu", 0.3), (SMALL, "laptop", 4)):
    register(
        Experiment(
            name=name,
            title="Which wrong class an adversarial image falls to",
            source="LMA, section 1, Figure 1",
            rows=_rows(PAIRS[name]),
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
