"""The libraries that are compared, the throw-away environment of each, and the process that it runs in."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from margins import paths


class NotThere(Exception):
    """A library that could not be installed or does not start: reported, and the others go on."""


@dataclass(frozen=True)
class Library:
    """`module` in benchmarks.contenders; what pip installs beside the book's torch, None for the book's environment.

    `checkout`: the library is not on PyPI, and a folder with its sources has to be given.
    """

    module: str
    requirements: tuple[str, ...] | None
    checkout: bool = False


LIBRARIES = {
    "margins": Library("ours", None),
    "torchattacks": Library("with_torchattacks", ("torchattacks==3.5.1",)),
    "foolbox": Library("with_foolbox", ("foolbox==3.3.4",)),
    # ART imports packaging and multiprocess without asking for them
    "art": Library("with_art", ("adversarial-robustness-toolbox==1.20.1", "packaging", "multiprocess")),
    "reference": Library("with_reference", ("numpy",), checkout=True),
    "adversarial-library": Library("with_advlib", ("numpy", "torchvision", "tqdm", "matplotlib"), checkout=True),
}


def environment(name: str, folder: Path) -> str:
    """The Python that runs the library, after making its environment below `folder`. Raises NotThere."""
    library = LIBRARIES[name]
    if library.requirements is None:
        return sys.executable
    place, wanted = folder / name, [f"torch=={torch.__version__.split('+')[0]}", *library.requirements]
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready, content = place / "ready.json", json.dumps([sys.version, *wanted])
    if ready.exists() and ready.read_text() == content:
        return str(python)
    print(f"installing {' '.join(wanted)} ...", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.log", "w") as log:
        for command in (
            [sys.executable, "-m", "venv", "--clear", place],
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
        ):
            if subprocess.run(command, stdout=log, stderr=log).returncode:
                print(f"{name}: see {log.name}", file=sys.stderr)
                raise NotThere("could not be installed")
    ready.write_text(content)
    return str(python)


def revision(checkout: Path) -> str:
    """The commit of a checkout, or a hash of its Python files where it is a copy without .git."""
    if (checkout / ".git").exists():
        line = ["git", "-C", checkout, "rev-parse", "HEAD"]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    files = {str(path.relative_to(checkout)): path.read_bytes() for path in checkout.rglob("*.py")}
    return f"sha256 {hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]}"


class Worker:
    """One library in its process, asked one run at a time."""

    def __init__(self, name: str, python: str, log: Path, checkout: Path | None = None):
        self.name = name
        folders = [paths.REPO / "src", paths.REPO, *([checkout] if checkout else [])]
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, folders)),
            "CUDA_VISIBLE_DEVICES": "",
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }
        with open(log, "a") as errors:
            self.process = subprocess.Popen(
                [python, "-m", "benchmarks.worker", LIBRARIES[name].module],
                cwd=paths.REPO,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        hello = self._answer()
        if "error" in hello:
            self.close()
            print(f"{name}: see {log}", file=sys.stderr)
            raise NotThere("does not start")
        self.versions, self.attacks = hello["versions"], hello["attacks"]
        if checkout:
            self.versions["revision"] = revision(checkout)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, request: dict) -> dict:
        """The answer to a request, {"error": why} where the library failed or its process died."""
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except OSError:
            return {"error": "its process died"}
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "its process died"}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
