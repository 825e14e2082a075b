"""From runs to rows, a table and a record: medians over the repetitions, ratios to the floor, differences to ours."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.judge import SLACK, Judged
from margins.files import atomic


@dataclass(frozen=True)
class Run:
    """One repetition: CPU seconds of the attack, of a forward and of a forward with input-backward; what it found."""

    seconds: float
    forward: float
    unit: float
    left: tuple[str, ...] = ()
    judged: Judged | None = None


def floor_seconds(run: Run, floor: tuple[int, int]) -> float:
    """What `floor` = (forwards, input-backwards) takes; a backward is a unit without its forward."""
    return floor[0] * run.forward + floor[1] * (run.unit - run.forward)


def row(kind: str, floor: tuple[int, int], runs: list[Run], ours: list[Run]) -> dict:
    """One library's numbers: `ours` are our runs, of which the library's samples are the first ones."""
    result = {
        "seconds": [round(run.seconds, 4) for run in runs],
        "unit_seconds": [round(run.unit, 6) for run in runs],
        "units": statistics.median(run.seconds / run.unit for run in runs),
        "of_floor": statistics.median(run.seconds / floor_seconds(run, floor) for run in runs),
        "left": sorted({what for run in runs for what in run.left}),
    }
    if kind == "value":
        return result
    result["outside"] = max(run.judged.outside for run in runs)
    pairs = list(zip(runs, ours, strict=False))
    if kind == "budget":
        result["robust"] = [float(run.judged.robust.mean()) for run in runs]
        differences = [run.judged.robust.mean() - _first(mine.judged.robust, run).mean() for run, mine in pairs]
        result["robust_difference"] = float(np.mean(differences)) if pairs else None
    else:
        result["distance"] = [_median(run.judged.distance) for run in runs]
        result["failed"] = [float(np.isinf(run.judged.distance).mean()) for run in runs]
        ratios = [_median(run.judged.distance) / _median(_first(mine.judged.distance, run)) for run, mine in pairs]
        result["distance_ratio"] = float(np.median(ratios)) if pairs else None
    return result


def _first(values: np.ndarray, run: Run) -> np.ndarray:
    return values[: len(run.judged.robust)]


def _median(distance: np.ndarray) -> float:
    """Over the samples that were right at first; infinite where the attack failed on half of them."""
    return float(np.median(distance[distance > 0])) if (distance > 0).any() else math.nan


def table(record: dict) -> str:
    """The record as text, our package first, then the others by their time."""
    case = record["case"]
    eps = "" if case["kind"] != "budget" else f", eps {record['eps']:g}"
    title = f"{record['subject']} {case['name']}: {record['reps']} x {record['samples']} samples{eps}"
    found = {"budget": ("robust %", "- ours"), "nearest": ("distance", "/ ours"), "value": ("", "")}[case["kind"]]
    lines = [("library", "samples", "u", "/ floor", *found, "notes")]
    rows = record["libraries"]
    for name in sorted(rows, key=lambda name: (name != "margins", rows[name].get("units", math.inf))):
        lines.append((name, *_cells(rows[name], case["kind"])))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    body = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:-1], widths[1:]), line[-1]]) for line in lines]
    return "\n".join([title, *(line.rstrip() for line in body)])


def _cells(row: dict, kind: str) -> tuple[str, ...]:
    if "error" in row:
        return "", "", "", "", "", row["error"]
    notes = [f"leaves {what}" for what in row["left"]]
    if row.get("outside", 0) > SLACK:
        notes.append(f"outside by {row['outside']:.1g}")
    if any(row.get("failed", ())):
        notes.append(f"fails on {100 * np.mean(row['failed']):.1f} %")
    found, difference = "", ""
    if kind == "budget":
        found = f"{100 * np.mean(row['robust']):.2f}"
        difference = "" if row["robust_difference"] is None else f"{100 * row['robust_difference']:+.2f}"
    elif kind == "nearest":
        found = f"{np.median(row['distance']):.4f}"
        difference = "" if row["distance_ratio"] is None else f"{row['distance_ratio']:.3f}"
    return str(row["samples"]), f"{row['units']:.1f}", f"{row['of_floor']:.2f}", found, difference, "; ".join(notes)


def plain(value):
    """For JSON, which has no infinity and no nan: they become strings, floats are shortened to six digits."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def numbers(value):
    """What `plain` made of numbers, back."""
    if isinstance(value, dict):
        return {key: numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [numbers(inner) for inner in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


def save(record: dict, folder: Path) -> Path:
    path = folder / f"{record['subject']}-{record['case']['name']}.json"
    with atomic(path) as file:
        file.write((json.dumps(plain(record), indent=1, allow_nan=False) + "\n").encode())
    return path


def read(path: Path) -> dict:
    return numbers(json.loads(path.read_text()))
