"""A page of the book for a group of claims: what they say, the verdicts, the evidence, the records behind them."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from margins import experiments
from margins.claims import PAPERS, Claim
from margins.forest import forest
from margins.verdicts import OUTCOMES, Columns, Part, Verdict

NAMES = {"amm": "AMM", "amr": "AMR", "emr": "EMR", "lma": "LMA-AT"}
COLUMNS = {"paper": "paper's setting", "largest": "largest scale run"}
_BADGES = {"supported": "success", "contradicted": "danger", "undecided": "warning", "not run": "muted"}


def page(claims: Sequence[Claim], found: Mapping[str, Columns]) -> str:
    """MyST Markdown for the claims of one group; every claim is a target "claim-<id>"."""
    first = claims[0]
    run = [c for c in claims if found[c.id].largest.outcome != "not run"]
    rest = [c for c in claims if c not in run]
    number = count(found[c.id].largest for c in claims)
    lines = [
        f"# {NAMES[first.paper]}: {words(first.group)}",
        "",
        f"Claims of *{PAPERS[first.paper]}*: {', '.join(f'{n} {outcome}' for outcome, n in number.items() if n)} "
        "(largest scale run). [How to read a verdict](/book/index.md).",
        "",
    ]
    if drawing := forest((_short(c), found[c.id].largest.parts) for c in run):
        legend = (
            "Shaded: where the claim says that the difference lies. Dot: supported, square: contradicted, ring: "
            "undecided, dotted: zero. Each line by its own 95 % interval, before the correction for several claims "
            "and parts."
        )
        lines += ["```{raw} html", drawing, "```", "", legend, ""]
    for claim in run:
        lines += _claim(claim, found[claim.id])
    if rest:
        lines += ["## Not run", "", *(f"(claim-{c.id})=" for c in rest)]
        lines += ["| claim | least scale |", "|:--|:--|"]
        lines += [f"| {text(c.says)} *{text(c.where)}*, `{_short(c)}` | {c.least_scale} |" for c in rest]
        lines.append("")
    if run:
        used = dict.fromkeys(source for c in run for source in found[c.id].largest.sources)
        commands = [f"margins record {name} --scale {scale}" for name, scale in used]
        lines += ["## The records behind this page", "", "They are made by", "", "```bash", *commands, "```", ""]
    lines += [
        "Marks such as J.2-5, A.3, G-1 or D.3 number entries of our notes on what the papers leave open or contradict, "
        "and on what the official code does.",
    ]
    return "\n".join(lines) + "\n"


def _claim(claim: Claim, columns: Columns) -> list[str]:
    verdict, rows = columns.largest, claim.rows
    p = "" if verdict.p is None else f", p = {verdict.p:.2g}, corrected {verdict.p_holm:.2g}"
    facts = {
        "Where": claim.where,
        "Compared": f"{'; '.join(map(str, rows['compared']))}. {rows['metric']}. {rows['dataset']}, {rows['model']}",
        "Decided by": claim.predicate,
        "Caveat": claim.caveat,
        "Why": verdict.reason,
    }
    return [
        f"(claim-{claim.id})=",
        f"## {words(_short(claim))}",
        "",
        f"**{text(claim.says)}**",
        "",
        f"- {COLUMNS['paper'].capitalize()}: {badge(columns.paper)}",
        f"- {COLUMNS['largest'].capitalize()}: {badge(verdict)}{p}",
        *(f"- {name}: {text(said)}" for name, said in facts.items() if said),
        f"- Claim `{claim.id}`, from {_sources(verdict)}",
        "",
        "| part | measured (95 % interval; range, if exact) | claimed | seeds | alone |",
        "|:--|:--|:--|:--|:--|",
        *map(_row, verdict.parts),
        "",
        *(f"{line}\n" for source in verdict.sources if (line := _marks(*source))),
    ]


def _sources(verdict: Verdict) -> str:
    """What a verdict was read from: "`a`, `b` at scale laptop"."""
    scales: dict[str, list[str]] = {}
    for name, scale in verdict.sources:
        scales.setdefault(scale, []).append(f"`{name}`")
    return "; ".join(f"{', '.join(names)} at scale {scale}" for scale, names in scales.items())


def _marks(name: str, scale: str) -> str:
    """The sanity checks that failed in an experiment's evaluations, in a sentence; "" for none."""
    failed = experiments.results(name, scale).failed_checks()
    said = [
        f"*{check}* in evaluations by {text(part)}: {', '.join(f'{text(row)} ({n})' for row, n in seeds.items())}"
        for (check, part), seeds in sorted(failed.items())
    ]
    what = f"Sanity checks that failed, and in how many seeds of which row of `{name}`"
    return f"{what}: {'; '.join(said)}." if said else ""


def _row(part: Part) -> str:
    unit = f" {part.unit}" if part.unit else ""
    if part.outcome == "not run":
        return f"| {text(part.label)} | | | | not run |"
    if part.relation == "exact":
        measured, claimed = part.measured, part.bound
    else:
        interval = "" if part.low is None else f" ({part.low:.3g} to {part.high:.3g})"
        measured = "all diverged" if part.estimate is None else f"{part.estimate:.3g}{interval}{unit}"
        claimed = f"{'within ±' if part.relation == 'within' else f'{part.relation} '}{part.delta:g}"
    seeds = f"{part.seeds}, {part.images} images" if part.images else str(part.seeds)
    cells = (part.label, measured, claimed, seeds, part.outcome)
    return f"| {' | '.join(map(text, cells))} |"


def badge(verdict: Verdict) -> str:
    """A verdict as a coloured badge, with the scale that it is about."""
    label = f"{{bdg-{_BADGES[verdict.outcome]}}}`{verdict.outcome}`"
    if verdict.outcome == "not run":
        return label
    return f"{label} ({verdict.scale}{', these weights' if verdict.these_weights else ''})"


def count(found: Iterable[Verdict]) -> dict[str, int]:
    """How many verdicts have each outcome, in the order of `OUTCOMES`."""
    number = Counter(verdict.outcome for verdict in found)
    return {outcome: number[outcome] for outcome in OUTCOMES}


def _short(claim: Claim) -> str:
    return claim.id.removeprefix(f"{claim.paper}-")


def words(group: str) -> str:
    """A group's name in words."""
    return group.replace("-", " ")


def text(said: str) -> str:
    """Text in which Markdown means nothing."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~^])", r"\\\1", said)
