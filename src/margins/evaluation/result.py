"""What an evaluation returns: per-sample results, rates with their intervals, statistics, a table, JSON."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from margins.attacks.found import Bounds
from margins.errors import MarginsError
from margins.files import atomic
from margins.margin import Rate, rate

if TYPE_CHECKING:
    from pandas import DataFrame

FORMAT = 1
QUANTILES = (("min", 0.0), ("5 %", 0.05), ("25 %", 0.25), ("median", 0.5), ("75 %", 0.75), ("95 %", 0.95))


@dataclass(frozen=True)
class Cost:
    """Forward and backward passes, per sample of the evaluation, and seconds by the clock for all of them."""

    forward: float
    backward: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Attacked:
    """What one attack left over.

    robust: (N,) bool, classified correctly at x and not broken within eps. distance: (N,) of the adversarial example
    found, in input units, 0 where x is misclassified, inf where none was found; of a minimum-norm attack
    (`minimum_norm`) possibly beyond eps. stages: name -> (N,) bool broken by this stage, of AutoAttack. unconfirmed:
    how many of its examples a second call of the model classified correctly; they don't count.
    """

    robust: Tensor
    distance: Tensor
    minimum_norm: bool
    stages: Mapping[str, Tensor]
    unconfirmed: int
    cost: Cost

    @property
    def accuracy(self) -> Rate:
        return rate(self.robust)


@dataclass(frozen=True, eq=False)
class Measured:
    """One margin of every sample, (N,), signed, in input units; nan where it is undefined."""

    values: Tensor
    cost: Cost

    @property
    def statistics(self) -> dict[str, float]:
        """Of the defined margins the least, quantiles and mean; of all, the shares above 0, infinite and undefined.

        nan where there is nothing to take them of.
        """
        values = self.values.double()
        ordered = values[~values.isnan()].sort().values  # quantiles are entries: interpolating with inf gives nan
        at = {name: ordered[int(q * (len(ordered) - 1))].item() if len(ordered) else math.nan for name, q in QUANTILES}
        shares = {"positive": values > 0, "infinite": values.isinf(), "undefined": values.isnan()}
        return at | {"mean": ordered.mean().item()} | {name: one.double().mean().item() for name, one in shares.items()}


@dataclass(frozen=True)
class Check:
    """One sanity check: `status` is "passed", "failed" or "not applicable"; `numbers` is what `measured` says in words.

    note: what a reader should know though nothing failed; empty for nothing.
    """

    name: str
    status: str
    measured: str
    tolerance: str
    advice: str
    numbers: Mapping[str, float]
    note: str = ""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of `margins.evaluate`; tensors are on the CPU, one entry a sample.

    correct: (N,) bool, classified correctly at x. attacks, margins: by name, in the order given. checks: see `Check`;
    check_cost: of their own attacks and calls, per probed sample.
    """

    norm: float
    eps: float
    bounds: Bounds
    seed: int
    correct: Tensor
    attacks: Mapping[str, Attacked]
    margins: Mapping[str, Measured]
    checks: tuple[Check, ...]
    check_cost: Cost

    @property
    def clean(self) -> Rate:
        """The accuracy without attack."""
        return rate(self.correct)

    @property
    def robust(self) -> Tensor:
        """(N,) bool: broken by no attack, the worst case for each sample."""
        return torch.stack([self.correct, *(attack.robust for attack in self.attacks.values())]).all(0)

    @property
    def accuracy(self) -> Rate:
        """The robust accuracy in the worst case over all attacks: an upper bound of the true one."""
        return rate(self.robust)

    @property
    def distance(self) -> Tensor:
        """(N,) the least distance at which any attack broke the sample: an upper bound of its margin; inf for none."""
        return torch.stack([attack.distance for attack in self.attacks.values()]).amin(0)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The sanity checks that failed; empty for an evaluation without a mark."""
        return tuple(check for check in self.checks if check.status == "failed")

    def accuracy_at(self, eps: float | Sequence[float] | Tensor) -> Tensor:
        """The worst-case robust accuracy at radii eps >= 0, a number or (M,), as a float64 tensor () or (M,).

        From the least distance that any attack found, with what is misclassified at x at 0: an upper bound at every eps
        from this one run. `margins.margin.accuracy_at` is for one eps and the distances of any one margin, and adds an
        interval. Raises MarginsError for other eps, and where no minimum-norm attack was run: others know nothing
        beyond their own eps.
        """
        if not any(attack.minimum_norm for attack in self.attacks.values()):
            raise MarginsError(
                "accuracy at other eps needs a minimum-norm attack (race, fab_t, or deepfool with bounds) among attacks"
            )
        try:
            radii = torch.as_tensor(eps, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError):  # what it raises for text, None and uneven lists
            radii = torch.tensor(math.nan)
        if radii.ndim > 1 or not torch.isfinite(radii).all() or (radii < 0).any():
            raise MarginsError(f"eps must be a finite number of at least 0, or a sequence of such, but is {eps!r}")
        return (self.distance.double() > radii[..., None]).double().mean(-1)

    def frame(self) -> "DataFrame":
        """A row for clean accuracy, each attack and the worst case: accuracy, interval and costs; accuracies in %."""
        import pandas

        rows = {name: (*row, *cost) for name, row, cost in self._rows()}
        columns = ["accuracy", "low", "high", "forward", "backward", "seconds"]
        return pandas.DataFrame.from_dict(rows, "index", columns=columns)

    def _rows(self):
        unknown = (math.nan,) * 3
        yield "no attack", [100 * v for v in self.clean], unknown
        for name, attack in self.attacks.items():
            cost = attack.cost
            yield name, [100 * v for v in attack.accuracy], (cost.forward, cost.backward, cost.seconds)
        yield "worst case", [100 * v for v in self.accuracy], unknown

    def to_dict(self) -> dict[str, Any]:
        """All but the per-sample results, as JSON holds it: numbers, strings and null for nan and infinity."""
        curve = None
        if len(self.correct) and any(attack.minimum_norm for attack in self.attacks.values()):
            radii = np.linspace(0, 2 * self.eps, 41)
            curve = {"eps": radii.tolist(), "accuracy": self.accuracy_at(radii).tolist()}
        attacks = {
            name: {
                "accuracy": attack.accuracy._asdict(),
                "kind": "minimum norm" if attack.minimum_norm else "budget",
                "stages": {stage: int(broken.sum()) for stage, broken in attack.stages.items()},
                "unconfirmed": attack.unconfirmed,
                "cost": vars(attack.cost),
            }
            for name, attack in self.attacks.items()
        }
        content = {
            "format": FORMAT, "samples": len(self.correct), "norm": "inf" if self.norm == math.inf else self.norm,
            "eps": self.eps, "bounds": self.bounds, "seed": self.seed, "clean": self.clean._asdict(),
            "robust": self.accuracy._asdict(), "attacks": attacks, "curve": curve,
            "margins": {name: m.statistics | {"seconds": m.cost.seconds} for name, m in self.margins.items()},
            "checks": [vars(check) for check in self.checks], "check_cost": vars(self.check_cost),
        }  # fmt: skip
        return _finite(content)

    def arrays(self) -> dict[str, np.ndarray]:
        """The per-sample results: "correct", "robust", "distance", and "attack: NAME: robust" and so on."""
        found = {"correct": self.correct, "robust": self.robust, "distance": self.distance}
        for name, attack in self.attacks.items():
            found |= {f"attack: {name}: robust": attack.robust, f"attack: {name}: distance": attack.distance}
            found |= {f"attack: {name}: stage {stage}": broken for stage, broken in attack.stages.items()}
        found |= {f"margin: {name}": measured.values for name, measured in self.margins.items()}
        return {name: value.numpy() for name, value in found.items()}

    def save(self, path: Path | str) -> None:
        """Write `to_dict()` to `path` (.json) and `arrays()` beside it (.npz), each whole or not at all.

        Raises MarginsError for another ending and where the folder does not exist.
        """
        path = writable("path", path)
        if path.suffix != ".json":
            raise MarginsError(f"path must end with .json (the arrays go to an .npz beside it), but is {path}")
        with atomic(path.with_suffix(".npz")) as file:
            np.savez_compressed(file, **self.arrays())
        with atomic(path) as file:
            file.write((json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n").encode())

    def __str__(self) -> str:
        norm = "linf" if self.norm == math.inf else "l2"
        width = max(map(len, ("worst case", *self.attacks, *self.margins)))
        lines = [f"{len(self.correct)} samples, {norm} eps {self.eps:.6g}, seed {self.seed}", ""]
        lines.append(f"{'':{width}}  accuracy  95 % interval   forward  backward  seconds")
        for name, (p, low, high), cost in self._rows():
            costs = "" if math.isnan(cost[0]) else f"  {cost[0]:8.1f}  {cost[1]:8.1f}  {cost[2]:7.1f}"
            lines.append(f"{name:{width}}  {p:6.1f} %  {low:5.1f} to {high:5.1f}{costs}")
        lines += ["", f"{'margin':{width}}  {'min':>9}  {'5 %':>9}  {'median':>9}  {'95 %':>9}  above 0"]
        for name, measured in self.margins.items():
            s = measured.statistics
            values = "  ".join(f"{s[key]:9.4g}" for key in ("min", "5 %", "median", "95 %"))
            lines.append(f"{name:{width}}  {values}  {100 * s['positive']:5.1f} %")
        passed = sum(check.status == "passed" for check in self.checks)
        seconds = self.check_cost.seconds
        counts = f"{passed} passed, {len(self.failed)} failed, of {len(self.checks)}"
        lines += ["", f"sanity checks ({seconds:.1f} s): {counts}"]
        for check in self.failed:
            lines += [f"FAILED {check.name}: {check.measured}", f"       tolerated: {check.tolerance}"]
            lines.append(f"       what to do: {check.advice}")
        lines += [f"note   {check.name}: {check.note}" for check in self.checks if check.note]
        return "\n".join(lines)


def writable(name: str, path) -> Path:
    """`path` if a file of this name may be written into its folder, which must exist; else MarginsError."""
    if not isinstance(path, str | Path):
        raise MarginsError(f"{name} must be the name of a file, but is {path!r}")
    path = Path(path)
    if path.is_dir():
        raise MarginsError(f"{name} must be the name of a file, but {path} is a folder")
    if not path.parent.is_dir():
        raise MarginsError(f"{name} {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise MarginsError(f"{name} {path}: the folder {path.parent} may not be written to")
    return path


def _finite(value):
    """`value` with None in place of numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
