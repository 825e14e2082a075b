"""The field's sanity checks: signs that a robust accuracy is an artefact, each with a stated tolerance.

After Athalye, Carlini and Wagner 2018, "Obfuscated Gradients Give a False Sense of Security"; Carlini et al. 2019, "On
Evaluating Adversarial Robustness"; and AutoAttack's flags (Croce and Hein 2020). A difference counts only where it is
more than the tolerance and more than one sample.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from margins.evaluation.probes import QUERIES, STEPS, Findings
from margins.evaluation.result import Attacked, Check

#: In points, that is % of the samples.
RISE, LEFT, ONE_STEP, BLACK_BOX, VANISHING, MARGIN, ZERO, UNCONFIRMED = 1.0, 1.0, 1.0, 0.2, 2.0, 2.0, 1.0, 1.0
#: From so many samples on the clean accuracy is judged at all, and by its interval.
LEAST, FEW = 10, 30
#: Of a one-sided sign test at 1 %.
SIGN = 2.33
#: Relative differences of logits; what a sum of probabilities may miss 1 by; a cross-entropy gradient called small.
RANDOM, BATCH, MASS, SMALL = 1e-4, 1e-4, 1e-3, 1e-6


def judge(findings: Findings, attacks: Mapping[str, Attacked], training: bool) -> tuple[Check, ...]:
    """All checks, in a fixed order; without samples none applies. training: how the model was given."""
    if not len(findings.looks["sum"]):
        empty = replace(findings, only_black_box=None)
        every = _all(empty, attacks, training)
        return tuple(_check(one.name, None, "no samples", one.tolerance, one.advice, {}) for one in every)
    return _all(findings, attacks, training)


def _all(findings: Findings, attacks: Mapping[str, Attacked], training: bool) -> tuple[Check, ...]:
    robust, looks = findings.robust, findings.looks
    return (
        _clean(findings), _mode(looks, training), _differentiable(looks), _nan(looks), _zero(looks),
        _probabilities(looks), _randomised(looks), _batch(looks), _vanishing(robust, looks), _margin(findings),
        _one_step(robust), _rising(robust), _unbounded(robust), _black_box(findings), _confirmed(attacks),
    )  # fmt: skip


def _clean(findings: Findings) -> Check:
    """Guessing leaves nothing to attack. Few samples can't tell a fair model from it: then only the estimate counts."""
    (p, low, high), n, chance = findings.clean, findings.samples, 1 / findings.classes
    name, advice = (
        "clean accuracy",
        "wrong normalisation, labels or weights? No number here says anything of robustness",
    )
    tolerance = f"significantly above {100 * chance:.3g} %, a guess's" if n >= FEW else f"above {100 * chance:.3g} %"
    if n < LEAST:
        return _check(name, None, f"{n} samples tell too little", tolerance, advice, {})
    return _check(
        name, (low if n >= FEW else p) > chance,
        f"without attack {100 * p:.1f} % of {n} samples are right (95 % interval {100 * low:.1f} to {100 * high:.1f})",
        tolerance, advice, {"accuracy": 100 * p, "chance": 100 * chance},
    )  # fmt: skip


def _vanishing(robust: Mapping[str, Tensor], looks: Mapping[str, Tensor]) -> Check:
    """Raised by what vanishing gradients do, not by how many are small.

    Three PGDs that differ in the loss only: the cross-entropy, its log-odds and the margin. The first two take the same
    steps in exact arithmetic, so what the first misses is lost to underflow; the third says what there was to find. The
    cross-entropy (`probes.cross_entropy`) keeps its gradient's direction as long as that is not exactly 0, in float32
    up to a gap of about 100 between the logits: a network that plain training made confident passes.
    """
    n = len(robust["margin"])
    lost = {key: _points(_extra(robust["cross-entropy"], robust[key]), n) for key in ("margin", "log-odds")}
    failed = all(_beyond(_extra(robust["cross-entropy"], robust[key]), n, VANISHING) for key in lost)
    small = 100 * (looks["literal"] < SMALL).double().mean().item()
    measured = (
        f"on {n} samples, PGD ({STEPS} steps) on the cross-entropy breaks {lost['margin']:.1f} points fewer than on the"
        f" margin, and {lost['log-odds']:.1f} fewer than on its log-odds, the same steps without underflow; the"
        f" cross-entropy's input gradient is below {SMALL:g} for {small:.0f} % of the samples"
    )
    rounded = _extra(robust["literal"], robust["log-odds"])
    note = (
        f"PGD on the cross-entropy as libraries compute it breaks {_points(rounded, n):.1f} points fewer than without"
        " rounding: 1 - p_y rounds to 0 for a network as confident as this one. Our own attacks avoid it"
    )
    return _check(
        "vanishing gradients", not failed, measured,
        f"at most {VANISHING:g} points fewer than on both",
        "believe no attack on the cross-entropy of this model; margin and DLR losses and minimum-norm attacks don't"
        " depend on the logits' scale",
        {"margin": lost["margin"], "log-odds": lost["log-odds"], "literal": _points(rounded, n), "small": small},
        note * (not failed and _beyond(rounded, n, VANISHING)),
    )  # fmt: skip


def _margin(findings: Findings) -> Check:
    """The suite against a margin loss; the cross-entropy against it is only noted: sound networks differ there too."""
    robust, n = findings.robust, len(findings.suite)
    more = int((findings.suite & ~robust["margin"]).sum())
    behind = _extra(robust["log-odds"], robust["margin"])
    note = (
        f"PGD on the cross-entropy breaks {_points(behind, n):.1f} points fewer than on the margin, not by rounding: it"
        " is a poor guide here, quote no number that rests on it alone"
    )
    return _check(
        "margin loss", not _beyond(more, n, MARGIN),
        f"PGD on the margin ({STEPS} steps) breaks {_points(more, n):.1f} points of {n} samples that the attacks left",
        f"at most {MARGIN:g} points",
        "add attacks on the margin or DLR loss: the accuracy is too high",
        {"points": _points(more, n), "cross-entropy": _points(behind, n)},
        note * _beyond(behind, n, VANISHING),
    )  # fmt: skip


def _one_step(robust: Mapping[str, Tensor]) -> Check:
    """Sound networks differ by chance too: the samples that only one of the two breaks are put to a sign test."""
    n, differ = len(robust["fgsm"]), int((robust["fgsm"] ^ robust["log-odds"]).sum())
    more = _extra(robust["log-odds"], robust["fgsm"])
    return _check(
        "one step against many", not (_beyond(more, n, ONE_STEP) and more > SIGN * differ**0.5),
        f"FGSM breaks {_points(more, n):.1f} points more of {n} samples than {STEPS} steps of PGD on the same loss",
        f"at most {ONE_STEP:g} point more, or what chance may do",
        "gradients mislead beyond the first step: use more restarts, smaller steps and black-box attacks",
        {"points": _points(more, n)},
    )  # fmt: skip


def _rising(robust: Mapping[str, Tensor]) -> Check:
    n = len(robust["margin"])
    left = [int(robust[key].sum()) for key in ("half", "margin", "double")]
    rise = max(later - sooner for i, sooner in enumerate(left) for later in left[i + 1 :])
    shares = ", ".join(f"{_points(count, n):.1f}" for count in left)
    return _check(
        "accuracy falls with eps", not _beyond(rise, n, RISE),
        f"PGD on the margin leaves {shares} % of {n} samples at eps / 2, eps and 2 eps",
        f"a larger eps leaves at most {RISE:g} point more",
        "a larger ball holds the smaller one: the attack fails to search it; use more steps and other attacks",
        {"half": _points(left[0], n), "eps": _points(left[1], n), "double": _points(left[2], n)},
    )  # fmt: skip


def _unbounded(robust: Mapping[str, Tensor]) -> Check:
    n, left = len(robust["unbounded"]), int(robust["unbounded"].sum())
    return _check(
        "unbounded attack", not _beyond(left, n, LEFT),
        f"PGD on the margin that may change everything leaves {_points(left, n):.1f} % of {n} samples",
        f"at most {LEFT:g} %",
        "any image is within reach, so it is the gradients that fail: see the other checks, try black-box attacks",
        {"points": _points(left, n)},
    )  # fmt: skip


def _black_box(findings: Findings) -> Check:
    only, n = findings.only_black_box, findings.questioned
    name, tolerance = "black box against white box", f"at most {BLACK_BOX:g} points"
    advice = "gradients are masked: the gradient attacks' accuracy is too high; use stronger and adaptive ones"
    if only is None:
        return _check(name, None, "the suite has only black-box attacks", tolerance, "add gradient attacks", {})
    return _check(
        name, not _beyond(only, n, BLACK_BOX),
        f"{_points(only, n):.1f} points of {n} samples are broken by a black-box attack (Square of {QUERIES} queries"
        " where the suite has none) and by no other",
        tolerance, advice, {"points": _points(only, n)},
    )  # fmt: skip


def _confirmed(attacks: Mapping[str, Attacked]) -> Check:
    counts = {name: (one.unconfirmed, len(one.robust)) for name, one in attacks.items()}
    bad = {name: _points(count, n) for name, (count, n) in counts.items() if _beyond(count, n, UNCONFIRMED)}
    worst = max((_points(count, n) for count, n in counts.values()), default=0.0)
    return _check(
        "examples confirmed", not bad,
        f"asked again, the model classifies up to {worst:.1f} % of an attack's claimed examples correctly"
        + "".join(f"; {name}: {points:.1f} %" for name, points in bad.items()),
        f"at most {UNCONFIRMED:g} % of the samples; such examples don't count",
        "the attack's own claim of success is wrong, or the outputs are random",
        {"points": worst},
    )  # fmt: skip


def _mode(looks: Mapping[str, Tensor], training: bool) -> Check:
    moved = bool(looks["moved"].any())
    return _check(
        "evaluation mode", not moved,
        "in evaluation mode a forward pass sets training mode or changes buffers (BatchNorm statistics)" if moved else
        f"the model was given in {'training' if training else 'evaluation'} mode and evaluated in evaluation mode",
        "a forward pass changes nothing",
        "look for train() or a training flag in forward; the results are of no fixed model",
        {},
    )  # fmt: skip


def _differentiable(looks: Mapping[str, Tensor]) -> Check:
    lost = ~looks["connected"]
    return _check(
        "no path for gradients", not lost.any(),
        "autograd finds no path from the outputs to the input" if lost.any() else "the outputs depend on the input",
        "a path for every sample",
        "a comparison, an integer, detach or numpy on the way cuts it: attack a differentiable stand-in of that step"
        " (BPDA), or use black-box attacks",
        {"share": lost.double().mean().item()},
    )  # fmt: skip


def _nan(looks: Mapping[str, Tensor]) -> Check:
    bad = looks["nan"]
    return _check(
        "nan gradients", not bad.any(),
        f"the margin's input gradient is nan or infinite for {_share(bad)} of the samples",
        "none", "find it with torch.autograd.set_detect_anomaly; a root or a norm at 0 and 0 times infinity are the"
        " usual reasons. Attacks took such entries for 0",
        {"share": bad.double().mean().item()},
    )  # fmt: skip


def _zero(looks: Mapping[str, Tensor]) -> Check:
    name, tolerance = "zero gradients", f"at most {ZERO:g} %"
    advice = "a step of the model is flat (rounding, sign, saturation): attack a stand-in of it (BPDA), or black-box"
    if not looks["connected"].all():
        return _check(name, None, "there is no path for gradients at all", tolerance, advice, {})
    zero = looks["zero"]
    return _check(
        name, not _beyond(int(zero.sum()), len(zero), ZERO),
        f"the margin's input gradient is exactly 0, at x and at a random start, for {_share(zero)} of the samples",
        tolerance, advice, {"share": zero.double().mean().item()},
    )  # fmt: skip


def _probabilities(looks: Mapping[str, Tensor]) -> Check:
    """Of a softmax, whatever it is multiplied by, or of sigmoids; a centred head's logits also sum to a constant, 0."""
    total = looks["sum"].mean() if len(looks["sum"]) else 0.0
    alike = (looks["least"] >= 0) & (((looks["sum"] - total).abs() <= MASS * total) | (looks["most"] <= 1))
    return _check(
        "probabilities as outputs", not len(alike) or not alike.all(),
        f"the outputs are non-negative and of the same sum, or all in [0, 1], for {_share(alike)} of the samples",
        f"not for all of them (sums within a share of {MASS:g})",
        "return logits: take the softmax out of the model; losses and targeted attacks expect them",
        {"share": alike.double().mean().item()},
    )  # fmt: skip


def _randomised(looks: Mapping[str, Tensor]) -> Check:
    worst = looks["repeated"].max().item() if len(looks["repeated"]) else 0.0
    return _check(
        "randomised outputs", worst <= RANDOM,
        f"repeated calls on the same batch differ by up to {worst:.2g} of the logits' length",
        f"at most {RANDOM:g}",
        "average outputs and gradients over calls (EOT) and evaluate that; one draw is no adversarial example",
        {"difference": worst},
    )  # fmt: skip


def _batch(looks: Mapping[str, Tensor]) -> Check:
    name, tolerance = "outputs depend on the batch", f"at most {BATCH:g}"
    advice = "use stored statistics in normalisation layers; else the result is of this batch size and order only"
    known = looks["split"][~looks["split"].isnan()]
    random = len(looks["repeated"]) and looks["repeated"].max() > RANDOM
    if random or not len(known):
        why = "repeated calls differ already" if random else "every batch has one sample"
        return _check(name, None, why, tolerance, advice, {})
    worst = known.max().item()
    return _check(
        name, worst <= BATCH, f"in half the batch they differ by up to {worst:.2g} of the logits' length", tolerance,
        advice, {"difference": worst},
    )  # fmt: skip


def _check(
    name: str,
    passed: bool | None,
    measured: str,
    tolerance: str,
    advice: str,
    numbers: Mapping[str, float],
    note: str = "",
) -> Check:
    status = "not applicable" if passed is None else "passed" if passed else "failed"
    return Check(name, status, measured, tolerance, advice, numbers, note)


def _extra(weak: Tensor, strong: Tensor) -> int:
    """How many more samples the second attack breaks than the first."""
    return int(weak.sum()) - int(strong.sum())


def _points(count: int, n: int) -> float:
    return 100 * count / max(n, 1)


def _beyond(count: int, n: int, points: float) -> bool:
    return count > max(points * n / 100, 1)


def _share(flags: Tensor) -> str:
    return f"{100 * flags.double().mean().item():.1f} %"
