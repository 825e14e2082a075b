"""The committed ledger and tables, what a wrong ledger says, and what evidence refuses."""

import re
from collections import Counter

import numpy as np
import pytest
import yaml

from margins import claims, paths
from margins.claims import PAPERS, Check, Difference, Evidence, ledger, published
from margins.errors import MarginsError
from margins.papers import EVIDENCE
from margins.records import SCALES

ENTRY = {
    "id": "amm-x-y1.5", "group": "toy", "where": "section 1", "says": "A is better.", "kind": "ordering",
    "rows": {"compared": ["A", "B"], "metric": "error", "dataset": "MNIST", "model": "MLP"},
    "predicate": "A - B < 0", "least_scale": "quick", "caveat": "",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    for paper in PAPERS:
        (tmp_path / "paper" / paper).mkdir(parents=True)
    return tmp_path / "paper"


def write(folder, *entries, paper="amm"):
    (folder / paper / "claims.yaml").write_text(yaml.safe_dump(list(entries)))


@pytest.mark.parametrize("paper", PAPERS)
def test_each_ledger_is_what_its_head_says(paper):
    found = ledger(paper)
    text = (paths.DATA / "paper" / paper / "claims.yaml").read_text(encoding="utf-8")
    head = text[: text.index("\n- id")]
    total, kinds = re.search(r"^# (\d+) claims: (.*)\.$", head, re.M).groups()
    scales = re.search(r"^# Smallest scale with a meaning: (.*)\.$", head, re.M)[1]
    assert len(found) == int(total)
    for said, key in ((kinds, "kind"), (scales, "least_scale")):
        count = {name: int(n) for n, name in (part.split() for part in said.split(", "))}
        assert count == Counter(getattr(claim, key) for claim in found)
    assert {c.id for c in found if c.headline} == set(re.findall(r"^#   \d\. ([^:]+):", head, re.M))
    assert sum(c.headline for c in found) == 5
    assert 4 <= len({c.group for c in found}) <= 9
    assert all(c.least_scale == "paper" for c in found if c.kind == "number")


def test_the_whole_ledger():
    found = ledger()
    assert [c.id for p in PAPERS for c in ledger(p)] == [c.id for c in found]
    assert len({c.id for c in found}) == len(found)
    assert set(EVIDENCE) <= {c.id for c in found}
    with pytest.raises(MarginsError, match=r"paper is 'xyz'; allowed: amm, amr, emr, lma"):
        ledger("xyz")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"colour": "red"}, "amm-x-y1.5: keys is .*colour"),
        ({"group": None}, "amm-x-y1.5: group is None"),
        ({"says": " "}, "amm-x-y1.5: says is ' '; allowed: a text that is not empty"),
        ({"where": 3}, "where is 3"),
        ({"kind": "order"}, "kind is order; allowed: ordering"),
        ({"least_scale": "huge"}, f"least_scale is huge; allowed: {', '.join(SCALES)}"),
        ({"id": "emr-x"}, "id is emr-x; allowed: amm-"),
        ({"group": "The toy"}, "group is The toy"),
        ({"rows": {"compared": []}}, "rows is"),
        ({"headline": "yes"}, "headline is yes"),
    ],
)
def test_a_wrong_entry_is_named_with_its_file(folder, change, message):
    write(folder, ENTRY)
    assert ledger("amm")[0].page == "claims/amm-toy"
    write(folder, ENTRY | change)
    with pytest.raises(MarginsError, match=message) as caught:
        ledger("amm")
    assert "amm/claims.yaml" in str(caught.value)


def test_a_missing_key_a_second_entry_and_a_broken_file(folder):
    write(folder, {k: v for k, v in ENTRY.items() if k != "group"})
    with pytest.raises(MarginsError, match=r"claims\.yaml: amm-x-y1\.5: keys .*allowed: .*group"):
        ledger("amm")
    write(folder, ENTRY, ENTRY)
    with pytest.raises(MarginsError, match=r"claims\.yaml: amm-x-y1\.5: id is there twice"):
        ledger("amm")
    for text, message in (("a: [", "can't be read"), ("a: 1", "the ledger is dict; allowed: a list of entries")):
        (folder / "amm" / "claims.yaml").write_text(text)
        with pytest.raises(MarginsError, match=message):
            ledger("amm")
    with pytest.raises(MarginsError, match=r"emr.claims\.yaml: the ledger can't be read"):
        ledger("emr")


def test_tables_have_the_rows_that_the_readme_names():
    said = {}
    for names, rows in re.findall(r"^\| ((?:am[mr]|emr|lma)/[^|]*) \|[^|]*\| ([\d, ]+) \|$",
                                  (paths.DATA / "paper" / "README.md").read_text(encoding="utf-8"), re.M):  # fmt: skip
        paper, tables = names.split("/", 1)
        said |= {(paper, t): int(n) for t, n in zip(tables.split(", "), rows.split(", "), strict=True)}
    files = {(path.parent.name, path.stem) for path in (paths.DATA / "paper").glob("*/*.csv")}
    assert set(said) == {(paper, stem) for paper, stem in files if stem != "settings"} and len(said) == 31
    assert {key: len(published(*key)) for key in said} == said


def test_a_table_is_text_as_printed_and_noted(tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    monkeypatch.setenv("MARGINS_TRACE", str(trace))
    table = published("amm", "table1")
    row = table[(table.aggregation == "MIN") & (table.shrinkage == "EXP")].iloc[0]
    assert (row.error, row.error_pm, row.note) == ("0.90", "0.03", "")
    ledger("emr")
    noted = trace.read_text().split()
    assert [name.rsplit("/", 2)[-2:] for name in noted] == [["amm", "table1.csv"], ["emr", "claims.yaml"]]
    with pytest.raises(MarginsError, match=r"table is emr/table9; allowed: settings, table1, table2, table3, table4"):
        published("emr", "table9")
    with pytest.raises(MarginsError, match="table is xyz/table1; allowed: papers amm, amr, emr, lma"):
        published("xyz", "table1")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"values": [[1.0]]}, r"values is of shape \(1, 1\)"),
        ({"values": []}, r"values is of shape \(0,\)"),
        ({"values": [1.0, np.inf]}, "values is"),
        ({"relation": "="}, "relation is =; allowed: >, <, within"),
        ({"relation": "within"}, "delta is 0.0; allowed: a finite number, above 0 for within"),
        ({"delta": np.nan}, "delta is nan"),
        ({"resolution": -1.0}, "resolution is -1.0"),
        ({"fraction": 1.0}, "fraction is 1.0"),
        ({"values": [1.0, 2.0, np.nan]}, r"failed, opposed is \(0, 0\); allowed: counts that explain 1 nans"),
        ({"failed": 1}, r"failed, opposed is \(1, 0\); allowed: counts that explain 0 nans"),
        ({"these_weights": True}, r"values is of shape \(3,\); allowed: shape \(1,\)"),
        ({"images": [2.0]}, r"images is of shape \(1,\)"),
        ({"images": [2.0, np.nan]}, "images is not finite"),
        ({"images": np.full(9, 0.02)}, "the mean of images is 0.02; allowed: that of values, 2"),
    ],
)
def test_a_wrong_difference_is_named(change, message):
    given = {"label": "a - b", "values": [1.0, 2.0, 3.0], "relation": ">"}
    Difference(**given, images=np.full(9, 2.0))
    with pytest.raises(MarginsError, match=rf"difference 'a - b': {message}"):
        Difference(**(given | change))


def test_wrong_checks_and_evidence_are_named():
    for held in (True, [], [1, 0], [[True]]):
        with pytest.raises(MarginsError, match=r"check 'c': held is .*allowed: bool of shape"):
            Check("c", np.asarray(held), 1.0, "1")
    for names in ("amm/toy", (), ("toy",)):
        with pytest.raises(MarginsError, match="evidence: experiments is"):
            Evidence(names, list)


def test_all_kinds_are_in_use():
    assert {c.kind for c in ledger()} == set(claims.KINDS)
