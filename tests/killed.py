"""Records two small experiments, in a process that may be killed: `python killed.py RESULTS JOBS EPOCHS`.

One has long runs with checkpoints (logistic regression on digits), one runs all its units at once (the toy).
"""

import signal
import sys
from dataclasses import replace
from pathlib import Path

from margins import checkpoints
from margins.experiments import EXPERIMENTS, register
from margins.papers.amm import toy  # noqa: F401  registers amm/toy
from margins.papers.amr import logistic  # noqa: F401  registers amr/logistic-regression
from margins.recording import record

checkpoints.SECONDS = 0.02

register(
    replace(
        EXPERIMENTS["amr/logistic-regression"],
        name="test/digits",
        rows={"subsets": {"share": 0.8}, "all images": {"seeds": (0,)}},
        scales={"quick": {"data": "digits", "size": 250, "epochs": 1e30, "short_epochs": 1.0}},
        seeds=(0, 1),
    )
)
register(replace(EXPERIMENTS["amm/toy"], name="test/toy", scales={"quick": {"epochs": int(sys.argv[3])}}, seeds=(0, 1)))

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background may have had it ignored
    for name in ("test/digits", "test/toy"):
        if status := record(name, scale="quick", jobs=int(sys.argv[2]), results=Path(sys.argv[1])):
            sys.exit(status)
