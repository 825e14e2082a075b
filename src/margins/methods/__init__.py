"""Training methods as rows.

`METHODS` is the table of them by the papers' names; each comes from a function with settings, as `trades(beta=12)`.
`Row`, `Phase` and `Term` are what they are made of, `Steps` and `Ramp` coefficients that change, `PGD` the craft.
"""

from margins.methods.average_margin import adv, amr, lcr, mmr
from margins.methods.baselines import (
    alp,
    am_softmax,
    at,
    boosted,
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
)  # fmt: skip
from margins.methods.craft import PGD
from margins.methods.regularised import (
    amm,
    at_emr,
    deep_defense,
    elsayed,
    emr,
    exact_emr,
    igr,
    large_margin,
    lma_at,
    ours,
)  # fmt: skip
from margins.methods.rows import Phase, Ramp, Row, Steps, Term
from margins.methods.summary import summary
from margins.methods.table import METHODS

__all__ = [
    "METHODS", "PGD", "Phase", "Ramp", "Row", "Steps", "Term", "adv", "alp", "am_softmax", "amm", "amr", "at",
    "at_emr", "boosted", "deep_defense", "elsayed", "emr", "exact_emr", "gairat", "he_alp", "he_at",
    "he_trades", "igr", "l_softmax", "large_margin", "lcr", "lma_at", "mail_at", "mail_mart", "mail_trades",
    "mart", "mma", "mmr", "ours", "plain", "summary", "trades",
]  # fmt: skip
