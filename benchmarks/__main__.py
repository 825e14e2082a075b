"""The command: python -m benchmarks, or make bench ARGS="..."; --help lists what can be chosen.

Attacks beside other libraries; "training" and "evaluation" as the first word are commands of their own.
"""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import evaluation, report, training
from benchmarks.cases import CASES, SUBJECTS
from benchmarks.comparison import Comparison, committed
from benchmarks.libraries import LIBRARIES
from benchmarks.subject import prepare
from margins import paths
from margins.errors import MarginsError

CACHE = paths.CACHE / "bench"
RECORDED = paths.DATA / "benchmarks"
#: Commands by the first word: what is measured beside attacks.
OTHERS = {"training": training.main, "evaluation": evaluation.main}


def options(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description="Attacks beside other libraries and the floor.")
    parser.add_argument("--attacks", nargs="+", choices=CASES, metavar="NAME", help=f"of: {', '.join(CASES)}")
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, help="default: all; with --quick mlp")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, help="default: all that can be had")
    parser.add_argument("--samples", type=int, help="MNIST test images, in one batch; default 1000, with --quick 100")
    parser.add_argument("--reps", type=int, help="repetitions, each with its own seed; default 3, with --quick 1")
    parser.add_argument("--seed", type=int, default=0, help="of the first repetition")
    parser.add_argument("--limit", type=float, default=3600, help="CPU seconds of one run, default %(default)g")
    parser.add_argument("--quick", action="store_true", help="a few minutes: the short attacks, few samples, one model")
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help="a checkout of the reference AutoAttack")
    parser.add_argument("--adversarial-library", type=Path, metavar="FOLDER", help="a checkout of adversarial-library")
    parser.add_argument("--record", action="store_true", help="write to data/benchmarks; needs a clean checkout")
    parser.add_argument("--show", action="store_true", help="print what is recorded, run nothing")
    given = parser.parse_args(arguments)
    given.attacks = given.attacks or [name for name, case in CASES.items() if not (given.quick and case.long)]
    given.models = given.models or (["mlp"] if given.quick else list(SUBJECTS))
    given.samples = (100 if given.quick else 1000) if given.samples is None else given.samples
    given.reps = (1 if given.quick else 3) if given.reps is None else given.reps
    if min(given.samples, given.reps, given.limit) < 1:
        parser.error("--samples, --reps and --limit have to be at least 1")
    folders = {"reference": given.reference, "adversarial-library": given.adversarial_library}
    given.checkouts = {name: folder.resolve() for name, folder in folders.items() if folder}
    can_be_had = [name for name, library in LIBRARIES.items() if not library.checkout or name in given.checkouts]
    given.libraries = given.libraries or can_be_had
    for name in given.libraries:
        if name not in can_be_had or not given.checkouts.get(name, Path()).is_dir():
            parser.error(f"{name} is not on PyPI: --{name} has to name a folder with its sources")
    return given


def main(arguments=None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in OTHERS:
        return OTHERS[arguments[0]](arguments[1:])
    given = options(arguments)
    if given.show:
        tables = [report.table(report.read(path)) for path in sorted(RECORDED.glob("*.json"))]
        print("\n\n".join(tables) or f"nothing is recorded in {RECORDED} yet")
        return 0
    if given.record and not committed():
        return 1
    torch.set_num_threads(1)
    chosen = {name: getattr(given, name) for name in ("samples", "reps", "seed", "limit", "checkouts")}
    try:
        with Comparison(CACHE, given.libraries, **chosen) as comparison:
            for subject in given.models:
                file = prepare(subject, given.samples, CACHE)
                for name in given.attacks:
                    record = comparison.run(subject, CASES[name], file)
                    print(report.table(record), end="\n\n", flush=True)
                    report.save(record, RECORDED if given.record else CACHE / "results")
    except MarginsError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
