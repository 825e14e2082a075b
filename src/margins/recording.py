"""`margins record`: runs what is missing of an experiment and writes its records. Nothing else writes them."""

import contextlib
import importlib
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from margins import estimates, paths, provenance
from margins.cluster import Cluster
from margins.cluster import run as run_on_cluster
from margins.errors import MarginsError
from margins.experiments import EXPERIMENTS, Experiment, Unit, find
from margins.records import Record, Store, outdated
from margins.running import Ended, attempt, label

#: Exit status when the time budget ended before the runs did.
UNFINISHED = 3
#: What is to be run: each group with those of its units that are missing.
Todo = list[tuple[list[Unit], list[Unit]]]


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
    cluster: Cluster | None = None,
) -> int:
    """Record what is missing of an experiment at a scale; returns the exit status: 0 when all that was asked for is
    there, 1 when a run failed, 3 when the time budget ended first.

    `budget` is in seconds: no run goes on past it, and the same command continues later. Beyond the scale `quick` the
    checkout must have no uncommitted changes. `jobs` runs at a time are on this machine, those on a cluster are as many
    as fit on it. Under torchrun every process calls this alike; the first one decides what
    runs, and alone writes and prints. Raises MarginsError before any work for a bad argument, an unreadable record, or
    when another process is recording the same experiment.
    """
    from margins.training import processes

    experiment = find(name)
    groups = _wanted(experiment, scale, seeds, rows)
    if jobs < 1:
        raise MarginsError(f"jobs: {jobs} given, at least 1 is needed")
    if results is None and paths.REPO is None:
        raise MarginsError(
            "results: the package is installed without a checkout; say where records go with --results DIR"
        )
    if cluster is not None:
        cluster.check()
        if jobs > 1:
            raise MarginsError(f"jobs: {jobs} given, but on a cluster its CPUs and GPUs decide how many run at a time")
    deadline = None if budget is None else time.monotonic() + budget
    processes.join()
    if processes.count() > 1 and (jobs > 1 or cluster is not None):
        raise MarginsError("jobs: under torchrun, whose processes train one network together, one run at a time")
    if processes.rank() > 0:
        for group, missing in processes.shared(None):
            attempt(experiment, group, missing, lambda record, arrays: None, deadline=deadline)
        return 0
    store = Store(results)
    todo = []
    for group, wanted in groups:
        old = _old(store, group)
        if missing := [unit for unit in wanted if unit.key in old or not store.has(name, unit.key)]:
            todo.append((group, missing))
    count = sum(len(wanted) for _, wanted in groups)
    have = count - sum(len(missing) for _, missing in todo)
    print(f"{name}: {experiment.title} ({experiment.source})")
    asked = [missing for _, missing in todo]
    known = estimates.Estimates(experiment, scale, store)
    length = estimates.total(asked, known, jobs)
    print(f"{name} at scale {scale}: {have} of {count} records are there; {len(todo)} runs to do{length}", flush=True)
    if dry_run:
        print("".join(f"  {line}\n" for line in estimates.lines(asked, known)), end="", flush=True)
    if dry_run or not todo:
        processes.shared([])
        return 0
    commit, problem = provenance.commit()
    if problem and scale != "quick":
        raise MarginsError(f"scale {scale}: a record beyond quick names its commit, but {problem}")
    with _lock(name):
        _try_to_write(store.folder(name))
        for rest in store.folder(name).glob(".*.part"):  # of a process that was killed while writing
            rest.unlink(missing_ok=True)
        if cluster is not None:
            return run_on_cluster(experiment, todo, cluster, store, commit, deadline, Report(len(todo)))
        return _run_all(experiment, processes.shared(todo), store, commit, jobs, deadline)


def _old(store: Store, group: list[Unit]) -> set[str]:
    """The keys of those whose records are about other weights than the newest one of their row and seed."""
    known: dict[tuple[str, int], list[Record]] = {}
    for unit in group:
        if record := store.load(unit.experiment, unit.key):
            known.setdefault((unit.row, unit.seed), []).append(record)
    return {record.key for records in known.values() for record in outdated(records)}


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


class Report:
    """Says on stdout how the runs end, and on stderr why some failed, one message for one reason."""

    def __init__(self, runs: int):
        self.runs, self.done, self.stopped, self.started = runs, 0, 0, time.monotonic()
        self.failed: dict[str, list[Unit]] = {}

    def add(self, missing: list[Unit], ended: Ended) -> None:
        self.done += 1
        what = ended.how
        if ended.how == "stopped":
            self.stopped += 1
            what = "stopped at the time budget, its state is saved"
        elif ended.how == "failed":
            if ended.trace:
                print(ended.trace, end="", file=sys.stderr)
            self.failed.setdefault(ended.reason, []).append(ended.unit)
        left = (time.monotonic() - self.started) / self.done * (self.runs - self.done)
        times = f"{ended.seconds:.1f} s; about {left:.0f} s left"
        print(f"[{self.done}/{self.runs}] {label(missing)}: {what} ({times})", flush=True)

    def close(self) -> int:
        """The last words, and the exit status."""
        if self.stopped:
            print(f"{self.stopped} runs are unfinished: the same command goes on with them")
        for error, units in self.failed.items():
            more = f" and {len(units) - 1} more" if len(units) > 1 else ""
            print(f"margins: {units[0]}{more}: {error}", file=sys.stderr)
        return 1 if self.failed else UNFINISHED if self.stopped else 0


def _run_all(experiment: Experiment, todo: Todo, store: Store, commit, jobs: int, deadline) -> int:
    report = Report(len(todo))
    for group, ended in _ends(experiment, todo, store, commit, jobs, deadline):
        report.add(group, ended)
    return report.close()


def _ends(experiment, todo: Todo, store, commit, jobs, deadline) -> Iterator[tuple[list[Unit], Ended]]:
    """What is missing of a group, and how its run ended; here or, with more jobs, in other processes.

    A process that is killed, for its memory say, takes with it all that is under way and all that waits. What waited
    goes on without the others, and they follow, each alone.
    """
    if jobs == 1:
        for group, missing in todo:
            yield missing, _attempt(experiment, group, missing, store, commit, deadline, True)
        return
    doubtful: Todo = []
    while todo:
        lost = yield from _in_pool(experiment, todo, store, commit, jobs, deadline)
        if lost:
            print("margins: a process was killed; what it took with it begins again", file=sys.stderr, flush=True)
        doubtful += lost[:jobs]
        todo = lost[jobs:]
    for group, missing in doubtful:
        for _, left in (yield from _in_pool(experiment, [(group, missing)], store, commit, 1, deadline)):
            yield missing, Ended("failed", left[0], "its process was killed, perhaps for its memory")


def _in_pool(
    experiment, todo: Todo, store: Store, commit, jobs: int, deadline
) -> Generator[tuple[list[Unit], Ended], None, Todo]:
    """Yields what `_ends` does, and returns what had not ended when a process was killed, in its order."""
    loud = sys.stderr.isatty()
    context = multiprocessing.get_context("spawn")
    with stopping(ProcessPoolExecutor(min(jobs, len(todo)), context, _end_with, (os.getpid(),))) as pool:
        futures = {}
        for group, missing in todo:
            given = (group, missing, store, commit, deadline, loud)
            futures[pool.submit(_in_worker, experiment.run.__module__, experiment.name, *given)] = group, missing
        for future in as_completed(futures):
            missing, error = futures[future][1], future.exception()
            if error is None:
                yield missing, future.result()
            elif not isinstance(error, BrokenProcessPool):
                yield missing, Ended("failed", missing[0], f"{type(error).__name__}: {error}")
    lost = []
    for future, (group, missing) in futures.items():
        if isinstance(future.exception(), BrokenProcessPool):
            if left := [unit for unit in missing if not store.has(unit.experiment, unit.key)]:
                lost.append((group, left))
            else:
                yield missing, Ended("recorded", missing[-1])
    return lost


def _in_worker(module: str, name: str, *arguments) -> Ended:
    importlib.import_module(module)  # which registers the experiment
    if name not in EXPERIMENTS:
        raise MarginsError(f"{name}: other processes import {module}, which does not declare it: put it into a module")
    return _attempt(find(name), *arguments)


def _attempt(experiment, group, missing, store, commit, deadline, loud) -> Ended:
    """How the run for what is missing ended; and where it trained again, and to other weights, that for the rest."""
    from margins.training import processes

    def say(line: str) -> None:
        print(f"{label(missing)}: {line}", file=sys.stderr, flush=True)

    given = {"commit": commit, "deadline": deadline, "say": say if loud else None}
    ended = attempt(experiment, group, missing, store.save, **given)
    if ended.how in ("recorded", "diverged") and processes.count() == 1 and (old := _old(store, group)):
        return attempt(experiment, group, [unit for unit in group if unit.key in old], store.save, **given)
    return ended


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
