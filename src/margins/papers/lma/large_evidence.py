"""What LMA's claims on its large tables are read from: which rows, columns and tables each of them compares."""

import numpy as np

from margins.claims import Difference, Evidence
from margins.papers.cifar_numbers import Lines, gains, numbers
from margins.papers.cifar_reading import (
    ATTACKS,
    COLUMNS,
    along,
    apart,
    compared,
    farther,
    gap,
    mean,
    most,
    narrow,
    no_loss,
    over,
    spread,
    trend,
)
from margins.papers.lma import cost
from margins.papers.lma.large import (
    ALPHA,
    ALPHAS,
    BETAS,
    DELTAS,
    NAMES,
    TAUS,
    TINY_BETAS,
    WIDE_BETAS,
    lines,
    named,
)
from margins.papers.lma.short import CRAFTED, ONE_CYCLE
from margins.papers.paired import seeds

RESNET, WRN, HUNDRED, TINY = NAMES.values()
V, T, M, LMA = "vanillaAT", "TRADES", "MART", "LMA-AT(Ours)"
VO, TO, MO = (f"{one} + Ours" for one in (V, T, M))
VL, TL, ML = (f"{one} + L'_i" for one in (V, T, M))
BASELINES, OTHERS = (V, T, M), [(LMA, one) for one in (V, T, M)]
ALL = ("clean", *ATTACKS)
#: Of a table that TinyImageNet shares with the others.
FEW = ("clean", "PGD-20", "CW", "AutoAttack")
#: All that are claimed alike of LMA-AT.
FIVE = ("FGSM", "PGD-20", "PGD-100", "Square", "SPSA")
MARGINS = ("MMA", "MAIL", "GAIRAT")
PMHR, WAT = ("PMHR-AT",), ("WAT",)
LMA_TAU, OFF = [(LMA, named("tau", tau)) for tau in TAUS if tau != 0.2], [(LMA, named("tau", 0.0))]
#: Each method with the paper's terms, and without.
GAINS = [(VO, V), (TO, T), (MO, M)]
#: Of the printed columns those that a number's claim is about.
BOTH = ("clean", "autoattack")
PRINTED = [key for key, column in COLUMNS.items() if column in ATTACKS]
#: In the short table.
SHORT = [("LMA-AT", one) for one in ("AT", "TRADES", "MART")]


def _slightly_lower(one: str, other: str) -> tuple[Evidence, ...]:
    """Under AutoAttack, by more than nothing and less than a point."""
    pair, column = [(one, other)], ["AutoAttack"]
    return over((RESNET, WRN), compared(pair, column, "<"), compared(pair, column, ">", -1.0))


def _told(*tables: int) -> Lines:
    return lambda: [line for table in tables for line in lines(table)]


def _numbers(names: tuple[str, ...], *tables: int, keys: tuple[str, ...] = BOTH) -> tuple[Evidence, ...]:
    return over(names, numbers(_told(*tables), keys, 1.0), since="paper")


def _gain(names: tuple[str, ...], pair: tuple[str, str], columns: tuple[str, ...]) -> tuple[Evidence, ...]:
    return over(names, compared([pair], columns))


def _step(at) -> list[Difference]:
    ratio = np.log(at[cost.NAME].metric("ResNet-18", f"{cost.LMA}: time over AT"))
    return [seeds("ResNet-18: log of LMA-AT over AT", ratio, "<", float(np.log(1.25)), "log")]


EVIDENCE: dict[str, tuple[Evidence, ...]] = {
    # Tables 6 to 9: each method, and with the paper's terms
    "lma-t6-vanilla-gains": _gain((RESNET,), (VO, V), ("PGD-20", "PGD-100", "CW", "AutoAttack", "Square", "SPSA")),
    "lma-t7-vanilla-gains": _gain((WRN,), (VO, V), ("PGD-20", "PGD-100", "CW", "AutoAttack", "Square", "SPSA")),
    "lma-t6-mart-gains": _gain((RESNET,), (MO, M), ("clean", "PGD-20", "PGD-100", "Square", "SPSA")),
    "lma-t7-mart-gains": _gain((WRN,), (MO, M), ("PGD-20", "PGD-100", "AutoAttack", "Square", "SPSA")),
    "lma-t6-trades-gains": _gain((RESNET,), (TO, T), ("clean", "FGSM", "PGD-20", "PGD-100", "Square", "SPSA")),
    "lma-t7-trades-gains": _gain((WRN,), (TO, T), ("clean", "FGSM", "PGD-20", "PGD-100", "SPSA")),
    "lma-t8-trades-gains": _gain((HUNDRED,), (TO, T), ("clean", "FGSM", "PGD-20", "PGD-100", "CW", "Square", "SPSA")),
    "lma-t8-mart-gains": _gain((HUNDRED,), (MO, M), ("clean", "FGSM", "PGD-20", "PGD-100", "CW", "AutoAttack", "SPSA")),
    "lma-t9-strategy-gains": over((TINY,), compared([(TO, T), (MO, M)], FEW)),
    "lma-t67-trades-ours-aa-lower": _slightly_lower(TO, T),
    "lma-t67-mart-ours-aa-lower": _slightly_lower(MO, M),
    "lma-t67-baselines-pay-clean": over((RESNET, WRN), compared([(TO, T), (MO, M)], ["clean"])),
    "lma-t67-ours-better-other-attacks": over((RESNET, WRN), compared([(TO, T), (MO, M)], FIVE)),
    "lma-s1-consistent-significant": over((RESNET,), most(GAINS, ATTACKS, 1, 1.0), no_loss(GAINS, ATTACKS)),
    # LMA-AT beside the others
    "lma-t67-lma-best-overall": over(
        (RESNET, WRN), mean([(LMA, one) for one in (V, T, M, VO, TO, MO)], ALL), missing=PMHR
    ),
    "lma-t67-lma-vs-trades-aa": over((RESNET, WRN), compared([(LMA, T)], ["AutoAttack"], "within", 1.0))
    + over((ONE_CYCLE,), compared([("LMA-AT", "TRADES")], ["AutoAttack"], "within", 1.0)),
    "lma-t6-vanilla-clean-highest": over(
        (RESNET,),
        compared([(V, one) for one in (T, M, VO, TO, MO, LMA)], ["clean"]),
        compared([(one, V) for one in (T, M, VO, TO, MO, LMA)], ["AutoAttack"], ">", 1.0),
        missing=PMHR,
    ),
    "lma-t678-clean-over-variants": over(
        (RESNET, WRN, HUNDRED), compared([(LMA, T), (LMA, M)], ["clean"]), missing=PMHR
    )
    + over((ONE_CYCLE,), compared(SHORT[1:], ["clean"]), missing=PMHR),
    "lma-t678-most-attacks": over((RESNET, WRN, HUNDRED), most(OTHERS, ATTACKS, 4), missing=PMHR),
    "lma-t678-lma-consistent-over-baselines": over((RESNET, WRN, HUNDRED), compared(OTHERS, FIVE), missing=PMHR),
    "lma-t678-natural-drop-minimal": over((RESNET, WRN, HUNDRED), compared([(V, LMA)], ["clean"], "<", 2.5))
    + over((ONE_CYCLE,), compared([("AT", "LMA-AT")], ["clean"], "<", 2.5)),
    "lma-t8-surpasses-all-c100": over((HUNDRED,), compared(OTHERS, ALL), missing=PMHR),
    "lma-t9-pgd-cw": over(
        (TINY,), compared([(LMA, T), (LMA, M)], ["PGD-20", "CW"]), compared([(LMA, T)], ["AutoAttack"])
    ),
    "lma-t9-clean-comparable-trades": over((TINY,), compared([(LMA, T)], ["clean"], "within", 1.0)),
    "lma-t9-mart-clean-drop": over((TINY,), compared([(LMA, M)], ["clean"], ">", 1.0)),
    "lma-t89-lma-significant": over((HUNDRED,), mean(OTHERS, ALL, 1.0), missing=PMHR)
    + over((TINY,), mean(OTHERS, FEW, 1.0), missing=PMHR),
    "lma-t10-better-balance": over((WRN,), mean([(LMA, one) for one in MARGINS], ("clean", "AutoAttack")), missing=WAT),
    "lma-t10-aa-over-margin-methods": over(
        (WRN,), compared([(LMA, one) for one in MARGINS], ["AutoAttack"], ">", 1.0), missing=WAT
    ),
    "lma-abs-reweighting-weak": over(
        (WRN,),
        compared([("GAIRAT", V), ("MAIL", V)], ["AutoAttack"], "<"),
        gap([("GAIRAT", V), ("MAIL", V)], "PGD-20", "AutoAttack", ">", 3.0),
    ),
    "lma-abs-extra-data-cost": (Evidence((cost.NAME,), _step, since="gpu"),),
    # Tables 12 and 14: what the terms do
    "lma-s1-margin-in-crafting": _gain((RESNET,), (LMA, "A'"), ("AutoAttack", "PGD-20")),
    "lma-s1-ema-further-improves": over(
        (RESNET,), compared([(VO, VL), (TO, TL), (MO, ML), (LMA, "D")], ["AutoAttack", "PGD-20"])
    ),
    "lma-t12-a-c": _gain((RESNET,), (LMA, "A"), ("FGSM", "PGD-20", "PGD-100", "CW", "Square", "AutoAttack")),
    "lma-t12-worst-case-samples": over((ONE_CYCLE,), apart(("AT", "TRADES", "MART"), *CRAFTED)),
    "lma-t12-b-c": _gain((RESNET,), (LMA, "B"), ("clean", "FGSM", "PGD-20", "Square", "AutoAttack")),
    "lma-t12-d-c-robust": _gain((RESNET,), (LMA, "D"), ("PGD-20", "PGD-100", "AutoAttack", "Square", "SPSA")),
    "lma-t12-d-c-clean": over((RESNET,), compared([("D", LMA)], ["clean"], "<", 1.0)),
    "lma-t14-trades-mart-gains": over(
        (RESNET,), compared([(TL, T), (ML, M)], ["clean", "PGD-20", "PGD-100"], ">", 1.0)
    ),
    "lma-t14-trades-mart-comparable-aa": over(
        (RESNET,), compared([(TL, T), (ML, M)], ["CW", "AutoAttack"], "within", 1.0)
    ),
    "lma-t14-vanilla-gains": _gain((RESNET,), (VL, V), ("PGD-20", "PGD-100", "CW", "AutoAttack")),
    "lma-a2-joint-better": over(
        (RESNET,), compared([(VL, V), (VL, "L'_i alone")], ["AutoAttack"]), farther([(VL, V), (VL, "L'_i alone")])
    ),
    "lma-t14-boundary-farther": over((RESNET,), farther([(VL, V)])),
    "lma-s1-widens-class-gaps": over(
        (RESNET,),
        along([(VL, V)], "probability gap", ">", "probability"),
        along([(VL, V)], "effective margin", ">", "input units"),
    ),
    "lma-s22-reduces-logit-variance": over((RESNET,), along([(LMA, "D")], "logits", "<", "squared logits")),
    "lma-s532-smoother-boundary": over(
        (RESNET,),
        along([(LMA, "D")], "linearity", "<", "loss"),
        along([(LMA, "D")], "probabilities", "<", "probability"),
    ),
    # Tables 2 to 5, 15 and 16: settings
    "lma-s42-larger-delta-more-robust": over(
        (RESNET,),
        trend([(d, LMA if d == 0.9 else named("delta", d)) for d in DELTAS if d <= 0.9], "AutoAttack", ">"),
    ),
    "lma-s42-large-delta-costs-clean": _gain((RESNET,), (LMA, named("delta", 5.0)), ("clean",)),
    "lma-s43-tau-best": over(
        (RESNET, HUNDRED), mean(LMA_TAU, ("clean", "PGD-20", "PGD-100", "CW", "SPSA", "AutoAttack"))
    ),
    "lma-t2-tau01-vs-09-robust": _gain(
        (RESNET, HUNDRED), (named("tau", 0.9), named("tau", 0.1)), ("PGD-20", "PGD-100", "AutoAttack")
    ),
    "lma-t2-tau01-vs-09-clean": over(
        (RESNET, HUNDRED), compared([(named("tau", 0.1), named("tau", 0.9))], ["clean"], ">", 1.0)
    ),
    "lma-s6-tau0-poor-c10": over((RESNET,), compared(OFF, ["clean", "PGD-20", "CW", "SPSA", "AutoAttack"])),
    "lma-s6-tau0-c100-gains": over((HUNDRED,), compared(OFF, ["clean", "CW", "SPSA"])),
    "lma-s6-tau0-c100-comparable": over((HUNDRED,), compared(OFF, ["PGD-20", "PGD-100", "AutoAttack"], "within", 1.0)),
    "lma-t4-beta-up-robust-c10": _gain((RESNET,), (LMA, named("beta", BETAS[0])), ("PGD-20", "PGD-100", "AutoAttack")),
    "lma-t4-beta-monotone": over(
        (RESNET,),
        *(
            trend([(0, "D"), *((b, named("beta", b)) for b in sorted((*WIDE_BETAS, BETAS[0])))], column, ">")
            for column in ("AutoAttack", "PGD-20")
        ),
    ),
    "lma-t4-clean-drop-minor": over((RESNET,), compared([(named("beta", BETAS[0]), LMA)], ["clean"], "<", 1.0)),
    "lma-t5-beta-up-robust-c100": _gain(
        (HUNDRED,), (LMA, named("beta", BETAS[0])), ("PGD-20", "PGD-100", "CW", "AutoAttack")
    ),
    "lma-t15-alpha-up-robust": _gain(
        (RESNET,), (LMA, named("alpha", ALPHAS[0])), ("PGD-20", "PGD-100", "CW", "AutoAttack")
    ),
    "lma-t15-alpha-beyond-declines": _gain(
        (RESNET,), (LMA, named("alpha", ALPHAS[-1])), ("PGD-20", "PGD-100", "CW", "AutoAttack")
    ),
    "lma-t15-alpha-critical": over(
        (RESNET,),
        spread(
            [LMA if a == ALPHA["ResNet-18"] else named("alpha", a) for a in ALPHAS],
            ("PGD-20", "PGD-100", "CW", "AutoAttack"),
            1.0,
        ),
    ),
    "lma-t16-beta-clean-falls": over(
        (TINY,), trend([(b, LMA if b == 96 else named("beta", b)) for b in TINY_BETAS], "clean", "<")
    ),
    "lma-t16-beta96-best": over(
        (TINY,), compared([(LMA, named("beta", b)) for b in TINY_BETAS if b != 96], ["PGD-20", "CW"])
    ),
    # What is printed
    "lma-t2-numbers": _numbers((RESNET, HUNDRED), 2, 3),
    "lma-t45-numbers": _numbers((RESNET, HUNDRED), 4, 5),
    "lma-t678910-numbers": _numbers((RESNET, WRN, HUNDRED, TINY), 6, 7, 8, 9, 10),
    "lma-t12-numbers": _numbers((RESNET,), 12),
    "lma-t14-numbers": _numbers((RESNET,), 14),
    "lma-t15-numbers": _numbers((RESNET,), 15),
    "lma-t16-numbers": _numbers((TINY,), 16, keys=("clean", "pgd20", "cw")),
    "lma-t678-gain-sizes": over((RESNET, WRN, HUNDRED), gains(_told(6, 7, 8), GAINS, PRINTED, 1.5), since="paper"),
    "lma-t10-numbers": over(
        (WRN,), gains(_told(10), [(LMA, one) for one in MARGINS], ["autoattack"], 1.5), missing=WAT, since="paper"
    ),
    "lma-ci-six-runs": over((RESNET,), narrow((LMA, V), ("clean", "AutoAttack"), 0.05, 0.1), since="paper"),
}
