"""The table of methods: rows by the papers' names, with the settings of their papers or released code."""

from dataclasses import replace

from margins.methods.baselines import (
    alp,
    at,
    gairat,
    he_alp,
    he_at,
    he_trades,
    l_softmax,
    mail_at,
    mail_mart,
    mail_trades,
    mart,
    mma,
    plain,
    trades,
)
from margins.methods.craft import PGD
from margins.methods.regularised import amm, at_emr, emr, igr, lma_at, ours
from margins.methods.rows import Row

#: Where EMR's paper drops its coefficient in TRADES's 130 epochs, and its code in MAIL's 100.
TRADES_DROPS = ((60 / 130, 0.1), (120 / 130, 0.01))
MAIL_DROPS = ((75 / 100, 0.1), (90 / 100, 0.01))
_MAIL_EMR = {"begin": 74 / 100, "before": at()}


def _released(row: Row, more: str) -> Row:
    """A row with EMR, and in what else than EMR its release differs from the row of the plain method above it."""
    return replace(row, note=f"beside EMR, as released, {more}")


METHODS: dict[str, Row] = {
    "ST": plain(),
    "AT": at(),
    "TRADES": trades(),
    "MART": mart(),
    "ALP": alp(),
    "MAIL-AT": mail_at(),
    "MAIL-TRADES": mail_trades(),
    "MAIL-MART": mail_mart(),
    "GAIRAT": gairat(),
    "AT+HE": he_at(),
    "TRADES+HE": he_trades(),
    "ALP+HE": he_alp(),
    "L-Softmax": l_softmax(),
    "AT+L-Softmax": l_softmax(craft=PGD(start="uniform")),
    "IGR": igr(),
    "AT+IGR": igr(row=at()),
    "TRADES+IGR": igr(row=trades()),
    "AT+EMR": at_emr(),
    "TRADES+EMR": _released(
        emr(trades(12.0, PGD(start="uniform")), 1 / 128, 1.0, TRADES_DROPS),
        "beta 12 and crafted with the cross-entropy from a uniform start",
    ),
    "MART+EMR": _released(
        emr(mart(6.0), 1 / 128, 1.0), "beta 6; coefficient and temperature of TRADES+EMR, since its own are not"
    ),
    "MAIL-AT+EMR": _released(
        emr(mail_at(30.0, -0.07, **_MAIL_EMR), 1 / 128, 0.1, MAIL_DROPS), "slope 30, bias -0.07, weighted later"
    ),
    "MAIL-TRADES+EMR": _released(
        emr(mail_trades(5.0, 0.05, **_MAIL_EMR), 1 / 128, 0.1, MAIL_DROPS), "slope 5, bias 0.05, weighted later"
    ),
    "LMA-AT": lma_at(),
    "Standard AT+Ours": ours(at()),
    "TRADES+Ours": ours(trades()),
    "MART+Ours": ours(mart()),
    "Standard AT+L'": ours(at(), beta=0.0),
    "TRADES+L'": ours(trades(), beta=0.0),
    "MART+L'": ours(mart(), beta=0.0),
    "LMA-AT (A)": ours(at(PGD()), inner=False),
    "LMA-AT (A')": lma_at(inner=False),
    "LMA-AT (B)": lma_at(outer=False),
    "LMA-AT (C)": lma_at(),
    "LMA-AT (D)": lma_at(beta=0.0),
    "MMA": mma(),
    "AMM": amm(),
    "AMM, first order": amm(second_order=False),
}
