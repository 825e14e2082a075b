"""Adversarial training and its relatives as rows: a function a method.

Costs are per step with PGD-10, in forwards' worth: a plain training step is 3, a step of PGD 2. Where a method crafts
with KL, nets with BatchNorm or dropout cost one more. Arguments out of range raise MarginsError.
"""

from dataclasses import replace
from functools import partial

from margins import checks, losses
from margins.methods.craft import PGD
from margins.methods.mma import MMACraft, mma_terms
from margins.methods.rows import Phase, Row, Term
from margins.methods.softmax import LSoftmax
from margins.methods.weights import GAIRAT, MAIL
from margins.models.heads import Head
from margins.penalties.context import Part

CE = losses.cross_entropy


def plain() -> Row:
    """Standard training: cross-entropy on clean samples. Costs 3."""
    return Row(None, (Term(CE, "clean"),), source="standard training")


def at(craft: Part | None = None) -> Row:
    """Adversarial training: cross-entropy on adversaries, from a uniform start. Costs 23."""
    return Row(craft or PGD(start="uniform"), (Term(CE),), source="Madry et al. 2018, section 2")


def boosted(guarded: bool = True, craft: Part | None = None) -> Row:
    """Adversarial training on MART's boosted cross-entropy alone. Costs 23. guarded: see `boosted_cross_entropy`."""
    return Row(craft or PGD(), (_boosted(guarded),), source="Wang et al. 2020, Eq. 7")


def trades(beta: float = 6.0, craft: Part | None = None) -> Row:
    """CE(x) + beta KL(p(x) || p(x')), crafted with the KL. Costs 26, or 27 with BatchNorm or dropout."""
    terms = (Term(CE, "clean"), Term(losses.pair_kl, "both", beta))
    note = "the released code computes the clean forward of the training loss twice, here it is done once"
    return Row(craft or PGD(loss="kl"), terms, source="Zhang et al. 2019, Eq. 5; yaodongyu/TRADES", note=note)


def mart(beta: float = 5.0, guarded: bool = True, craft: Part | None = None) -> Row:
    """BCE(x') + beta KL(p(x) || p(x')) (1 - p_y(x)). Costs 26. The released code has beta 5 (ResNet-18), 6 (WRN)."""
    terms = (_boosted(guarded), Term(_given(losses.mart_kl, guarded=guarded), "both", beta))
    note = "" if guarded else "the paper's formulas, without the constants of the released code"
    return Row(craft or PGD(), terms, source="Wang et al. 2020, Eq. 9; YisenWang/MART", note=note)


def alp(beta: float = 0.5, craft: Part | None = None) -> Row:
    """(CE(x) + CE(x')) / 2 + beta x the mean squared difference of the logits. Costs 26."""
    terms = (Term(CE, "clean", 0.5), Term(CE, "adversarial", 0.5), Term(losses.pairing, "both", beta))
    return Row(craft or PGD(), terms, source="Kannan et al. 2018; ShawnXYang/AT_HE")


def mail_at(
    slope: float = 10.0,
    bias: float = -0.5,
    begin: float = 76 / 120,
    normalised: bool = False,
    before: Row | None = None,
) -> Row:
    """The mean of w CE(x') with MAIL's weights from a share `begin` of the epochs on, until then `before`. Costs 23.

    before: None for AT. slope, bias, normalised: see `MAIL`.
    """
    weight = MAIL(slope, bias, normalised)
    row = Row(PGD(), (Term(CE, weight=weight),), source="Wang et al. 2021; QizhouWang/MAIL")
    return _from(begin, before or at(PGD()), row)


def mail_trades(
    slope: float = 2.0,
    bias: float = 0.0,
    beta: float = 5.0,
    begin: float = 76 / 120,
    normalised: bool = False,
    before: Row | None = None,
) -> Row:
    """CE(x) + beta x the mean of w KL(p(x) || p(x')); until `begin` the row `before` (None: TRADES). Costs 26 or 27."""
    terms = (Term(CE, "clean"), Term(losses.pair_kl, "both", beta, MAIL(slope, bias, normalised)))
    row = Row(PGD(loss="kl"), terms, source="Wang et al. 2021; QizhouWang/MAIL")
    return _from(begin, before or trades(beta), row)


def mail_mart(
    slope: float = 5.0,
    bias: float = -0.05,
    beta: float = 5.0,
    begin: float = 76 / 120,
    normalised: bool = False,
    before: Row | None = None,
) -> Row:
    """The mean of w BCE(x'), + beta x MART's KL; until `begin` the row `before` (None: MART). Costs 26."""
    terms = (replace(_boosted(True), weight=MAIL(slope, bias, normalised)), Term(losses.mart_kl, "both", beta))
    note = "the released code names no slope and bias for this variant; these are a choice"
    return _from(begin, before or mart(beta), Row(PGD(), terms, source="Wang et al. 2021; QizhouWang/MAIL", note=note))


def gairat(shift: float = -1.0, formula: str = "released", begin: float = 59 / 120) -> Row:
    """The mean of w CE(x') with GAIRAT's weights, AT until a share `begin` of the epochs. Costs 23."""
    craft = PGD(start="uniform", counted=True)
    source = "Zhang et al. 2021; zjfheart/Geometry-aware-Instance-reweighted-Adversarial-Training"
    return _from(begin, at(), Row(craft, (Term(CE, weight=GAIRAT(shift, formula)),), source=source))


def he_at(scale: float = 10.0, margin: float = 0.2) -> Row:
    """Cross-entropy of scale x (cosine - margin of the true class) on adversaries, crafted without margin. Costs 23."""
    return _he(PGD(), (Term(_shifted(margin, scale)),), scale)


def he_trades(beta: float = 6.0, scale: float = 15.0, margin: float = 0.2) -> Row:
    """TRADES on scaled cosines, with the margin in the clean cross-entropy alone. Costs 26, or 27 as TRADES."""
    terms = (Term(_shifted(margin, scale), "clean"), Term(losses.pair_kl, "both", beta))
    return _he(PGD(loss="kl"), terms, scale)


def he_alp(beta: float = 0.5, scale: float = 20.0, margin: float = 0.3) -> Row:
    """ALP on scaled cosines with the margin, where the cosines themselves are paired. Costs 26."""
    loss = _shifted(margin, scale)
    pairing = Term(losses.pairing, "both", beta / checks.number("scale", scale, 0, above=True) ** 2)
    return _he(PGD(), (Term(loss, "clean", 0.5), Term(loss, "adversarial", 0.5), pairing), scale)


def l_softmax(
    margin: int = 4,
    base: float = 100.0,
    decay: float = 0.99,
    power: float | None = None,
    least: float = 0.0,
    craft: Part | None = None,
) -> Row:
    """Large-margin softmax on a head without bias; see `LSoftmax`. Costs 3, with a craft (PGD on plain logits) 23."""
    term = Term(LSoftmax(margin, base, decay, power, least), "adversarial" if craft else "clean")
    return Row(craft, (term,), head=Head("bias-free"), source="Liu et al. 2016, Eqs. 4 to 7")


def am_softmax(scale: float = 30.0, margin: float = 0.35, craft: Part | None = None) -> Row:
    """Additive-margin softmax: cross-entropy of scale x (cosine - margin of the true class), scale and margin fixed.

    Features and rows of the head have length 1, so that the loss has no scale of its own to fall by. Defaults: its
    authors'. Costs 3, with a craft (PGD without the margin) 23.
    """
    term = Term(_shifted(margin, scale), "adversarial" if craft else "clean")
    return Row(craft, (term,), head=Head("cosine", scale), source="Wang et al. 2018, Eq. 6")


def mma(clean: float = 1 / 3, **settings) -> Row:
    """MMA: cross-entropy at each sample's own boundary, where that is near, + `clean` x that of clean samples.

    settings: those of `MMACraft`. Costs 36 where all samples are right: 10 steps and 10 bisections, and both forwards.
    """
    return Row(MMACraft(**settings), mma_terms(clean), source="Ding et al. 2020; BorealisAI/mma_training")


def _boosted(guarded: bool) -> Term:
    return Term(_given(losses.boosted_cross_entropy, guarded=guarded))


def _given(loss, guarded: bool):
    """The loss as it is where that is its default, so that there is one name for one thing."""
    return loss if checks.choice("guarded", guarded, (True, False)) else partial(loss, guarded=False)


def _shifted(margin: float, scale: float) -> partial:
    return partial(losses.shifted, margin=checks.number("margin", margin, 0), scale=checks.number("scale", scale, 0))


def _he(craft: PGD, terms: tuple[Term, ...], scale: float) -> Row:
    note = "rows of the head at length 1 by the head's own forward; the released code overwrites the weights instead"
    return Row(craft, terms, head=Head("cosine", scale), source="Pang et al. 2020; ShawnXYang/AT_HE", note=note)


def _from(begin: float, before: Row, row: Row) -> Row:
    """`row` from a share `begin` of the epochs on, and `before` until then."""
    if not checks.number("begin", begin, 0, 1):
        return row
    return replace(row, craft=before.craft, terms=before.terms, later=(Phase(row.craft, row.terms, begin),))
