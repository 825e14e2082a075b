"""The scoreboard: the front page's tables, a page per group of claims, and the command line's report, as text.

Everything is computed again from the ledger and the committed records at each call; nothing is stored.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache

from margins import claimpage, experiments, papers
from margins.claimpage import COLUMNS, NAMES, count, text, words
from margins.claims import PAPERS, Claim, ledger
from margins.errors import MarginsError
from margins.intervals import LEVEL
from margins.records import Record
from margins.verdicts import OUTCOMES, Columns, verdicts


def decide(claims: Sequence[Claim]) -> dict[str, Columns]:
    """Both verdicts of the claims, by id, from the records; Holm's correction needs all claims of a page among them."""

    @cache
    def results(name: str, scale: str) -> experiments.Results | None:
        if scale not in experiments.find(name).scales:
            return None
        try:
            return experiments.results(name, scale)
        except experiments.NotRecorded:
            return None

    return verdicts(claims, {c.id: papers.EVIDENCE[c.id] for c in claims if c.id in papers.EVIDENCE}, results)


def counts() -> dict[str, int]:
    """How many claims of all papers have each outcome, at the largest scale that was run."""
    return count(columns.largest for columns in decide(ledger()).values())


def stale() -> list[Record]:
    """Records that the code of today would not make; they enter no verdict."""
    return experiments.stale()


def report(paper: str | None = None, as_json: bool = False) -> str:
    """The verdicts of one paper or all, recomputed: lines for a terminal without the claims not run, or JSON of all."""
    claims = ledger(paper)
    found = decide(claims)
    if as_json:
        keys = ("id", "paper", "group", "where", "says", "least_scale")
        rows = [{key: getattr(c, key) for key in keys} | {k: asdict(v) for k, v in found[c.id]._asdict().items()}
                for c in claims]  # fmt: skip
        return json.dumps(rows, indent=1)
    lines = []
    for claim in claims:
        verdict = found[claim.id].largest
        if verdict.outcome != "not run":
            reason = f"  ({verdict.reason})" if verdict.reason else ""
            lines.append(f"{verdict.outcome:13}{verdict.scale:8}{claim.id}{reason}")
    for key in COLUMNS:
        number = count(getattr(columns, key) for columns in found.values())
        lines.append(f"{COLUMNS[key]}: " + ", ".join(f"{n} {outcome}" for outcome, n in number.items()))
    return "\n".join(lines)


def badge(claim_id: str) -> str:
    """A claim's verdict at the largest scale run, with a link to its evidence, as one line of MyST Markdown.

    Raises MarginsError for an id that is not in the ledger.
    """
    claims = ledger()
    claim = next((c for c in claims if c.id == claim_id), None)
    if claim is None:
        raise MarginsError(f"claim: {claim_id!r} is not in the ledger; ids are such as {claims[0].id}")
    verdict = decide([c for c in claims if c.page == claim.page])[claim.id].largest
    return f"{claimpage.badge(verdict)} {{ref}}`{claim.id} <claim-{claim.id}>`"


def front() -> str:
    """The scoreboard for the front page: all papers in two columns, the claims most asked about, the pages."""
    claims = ledger()
    found = decide(claims)
    page_of = {c.id: c.page for c in claims}
    lines = []
    for key, column in COLUMNS.items():
        lines += [f"**{column.capitalize()}**", "", f"| paper | {' | '.join(OUTCOMES)} | false at most |"]
        lines.append("|:--" + "|--:" * (len(OUTCOMES) + 1) + "|")
        for paper in (*PAPERS, ""):
            mine = [getattr(found[c.id], key) for c in claims if c.paper == (paper or c.paper)]
            families = {(page_of[v.claim], v.scale) for v in mine if v.p is not None}
            cells = (NAMES.get(paper, "all"), *count(mine).values(), f"{LEVEL * len(families):.2f}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines.append("")
    lines += [
        f"*False at most*: how many verdicts may be expected to be false by chance, {LEVEL:g} for each page with "
        "statistical verdicts, since the claims of a page are corrected together (Holm). Exact checks are not counted.",
        "",
    ]
    lines += ["### The claims most asked about", "", f"| claim | {' | '.join(COLUMNS.values())} |", "|:--|:--|:--|"]
    for claim in (c for c in claims if c.headline):
        paper, largest = found[claim.id]
        says = f"{NAMES[claim.paper]}: {text(claim.says)} {{ref}}`evidence <claim-{claim.id}>`"
        lines.append(f"| {says} | {claimpage.badge(paper)} | {claimpage.badge(largest)} |")
    lines += ["", "### All claims", ""]
    for paper, title in PAPERS.items():
        groups = dict.fromkeys((c.group, c.page) for c in claims if c.paper == paper)
        links = ", ".join(f"[{words(group)}](/book/{page}.md)" for group, page in groups)
        lines.append(f"- **{NAMES[paper]}**, *{title}*: {links}")
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """A page of MyST Markdown for each group of claims, by its place in the book such as "claims/amm-toy"."""
    claims = ledger()
    found = decide(claims)
    groups: dict[str, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(claim.page, []).append(claim)
    return {page: claimpage.page(mine, found) for page, mine in groups.items()}
