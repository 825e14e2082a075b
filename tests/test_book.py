"""`margins book` and `run` on a small book: real notebooks, real kernels, a real site."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_book import edit, make

from margins import book, execution
from margins.errors import MarginsError

BOARD = SimpleNamespace(
    front=lambda: "| claims | supported |\n|:--|--:|\n| [AMM](claims/amm-toy.md) | 1 |\n",
    pages=lambda: {"claims/amm-toy": "# Claims of the toy\n\nSee {numref}`tab-toy`.\n"},
    counts=lambda: {"supported": 1, "not run": 2},
    stale=lambda: [SimpleNamespace(experiment="amm/toy", scale="quick", row="AMM", seed=3)],
)


@pytest.fixture(autouse=True, scope="module")
def surroundings():
    """A small scoreboard, and neither network nor data sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "_scoreboard", lambda: BOARD)
        patch.setattr(book, "_mnist", lambda download: False)
        yield


@pytest.fixture
def here(monkeypatch):
    """Executing in this process sets variables for the kernel; they end with the test."""
    for name in ("OMP_NUM_THREADS", "JUPYTER_PREFER_ENV_PATH", "PYDEVD_DISABLE_FILE_VALIDATION", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def build(root, **options):
    said = []
    status = book.build(root, root / "cache", jobs=2, package=root / "package", say=said.append, **options)
    return status, "\n".join(said)


def outdated(root):
    return book._plan(root, root / "cache" / "book", root / "package")[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A book that was built once: the tests copy it (with what its pages noted) or only read it."""
    root = make(tmp_path_factory.mktemp("book"))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    status, said = build(root)
    assert status == 0, said
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and "cache" not in path.parts}
    assert after == before, "the build changed the sources"
    return root, said


@pytest.fixture
def copied(built, tmp_path):
    """A copy of the built book that a test may change."""
    root = shutil.copytree(built[0], tmp_path / "copy")
    for path in (root / "cache/book/executed").rglob("*.json"):
        log = json.loads(path.read_text())
        log["notes"] = {noted.replace(str(built[0]), str(root)): value for noted, value in log["notes"].items()}
        path.write_text(json.dumps(log))
    return root


def test_the_site_holds_pages_tables_verdicts_and_status(built):
    root, said = built
    site = root / "cache/book/site"
    assert "6 pages, 2 executed now; verdicts: 1 supported, 2 not run" in said
    assert f"the site: {site / 'index.html'}" in said
    read = {name: (site / "book" / f"{name}.html").read_text() for name in ("index", "status", "amm/toy", "amm/more")}
    assert 'href="claims/amm-toy.html"' in read["index"]
    assert "Table 1" in read["amm/toy"] and "What was read." in read["amm/toy"] and "first" in read["amm/toy"]
    assert 'href="toy.html#tab-toy"><span class="std std-numref">Table 1</span>' in read["amm/more"]
    assert "amm/toy, quick, AMM, seed 3" in re.sub("<.*?>", "", read["status"]) and "jupyter-book" in read["status"]
    assert "Rerun this page" in read["amm/toy"] and "%pip install" not in read["amm/toy"]
    assert "colab.research.google.com/github/margins-book/margins/blob/main/book/amm/toy.ipynb" in read["amm/toy"]
    assert (site / "_static/mathjax/tex-chtml.js").is_file()
    caption = read["index"].index("Claims and verdicts")
    assert caption < read["index"].index("Claims of the toy") < read["index"].index(">About<")


def test_a_second_build_does_nothing(built, monkeypatch):
    monkeypatch.setattr(execution, "execute_pages", None)
    monkeypatch.setattr(book, "render", None)
    status, said = build(built[0])
    assert status == 0
    assert "6 pages, 0 executed now" in said


@pytest.mark.parametrize(
    ("path", "old", "new", "again"),
    [
        ("book/amm/toy.ipynb", "epochs: int = 50", "epochs: int = 60", ["amm/toy"]),
        ("book/amm/toy.ipynb", "import pandas as pd", "import pandas as pd  # more", ["amm/toy"]),
        ("book/amm/toy.ipynb", "Prose", "Other prose", []),
        ("book/amm/toy.ipynb", "# Toy", "# Tea", []),
        ("book/index.md", "Four papers", "4 papers", []),
        ("package/code.py", "A = 1", "A = 2", ["amm/toy", "amm/more"]),
        ("requirements.lock", "torch==1", "torch==2", ["amm/toy", "amm/more"]),
        ("results/noted.txt", "first", "other", ["amm/toy"]),
    ],
)
def test_a_page_is_executed_again_exactly_when_its_result_may_change(copied, path, old, new, again):
    assert outdated(copied) == []
    edit(copied / path, old, new)
    assert outdated(copied) == again


def test_changed_prose_is_shown_without_execution(copied, monkeypatch):
    monkeypatch.setattr(execution, "execute_pages", None)
    monkeypatch.setattr(book, "render", lambda stage, site, log: [])
    edit(copied / "book/amm/toy.ipynb", "Prose", "Other prose")
    status, said = build(copied)
    assert status == 0 and "0 executed now" in said
    staged = (copied / "cache/book/stage/book/amm/toy.ipynb").read_text()
    assert "Other prose" in staged and "What was read." in staged


def test_a_page_without_its_copy_or_log_is_executed_again(copied):
    (copied / "cache/book/executed/amm/toy.json").write_text("{")
    (copied / "cache/book/executed/amm/more.ipynb").unlink()
    assert outdated(copied) == ["amm/toy", "amm/more"]


def test_a_failing_page_is_named_and_does_not_stop_the_others(copied):
    edit(copied / "book/amm/more.ipynb", '"page.markdown', '"1 / 0\\n",\n    "page.markdown')
    edit(copied / "results/noted.txt", "first", "second")
    status, said = build(copied)
    assert status == 1
    assert said == (
        "page amm/more failed in code cell 4, `1 / 0`: ZeroDivisionError: division by zero\n"
        "1 of 2 executed pages failed; there is no site\n"
        f"what the kernels said besides: {copied / 'cache/book/kernels.log'}"
    )
    assert not (copied / "cache/book/site").exists()
    assert "second" in (copied / "cache/book/executed/amm/toy.ipynb").read_text()
    assert outdated(copied) == ["amm/more"], "executed again next time"


def test_a_page_that_warns_fails(copied):
    edit(
        copied / "book/amm/more.ipynb",
        '"page.markdown',
        '"import sys; print(\'careful\', file=sys.stderr)\\n",\n    "page.markdown',
    )
    status, said = build(copied)
    assert status == 1
    place = "code cell 4, `import sys; print('careful', file=sys.stderr)`"
    assert said.startswith(f"page amm/more failed in {place}: wrote to stderr: careful\n1 of 1 ")
    assert outdated(copied) == ["amm/more"]


def test_a_site_that_cannot_be_rendered_is_not_left(copied):
    edit(copied / "book/index.md", "# Margins", "# Margins\n\nSee {numref}`tab-nowhere` and [this](gone.md).")
    status, said = build(copied)
    assert status == 1
    assert "tab-nowhere" in said and "gone.md" in said and said.endswith("the site was not built")
    assert not (copied / "cache/book/site").exists()


def test_only_some_pages(copied, monkeypatch):
    monkeypatch.setattr(execution, "execute_pages", lambda todo, *_: {} if list(todo) == ["amm/more"] else 1 / 0)
    edit(copied / "requirements.lock", "torch==1", "torch==2")
    status, said = build(copied, only=["amm/more"])
    assert status == 0
    assert said == "executed amm/more; no site, for these are not up to date: amm/toy"


def test_bad_arguments_are_refused_before_any_work(copied, monkeypatch):
    monkeypatch.setattr(execution, "execute_pages", None)
    with pytest.raises(MarginsError, match="page 'amm/tea' does not exist; the pages are amm/toy, amm/more"):
        build(copied, only=["amm/tea"])
    edit(copied / "book/amm/toy.ipynb", "# passes", "")
    with pytest.raises(MarginsError, match=r"amm/toy: parameters cell, line 'epochs: int = 50 .*': expected a comment"):
        build(copied)
    edit(copied / "_toc.yml", "book/status", "book/gone")
    with pytest.raises(MarginsError, match="names book/gone, but neither"):
        build(copied)


def test_what_a_folder_holds_is_its_fingerprint(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    first = execution.fingerprint(tmp_path)
    (tmp_path / "b.txt").write_text("b")
    assert len({first, execution.fingerprint(tmp_path), execution.fingerprint(tmp_path / "gone")}) == 3
    (tmp_path / "b.txt").unlink()
    assert execution.fingerprint(tmp_path) == first


def test_run_with_other_parameters(built, tmp_path, capsys, here):
    root = built[0]
    assert execution.run(root, tmp_path, "amm/toy", {"epochs": "7"}) == 0
    assert f"the executed page: {tmp_path / 'run/amm/toy.ipynb'}" in capsys.readouterr().out
    assert "`epochs = 7` (default `50`)" in (tmp_path / "run/amm/toy.ipynb").read_text()


@pytest.mark.parametrize(
    ("page", "given", "said"),
    [
        ("amm/toy", {"epoch": "7"}, "unknown parameter 'epoch' (did you mean 'epochs'?)"),
        ("amm/toy", {"epochs": "many"}, "parameter epochs: 'many' given, int expected"),
        ("amm/tea", {}, "page 'amm/tea' does not exist; the pages are amm/toy, amm/more"),
    ],
)
def test_run_refuses_before_anything_runs(built, tmp_path, page, given, said):
    with pytest.raises(MarginsError) as error:
        execution.run(built[0], tmp_path, page, given)
    assert said in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_run_names_the_failing_cell(copied, tmp_path, capsys, here):
    edit(copied / "book/amm/more.ipynb", '"import margins\\n"', '"seed.nothing\\n",\n    "import margins\\n"')
    assert execution.run(copied, tmp_path, "amm/more", {}) == 1
    assert "page amm/more failed in code cell 3, `seed.nothing`: AttributeError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["-p", "epoch", "7"], "unknown parameter 'epoch' (did you mean 'epochs'?)"),
        (["-p", "epochs", "8/255"], "parameter epochs: '8/255' given, int expected"),
    ],
)
def test_plain_papermill_is_strict_too(built, tmp_path, option, said):
    done = subprocess.run(
        [sys.executable, "-m", "papermill", built[0] / "book/amm/toy.ipynb", tmp_path / "out.ipynb", *option],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(book.__file__).parents[1])},
        check=False,
    )
    assert done.returncode != 0
    assert said in done.stderr and "epochs: int = 50  # passes" in done.stderr
