"""`margins record`: runs what is missing of an experiment and writes its records. Nothing else writes them."""

import contextlib
import hashlib
import importlib
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from margins import paths
from margins.checkpoints import Checkpoint, OutOfTime
from margins.errors import MarginsError
from margins.experiments import Experiment, Unit, find
from margins.records import Record, Store

#: Exit status when the time budget ended before the runs did.
UNFINISHED = 3


def record(
    name: str,
    *,
    scale: str,
    seeds: tuple[int, ...] | None = None,
    rows: tuple[str, ...] | None = None,
    jobs: int = 1,
    budget: float | None = None,
    dry_run: bool = False,
    results: Path | None = None,
) -> int:
    """Record what is missing of an experiment at a scale; returns the exit status: 0 when all that was asked for is
    there, 1 when a run failed, 3 when the time budget ended first.

    `budget` is in seconds: no run goes on past it, and the same command continues later. Beyond the scale `quick` the
    checkout must have no uncommitted changes. Raises MarginsError before any work for a bad argument, an unreadable
    record, or when another process is recording the same experiment.
    """
    experiment = find(name)
    groups = _wanted(experiment, scale, seeds, rows)
    if jobs < 1:
        raise MarginsError(f"jobs: {jobs} given, at least 1 is needed")
    if results is None and paths.REPO is None:
        raise MarginsError(
            "results: the package is installed without a checkout; say where records go with --results DIR"
        )
    store = Store(results)
    todo = []
    for group, wanted in groups:
        if missing := [unit for unit in wanted if not store.has(name, unit.key)]:
            todo.append((group, missing))
    count = sum(len(wanted) for _, wanted in groups)
    have = count - sum(len(missing) for _, missing in todo)
    minutes = experiment.minutes.get(scale)
    cost = f", about {minutes * len(todo):.1f} minutes on one thread" if minutes is not None and todo else ""
    print(f"{name}: {experiment.title} ({experiment.source})")
    print(f"{name} at scale {scale}: {have} of {count} records are there; {len(todo)} runs to do{cost}", flush=True)
    if dry_run or not todo:
        for _, missing in todo:
            print("  " + "; ".join(str(unit) for unit in missing))
        return 0
    commit, problem = _commit()
    if problem and scale != "quick":
        raise MarginsError(f"scale {scale}: a record beyond quick names its commit, but {problem}")
    with _lock(name):
        _try_to_write(store.folder(name))
        for rest in store.folder(name).glob(".*.part"):  # of a process that was killed while writing
            rest.unlink(missing_ok=True)
        deadline = None if budget is None else time.monotonic() + budget
        return _run_all(experiment, todo, store, commit, jobs, deadline)


def _try_to_write(folder: Path) -> None:
    """Raise MarginsError, before any run, where records could not be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise MarginsError(f"results: {folder} can't be written to ({error})") from error


def _wanted(experiment: Experiment, scale: str, seeds, rows) -> list[tuple[list[Unit], list[Unit]]]:
    """The groups of the scale with the units of each that were asked for; groups without any are left out."""
    if unknown := set(rows or ()) - set(experiment.rows):
        raise MarginsError(f"rows: {experiment.name} has no {sorted(unknown)}; it has {', '.join(experiment.rows)}")
    known = {seed for row in experiment.rows for seed in experiment.row_seeds(row)}
    if unknown := set(seeds or ()) - known:
        raise MarginsError(
            f"seeds: {sorted(unknown)} are not among the declared seeds {sorted(known)} of {experiment.name}"
            " (the number of seeds is fixed before the runs)"
        )
    chosen = []
    for group in experiment.groups(scale):
        wanted = [u for u in group if (rows is None or u.row in rows) and (seeds is None or u.seed in seeds)]
        if wanted:
            chosen.append((group, wanted))
    return chosen


def _run_all(experiment, todo, store, commit, jobs, deadline) -> int:
    started, failed, stopped = time.monotonic(), {}, 0
    done = 0

    def report(group, what, seconds):
        passed = time.monotonic() - started
        left = passed / done * (len(todo) - done) if done else 0
        label = (
            str(group[0]) if len(group) == 1 else f"{group[0].experiment} {group[0].scale}, {len(group)} units at once"
        )
        print(f"[{done}/{len(todo)}] {label}: {what} ({seconds:.1f} s; about {left:.0f} s left)", flush=True)

    for group, outcome, seconds in _outcomes(experiment, todo, store, commit, jobs, deadline):
        done += 1
        if isinstance(outcome, OutOfTime):
            stopped += 1
            report(group, "stopped at the time budget, its state is saved", seconds)
        elif isinstance(outcome, Exception):
            expected = isinstance(outcome, MarginsError)
            if not expected:
                traceback.print_exception(outcome)
            name = "" if expected else f"{type(outcome).__name__}: "
            failed.setdefault(f"{name}{outcome}", []).append(group[0])
            report(group, "failed", seconds)
        else:
            report(group, "recorded", seconds)
    if stopped:
        print(f"{stopped} runs are unfinished: the same command goes on with them")
    for error, units in failed.items():  # one message for one reason
        more = f" and {len(units) - 1} more" if len(units) > 1 else ""
        print(f"margins: {units[0]}{more}: {error}", file=sys.stderr)
    return 1 if failed else UNFINISHED if stopped else 0


def _outcomes(experiment, todo, store, commit, jobs, deadline):
    """(group, None or exception, seconds) as the runs end, in this process or, with more jobs, in others."""
    if jobs == 1:
        for group, missing in todo:
            start = time.monotonic()
            yield group, _attempt(experiment, group, missing, store, commit, deadline), time.monotonic() - start
        return
    context = multiprocessing.get_context("spawn")
    with stopping(ProcessPoolExecutor(min(jobs, len(todo)), context, _end_with, (os.getpid(),))) as pool:
        starts, futures = time.monotonic(), {}
        for group, missing in todo:
            future = pool.submit(
                _in_worker, experiment.run.__module__, experiment.name, group, missing, store, commit, deadline
            )
            futures[future] = group
        for future in as_completed(futures):
            yield futures[future], future.exception() or future.result(), time.monotonic() - starts


@contextlib.contextmanager
def stopping(pool: ProcessPoolExecutor):
    """The pool, whose workers are ended at once when the block ends by an exception, such as the reader's Ctrl-C."""
    try:
        yield pool
    except BaseException:
        workers = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        raise
    pool.shutdown()


def _end_with(parent: int) -> None:
    """End this worker when the process that started it is gone (kill -9 does not reach children)."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_worker(module: str, name: str, *arguments) -> Exception | None:
    importlib.import_module(module)  # which registers the experiment
    return _attempt(find(name), *arguments)


def _attempt(experiment, group, missing, store, commit, deadline) -> Exception | None:
    try:
        _run_group(experiment, group, missing, store, commit, deadline)
    except (OutOfTime, Exception) as error:  # one failing run does not stop the others
        return error
    return None


def _run_group(experiment, group: list[Unit], missing: list[Unit], store: Store, commit, deadline) -> None:
    import torch

    if deadline is not None and time.monotonic() > deadline:
        raise OutOfTime
    torch.set_num_threads(1)
    name = hashlib.sha256(" ".join(unit.key for unit in group).encode()).hexdigest()[:16]
    checkpoint = Checkpoint(paths.CACHE / "checkpoints" / experiment.name / f"{name}.pt", deadline)
    start = time.monotonic()
    outcomes = list(experiment.run(group, checkpoint))
    provenance = {
        "seconds": round(time.monotonic() - start, 3),
        "runs_at_once": len(group),
        **_machine(),
        "commit": commit,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if len(outcomes) != len(group):
        raise RuntimeError(f"{experiment.name}: {len(outcomes)} outcomes for {len(group)} units")
    wanted = {unit.key for unit in missing}
    for unit, outcome in zip(group, outcomes, strict=True):
        if unit.key in wanted:
            store.save(
                Record(
                    key=unit.key,
                    experiment=unit.experiment,
                    row=unit.row,
                    seed=unit.seed,
                    scale=unit.scale,
                    config=dict(unit.config),
                    revisions=dict(experiment.revisions),
                    status=outcome.status,
                    metrics={name: float(value) for name, value in outcome.metrics.items()},
                    curves={name: [float(v) for v in values] for name, values in outcome.curves.items()},
                    provenance=provenance,
                ),
                dict(outcome.arrays),
            )
    checkpoint.clear()


def _machine() -> dict:
    import resource

    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    device = "cpu"
    if torch.cuda.is_available():
        device, peak = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated() / 2**20
    packages = ("torch", "numpy", "margins-book")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "peak_memory_mib": round(peak),
        "device": f"{device} ({platform.machine()}, {platform.system()})",
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def _commit() -> tuple[str | None, str]:
    """The checkout's commit, and why it does not say what runs ("" where it does); changed records do not matter.

    A copy of a clean checkout without its .git, on a training machine, is told its commit by MARGINS_COMMIT.
    """
    if paths.REPO is None:
        return None, ""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=paths.REPO, capture_output=True, text=True)

    head = git("rev-parse", "HEAD") if shutil.which("git") else None
    if head is None or head.returncode:
        commit = os.environ.get("MARGINS_COMMIT")
        return commit, "" if commit else "there is none; MARGINS_COMMIT names that of a copy without .git"
    changes = git("status", "--porcelain", "--", ".", ":!data/results").stdout.splitlines()
    return head.stdout.strip(), f"there are uncommitted changes ({changes[0].strip()})" if changes else ""


@contextlib.contextmanager
def _lock(name: str):
    """One process at a time records an experiment; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl: two processes would do the same work twice, and write the same records
        yield
        return
    path = paths.CACHE / "locks" / f"{name.replace('/', '-')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MarginsError(f"{name} is being recorded by another process already") from error
        yield
