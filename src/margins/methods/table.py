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
    "TRADES+EMR": emr(trades(12.0, PGD(start="uniform")), 1 / 128, 1.0, TRADES_DROPS),
    "MART+EMR": replace(emr(mart(6.0), 1 / 128, 1.0), note="coefficient and temperature of TRADES+EMR: not released"),
    "MAIL-AT+EMR": emr(mail_at(30.0, -0.07, **_MAIL_EMR), 1 / 128, 0.1, MAIL_DROPS),
    "MAIL-TRADES+EMR": emr(mail_trades(5.0, 0.05, **_MAIL_EMR), 1 / 128, 0.1, MAIL_DROPS),
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
}
