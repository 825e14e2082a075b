"""The scoreboard over a small ledger with known results, and over the committed one."""

import json
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest

from margins import claimpage, experiments, papers, scoreboard
from margins.claims import Check, Claim, Difference, Evidence, ledger
from margins.errors import MarginsError
from margins.forest import forest
from margins.verdicts import OUTCOMES, Part

ROWS = {"compared": ["A", "B"], "metric": "error | points", "dataset": "MNIST", "model": "MLP"}


def claim(id_, says="It is better.", paper="amm", group="toy", **change):
    fields = dict(kind="ordering", predicate="A - B < 0", least_scale="quick", caveat="", headline=False) | change
    return Claim(paper, id_, group, "section 1", says, rows=ROWS, **fields)


class Found(dict):
    """Results of which an evaluation failed a sanity check."""

    def failed_checks(self):
        return {("zero gradients", "PGD"): {"a_1": 2, "b": 1}}


@pytest.fixture
def board(monkeypatch):
    """Five claims: at the quick scale one supported, one contradicted, one undecided, one exact; one not run."""
    values = {"up": [2.0, 2.1, 1.9, 2.0], "down": [-3.0, -3.1, -2.9, -3.0], "flat": [-1.0, 1.0, 0.5, -0.5]}

    def evidence(name):
        return Evidence(("amm/e",), lambda at: [Difference(f"a_1 - b: {name}", at["amm/e"][name], ">", unit="points")])

    exact = Evidence(("amm/e",), lambda at: [Check("x", np.ones(2, bool), np.array([0.1, 0.2]), "< 1")])
    claims = [claim(f"amm-{name}", f"It |is| *{name}*.", headline=name == "up") for name in values]
    claims += [claim("amm-exact", group="theory"), claim("emr-none", "Not tried_yet.", paper="emr", least_scale="gpu")]
    monkeypatch.setattr(papers, "EVIDENCE", {f"amm-{n}": evidence(n) for n in values} | {"amm-exact": exact})
    monkeypatch.setattr(scoreboard, "ledger", lambda paper=None: [c for c in claims if c.paper == (paper or c.paper)])
    monkeypatch.setattr(experiments, "find", lambda name: SimpleNamespace(scales={"quick": {}, "laptop": {}}))

    def results(name, scale):
        if scale != "quick":
            raise experiments.NotRecorded(name)
        return Found({key: np.array(value) for key, value in values.items()})

    monkeypatch.setattr(experiments, "results", results)
    return claims


def test_counts_and_report(board):
    assert scoreboard.counts() == {"supported": 2, "contradicted": 1, "undecided": 1, "not run": 1}
    assert list(scoreboard.counts()) == list(OUTCOMES)
    lines = scoreboard.report().splitlines()
    assert [line.split()[:3] for line in lines[:4]] == [
        ["supported", "quick", "amm-up"], ["contradicted", "quick", "amm-down"], ["undecided", "quick", "amm-flat"],
        ["supported", "quick", "amm-exact"],
    ]  # fmt: skip
    assert lines[4] == "paper's setting: 0 supported, 0 contradicted, 0 undecided, 5 not run"
    assert lines[5] == "largest scale run: 2 supported, 1 contradicted, 1 undecided, 1 not run"
    assert scoreboard.report("emr").splitlines()[-1].endswith("0 undecided, 1 not run")
    data = {row["id"]: row for row in json.loads(scoreboard.report(as_json=True))}
    assert set(data) == {c.id for c in board} and data["amm-down"]["paper"]["outcome"] == "not run"
    (part,) = data["amm-down"]["largest"]["parts"]
    assert part["estimate"] == pytest.approx(-3) and part["seeds"] == 4 and part["high"] < 0


def test_front(board):
    text = scoreboard.front()
    paper, largest = (line for line in text.splitlines() if line.startswith("| AMM |"))
    assert paper == "| AMM | 0 | 0 | 0 | 4 | 0.00 |"
    assert largest == "| AMM | 2 | 1 | 1 | 0 | 0.05 |"  # the page "theory" has an exact check only
    assert "| all | 2 | 1 | 1 | 1 | 0.05 |" in text
    (row,) = (line for line in text.splitlines() if "evidence <claim-amm-up>" in line)
    assert row.endswith("{bdg-muted}`not run` | {bdg-success}`supported` (quick) |") and "\\|is\\| \\*up\\*" in row
    assert "[toy](/book/claims/amm-toy.md), [theory](/book/claims/amm-theory.md)" in text


def test_pages(board):
    pages = scoreboard.pages()
    assert list(pages) == ["claims/amm-toy", "claims/amm-theory", "claims/emr-toy"]
    toy = pages["claims/amm-toy"]
    assert toy.startswith("# AMM: toy\n") and "1 supported, 1 contradicted, 1 undecided (largest scale run)" in toy
    for c, colour in zip(board, ("success", "danger", "warning"), strict=False):
        section = toy[toy.index(f"(claim-{c.id})=\n## ") :]
        assert f"{{bdg-{colour}}}`" in section[: section.index("\n| part")]
    assert re.search(r"^\| a\\_1 - b: up \| 2 \(1\.\d+ to 2\.\d+\) points \| \\> 0 \| 4 \| supported \|$", toy, re.M)
    failed = "*zero gradients* in evaluations by PGD: a\\_1 (2), b (1)."
    assert toy.count(f"that failed, and in how many seeds of which row of `amm/e`: {failed}\n") == 3
    assert "- Why: open: a\\_1 - b: flat" in toy and "error \\| points" in toy
    assert "margins record amm/e --scale quick" in toy and "## Not run" not in toy
    ET.fromstring(toy[toy.index("<svg") : toy.index("</svg>") + 6])
    assert "| x | 0.1 to 0.2 | \\< 1 | 2 | supported |" in pages["claims/amm-theory"]
    assert "<svg" not in pages["claims/amm-theory"]
    none = pages["claims/emr-toy"]
    assert "(claim-emr-none)=\n| claim |" in none and "| Not tried\\_yet. *section 1*, `none` | gpu |" in none
    assert "margins record" not in none


def test_badge(board):
    assert scoreboard.badge("amm-down") == "{bdg-danger}`contradicted` (quick) {ref}`amm-down <claim-amm-down>`"
    assert scoreboard.badge("emr-none").startswith("{bdg-muted}`not run` {ref}")
    with pytest.raises(MarginsError, match="'amm-typo' is not in the ledger"):
        scoreboard.badge("amm-typo")


def test_these_weights_are_named():
    weights = SimpleNamespace(outcome="supported", scale="paper", these_weights=True)
    assert claimpage.badge(weights) == "{bdg-success}`supported` (paper, these weights)"


def test_the_forest_places_intervals_and_shades_the_claimed_side():
    def part(relation, low, high, outcome="supported", label="a < b & c"):
        return Part(label, relation, outcome, 5, 0.5, "points", None, (low + high) / 2, low, high, 4.0)

    assert forest([]) == "" and forest([("c", [Part("x", "exact", "supported", 3)])]) == ""
    rows = [part(">", 1.0, 3.0), part("<", -1.0, 0.0), part("within", -0.2, 0.2, "undecided")]
    root = ET.fromstring(forest([("claim", rows)]))
    space = "{http://www.w3.org/2000/svg}"
    bands = [[float(b.get(k)) for k in ("x", "width")] for b in root.iter(f"{space}rect")]
    dots = [float(dot.get("cx")) for dot in root.iter(f"{space}circle")]
    (above, below, within), ends = bands, (12.0, 348.0)
    assert above[0] + above[1] == pytest.approx(ends[1]) and below[0] == ends[0]
    assert below[0] + below[1] == pytest.approx(above[0])  # both end at delta = 0.5
    middle = within[0] + within[1] / 2  # 0
    scale = (above[0] - middle) / 0.5  # units of the drawing a point
    assert dots == pytest.approx([middle + 2 * scale, middle - 0.5 * scale, middle], abs=0.2)
    assert all(0 <= x <= 360 for x in dots) and root.get("role") == "img" and "3 differences" in root.get("aria-label")


def test_the_committed_ledger_gives_every_claim_a_place():
    claims, pages = ledger(), scoreboard.pages()
    assert set(pages) == {c.page for c in claims}
    for c in claims:
        assert pages[c.page].count(f"(claim-{c.id})=") == 1
    assert sum(scoreboard.counts().values()) == len(claims)
    links = re.findall(r"\(/book/(claims/[^)]*)\.md\)", scoreboard.front())
    assert sorted(links) == sorted(pages)
    assert {c.id for c in claims if c.headline} == set(re.findall(r"<claim-([^>]*)>", scoreboard.front()))
    assert all(record.experiment in experiments.EXPERIMENTS for record in scoreboard.stale())
