"""One case on all libraries, repetition by repetition in an order drawn anew: a busy machine hits all alike."""

import contextlib
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import report
from benchmarks.cases import SUBJECTS, Case, as_record
from benchmarks.judge import judge
from benchmarks.libraries import NotThere, Worker, environment
from benchmarks.subject import load
from margins import paths


class Comparison:
    """The libraries' processes, started when they are first asked, and what is the same for all cases.

    `checkouts`: the folders of libraries that are not on PyPI. `limit`: CPU seconds of one run. A library that is not
    to be had, fails or takes too long gets a row that says so, and the others go on.
    """

    def __init__(self, cache: Path, libraries, *, samples: int, reps: int, seed: int, limit: float, checkouts):
        self.cache, self.libraries, self.checkouts = cache, list(libraries), checkouts
        self.samples, self.reps, self.seed, self.limit = samples, reps, seed, limit
        self.workers: dict[str, Worker] = {}
        self.absent: dict[str, str] = {}

    def __enter__(self):
        self.cache.mkdir(parents=True, exist_ok=True)
        self.folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *_):
        for worker in self.workers.values():
            worker.close()
        self.folder.cleanup()

    def worker(self, name: str) -> Worker | None:
        """The library's process, a new one where the last has died; None where there is none to be had."""
        old = self.workers.get(name)
        if name in self.absent or (old and old.alive):
            return None if name in self.absent else old
        if old:
            old.close()
        try:
            python = environment(name, self.cache / "envs")
            self.workers[name] = Worker(name, python, self.cache / f"{name}.log", self.checkouts.get(name))
        except NotThere as problem:
            self.absent[name] = str(problem)
            return None
        return self.workers[name]

    def run(self, subject: str, case: Case, file: Path) -> dict:
        """The record of one case; `file` is what `subject.prepare` wrote."""
        settings = case.request(SUBJECTS[subject])
        model, x, y = load(subject, file)
        runs, rows, loads = {}, {}, []
        for name in self.libraries:
            worker = self.worker(name)
            if worker is None:
                rows[name] = {"error": self.absent[name]}
            elif case.attack in worker.attacks:
                runs[name] = []
        for rep in range(self.reps):
            order = [name for name in runs if name not in rows]
            random.Random(self.seed + rep).shuffle(order)
            for name in order:
                n = case.samples(name, len(x))
                request = {"subject": subject, "file": str(file), "samples": n, "settings": settings}
                request |= {"seed": self.seed + rep, "limit": self.limit, "warm": rep == 0 and not case.long}
                answer = self._ask(name, request)
                if isinstance(answer, str):
                    rows[name] = {"error": answer}
                    continue
                timed, found = answer
                judged = None
                if case.kind != "value":
                    eps = settings["eps"] if case.kind == "budget" else None
                    judged = judge(model, x[:n], y[:n], found, norm=case.norm, eps=eps, box=settings["box"])
                runs[name].append(report.Run(**timed, judged=judged))
                loads.append(round(os.getloadavg()[0], 2))
        ours = [] if "margins" in rows else runs.get("margins", [])
        for name in runs.keys() - rows.keys():
            counted = report.row(case.kind, case.floor, runs[name], ours)
            versions = self.workers[name].versions
            rows[name] = {"samples": case.samples(name, len(x)), **counted, "versions": versions}
        asked = {"subject": subject, "case": as_record(case), "eps": settings["eps"], "samples": self.samples}
        run = {"reps": self.reps, "seed": self.seed, "load": max(loads, default=None)}
        return {**asked, **run, **provenance(), "libraries": rows}

    def _ask(self, name: str, request: dict) -> tuple[dict, torch.Tensor] | str:
        """(what was timed, what was found), or why there is nothing."""
        out = Path(self.folder.name) / "found.npy"
        worker = self.worker(name)
        answer = worker.ask({**request, "out": str(out)}) if worker else {"error": self.absent[name]}
        return answer["error"] if "error" in answer else (answer, torch.from_numpy(np.load(out)))


def commit() -> tuple[str | None, bool]:
    """The checkout's commit, and whether anything beside results differs from it; (None, True) where git knows none."""

    def git(*arguments):
        line = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(line, cwd=paths.REPO, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(
            git("status", "--porcelain", "--", ".", ":!data/benchmarks", ":!data/results")
        )
    except (OSError, subprocess.CalledProcessError):
        return None, True


def committed() -> bool:
    """Whether a record can name the commit that is measured; says on stderr that it can't."""
    if changed := commit()[1]:
        print("bench: a record names the commit that was measured: commit your changes first", file=sys.stderr)
    return not changed


def provenance() -> dict:
    head, changed = commit()
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):  # Linux says more there
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    machine = {"processor": processor, "cores": os.cpu_count(), "system": platform.system(), "threads": 1}
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return {"date": date, "commit": head, "changed": changed, "python": platform.python_version(), "machine": machine}
