"""Execute pages with papermill, each in its own kernel, and know when a page must be executed again."""

import hashlib
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from datetime import date
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import nbformat
from nbformat import NotebookNode

from margins import notebooks
from margins.parameters import Value, parse
from margins.recording import stopping

#: Page -> its source, its executed copy, and the digest that the copy should have.
Plan = dict[str, tuple[Path, Path, str]]
#: Larger files count by size and time of change, not by content.
_LARGE = 5_000_000
#: Seconds that one cell may take; a page should take 15 in all.
_TIMEOUT = 600


@dataclass(frozen=True)
class Log:
    """What is kept beside an executed page: by it we know whether the copy is still good."""

    digest: str
    notes: dict[str, str]  # path -> fingerprint of what the page read
    seconds: float
    date: str
    facts: dict[str, str] = field(default_factory=dict)  # the page's badges: scale, data, device, torch

    @classmethod
    def load(cls, executed: Path) -> "Log | None":
        try:
            return cls(**json.loads(executed.with_suffix(".json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def write(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def surroundings(root: Path, package: Path) -> str:
    """Return the digest of what every page depends on: the package's source, the locked versions, Python."""
    state = hashlib.sha256(sys.version.encode())
    for path in sorted(package.rglob("*.py")):
        state.update(f"{path.relative_to(package).as_posix()} {fingerprint(path)}\n".encode())
    lock = root / "requirements.lock"
    state.update(fingerprint(lock).encode())
    return state.hexdigest()


def digest(notebook: NotebookNode, around: str) -> str:
    """Return the digest of a page's code and `around`; its prose, captions and outputs do not count."""
    code = [[cell.source, cell.metadata.get("tags", [])] for cell in notebook.cells if cell.cell_type == "code"]
    text = json.dumps([code, notebook.metadata.get("margins"), around], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(path: Path) -> str:
    """Return a text that changes with the content of a file, or of everything in a folder."""
    if path.is_dir():
        inner = "".join(f"{p.relative_to(path)} {fingerprint(p)}\n" for p in sorted(path.rglob("*")) if p.is_file())
        return hashlib.sha256(inner.encode()).hexdigest()
    if not path.is_file():
        return "missing"
    stat = path.stat()
    if stat.st_size > _LARGE:
        return f"{stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_current(executed: Path, wanted: str) -> bool:
    """Tell whether the executed copy exists, has the digest `wanted`, and what it read is unchanged."""
    log = Log.load(executed)
    return (
        executed.is_file()
        and log is not None
        and log.digest == wanted
        and all(fingerprint(Path(path)) == old for path, old in log.notes.items())
    )


def execute(
    source: Path, target: Path, *, env: dict[str, str], values: dict[str, Value] | None = None, bar: bool = False
) -> tuple[NotebookNode, str]:
    """Execute the notebook `source` with `values` for its parameters; return it and the error, "" where it ran through.

    `target` is written as papermill goes on, so that a failed run can be looked at; `env` is set for the kernel, which
    works in the notebook's folder and imports the same package as this process.
    """
    import papermill
    from papermill.exceptions import strip_color
    from traitlets.config import Config

    package = str(Path(__file__).resolve().parents[1])
    search = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    fixed = {"OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    if data := os.environ.get("MARGINS_DATA"):
        fixed["MARGINS_DATA"] = os.path.abspath(data)  # the kernel works in another folder
    os.environ.update({**fixed, "PYTHONPATH": search, **env})
    target.parent.mkdir(parents=True, exist_ok=True)
    error = ""
    try:
        papermill.execute_notebook(
            source,
            target,
            values,
            kernel_name="python3",
            cwd=source.parent,
            progress_bar=bar,
            execution_timeout=_TIMEOUT,
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # without it each kernel warns
        )
    except papermill.PapermillExecutionError as failed:
        error = f"{_place(failed.exec_count, failed.source)}: {failed.ename}: {strip_color(failed.evalue)}"
    except Exception as failed:  # a dead kernel, a cell out of time: the page's failure, not the build's
        error = f"{type(failed).__name__}: {failed}"
    return nbformat.read(target, as_version=4) if target.is_file() else None, error


def execute_page(source: Path, executed: Path, wanted: str, env: dict[str, str]) -> str:
    """Execute a page of the book in this worker process and keep copy and log; return the error, or "" for none."""
    part, trace = executed.with_suffix(".part.ipynb"), executed.with_suffix(".trace").resolve()
    trace.unlink(missing_ok=True)
    start = time.perf_counter()
    notebook, error = execute(source, part, env={**env, "MARGINS_TRACE": str(trace)})
    if error or (error := _stderr(notebook)):
        return error
    noted = sorted(set(trace.read_text(encoding="utf-8").splitlines())) if trace.is_file() else []
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    facts = next((dict(o.metadata["margins"]) for o in outputs if "margins" in o.get("metadata", {})), {})
    notes = {path: fingerprint(Path(path)) for path in noted}
    log = Log(wanted, notes, round(time.perf_counter() - start, 1), str(date.today()), facts)
    executed.with_suffix(".json").unlink(missing_ok=True)  # never a log beside a copy that it is not about
    os.replace(part, executed)
    write(executed.with_suffix(".json"), json.dumps(asdict(log), indent=1))
    trace.unlink(missing_ok=True)
    return ""


def _stderr(notebook: NotebookNode) -> str:
    """Return the first cell that wrote to stderr and what it wrote, "" where none did: warnings are errors here."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                return f"{_place(cell.execution_count, cell.source)}: wrote to stderr: {output.text.strip()}"
    return ""


def _place(count: int, source: str) -> str:
    return f"code cell {count}, `{source.strip().splitlines()[0]}`"


def execute_pages(todo: Plan, jobs: int, env: dict[str, str], log: Path) -> dict[str, str]:
    """Execute the pages in parallel, longest first; return page -> error. What the kernels say goes to `log`."""
    from tqdm import tqdm

    def seconds(name: str) -> float:
        last = Log.load(todo[name][1])
        return last.seconds if last else float("inf")

    errors = {}
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    pool = ProcessPoolExecutor(min(jobs, len(todo)), get_context("spawn"), _begin, (log,))
    with stopping(pool):
        running = {pool.submit(execute_page, *todo[n], env): n for n in sorted(todo, key=seconds, reverse=True)}
        with tqdm(as_completed(running), total=len(running), desc="pages", unit="page") as bar:
            for future in bar:
                bar.set_postfix_str(running[future])
                try:
                    error = future.result()
                except Exception as failed:  # the worker died, by lack of memory for one
                    error = f"{type(failed).__name__}: {failed}"
                if error:
                    errors[running[future]] = error
    return errors


def _begin(log: Path) -> None:
    """Begin a worker: its kernels' stderr goes to a file, for they chatter at their end; it ends with its parent."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 2)

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def merged(notebook: NotebookNode, executed: Path) -> NotebookNode:
    """Return the page's current text with the outputs of its executed copy, whose code cells are the same."""
    old = (cell for cell in notebooks.read(executed).cells if cell.cell_type == "code")
    for cell, ran in zip((c for c in notebook.cells if c.cell_type == "code"), old, strict=True):
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    return notebook


def run(root: Path, cache: Path, page: str, given: dict[str, str]) -> int:
    """Execute `page` with parameters given as texts into `cache`/run; return the exit status.

    Raises MarginsError, before anything runs, for an unknown page, an unknown name or a value of another type.
    """
    source = notebooks.find(root, page)
    declared = notebooks.declared(notebooks.read(source), page)
    values = parse(declared, given, page)
    target = cache / "run" / f"{page}.ipynb"
    _, error = execute(source, target, env={}, values=values, bar=True)
    if error:
        print(f"margins: page {page} failed in {error}\nas far as it came: {target}", file=sys.stderr)
        return 1
    print(f"the executed page: {target}")
    return 0
