"""Small experiments for the tests of recording, in a module that other processes can import.

As a program it records one of them, with a checkpoint at every tick: `python sums.py NAME RESULTS`. A run that comes to
a moment for which there is a file `die at MOMENT` in the cache removes the file and kills its process; what it does is
noted in the file `log`, where the cache has one.
"""

import hashlib
import os
import signal
import sys
from pathlib import Path

import numpy as np

from margins import checkpoints, paths
from margins.experiments import Experiment, Outcome, register
from margins.recording import record
from margins.search import grid, search
from margins.training import processes

SUM, PARTS, SEARCH, BAD, KILLS = "test/sum", "test/parts", "test/search", "test/bad", "test/kills"


def at(moment: str) -> None:
    """Note the moment; die if this is the one."""
    if (log := paths.CACHE / "log").exists():
        with open(log, "a") as file:
            file.write(f"{moment}\n")
    if (order := paths.CACHE / f"die at {moment}").exists():
        order.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def add(value: float, steps: int, checkpoint: checkpoints.Checkpoint, name: str) -> float:
    """steps x value, a step at a time."""
    state = checkpoint.load("total", "step") or {"total": 0.0, "step": 0}
    while state["step"] < steps:
        at(f"{name} {state['step']}")
        state = {"total": state["total"] + value, "step": state["step"] + 1}
        checkpoint.tick(lambda state=state: state)
    return state["total"]


def total(units, checkpoint):
    (unit,) = units
    found = add(unit.config["value"], unit.config["steps"], checkpoint, f"{unit.row} {unit.seed}")
    if unit.config["value"] < 0:
        raise ValueError("a negative value")
    checkpoint.say(f"the total is {found}")
    status = "diverged" if found > 1000 else "done"
    return [Outcome({"total": found}, arrays={"seed": np.array([unit.seed])}, status=status)]


def train_and_attack(units, checkpoint):
    """A network is a number: what was added up in training, kept in the cache. An attack takes its steps from it."""
    for unit in units:
        name = f"{unit.row} {unit.seed}"
        kept = paths.CACHE / "weights" / name
        if kept.exists():
            weights = float(kept.read_text())
        else:
            training = checkpoint.beside("training")
            weights = add(unit.config["value"] + unit.seed, unit.config["epochs"], training, f"training {name}")
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(str(weights))
        facts = {"weights": hashlib.sha256(str(weights).encode()).hexdigest()}
        if unit.part == "training":
            yield Outcome({"loss": 1 / weights}, curves={"epoch": [1.0, 2.0]}, facts=facts)
        else:
            lost = add(unit.config["strength"], 3, checkpoint.beside(unit.part), f"{unit.part} {name}")
            arrays = {f"right under {unit.part}": np.array([True, False])}
            yield Outcome({f"accuracy under {unit.part}": weights - lost}, arrays=arrays, facts=facts)


def bad_in_one_process(units, checkpoint):
    if os.environ.get("RANK") == "1":
        raise ValueError("only here")
    return [Outcome({}) for _ in units]


def killed(units, checkpoint):
    (unit,) = units
    if unit.config["kills"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return [Outcome({"seed": unit.seed})]


def parabola(units, checkpoint):
    (unit,) = units
    x, y = unit.config["x"], unit.config["y"]
    at(f"{unit.row} {unit.seed}")
    return [Outcome({"validation accuracy": 100 - (x - 2) ** 2 - (y - 1) ** 2 + unit.seed})]


register(
    Experiment(
        name=SUM,
        title="sums",
        source="a test",
        rows={"one": {"value": 1.0}, "two": {"value": 2.0}},
        scales={"quick": {"steps": 5}, "laptop": {"steps": 50}},
        seeds=(0, 1, 2),
        run=total,
        revisions={"sum": 1},
    )
)
register(
    Experiment(
        name=PARTS,
        title="sums in parts",
        source="a test",
        rows={"one": {"value": 1.0}, "two": {"value": 2.0}},
        scales={"quick": {"epochs": 4, "parts": {"AutoAttack": {"images": 5}}}, "laptop": {"epochs": 40}},
        seeds=(0, 1),
        run=train_and_attack,
        parts={"training": {}, "PGD": {"strength": 0.25}, "AutoAttack": {"strength": 0.5, "images": 100}},
        minutes={"quick": {"training": 2.0, "AutoAttack": 6.0}},
    )
)
register(
    Experiment(
        name=BAD,
        title="nothing",
        source="a test",
        rows={"one": {}},
        scales={"quick": {}},
        seeds=(0, 1),
        run=bad_in_one_process,
    )
)
register(
    Experiment(
        name=KILLS,
        title="a row that kills its process",
        source="a test",
        rows={"one": {"kills": False}, "bad": {"kills": True}, "two": {"kills": False}},
        scales={"quick": {}},
        seeds=(0, 1),
        run=killed,
    )
)
register(
    search(
        grid({"x": [0, 2], "y": [1, 2]}),
        name=SEARCH,
        title="the highest point of a parabola",
        source="a test",
        scales={"quick": {}},
        seeds=(0,),
        run=parabola,
    )
)

if __name__ == "__main__":
    if "RANK" not in os.environ:  # under torchrun one process could find what another one has just saved
        checkpoints.SECONDS = 0.0
    status = record(sys.argv[1], scale="quick", results=Path(sys.argv[2]))
    processes.leave()
    sys.exit(status)
