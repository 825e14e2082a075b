"""`margins book`: execute the pages that are not up to date, stage the book with their outputs, render and check it."""

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import nbformat
import yaml

from margins import execution, notebooks
from margins.errors import MarginsError
from margins.execution import Plan
from margins.rendering import render

_SHOWN = ("torch", "numpy", "scikit-learn", "pandas", "matplotlib", "seaborn", "papermill", "jupyter-book", "Sphinx")


def build(
    root: Path,
    cache: Path,
    *,
    jobs: int | None = None,
    only: Sequence[str] = (),
    package: Path = Path(__file__).parent,
    say: Callable[[str], None] = print,
) -> int:
    """Build the book in `root` into `cache`/book and return the exit status: 0 only where every page is well.

    `jobs` kernels run at a time (default: one a core). With `only`, just these pages are executed, and the site is
    rendered where all others are up to date. A failing page is reported with its cell, does not stop the others, and
    leaves no site, neither a new one nor an old one. Raises MarginsError, before any work, for an unknown page or a
    parameters cell out of form.
    """
    start, folder = time.perf_counter(), cache / "book"
    if jobs is not None and jobs < 1:
        raise MarginsError(f"jobs: {jobs} given, at least 1 expected")
    for name in only:
        notebooks.find(root, name)
    plan, outdated = _plan(root, folder, package)
    done = False
    try:
        if outdated and not _mnist(download=False) and _mnist(download=True):
            plan, outdated = _plan(root, folder, package)  # MNIST has come, which changes what pages show
        todo = {name: plan[name] for name in outdated if not only or name in only}
        if todo:
            # Where the pages cannot have MNIST, each would try the network again.
            env = {} if _mnist(download=False) else {"MARGINS_OFFLINE": "1"}
            errors = execution.execute_pages(todo, jobs or os.cpu_count() or 1, env, folder / "kernels.log")
            if errors:
                for name, error in errors.items():
                    say(f"page {name} failed in {error}")
                say(f"{len(errors)} of {len(todo)} executed pages failed; there is no site")
                say(f"what the kernels said besides: {folder / 'kernels.log'}")
                return 1
        if waiting := [name for name in outdated if name not in todo]:
            say(f"executed {', '.join(todo) or 'nothing'}; no site, for these are not up to date: {', '.join(waiting)}")
            return 0
        board = _scoreboard()
        staged = _staged(root, plan, board)
        write_stage(folder / "stage", staged)
        if problems := _render(folder, _stamp(staged)):
            say("\n".join([*problems, "the site was not built"]))
            return 1
        counts = ", ".join(f"{number} {kind}" for kind, number in board.counts().items())
        done = True
    finally:
        if not done:  # an old site would look like this build's
            shutil.rmtree(folder / "site", ignore_errors=True)
    entries, seconds = len(notebooks.contents(folder / "stage")), time.perf_counter() - start
    say(f"{entries} pages, {len(todo)} executed now; verdicts: {counts or 'none'}; {seconds:.0f} s")
    say(f"the site: {folder / 'site' / 'index.html'}")
    return 0


def _render(folder: Path, stamp: str) -> list[str]:
    """Render the stage, unless the site there is already the one with this stamp; return what is wrong."""
    site, stamped = folder / "site", folder / "site.stamp"
    if site.is_dir() and stamped.is_file() and stamped.read_text(encoding="utf-8") == stamp:
        return []
    problems = render(folder / "stage", site, folder / "render.log")
    if not problems:
        execution.write(stamped, stamp)
    return problems


def _plan(root: Path, folder: Path, package: Path) -> tuple[Plan, list[str]]:
    """Return all pages, and the names of those that must be executed."""
    around = f"{execution.surroundings(root, package)} {_mnist(download=False)}"
    plan = {}
    for name, path in notebooks.pages(root).items():
        notebook = notebooks.read(path)
        notebooks.declared(notebook, name)
        plan[name] = (path, folder / "executed" / f"{name}.ipynb", execution.digest(notebook, around))
    return plan, [name for name, (_, copy, wanted) in plan.items() if not execution.is_current(copy, wanted)]


def _mnist(*, download: bool) -> bool:
    from margins import datasets

    return datasets.live("mnist") == "mnist" if download else datasets.available("mnist")


def _scoreboard() -> ModuleType:
    from margins import scoreboard

    return scoreboard


def _staged(root: Path, plan: Plan, board: ModuleType) -> dict[str, bytes]:
    """Return the files of the staged book: the sources with outputs, and the pages that the scoreboard writes."""
    files = {path.relative_to(root).as_posix(): path for path in sorted((root / "book").rglob("*")) if path.is_file()}
    staged = {name: path.read_bytes() for name, path in files.items() if path.suffix != ".ipynb"}
    staged["_config.yml"] = (root / "_config.yml").read_bytes()
    for name, (path, copy, _) in plan.items():
        merged = execution.merged(notebooks.read(path), copy)
        staged[f"book/{name}.ipynb"] = nbformat.writes(merged).encode()
    verdicts = {f"book/{name}": text for name, text in board.pages().items()}
    staged |= {f"{name}.md": text.encode() for name, text in verdicts.items()}
    staged["book/_generated/scoreboard.md"] = board.front().encode()
    staged["book/_generated/status.md"] = _status(plan, board).encode()
    contents = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    if verdicts:  # before the last part, which is about the book
        staged["book/claims/index.md"] = b"# All claims\n\n```{tableofcontents}\n```\n"
        chapter = {"file": "book/claims/index", "sections": [{"file": name} for name in verdicts]}
        contents["parts"].insert(-1, {"caption": "Claims and verdicts", "chapters": [chapter]})
    staged["_toc.yml"] = yaml.safe_dump(contents, sort_keys=False).encode()
    return staged


def write_stage(stage: Path, staged: dict[str, bytes]) -> None:
    """Make the folder `stage` hold these files and no others; what is unchanged is not written."""
    for name, content in staged.items():
        path = stage / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for path in stage.rglob("*"):
        if path.is_file() and path.relative_to(stage).as_posix() not in staged:
            path.unlink()


def _status(plan: Plan, board: ModuleType) -> str:
    """Return the status page's tables: each page's last execution, the versions, records that are stale."""
    lines = [
        "| page | seconds | executed | live scale | live data | records | device |",
        "|:--|--:|:--|:--|:--|:--|:--|",
    ]
    for name, (_, copy, _) in plan.items():
        log = execution.Log.load(copy)
        facts = [log.facts.get(key, "–") for key in ("Live scale", "Live data", "Records", "Device")]
        lines.append(f"| [{name}](/book/{name}.ipynb) | {log.seconds} | {log.date} | {' | '.join(facts)} |")
    lines += ["", "| package | version |", "|:--|:--|", *(f"| {name} | {number} |" for name, number in _versions())]
    stale = [f"`{r.experiment}`, {r.scale}, {r.row}, seed {r.seed}" for r in board.stale()]
    lines += ["", "Stale records, which enter no verdict: " + ("; ".join(stale) or "none") + "."]
    return "\n".join(lines) + "\n"


def _versions() -> list[tuple[str, str]]:
    return [("Python", platform.python_version()), *((name, version(name)) for name in _SHOWN)]


def _stamp(staged: dict[str, bytes]) -> str:
    """Return the digest of all that the site depends on."""
    state = hashlib.sha256(f"{_versions()}".encode())
    for name, content in sorted(staged.items()):
        state.update(name.encode() + hashlib.sha256(content).digest())
    return state.hexdigest()
