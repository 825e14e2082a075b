"""What the papers claim, and what a claim is read from: the ledger, the published tables, the evidence.

A claim is an entry of `data/paper/<paper>/claims.yaml`. `margins.papers` says in code what its predicate reads from the
records (`Evidence`), as paired differences (`Difference`) or exact checks (`Check`); `margins.verdicts` decides.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from margins import paths
from margins.errors import MarginsError
from margins.records import SCALES

if TYPE_CHECKING:
    import pandas as pd

PAPERS = {
    "amm": "Adversarial Margin Maximization Networks",
    "amr": "Understanding Adversarial Robustness: The Trade-off between Minimum and Average Margin",
    "emr": "Boosting Adversarial Robustness From The Perspective of Effective Margin Regularization",
    "lma": "Augmenting cross-entropy with margin loss and applying moving average logits regularization",
}
KINDS = ("ordering", "number", "theorem", "comparable", "monotone", "existence", "cost")
RELATIONS = (">", "<", "within")


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper that can be tested, as it stands in the ledger; `group` names the page that it is on."""

    paper: str
    id: str
    group: str
    where: str
    says: str
    kind: str
    rows: dict[str, Any]
    predicate: str
    least_scale: str
    caveat: str
    headline: bool = False

    @property
    def page(self) -> str:
        """The claim's page, such as "claims/amm-toy"."""
        return f"claims/{self.paper}-{self.group}"


@dataclass(frozen=True, eq=False)
class Difference:
    """A statistical part of a claim: paired differences of two rows (or one statistic a seed), and their bound.

    values: (S,) one number a seed or replicate, in `unit`; nan where a row diverged.
    relation, delta: claimed is mean > delta (">"), mean < delta ("<") or |mean| < delta ("within").
    pool: differences of one page with the same pool, such as ("amm/toy", "margin"), share their variance over seeds;
        for the same metric and unit, where equal variances are plausible. Empty: its own variance.
    images: (N,) paired differences an image in `unit`, averaged over the seeds that did not diverge, where all seeds
        share the test images; their mean is the mean of `values`. None: no variance over images is added.
    resolution: the smallest step of `values`, 1/N in `unit`; the variance over seeds (of given weights, that of the
        mean over images) counts as at least its square.
    fraction: the share f in (0, 1) of the data where replicates are random subsets of it instead of seeds.
    failed, opposed: in how many seeds the row that the claim favours diverged, and the other one.
    these_weights: S = 1, published weights; the interval is over images only.
    Raises MarginsError for wrong shapes and ranges, for nans that no diverged seed explains, and for images whose mean
    is not that of the values (another unit, or other seeds).
    """

    label: str
    values: np.ndarray
    relation: str
    delta: float = 0.0
    _: KW_ONLY
    pool: tuple[str, ...] = ()
    unit: str = ""
    images: np.ndarray | None = None
    resolution: float = 0.0
    fraction: float | None = None
    failed: int = 0
    opposed: int = 0
    these_weights: bool = False

    def __post_init__(self):
        values = np.asarray(self.values, dtype=float)
        object.__setattr__(self, "values", values)

        def need(ok: Any, what: str, given: Any, allowed: str) -> None:
            _need(ok, f"difference {self.label!r}", what, given, allowed)

        need(values.ndim == 1 and values.size, "values", f"of shape {values.shape}", "shape (S,) with S >= 1")
        need(not np.isinf(values).any(), "values", values, "finite numbers, or nan for a diverged seed")
        need(self.relation in RELATIONS, "relation", self.relation, ", ".join(RELATIONS))
        wide = self.relation != "within" or self.delta > 0
        need(math.isfinite(self.delta) and wide, "delta", self.delta, "a finite number, above 0 for within")
        need(math.isfinite(self.resolution) and self.resolution >= 0, "resolution", self.resolution, "0 or more")
        need(self.fraction is None or 0 < self.fraction < 1, "fraction", self.fraction, "None or in (0, 1)")
        lost = int(np.isnan(values).sum())
        counts = min(self.failed, self.opposed) >= 0 and max(self.failed, self.opposed) <= lost
        explained = counts and lost <= self.failed + self.opposed
        need(explained, "failed, opposed", (self.failed, self.opposed), f"counts that explain {lost} nans in values")
        single = not self.these_weights or values.size == 1
        need(single, "values", f"of shape {values.shape}", "shape (1,) with these_weights")
        if self.images is not None:
            images = np.asarray(self.images, dtype=float)
            object.__setattr__(self, "images", images)
            need(images.ndim == 1 and images.size > 1, "images", f"of shape {images.shape}", "shape (N,) with N >= 2")
            need(np.isfinite(images).all(), "images", "not finite", "finite numbers")
            if lost < values.size:
                mean, slack = np.nanmean(values), 1e-3 * (images.std() + np.nanmax(np.abs(values)))
                near = abs(images.mean() - mean) <= slack
                need(near, "the mean of images", images.mean(), f"that of values, {mean:g}")


@dataclass(frozen=True, eq=False)
class Check:
    """An exact part of a claim: whether it held in each replicate, what was measured there, and the bound in words.

    held: (S,) bool; the part is supported when all are true, contradicted when none is.
    measured: (S,) numbers, one number or text.
    these_weights: of published weights, not of a method.
    """

    label: str
    held: np.ndarray
    measured: np.ndarray | float | str
    bound: float | str
    these_weights: bool = False

    def __post_init__(self):
        held = np.asarray(self.held)
        object.__setattr__(self, "held", held)
        shape = held.ndim == 1 and held.size and held.dtype == bool
        given = f"{held.dtype} of shape {held.shape}"
        _need(shape, f"check {self.label!r}", "held", given, "bool of shape (S,) with S >= 1")


@dataclass(frozen=True)
class Missing:
    """A part of a claim that has not been run, such as the other networks of a claim about several.

    The rest may contradict the claim but not support it; with `exists`, for a claim that something holds for at least
    one of several, the rest may support it but not contradict it.
    """

    label: str
    exists: bool = False


@dataclass(frozen=True)
class Evidence:
    """What a claim is read from: experiments, and a function of their results.

    `read(at)` finds in `at["amm/toy"]` the complete results of that experiment at one scale, and returns the claim's
    parts; the claim says that all of them hold.

    A claim about several networks may have a tuple of these, one a network, of which those that were run are read.
    since: the least scale at which this one is asked for. fixed: the scale at which its experiments are read whatever
    scale the claim is read at, as those of published weights are; "" for that one.
    """

    experiments: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Sequence["Difference | Check | Missing"]] = field(repr=False)
    _: KW_ONLY
    since: str = SCALES[0]
    fixed: str = ""

    def __post_init__(self):
        names = self.experiments
        named = isinstance(names, tuple) and names and all("/" in name for name in names)
        _need(named, "evidence", "experiments", repr(names), 'a tuple of names such as ("amm/toy",)')
        _need(self.since in SCALES, "evidence", "since", repr(self.since), ", ".join(SCALES))
        _need(self.fixed in ("", *SCALES), "evidence", "fixed", repr(self.fixed), ", ".join(SCALES))


def each(evidence: Evidence | tuple[Evidence, ...]) -> tuple[Evidence, ...]:
    """What a claim is read from, one or several, as a tuple."""
    return (evidence,) if isinstance(evidence, Evidence) else evidence


def joined(*several: Mapping[str, Evidence | tuple[Evidence, ...]]) -> dict[str, tuple[Evidence, ...]]:
    """By claim, what it is read from in all of these: a claim about several networks may be in more than one."""
    found: dict[str, tuple[Evidence, ...]] = {}
    for one in several:
        for id_, evidence in one.items():
            found[id_] = found.get(id_, ()) + each(evidence)
    return found


def ledger(paper: str | None = None) -> list[Claim]:
    """The claims of one paper, or of all in the order of `PAPERS`; those of a paper in its own order.

    Raises MarginsError, naming file and id, for an unknown paper, a key that is unknown, missing or of the wrong type,
    an unknown scale or kind, and an id that is there twice.
    """
    if paper is not None:
        _need(paper in PAPERS, "ledger", "paper", repr(paper), ", ".join(PAPERS))
    claims: dict[str, Claim] = {}
    for name in PAPERS if paper is None else (paper,):
        path = paths.DATA / "paper" / name / "claims.yaml"
        for claim in _read(name, path):
            _need(claim.id not in claims, f"{path}: {claim.id}", "id", "there twice", "one entry an id")
            claims[claim.id] = claim
    return list(claims.values())


def published(paper: str, table: str) -> "pd.DataFrame":
    """A table as the paper prints it, `data/paper/<paper>/<table>.csv`: every cell is text, "" where it is empty."""
    import pandas as pd

    folder = paths.DATA / "paper" / str(paper)
    path = folder / f"{table}.csv"
    there = ", ".join(sorted(p.stem for p in folder.glob("*.csv"))) or f"papers {', '.join(PAPERS)}"
    _need(path.is_file(), "published", "table", f"{paper}/{table}", there)
    return pd.read_csv(paths.note(path), dtype=str, keep_default_na=False)


def _read(paper: str, path: Path) -> list[Claim]:
    import yaml  # here, so that making records needs torch and numpy only

    try:
        entries = yaml.safe_load(paths.note(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise MarginsError(f"{path}: the ledger can't be read: {error}") from error
    listed = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    _need(listed, str(path), "the ledger", type(entries).__name__, "a list of entries")
    return [_claim(paper, entry, f"{path}: {entry.get('id', f'entry {n}')}") for n, entry in enumerate(entries, 1)]


def _claim(paper: str, entry: dict, at: str) -> Claim:
    texts = {f.name for f in fields(Claim)} - {"paper", "rows", "headline"}
    keys = texts | {"rows"}
    known = keys <= set(entry) <= keys | {"headline"}
    _need(known, at, "keys", ", ".join(map(str, entry)), f"{', '.join(sorted(keys))}, and perhaps headline")
    for key in sorted(texts):
        text = isinstance(entry[key], str) and (entry[key].strip() or key == "caveat")
        _need(text, at, key, repr(entry[key]), "a text that is not empty")
    for key, start in (("id", f"{paper}-"), ("group", "")):
        form = re.fullmatch(rf"{start}[a-z0-9.]+(-[a-z0-9.]+)*", entry[key])
        _need(form, at, key, entry[key], f"{start}..., of a-z, 0-9, . and -")
    _need(entry["kind"] in KINDS, at, "kind", entry["kind"], ", ".join(KINDS))
    _need(entry["least_scale"] in SCALES, at, "least_scale", entry["least_scale"], ", ".join(SCALES))
    parts, rows = {"compared", "metric", "dataset", "model"}, entry["rows"]
    whole = isinstance(rows, dict) and set(rows) == parts and isinstance(rows["compared"], list)
    _need(whole, at, "rows", rows, f"{', '.join(sorted(parts))}; compared a list")
    _need(isinstance(entry.get("headline", False), bool), at, "headline", entry.get("headline"), "true, false")
    return Claim(paper=paper, **entry)


def _need(ok: Any, at: str, what: str, given: Any, allowed: str) -> None:
    if not ok:
        raise MarginsError(f"{at}: {what} is {given}; allowed: {allowed}")
