"""One run: the units of a group, the outcomes of an experiment's `run` for them, and their records."""

import hashlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from margins import paths, provenance
from margins.checkpoints import Checkpoint, OutOfTime
from margins.errors import MarginsError, Unshareable
from margins.experiments import Experiment, Outcome, Unit
from margins.records import Record

Arrays = Mapping[str, np.ndarray]
#: What takes a finished unit's record and its arrays, and writes them.
Save = Callable[[Record, Arrays], object]


@dataclass(frozen=True)
class Ended:
    """How a run ended: `how` is "recorded", "diverged" (recorded as that), "stopped" (out of time) or "failed".

    unit: the one in which it ended. reason: of a failure; trace: its traceback, where no message was meant for it.
    seconds: how long it ran, 0 for one that never did.
    """

    how: str
    unit: Unit
    reason: str = ""
    trace: str = ""
    seconds: float = 0.0


def label(group: list[Unit]) -> str:
    """A group in a line: its unit, how many units of a stack, or the row and seed, or seeds, whose parts it has."""
    if len(group) == 1:
        return str(group[0])
    if group[0].part and len(seeds := sorted({unit.seed for unit in group})) > 1:
        return f"{group[0].experiment} {group[0].scale} {group[0].row!r}, {len(group)} parts of the seeds {seeds}"
    if group[0].part:
        return f"{str(group[0]).removesuffix(f', {group[0].part}')} ({', '.join(unit.part for unit in group)})"
    return f"{group[0].experiment} {group[0].scale}, {len(group)} units at once"


def attempt(
    experiment: Experiment,
    group: list[Unit],
    missing: list[Unit],
    save: Save,
    *,
    commit: str | None = None,
    deadline: float | None = None,
    say: Callable[[str], None] | None = None,
) -> Ended:
    """Run a group for what is missing of it, give `save` each record as soon as it is there, and say how it ended.

    deadline: a time.monotonic(). One failing run does not stop the others, so it is told and not raised; where several
    processes train one network, it is raised, since they could not go on together, but for what all refuse alike.
    """
    for number, item in enumerate(stages(experiment, group, missing, commit=commit, deadline=deadline, say=say)):
        if isinstance(item, Ended):
            return item
        try:
            save(*item)
        except Exception as error:
            return failed(missing[number], error)
    raise RuntimeError("a run's last word is how it ended")


def stages(experiment, group, missing, *, commit, deadline, say=None) -> Iterator[tuple[Record, Arrays] | Ended]:
    """What `attempt` goes through: the missing units' records and arrays in their order, and last how the run ended."""
    from margins.training import processes

    def late() -> bool:
        return deadline is not None and time.monotonic() > deadline

    def end(ended: Ended) -> Ended:
        return replace(ended, seconds=time.monotonic() - begun)

    count, how, begun = 0, "recorded", time.monotonic()
    try:
        if processes.shared(late()):
            raise OutOfTime
        for record, arrays in _records(experiment, group, missing, commit, deadline, say):
            yield record, arrays
            count += 1
            if record.status == "diverged":
                how = "diverged"
            if experiment.parts and count < len(missing) and processes.count() == 1 and late():
                raise OutOfTime
        yield end(Ended(how, missing[-1]))
    except OutOfTime:
        yield end(Ended("stopped", missing[min(count, len(missing) - 1)]))
    except Exception as error:
        yield end(failed(missing[min(count, len(missing) - 1)] if experiment.parts else group[0], error))


def failed(unit: Unit, error: Exception) -> Ended:
    """How a run ended by an exception, which is raised where several processes train one network.

    What all of them refuse alike is told there too: they go on with the next run.
    """
    from margins.training import processes

    if processes.count() > 1 and not isinstance(error, Unshareable):
        raise error
    if isinstance(error, MarginsError):
        return Ended("failed", unit, str(error))
    trace = "".join(traceback.format_exception(error))
    return Ended("failed", unit, f"{type(error).__name__}: {error}", trace)


def _records(experiment, group, missing, commit, deadline, say) -> Iterator[tuple[Record, Arrays]]:
    """The missing units' records, lazily where the experiment has parts."""
    import torch

    from margins.training import processes

    torch.set_num_threads(1)
    name = hashlib.sha256(" ".join(unit.key for unit in group).encode()).hexdigest()[:16]
    file = paths.CACHE / "checkpoints" / experiment.name / f"{name}.pt"
    checkpoint = Checkpoint(file, deadline) if say is None else Checkpoint(file, deadline, say)
    start, wanted = time.monotonic(), {unit.key for unit in missing}
    units = missing if experiment.parts else group
    outcomes = experiment.run(units, checkpoint)
    if not experiment.parts:
        outcomes = list(outcomes)
        seconds = time.monotonic() - start
    for unit, outcome in _pairs(units, outcomes):
        if experiment.parts:
            seconds = time.monotonic() - start
        if unit.key in wanted:
            took = seconds if outcome.seconds is None else outcome.seconds
            origin = {
                "seconds": round(took, 3),
                "runs_at_once": 1 if experiment.parts else len(group),
                **provenance.machine(),
                "commit": commit,
                "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            yield _record(experiment, unit, outcome, origin), dict(outcome.arrays)
        start = time.monotonic()
    if processes.rank() == 0:
        checkpoint.clear()


def _pairs(units: list[Unit], outcomes: Iterable[Outcome]) -> Iterator[tuple[Unit, Outcome]]:
    """Each unit with its outcome. Raises RuntimeError where there are fewer outcomes than units, or more."""
    outcomes = iter(outcomes)
    for unit in units:
        if (outcome := next(outcomes, None)) is None:
            raise RuntimeError(f"no outcome for {unit}, of {len(units)} units")
        yield unit, outcome
    if next(outcomes, None) is not None:
        raise RuntimeError(f"more outcomes than the {len(units)} units")


def _record(experiment: Experiment, unit: Unit, outcome: Outcome, origin: dict) -> Record:
    experiment.check(outcome)
    if taken := origin.keys() & outcome.facts.keys():
        raise MarginsError(f"facts: {', '.join(sorted(taken))} of {unit} are names that every record's provenance has")
    return Record(
        key=unit.key,
        experiment=unit.experiment,
        row=unit.row,
        seed=unit.seed,
        scale=unit.scale,
        config=dict(unit.config),
        revisions=dict(experiment.revisions),
        status=outcome.status,
        metrics={name: float(value) for name, value in outcome.metrics.items()},
        curves={name: [float(value) for value in values] for name, values in outcome.curves.items()},
        provenance={**origin, **{name: str(value) for name, value in outcome.facts.items()}},
    )
