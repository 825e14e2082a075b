"""What EMR's claims on the large networks are read from: Tables 3 and 4 (section 5)."""

import numpy as np

from margins.claims import Difference, Evidence
from margins.experiments import Results
from margins.papers import cifar
from margins.papers.cifar_numbers import numbers
from margins.papers.cifar_reading import apart, compared, gap, over
from margins.papers.emr.large import BUDGETS, FAMILIES, IGR, RESNET, WRN, at_budget, lines, name_of
from margins.papers.lma import cost, large
from margins.papers.lma.short import ONE_CYCLE
from margins.papers.paired import share
from margins.tables.job import DEEPFOOL

AT, TRADES, MAIL = ([name_of(net, family) for net in (WRN, RESNET)] for family in FAMILIES)
AA = ["AutoAttack"]
#: Of the printed columns those that a number's claim is about.
PRINTED = ("clean", "pgd100", "autoattack")
AT_IGR, TRADES_IGR = ([f"{one}+IGR, {value:g}" for value in IGR] for one in ("AT", "TRADES"))
#: The rows of Table 3's two blocks.
AT_BLOCK, TRADES_BLOCK = ("AT", *AT_IGR, "AT+EMR"), ("TRADES", *TRADES_IGR, "TRADES+EMR")
#: With EMR and without, block by block.
AT_PAIRS = [("AT+EMR", row) for row in ("AT", *AT_IGR, "AT+HE")]
TRADES_PAIRS = [("TRADES+EMR", row) for row in ("TRADES", *TRADES_IGR, "TRADES+HE")]


def _both(at: list[tuple[str, str]], trades: list[tuple[str, str]], columns: list[str], **how) -> tuple[Evidence, ...]:
    return over(AT, compared(at, columns, **how)) + over(TRADES, compared(trades, columns, **how))


def _weak(label: str, results: Results) -> list[Difference]:
    """Against each weight decay of adversarial training, so against the best."""
    others = ["AT", *(row for row in results.records if row.startswith("AT, weight decay"))]
    return compared([("AT+EMR", row) for row in others], AA)(label, results)


def _stronger(label: str, results: Results) -> list[Difference]:
    """AutoAttack minus PGD-100 of every row, on the images that both saw."""
    found = []
    for row in results.records:
        by_aa, by_pgd = (share(results, row, column) for column in ("AutoAttack", "PGD-100"))
        apart = by_aa - by_pgd[:, : by_aa.shape[1]]
        lost = int(results.diverged(row).sum())
        found.append(
            Difference(
                f"{label}, {row}: AutoAttack - PGD-100", apart.mean(1), "<",
                unit="points", images=np.nanmean(apart, 0), resolution=100 / apart.shape[1], failed=lost,
            )
        )  # fmt: skip
    return found


def _by_deepfool(results: Results, row: str) -> np.ndarray:
    """(S, N) in %, whether DeepFool finds no wrong image in the ball."""
    return 100.0 * (results.samples(row, DEEPFOOL).astype(float) > cifar.THREAT.eps)


def _time(at) -> list[Difference]:
    ratio = np.log(at[cost.NAME].metric("ResNet-18", "AT+EMR: time over AT"))
    return [Difference("ResNet-18: log of AT+EMR over AT", ratio, ">", float(np.log(1.05)))]


EVIDENCE: dict[str, tuple[Evidence, ...]] = {
    "emr-s2-mma-below-at-trades": over(
        [large.NAMES["cifar10", "WRN-34-10"]], compared([("vanillaAT", "MMA"), ("TRADES", "MMA")], AA)
    ),
    "emr-t3-emr-beats-at": over(AT, compared([("AT+EMR", "AT")], AA, ">", 1.0))
    + over([ONE_CYCLE], compared([("AT+EMR", "AT")], AA, ">", 1.0)),
    "emr-t3-not-weak-wd": over([name_of(RESNET, "at")], _weak),
    "emr-t3-he-improves-at": over(AT, compared([("AT+HE", "AT")], AA)),
    "emr-t3-emr-best-at": over(AT, compared(AT_PAIRS, AA)),
    "emr-t3-he-igr-no-large-gain-trades": over(
        TRADES, compared([(row, "TRADES") for row in ("TRADES+HE", *TRADES_IGR)], AA, "<", 1.0)
    ),
    "emr-t3-emr-best-trades": over(TRADES, compared(TRADES_PAIRS, AA)),
    "emr-t3-trades-gain-substantial": over(TRADES, compared([("TRADES+EMR", "TRADES")], AA, ">", 0.25))
    + over([ONE_CYCLE], compared([("TRADES+EMR", "TRADES")], AA, ">", 0.25)),
    "emr-t3-he-best-pgd": _both(
        [("AT+HE", row) for row in AT_BLOCK], [("TRADES+HE", row) for row in TRADES_BLOCK], ["PGD-100"]
    ),
    "emr-t3-he-pgd-aa-gap": over(AT, gap([("AT+HE", "AT")], "PGD-100", "AutoAttack", ">", 3.0))
    + over(TRADES, gap([("TRADES+HE", "TRADES")], "PGD-100", "AutoAttack", ">", 1.0)),
    "emr-s5-aa-stronger-than-pgd": over([*AT, *TRADES, *MAIL], _stronger),
    "emr-s5-he-not-with-trades": over(TRADES, compared([("TRADES", "TRADES+HE")], AA)),
    "emr-t3-mail-at": over(MAIL, compared([("AT+MAIL+EMR", "AT+MAIL")], AA, ">", 0.6)),
    "emr-t3-mail-trades": over(MAIL, compared([("TRADES+MAIL+EMR", "TRADES+MAIL")], AA, ">", 0.6)),
    "emr-t3-mart": over(
        AT,
        compared([("MART+EMR", "MART")], AA, ">", 0.4),
        compared([("MART+EMR", "MART")], ["PGD-100"], ">", 0.5),
    ),
    "emr-s2-deepfool-weaker-than-pgd": over([ONE_CYCLE], apart(["AT"], "DeepFool", "PGD-20", _by_deepfool)),
    "emr-s5-no-random-start-stronger": over(
        [ONE_CYCLE],
        *(
            apart(["AT", "TRADES", "AT+EMR"], f"PGD-{steps}, random start", f"PGD-{steps}, from the image")
            for steps in (10, 100)
        ),
    ),
    "emr-s53-time": (Evidence((cost.NAME,), _time, since="gpu"),),
    "emr-concl-beats-ten": over(AT, compared([*AT_PAIRS, ("MART+EMR", "MART")], AA))
    + over(TRADES, compared(TRADES_PAIRS, AA))
    + over(MAIL, compared([("AT+MAIL+EMR", "AT+MAIL"), ("TRADES+MAIL+EMR", "TRADES+MAIL")], AA)),
    "emr-f3-mail-at-all-eps": over(MAIL, compared([("AT+MAIL+EMR", "AT+MAIL")], list(map(at_budget, BUDGETS)))),
    "emr-f3-mail-trades-all-eps": over(
        MAIL, compared([("TRADES+MAIL+EMR", "TRADES+MAIL")], list(map(at_budget, BUDGETS)))
    ),
    "emr-t3-numbers": over([AT[0], TRADES[0], MAIL[0]], numbers(lambda: lines(3), PRINTED, 1.0), since="paper"),
    "emr-t4-numbers": over(TRADES, numbers(lambda: lines(4), PRINTED, 1.0), since="paper"),
    "emr-t4-clean-images-clean-acc": over(TRADES, compared([("TRADES+EMR, clean", "TRADES+EMR")], ["clean"])),
    "emr-t4-adv-images-robust": over(TRADES, compared([("TRADES+EMR", "TRADES+EMR, clean")], AA)),
}
