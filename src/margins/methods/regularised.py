"""Methods that add terms to a row: input gradients, effective margins, LMA's logits, AMM's distances.

Costs as in `margins.methods.baselines`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from margins import checks, losses
from margins.errors import MarginsError
from margins.methods.baselines import CE, at, boosted, plain
from margins.methods.craft import PGD
from margins.methods.rows import Row, Schedule, Steps, Term
from margins.penalties.context import Part
from margins.penalties.deepfool import DeepFoolMargin
from margins.penalties.elsayed import LinearisedMargin
from margins.penalties.emr import EMR, ApproximateEMR
from margins.penalties.gradient import InputGradient
from margins.penalties.moving_average import MovingAverage

#: Deep Defense's fine-tuning: half the rate in the last epoch, weight decay of its own, and no clipping.
DEEP_DEFENSE = {
    "epochs": 5, "lr": 5e-4, "weight_decay": 5e-4, "schedule": "steps", "drops": ((0.8, 0.5),), "clip": None,
}  # fmt: skip
#: Where EMR's paper divides the learning rate, and its coefficient with it, by 10: in AT's 100 epochs.
AT_DROPS = ((60 / 100, 0.1), (90 / 100, 0.01))


def igr(coefficient: float = 1.0, row: Row | None = None) -> Row:
    """`row` (standard training) + coefficient x ||d CE / d x||^2. Costs 3 more: 6 of standard training, 26 of AT.

    At adversaries where the row crafts any. The authors' code sweeps its lambda from 100 to 100,000 with batches of
    256, which is 0.2 to 195 here, and has no default.
    """
    note = "a coefficient to sweep: the authors' code has no default"
    return _with(row or plain(), InputGradient(), coefficient, "; Ross and Doshi-Velez 2018, Eq. 6", note)


def exact_emr(
    row: Row,
    coefficient: float,
    drops: tuple[tuple[float, float], ...] = (),
    probes: int | None = None,
    route: str = "gradients",
    mode: str = "eval",
) -> Row:
    """`row` + coefficient x sum_k |d f_k / d x|^2 (Eq. 5), at adversaries where the row crafts any.

    coefficient, drops: as of `emr`, with whose coefficient it has nothing to do (methods J.1-7); on MNIST's MLP the
    paper's is 0.1, 3e-4 beside AT, on its CIFAR CNN 0.01 and 0.001. probes, route, mode: see `EMR`. Costs 3 more a
    class or probe, 33 of standard training with 10 classes, 6 with a probe; 1 more with BatchNorm or dropout.
    """
    penalty = EMR(probes, route, mode)
    return _with(row, penalty, _dropped(coefficient, drops), "; EMR, Eq. 5")


def emr(
    row: Row, coefficient: float, temperature: float, drops: tuple[tuple[float, float], ...] = (), mode: str = "eval"
) -> Row:
    """`row` + coefficient x EMR's penalty for many classes (Eq. 7), at adversaries where the row crafts any.

    coefficient: in our mean over the samples; the released code's lambda is 128 times it. drops: shares of the training
    and multipliers; the paper lowers it with the learning rate, so they belong to a recipe with the same drops. Costs 4
    more, 3 without BatchNorm and dropout, where the forward is shared.
    """
    source = "; EMR, Eq. 7; ziquanliu/Effective_Margin_Reg"
    return _with(row, ApproximateEMR(temperature, mode), _dropped(coefficient, drops), source)


def at_emr(coefficient: float = 3 / 128, temperature: float = 40.0) -> Row:
    """AT + EMR. Costs 27, or 26 without BatchNorm and dropout. See `emr`."""
    return emr(at(), coefficient, temperature, AT_DROPS)


def ours(
    row: Row,
    *,
    tau: float = 0.2,
    beta: float = 86.0,
    alpha: float = 5.345,
    delta: float = 0.9,
    divided: bool = True,
    reading: str = "batch",
    direction: str = "algorithm",
    inner: bool = True,
    outer: bool = True,
) -> Row:
    """`row` as LMA improves it: + L'(x') + beta mHuber of the moving averages, crafted with CE + L' (Tables 1, 11, 13).

    inner, outer: whether L' is in what is crafted with (else the row's own craft stays), and in the training loss.
    beta 0: neither mHuber nor moving average. tau, alpha, reading, direction: see `MovingAverage`; delta, divided: see
    `multi_margin`. Costs 23 where clean samples enter neither through the row nor through beta, else 26. Raises
    MarginsError for a row of several phases.
    """
    if row.later:
        raise MarginsError("row: LMA's terms are for methods of one phase, but this row has more")
    given = {"delta": checks.number("delta", delta, 0), "divided": checks.choice("divided", divided, (True, False))}
    craft = row.craft
    if inner and not isinstance(craft, PGD):
        raise MarginsError(f"inner: what is climbed can be changed of PGD only, but the row crafts by {craft!r}")
    if inner:
        craft = replace(craft, loss=partial(losses.margin_cross_entropy, **given))
    terms = (Term(partial(losses.multi_margin, **given)),) * outer + row.terms
    if checks.number("beta", beta, 0):
        terms += (Term(MovingAverage(tau, alpha, reading, direction), "both", beta),)
    return replace(row, craft=craft, terms=terms, source="LMA, Algorithm 1 and Table 1")


def lma_at(guarded: bool = True, craft: Part | None = None, **settings) -> Row:
    """LMA-AT: L'(x') + BCE(x') + beta mHuber, crafted with CE + L'. Costs 26. settings: those of `ours`."""
    return ours(boosted(guarded, craft), **settings)


def amm(coefficient: float = 32.0, loss: Callable[..., Tensor] = CE, **settings) -> Row:
    """`loss` + AMM's regulariser; settings and cost: those of `DeepFoolMargin`. MNIST's values.

    Without second order it is the paper's "w/o high order gradients".
    """
    terms = (Term(loss, "clean"), Term(DeepFoolMargin(**settings), "clean", coefficient))
    return Row(None, terms, recipe={"clip": 10.0}, source="AMM, Eqs. 6 and 7, Appendix Table 1")


def deep_defense(coefficient: float = 15.0, start: Row | None = None) -> Row:
    """Deep Defense: AVG+EXP on |D| / |x| (AMM, Eq. 5), 5 epochs at a low rate from a trained network.

    start: the row that trains it, None where the model is trained already. c, d, steps and recipe are those of the
    released code. Costs as `DeepFoolMargin` with AVG.
    """
    penalty = DeepFoolMargin("AVG", "EXP", c=25.0, d=5.0, steps=5, normalised=True)
    terms = (Term(CE, "clean"), Term(penalty, "clean", coefficient))
    source = "Yan et al. 2018, Eq. 5; ZiangYan/deepdefense.pytorch"
    return Row(None, terms, start=start, recipe=DEEP_DEFENSE, source=source, note="fine-tunes a trained network")


def elsayed(gamma: float, coefficient: float = 1.0, **settings) -> Row:
    """Standard training + the linearised margin below the threshold gamma, as AMM compares with it (section 4.3.1).

    settings, cost: of `LinearisedMargin`. gamma and coefficient aren't given in the paper: to be searched for.
    """
    terms = (Term(CE, "clean"), Term(LinearisedMargin(gamma, **settings), "clean", coefficient))
    return Row(None, terms, source="AMM, section 4.3.1; Elsayed et al. 2018")


def large_margin(gamma: float = 1.0, layers: tuple[str, ...] = ()) -> Row:
    """Elsayed et al.'s own loss as released: of probabilities, for one rival, without a cross-entropy.

    gamma: their MNIST's is 10,000 in units of layers of other sizes, and in the norm inf; here it is in input units.
    layers: names of the modules whose outputs count too, in the release those of all convolutions.
    """
    part = LinearisedMargin(gamma, "probabilities", rivals=1, alpha=4.0, norm=math.inf, layers=layers)
    return Row(None, (Term(part, "clean"),), source="Elsayed et al. 2018; google-research/large_margin")


def _dropped(coefficient: float, drops: tuple[tuple[float, float], ...]) -> float | Schedule:
    return Steps(checks.number("coefficient", coefficient), checks.drops("drops", drops)) if drops else coefficient


def _with(row: Row, penalty: Part, coefficient: float | Schedule, source: str, note: str = "") -> Row:
    """`row` with a penalty in all its phases, at adversaries where a phase crafts any."""

    def more(phase):
        return (*phase.terms, Term(penalty, "adversarial" if phase.craft else "clean", coefficient))

    later = tuple(replace(phase, terms=more(phase)) for phase in row.later)
    note = "; ".join(filter(None, (row.note, note)))
    return replace(row, terms=more(row), later=later, source=row.source + source, note=note)
