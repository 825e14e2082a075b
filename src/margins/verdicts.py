"""The verdict rule: what the parts of a claim's evidence decide together, page by page and scale by scale."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from margins.claims import Check, Claim, Difference, Evidence, Missing, each
from margins.errors import MarginsError
from margins.intervals import LEVEL, holm, interval, spreads
from margins.records import SCALES

OUTCOMES = ("supported", "contradicted", "undecided", "not run")
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Part:
    """One line of a claim's evidence; an exact check has the relation "exact", what it `measured`, and its `bound`.

    What was not run has the relation "missing" and the outcome "not run".
    `outcome` is that of the part alone, before any correction; `low`, `high`, `df` are None where there is no interval.
    """

    label: str
    relation: str
    outcome: str
    seeds: int
    delta: float | None = None
    unit: str = ""
    images: int | None = None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    df: float | None = None
    measured: str = ""
    bound: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the records of one scale say about a claim; `p` and `p_holm` are None where nothing statistical decides."""

    claim: str
    scale: str
    outcome: str
    parts: tuple[Part, ...] = ()
    p: float | None = None
    p_holm: float | None = None
    reason: str = ""
    these_weights: bool = False
    experiments: tuple[str, ...] = ()
    #: Which of these were read, and at which scale.
    sources: tuple[tuple[str, str], ...] = ()


class Columns(NamedTuple):
    """The two columns of the scoreboard: at the paper's setting, and at the largest scale that was run.

    The latter, of a claim that is read from several, is the largest scale at which most of them were run.
    """

    paper: Verdict
    largest: Verdict


def verdicts(
    claims: Iterable[Claim],
    evidence: Mapping[str, Evidence | tuple[Evidence, ...]],
    results: Callable[[str, str], Any | None],
) -> dict[str, Columns]:
    """Both verdicts of every claim, by its id.

    results(experiment, scale) gives the complete results of an experiment, or None where records are missing. A claim
    is read at every scale from its least one on; the claims of one page at one scale share Holm's correction. Of a
    claim with several evidences those that were run are read, and the others are `Missing`.
    Raises MarginsError for evidence of a claim that is not in `claims`, and for evidence without a part.
    """
    claims = list(claims)
    if strangers := sorted(set(evidence) - {claim.id for claim in claims}):
        raise MarginsError(f"evidence: {', '.join(strangers)} is not in the ledger")
    pages: dict[tuple[str, str], dict[str, Sequence[Difference | Check | Missing]]] = defaultdict(dict)
    sources: dict[tuple[str, str], list[tuple[str, str]]] = {}
    run: dict[tuple[str, str], int] = {}
    for claim in claims:
        # A published number says nothing about a smaller setting than the paper's.
        least = SCALES.index("paper" if claim.kind == "number" else claim.least_scale)
        for scale in SCALES[least:] if claim.id in evidence else ():
            parts, read, missing = [], [], []
            for one in each(evidence[claim.id]):
                if SCALES.index(one.since) > SCALES.index(scale):
                    continue
                at = {name: results(name, one.fixed or scale) for name in one.experiments}
                if all(result is not None for result in at.values()):
                    parts += _read(claim.id, one, at)
                    read.append([(name, one.fixed or scale) for name in at])
                else:
                    missing.append(Missing(", ".join(one.experiments)))
            if read:
                pages[claim.page, scale][claim.id] = parts + missing
                sources[claim.id, scale] = list(dict.fromkeys(source for some in read for source in some))
                run[claim.id, scale] = len(read)
    found = {}
    for (_, scale), parts in pages.items():
        found |= {(id_, scale): verdict for id_, verdict in page(parts, scale).items()}

    def column(claim: Claim, scales: Sequence[str]) -> Verdict:
        several = each(evidence[claim.id]) if claim.id in evidence else ()
        names = tuple(dict.fromkeys(name for one in several for name in one.experiments))
        there = [scale for scale in scales if (claim.id, scale) in found]
        if there:
            scale = max(there, key=lambda one: (run[claim.id, one], SCALES.index(one)))
            verdict = found[claim.id, scale]
            return replace(verdict, experiments=names, sources=tuple(sources[claim.id, scale]))
        reason = f"no complete records at the scale {claim.least_scale} or above" if names else "no experiment yet"
        return Verdict(claim.id, claim.least_scale, "not run", reason=reason, experiments=names)

    return {claim.id: Columns(column(claim, SCALES[-1:]), column(claim, SCALES)) for claim in claims}


def page(claims: Mapping[str, Sequence[Difference | Check | Missing]], scale: str) -> dict[str, Verdict]:
    """Verdicts of one page's claims (id -> its parts) at one scale; pooling and Holm's correction are over them.

    Supported needs every part; one contradicted part contradicts (its p-value times the number of statistical parts).
    A `Missing` part takes one of the two away.
    A claim that exact checks alone decide, for or against, stands outside Holm's family.
    """
    spread = spreads([part for parts in claims.values() for part in parts if isinstance(part, Difference)])
    judged = {
        id_: [_statistical(p, *spread[id(p)]) if isinstance(p, Difference) else _KINDS[type(p)](p) for p in parts]
        for id_, parts in claims.items()
    }
    sides = {id_: _sides(parts) for id_, parts in judged.items()}
    family = [id_ for id_, (_, _, statistical) in sides.items() if statistical]
    corrected = dict(zip(family, holm([min(sides[id_][:2]) for id_ in family]), strict=True))
    found = {}
    for id_, parts in judged.items():
        p_for, p_against, _ = sides[id_]
        p, p_holm = min(p_for, p_against), corrected.get(id_)
        side = "supported" if p_for < p_against else "contradicted"
        decided = (p if p_holm is None else p_holm) < LEVEL
        reasons = [j.reason for j in parts if j.reason]
        if p < LEVEL and not decided:
            reasons.insert(0, f"{side} alone, but not after Holm's correction over the {len(family)} claims here")
        elif not decided and not reasons:
            against = [j.part.label for j in parts if j.part.outcome == "contradicted"]
            open_ = [j.part.label for j in parts if j.part.outcome == "undecided"]
            reasons += [f"against it before correction for {len(parts)} parts: {', '.join(against)}"] * bool(against)
            reasons += [f"open: {', '.join(open_)}"] * bool(open_)
        found[id_] = Verdict(
            claim=id_,
            scale=scale,
            outcome=side if decided else "undecided",
            parts=tuple(j.part for j in parts),
            p=None if p_holm is None else p,
            p_holm=p_holm,
            reason="; ".join(reasons),
            these_weights=all(j.these_weights for j in parts if j.part.relation != "missing"),
        )
    return found


class _Judged(NamedTuple):
    part: Part
    p_for: float  # 0 or 1 where no statistics decide
    p_against: float
    statistical: bool = False
    reason: str = ""
    these_weights: bool = False
    exists: bool = False  # missing from a claim that something exists, so nothing can contradict it yet


def _read(id_: str, evidence: Evidence, at: Mapping[str, Any]) -> Sequence[Difference | Check | Missing]:
    try:
        parts = list(evidence.read(at))
    except Exception as error:
        error.add_note(f"while reading the evidence of {id_}")
        raise
    known = all(isinstance(part, Difference | Check | Missing) for part in parts)
    if not known or all(isinstance(part, Missing) for part in parts):
        raise MarginsError(
            f"evidence of {id_}: read gives {parts!r}; allowed: at least one Difference or Check, and any Missing"
        )
    return parts


def _statistical(d: Difference, s2: float, df: float) -> _Judged:
    total, images = len(d.values), None if d.images is None else len(d.images)
    lost = int(np.isnan(d.values).sum())
    left = total - lost
    # For "within" there is no favoured row: whichever diverged, the two are not comparable.
    failed, opposed = (lost, 0) if d.relation == "within" else (d.failed, d.opposed)
    part = Part(d.label, d.relation, "undecided", total, d.delta, d.unit, images)
    if left:
        part = replace(part, estimate=float(np.nanmean(d.values)))
    reason = f"{d.label}: {failed} of {total} seeds diverged" if failed else ""
    if total >= FEWEST_SEEDS and failed > total / 2 and not opposed:
        return _Judged(replace(part, outcome="contradicted"), 1.0, 0.0, False, reason)
    if left < FEWEST_SEEDS and not d.these_weights:
        why = f", as {lost} of {total} diverged" if lost else ""
        return _Judged(part, 1.0, 1.0, False, f"{d.label}: fewer than {FEWEST_SEEDS} seeds{why}")
    if d.these_weights and (images is None or not left):
        return _Judged(part, 1.0, 1.0, False, f"{d.label}: given weights without results per image", True)
    found = interval(d, s2, df)
    p_for, p_against = 1.0 if failed else found.p_for, 1.0 if opposed else found.p_against
    outcome = "supported" if p_for < LEVEL else "contradicted" if p_against < LEVEL else "undecided"
    part = replace(part, outcome=outcome, low=found.low, high=found.high, df=found.df)
    return _Judged(part, p_for, p_against, True, reason, d.these_weights)


def _exact(c: Check) -> _Judged:
    outcome = "supported" if c.held.all() else "undecided" if c.held.any() else "contradicted"
    part = Part(c.label, "exact", outcome, len(c.held), measured=_words(c.measured), bound=_words(c.bound))
    reason = f"{c.label}: held in {c.held.sum()} of {len(c.held)} replicates" if outcome == "undecided" else ""
    p_for, p_against = float(outcome != "supported"), float(outcome != "contradicted")
    return _Judged(part, p_for, p_against, False, reason, c.these_weights)


def _missing(m: Missing) -> _Judged:
    part = Part(m.label, "missing", "not run", 0)
    return _Judged(part, float(not m.exists), 1.0, False, f"not run: {m.label}", exists=m.exists)


_KINDS = {Check: _exact, Missing: _missing}


def _words(value: np.ndarray | float | str) -> str:
    """A number, or the range of the replicates' numbers, as text."""
    if isinstance(value, str):
        return value
    low, high = (f"{number:.4g}" for number in (np.min(value), np.max(value)))
    return low if low == high else f"{low} to {high}"


def _sides(judged: Sequence[_Judged]) -> tuple[float, float, bool]:
    """p-value for the claim, p-value against it, and whether it belongs to Holm's family."""
    statistical = [j.p_against for j in judged if j.statistical]
    exists = any(j.exists for j in judged)
    if any(j.p_against == 0 for j in judged if not j.statistical) and not exists:
        return 1.0, 0.0, False
    p_for = max(j.p_for for j in judged)
    if not statistical:
        return p_for, 1.0, False
    # Bonferroni: any part contradicts
    return p_for, 1.0 if exists else min(1.0, len(statistical) * min(statistical)), True
