"""The command `margins`: build the book, rerun a page, record experiments, evaluate a model, print verdicts."""

import argparse
import math
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from margins import paths
from margins.errors import MarginsError

#: What `evaluate` takes by name; written here, since importing the packages that know them takes seconds.
SUITES = ("quick", "strong", "standard")
IMAGES = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "svhn-extra", "tiny-imagenet")
#: Exit status of an evaluation that a sanity check has failed; it was made, and its numbers are not to be believed.
DOUBTED = 4

# Each command imports what it needs: recording on a training machine must not need Jupyter.


def _root() -> Path:
    if paths.REPO is None:
        raise MarginsError("this needs a checkout of the repository; the installed package has no book")
    return paths.REPO


def _book(given: argparse.Namespace) -> int:
    from margins.book import build

    return build(_root(), paths.CACHE, jobs=given.jobs, only=given.only)


def _run(given: argparse.Namespace) -> int:
    from margins.execution import run

    return run(_root(), paths.CACHE, given.page, dict(given.parameters))


def _tidy(given: argparse.Namespace) -> int:
    from margins.notebooks import tidy

    lines = tidy(_root(), check=given.check)
    print("\n".join(lines) if lines else "all notebooks are in form")
    return 1 if any(not line.endswith(": tidied") for line in lines) else 0


def _record(given: argparse.Namespace) -> int:
    import margins.papers  # noqa: F401  registers the experiments

    if given.module is not None:
        sys.path.insert(0, os.getcwd())
        try:
            import_module(given.module)
        except ImportError as error:
            raise MarginsError(f"--module {given.module}: {error}") from error
    from margins.cluster import Cluster
    from margins.recording import record
    from margins.training import processes

    cluster, asked = None, {"cpus": given.cpus_per_unit, "gpus": given.gpus_per_unit}
    if given.cluster is not None:
        cluster = Cluster(given.cluster or None, **{name: value for name, value in asked.items() if value is not None})
    elif any(value is not None for value in asked.values()):
        raise MarginsError("--cpus-per-unit, --gpus-per-unit: they are for --cluster")
    status = record(
        given.experiment,
        scale=given.scale,
        seeds=given.seeds,
        rows=tuple(given.rows) if given.rows else None,
        jobs=given.jobs,
        budget=given.budget,
        dry_run=given.dry_run,
        results=given.results,
        cluster=cluster,
    )
    processes.leave()
    return status


def _verdicts(given: argparse.Namespace) -> int:
    from margins.scoreboard import report

    print(report(given.paper, given.json))
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    import torch

    from margins import datasets
    from margins.evaluation import evaluate, weights
    from margins.evaluation.result import writable

    for option in ("json", "resume"):
        if getattr(given, option) is not None:
            writable(f"--{option}", getattr(given, option))
    if given.device == "cuda" and not torch.cuda.is_available():
        raise MarginsError("--device cuda: PyTorch finds no such device")
    model = weights.find(given.model)
    if given.weights is None and ":" not in given.model:
        raise MarginsError(f"model {given.model!r} has random weights: give trained ones with --weights FILE")
    if given.weights is not None:
        weights.load(model, given.weights)
    data = datasets.load(given.data, "test", size=given.size)
    model, x, y = model.to(given.device), data.x.to(given.device), data.y.to(given.device)
    result = evaluate(
        model, x, y, norm=float(given.norm), eps=given.eps, attacks=given.attacks, batch_size=given.batch_size,
        seed=given.seed, resume=given.resume, progress=sys.stderr.isatty(),
    )  # fmt: skip
    print(f"{given.model} on {given.data}\n{result}")
    if given.json is not None:
        result.save(given.json)
    return DOUBTED if result.failed else 0


def seeds(text: str) -> tuple[int, ...]:
    """Read "0-4" or "0,2,5-7" as a tuple of seeds, each once and in order."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise argparse.ArgumentTypeError(f"{text!r} given, seeds such as 3 or 0-4 or 0,2 expected")
        found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(found))


def seconds(text: str) -> float:
    """Read a time such as "90s", "20m" or "1.5h" in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} given, a time such as 90s, 20m or 1.5h expected")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def radius(text: str) -> float:
    """Read a number above 0, or a fraction such as 8/255."""
    over, _, under = text.partition("/")
    try:
        value = float(over) / float(under or 1)
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} given, a number above 0 such as 0.5 or 8/255 expected")
    return value


def json_file(text: str) -> Path:
    """Read the name of a file that ends with .json."""
    if Path(text).suffix != ".json":
        raise argparse.ArgumentTypeError(f"{text!r} given, a file name that ends with .json expected")
    return Path(text)


def count(text: str) -> int:
    """Read a number of processes or samples, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} given, a whole number from 1 expected")
    return int(text)


def share(text: str) -> float:
    """Read a number of processors, 0 or above; a part of one is allowed."""
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} given, a number such as 0, 0.5 or 2 expected")
    return float(text)


def seed(text: str) -> int:
    """Read a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} given, a whole number from 0 expected")
    return int(text)


_EVALUATE = f"""\
example:
  margins evaluate my_package.models:build --weights model.pt --data cifar10 --eps 8/255 --resume state.npz

data sets: {", ".join(IMAGES)}

exit status: 0 every sanity check passed; 1 failed, with a message; 2 a wrong command line;
{DOUBTED} evaluated, but a sanity check failed: the numbers are not to be believed.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser("margins", description="The reproducibility book on margin-based robustness.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        return sub

    book = command("book", _book, "Execute the pages that have changed and render the site.")
    book.add_argument("--jobs", type=count, metavar="N", help="kernels at a time (default: one a core)")
    book.add_argument("--only", nargs="+", default=(), metavar="PAGE", help="execute these pages only, as amm/toy")

    run = command("run", _run, "Execute one page with other parameters; the result is a notebook in the cache.")
    run.add_argument("page", help="as amm/toy")
    run.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter of the page; lists as JSON; may be repeated",
    )  # fmt: skip

    tidy = command("tidy", _tidy, "Bring the book's notebooks into form: no outputs, the cell that installs.")
    tidy.add_argument("--check", action="store_true", help="only list those out of form, with exit status 1")

    record = command("record", _record, "Run what an experiment is missing and write its records.")
    record.add_argument("experiment", help="as amm/toy")
    record.add_argument("--module", metavar="M", help="a module of yours that declares the experiment")
    record.add_argument("--scale", required=True, help="quick, laptop, gpu or paper")
    record.add_argument("--seeds", type=seeds, metavar="S", help="as 0-4 or 0,2 (default: all declared)")
    record.add_argument("--rows", nargs="+", metavar="ROW", help="these rows only")
    record.add_argument("--jobs", type=count, default=1, metavar="N", help="units at a time (default: 1)")
    record.add_argument("--budget", type=seconds, metavar="T", help="stop after 90s, 20m, 1h; the next call goes on")
    record.add_argument("--dry-run", action="store_true", help="say what would run")
    record.add_argument("--results", type=Path, metavar="DIR", help="write to this folder instead of data/results")
    record.add_argument(
        "--cluster", nargs="?", const="", metavar="ADDRESS", help="run on a Ray cluster (no address: on this machine)"
    )
    record.add_argument("--cpus-per-unit", type=share, metavar="C", help="CPUs of a run on the cluster (default: 1)")
    record.add_argument("--gpus-per-unit", type=share, metavar="G", help="GPUs of a run on the cluster (default: 0)")

    evaluate = command("evaluate", _evaluate, "Attack a model on a test set, and say whether to believe the numbers.")
    evaluate.epilog, evaluate.formatter_class = _EVALUATE, argparse.RawDescriptionHelpFormatter
    evaluate.add_argument("model", help="package.module:name, or the book's as 'linear(inputs=784, classes=10)'")
    evaluate.add_argument("--weights", type=Path, metavar="FILE", help=".safetensors, .npz, or a state dict: .pt, .pth")
    evaluate.add_argument("--data", choices=IMAGES, required=True, metavar="NAME", help="as mnist; its test split")
    evaluate.add_argument("--size", type=count, metavar="N", help="a random part of it (default: all)")
    evaluate.add_argument("--norm", choices=("inf", "2"), default="inf", help="of the ball (default: inf)")
    evaluate.add_argument("--eps", type=radius, required=True, metavar="E", help="as 0.1 or 8/255, of inputs in [0, 1]")
    evaluate.add_argument("--attacks", choices=SUITES, default="strong", help="(default: strong)")
    evaluate.add_argument("--batch-size", type=count, default=100, metavar="B", help="samples at a time (default: 100)")
    evaluate.add_argument("--seed", type=seed, default=0, metavar="S", help="of the attacks (default: 0)")
    evaluate.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    evaluate.add_argument("--resume", type=Path, metavar="FILE", help="keep finished batches here, and go on from them")
    evaluate.add_argument("--json", type=json_file, metavar="FILE", help="write the result here, its arrays to .npz")

    verdicts = command("verdicts", _verdicts, "Print what became of the papers' claims.")
    verdicts.add_argument("--paper", help="one paper only, as amm")
    verdicts.add_argument("--json", action="store_true", help="as JSON")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 failed, 130 interrupted; exits with 2 on a wrong line.

    3: `record` ran out of its budget. 4: `evaluate` is done, and a sanity check has failed.
    """
    given = parser().parse_args(argv)
    try:
        status = given.function(given)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MarginsError, OSError) as error:
        print(f"margins: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("margins: interrupted", file=sys.stderr)
        return 130
