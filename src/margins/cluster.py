"""Recording on a Ray cluster: the same runs on other machines; their records come back to the one place."""

import contextlib
import importlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from margins import paths, provenance
from margins.errors import MarginsError
from margins.experiments import Experiment, Unit, find
from margins.records import Store
from margins.running import Ended, failed, label, stages
from margins.search import Search

#: How often a run is begun again whose worker or machine was lost.
RETRIES = 3
#: Seconds after the deadline in which the runs stop by themselves; then they are left, from their last checkpoint on.
GRACE = 120.0


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what each run takes there.

    address: as Ray has it, such as "auto" or "ray-head:6379"; None for a cluster on this machine that ends with the
    command. cpus, gpus: of one run; a run has one thread, and GPUs may be shared (0.25). Every machine needs the same
    commit, and keeps data, checkpoints and weights in its own cache, which a shared folder in MARGINS_CACHE makes one.
    Raises MarginsError for cpus or gpus out of range.
    """

    address: str | None = None
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self):
        from margins import checks

        checks.number("cpus", self.cpus, 0, above=True)
        checks.number("gpus", self.gpus, 0)
        if self.address is not None and "://" in self.address:
            raise MarginsError(f"cluster: {self.address} given, HOST:PORT or auto is needed, on one of its machines")

    def check(self) -> None:
        """Raise MarginsError where Ray is not installed."""
        try:
            from ray import tune  # noqa: F401  which needs more than Ray alone
        except ImportError as error:
            raise MarginsError(f'cluster: it needs Ray ({error}): pip install "margins-book[cluster]"') from error

    def _reach(self) -> None:
        """Raise MarginsError at once where nobody answers at the address; Ray itself tries for minutes."""
        host, _, port = (self.address or "").rpartition(":")
        if host and port.isdecimal():
            try:
                socket.create_connection((host, int(port)), timeout=10).close()
            except (OSError, OverflowError) as error:
                raise MarginsError(f"cluster: {self.address} can't be joined ({error})") from error

    @contextlib.contextmanager
    def joined(self):
        """Ray, connected; a cluster of this machine's own ends with the block."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent to anyone
        import ray

        self._reach()
        given = {"address": self.address}
        if self.address is None:
            given = {"address": "local", "include_dashboard": False, "object_store_memory": 2 * 10**8}
        try:
            ray.init(**given, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise MarginsError(f"cluster: {self.address or 'one on this machine'} can't be joined ({error})") from error
        try:
            fits = any(
                node["Alive"] and node["Resources"].get("CPU", 0) >= self.cpus
                and node["Resources"].get("GPU", 0) >= self.gpus
                for node in ray.nodes()
            )  # fmt: skip
            if not fits:
                wanted = f"no machine of the cluster has CPU {self.cpus:g} and GPU {self.gpus:g}, which a run takes"
                if self.address is None:
                    raise MarginsError(f"cluster: {wanted}")
                print(f"margins: {wanted}; waiting for one", file=sys.stderr)
            yield ray
        finally:
            ray.shutdown()


@dataclass(frozen=True)
class Job:
    """What a worker is told: the experiment and the module that registers it, the units, the commit, a time.time()."""

    module: str
    name: str
    group: list[Unit]
    missing: list[Unit]
    commit: str | None
    until: float | None


def work(job: Job) -> Iterator:
    """In a worker: the records of a job with their arrays as they come, and last how it ended."""
    commit, problem = provenance.commit()
    scale = job.missing[0].scale
    if commit != job.commit or (problem and scale != "quick"):
        why = problem if commit == job.commit else f"the command runs {job.commit or 'an installed package'}"
        own = commit or "an installed package"
        yield Ended("failed", job.missing[0], f"the worker on {socket.gethostname()} runs {own}, but {why}")
        return
    importlib.import_module(job.module)  # which registers the experiment
    # A deadline is in this machine's own monotonic time
    deadline = None if job.until is None else time.monotonic() + job.until - time.time()
    yield from stages(find(job.name), job.group, job.missing, commit=commit, deadline=deadline)


def run(experiment: Experiment, todo, cluster: Cluster, store: Store, commit, deadline, report) -> int:
    """Run what is to be done on the cluster and write the records here; returns `report.close()`.

    deadline: a time.monotonic(). A run whose worker was lost begins again, for what is still missing, RETRIES times.
    """
    until = None if deadline is None else time.time() + deadline - time.monotonic()
    module = experiment.run.__module__
    jobs = [Job(module, experiment.name, group, missing, commit, until) for group, missing in todo]
    with cluster.joined() as ray:
        (_trials if isinstance(experiment, Search) else _tasks)(ray, jobs, cluster, store, report)
    return report.close()


@dataclass
class _Live:
    """A job under way, here: what is still missing of it, and how often it was lost."""

    job: Job
    asked: list[Unit]
    lost: int = 0
    diverged: bool = False

    @property
    def unit(self) -> Unit:
        return (self.job.missing or self.asked)[0]

    def take(self, item, store: Store) -> Ended | None:
        """Write a record, or return how the job ended."""
        if isinstance(item, Ended):
            return replace(item, how="diverged") if item.how == "recorded" and self.diverged else item
        record, arrays = item
        store.save(record, arrays)
        self.diverged |= record.status == "diverged"
        self.job = replace(self.job, missing=[unit for unit in self.job.missing if unit.key != record.key])
        return None

    def again(self, error: Exception) -> Ended | None:
        """None when the job is to begin again after its worker was lost, else how it ended."""
        if not self.job.missing:
            return Ended("diverged" if self.diverged else "recorded", self.asked[-1])
        self.lost += 1
        if self.lost > RETRIES:
            return self.gone(error, self.lost)
        what = f"{label(self.asked)}: its worker was lost ({type(error).__name__}); it runs again"
        print(f"margins: {what}", file=sys.stderr, flush=True)
        return None

    def gone(self, error: Exception, times: int) -> Ended:
        return Ended("failed", self.unit, f"its worker was lost {times} times ({type(error).__name__})")


def _left(jobs: list[Job]) -> float | None:
    """Seconds until runs that have not ended are left; None for no such time."""
    return None if jobs[0].until is None else max(jobs[0].until + GRACE - time.time(), 0.1)


def _tasks(ray, jobs: list[Job], cluster: Cluster, store: Store, report) -> None:
    """A Ray task a job, which streams its records."""
    task = ray.remote(work).options(
        num_cpus=cluster.cpus, num_gpus=cluster.gpus, num_returns="streaming", max_retries=0
    )
    live = {task.remote(job): _Live(job, job.missing) for job in jobs}
    while live:
        ready, _ = ray.wait(list(live), num_returns=1, timeout=_left(jobs))
        if not ready:  # past the deadline, and neither begun nor stopped
            for state in live.values():
                report.add(state.asked, Ended("stopped", state.unit))
            return
        state = live[ready[0]]
        try:
            ended = state.take(ray.get(next(ready[0])), store)
        except Exception as error:  # the worker's, or the record could not be written
            ended = _ended(ray, state.unit, error) or state.again(error)
            if ended is None:
                del live[ready[0]]
                live[task.remote(state.job)] = state
        if ended is not None:
            live.pop(ready[0], None)
            report.add(state.asked, ended)


def _trials(ray, jobs: list[Job], cluster: Cluster, store: Store, report) -> None:
    """A Ray Tune trial a job, first in first out, each to its end."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the records are the log
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the command
    from ray import tune

    live = {number: _Live(job, job.missing) for number, job in enumerate(jobs)}

    class Saving(tune.Callback):
        def on_trial_result(self, iteration, trials, trial, result, **given) -> None:
            number = trial.config["job"]
            if number not in live:
                return
            state = live[number]
            try:
                ended = state.take(result["item"], store)
            except Exception as error:
                ended = failed(state.unit, error)
            if ended is not None:
                del live[number]
                report.add(state.asked, ended)

    paths.CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.CACHE, prefix="tune-") as folder:
        found = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, jobs=jobs), {"cpu": cluster.cpus, "gpu": cluster.gpus}),
            param_space={"job": tune.grid_search(list(range(len(jobs))))},
            tune_config=tune.TuneConfig(reuse_actors=True, time_budget_s=_left(jobs)),
            run_config=tune.RunConfig(
                name="search", storage_path=folder, verbose=0, callbacks=[Saving()],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        ).fit()  # fmt: skip
    errors = {result.config["job"]: result.error for result in found if result.config}  # none where it never began
    for number, state in live.items():
        if (error := errors.get(number)) is None:  # past the deadline
            ended = Ended("stopped", state.unit)
        else:
            ended = _ended(ray, state.unit, error) or state.gone(error, RETRIES + 1)
        report.add(state.asked, ended)


def _ended(ray, unit: Unit, error: Exception) -> Ended | None:
    """How a job ended by an exception in its worker; None where the worker was lost."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return Ended("failed", unit, f"{type(error.cause).__name__}: {error.cause}", f"{error}\n")
    return None if isinstance(error, ray.exceptions.RayError) else failed(unit, error)


def _trial(config, jobs: list[Job]) -> None:
    from ray import tune

    for item in work(jobs[config["job"]]):
        tune.report({"item": item})
