"""The benchmarks' harness: its arithmetic, its judgement, its record, and a small real run of our own part."""

import argparse
import ast
import math
import re
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from small import data

from margins import models, paths

sys.path.insert(0, str(paths.REPO))  # the folder lies beside the package, not in it

from benchmarks import __main__ as command
from benchmarks import comparison, evaluation, libraries, report, training, worker
from benchmarks.cases import CASES, SUBJECTS, as_record
from benchmarks.contenders import ours
from benchmarks.judge import Judged, judge
from benchmarks.report import Run
from margins.evaluation import probes
from margins.methods import METHODS
from margins.training import cost

FOLDER = paths.REPO / "benchmarks"


def timed(seconds, robust=(True, False), distance=(math.inf, 0.5), outside=0.0, left=()):
    return Run(seconds, 1.0, 3.0, left, Judged(np.array(robust), np.array(distance), outside))


# --- arithmetic ---------------------------------------------------------------------------------------------------


def test_the_floor_counts_a_backward_as_a_unit_without_its_forward():
    run = Run(seconds=60.0, forward=1.0, unit=3.0)
    assert report.floor_seconds(run, (10, 10)) == 10 * 3.0
    assert report.floor_seconds(run, (1, 9)) == 1 + 9 * 2.0
    assert report.floor_seconds(run, (5000, 0)) == 5000


def test_times_are_medians_of_each_repetitions_own_ratio():
    runs = [Run(30.0, 1.0, 3.0), Run(40.0, 1.0, 2.0), Run(900.0, 1.0, 3.0)]
    row = report.row("value", (4, 4), runs, [])
    assert row["units"] == 20 and row["of_floor"] == 5  # not the median time over the median unit
    assert row["seconds"] == [30, 40, 900] and "robust" not in row


def test_robust_accuracy_differs_from_ours_on_the_samples_that_both_have():
    mine = [timed(1, robust=(True, True, True, False)), timed(1, robust=(True, False, True, True))]
    theirs = [timed(1, robust=(True, True)), timed(1, robust=(True, True), outside=0.2, left=("training mode",))]
    row = report.row("budget", (1, 1), theirs, mine)
    assert row["robust"] == [1, 1] and row["robust_difference"] == pytest.approx((0 + 0.5) / 2)
    assert row["outside"] == 0.2 and row["left"] == ["training mode"]
    assert report.row("budget", (1, 1), mine, mine)["robust_difference"] == 0
    assert report.row("budget", (1, 1), theirs, [])["robust_difference"] is None


def test_distances_are_medians_over_what_was_right_at_first_and_failures_count_as_infinite():
    mine = [timed(1, (False,) * 4, (0, 1.0, 2.0, 3.0))]
    theirs = [timed(1, (False, False, False, True), (0, 1.0, 4.0, math.inf))]
    row = report.row("nearest", (1, 1), theirs, mine)
    assert row["distance"] == [4] and row["distance_ratio"] == 2 and row["failed"] == [0.25]
    assert report.row("nearest", (1, 1), [timed(1, (True, True), (math.inf, math.inf))], mine)["distance"] == [math.inf]


# --- judgement ----------------------------------------------------------------------------------------------------


@pytest.fixture
def line():
    """A model of two classes on the unit square: class 1 where the first pixel is above 0.5."""
    model = models.build("linear", inputs=2, classes=2)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        model.head.bias.copy_(torch.tensor([0.5, -0.5]))
    return model


def test_what_comes_back_is_judged_by_our_own_forward(line):
    x = torch.tensor([[0.4, 0.5], [0.4, 0.5], [0.9, 0.5], [0.4, 0.5]])
    y = torch.tensor([0, 0, 0, 0])
    x_adv = torch.tensor([[0.6, 0.5], [0.4, 0.9], [0.9, 0.5], [0.5, 0.5]])  # broken, not, wrong at first, a tie
    judged = judge(line, x, y, x_adv, norm=2, eps=None, box=True)
    assert judged.robust.tolist() == [False, True, False, False]
    assert judged.distance == pytest.approx([0.2, math.inf, 0, 0.1], abs=1e-6) and judged.outside == 0
    moved = judge(line, x[2:3], y[2:3], torch.tensor([[0.1, 0.5]]), norm=2, eps=None, box=True)
    assert moved.distance.tolist() == [0] and not moved.robust  # a wrong sample that was made right is no defence


@pytest.mark.parametrize(
    ("point", "box", "outside"),
    [((0.8, 0.5), True, 1.0), ((0.6, 1.05), True, 0.05), ((0.6, math.nan), True, math.inf), ((0.6, 0.5), True, 0.0)],
)
def test_points_out_of_ball_or_box_are_no_answer(line, point, box, outside):
    x, y = torch.tensor([[0.4, 1.0 if point[1] > 1 else 0.5]]), torch.tensor([0])
    judged = judge(line, x, y, torch.tensor([point]), norm=math.inf, eps=0.2, box=box)
    assert judged.robust.tolist() == [outside > 0] and judged.outside == pytest.approx(outside, rel=1e-5, abs=1e-6)


def test_rounding_is_no_violation_and_without_a_box_all_is_inside(line):
    x, y = torch.tensor([[0.4, 0.5]]), torch.tensor([0])
    near = judge(line, x, y, torch.tensor([[0.6 + 1e-6, 0.5]]), norm=math.inf, eps=0.2, box=True)
    assert not near.robust.any() and 0 < near.outside < 1e-4
    assert not judge(line, x, y, torch.tensor([[2.0, 0.5]]), norm=2, eps=None, box=False).robust.any()


# --- record and table ---------------------------------------------------------------------------------------------


def example():
    case = CASES["pgd-20-linf"]
    mine, theirs = [timed(63.0), timed(61.0)], [timed(90.0, (True, True)), timed(90.0, (True, True), outside=0.5)]
    rows = {
        "foolbox": {"samples": 2, **report.row("budget", case.floor, theirs, mine)},
        "art": {"error": "could not be installed"},
        "margins": {"samples": 2, **report.row("budget", case.floor, mine, mine)},
    }
    return {"subject": "mlp", "case": as_record(case), "eps": 0.06, "samples": 2, "reps": 2, "libraries": rows}


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = example() | {"odd": {"values": [math.inf, -math.inf, 0.1234567891], "nothing": None}}
    path = report.save(record, tmp_path / "results")
    assert path.name == "mlp-pgd-20-linf.json" and [*path.parent.iterdir()] == [path]
    again = report.read(path)
    assert again["odd"] == {"values": [math.inf, -math.inf, 0.123457], "nothing": None}
    assert again["case"]["norm"] == math.inf and report.table(again) == report.table(record)


def test_the_table_has_ours_first_and_says_what_went_wrong():
    title, head, *rows = report.table(example()).splitlines()
    assert title == "mlp pgd-20-linf: 2 x 2 samples, eps 0.06"
    assert head.split() == ["library", "samples", "u", "/", "floor", "robust", "%", "-", "ours", "notes"]
    assert rows[0].split() == ["margins", "2", "20.7", "1.03", "50.00", "+0.00"]
    assert rows[1].split(maxsplit=6) == ["foolbox", "2", "30.0", "1.50", "100.00", "+50.00", "outside by 0.5"]
    assert rows[2].split(maxsplit=1) == ["art", "could not be installed"]


def test_recorded_results_are_whole():
    recorded = sorted((paths.DATA / "benchmarks").glob("*.json"))
    assert recorded
    for path in recorded:
        record = report.read(path)
        assert path.name == f"{record['subject']}-{record['case']['name']}.json" and not record["changed"]
        assert record["case"] == as_record(CASES[record["case"]["name"]]) | {"norm": record["case"]["norm"]}
        assert re.fullmatch("[0-9a-f]{40}", record["commit"]) and report.table(record)


# --- choices ------------------------------------------------------------------------------------------------------


def test_what_can_be_chosen(tmp_path, capsys):
    quick, full = command.options(["--quick"]), command.options([])
    assert (quick.samples, quick.reps, quick.models) == (100, 1, ["mlp"])
    assert (full.samples, full.reps, full.models) == (1000, 3, list(SUBJECTS)) and full.attacks == list(CASES)
    assert "pgd-100-l2" in quick.attacks and "autoattack-linf" not in quick.attacks
    assert full.libraries == ["margins", "torchattacks", "foolbox", "art"]
    assert "reference" in command.options(["--reference", str(tmp_path)]).libraries
    for line in (["--attacks", "pgd"], ["--samples", "0"], ["--libraries", "reference"], ["--reference", "nowhere"]):
        with pytest.raises(SystemExit) as stop:
            command.options(line)
        assert stop.value.code == 2
    assert "has to name a folder with its sources" in capsys.readouterr().err


def test_a_record_needs_a_clean_checkout(monkeypatch, capsys):
    monkeypatch.setattr(comparison, "commit", lambda: ("0" * 40, True))
    assert command.main(["--record"]) == 1
    assert "commit your changes first" in capsys.readouterr().err


def test_every_case_is_one_that_we_have():
    assert {case.attack for case in CASES.values()} == set(ours.ATTACKS)
    for case in CASES.values():
        given = case.request(SUBJECTS["mlp"])
        assert given["norm"] == case.norm and ("step_size" in given) == case.attack.startswith(("pgd", "cw"))
    assert CASES["pgd-20-linf"].request(SUBJECTS["mlp"])["step_size"] == pytest.approx(2.5 * 0.06 / 20)
    assert CASES["deepfool-l2"].samples("torchattacks", 1000) == 20 < CASES["deepfool-l2"].samples("margins", 1000)


def test_libraries_stay_in_the_benchmarks_and_contenders_know_nothing_of_margins():
    peers = {"torchattacks", "foolbox", "art", "autoattack", "adv_lib", "eagerpy"}
    for folder in ("src", "tests", "benchmarks"):
        for path in (paths.REPO / folder).rglob("*.py"):
            imported = set()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    imported.add(node.module.split(".")[0])
            theirs = path.parent.name == "contenders" and path.name.startswith("with_")
            assert not (imported & ({"margins", "benchmarks"} if theirs else peers)), path


# --- the process --------------------------------------------------------------------------------------------------


def test_a_run_over_the_limit_is_stopped():
    with pytest.raises(TimeoutError, match=r"stopped after 0\.05 s"), worker.limited(0.05):
        while True:
            pass


def test_what_an_attack_leaves_behind_is_seen(line):
    worker.clean(line)
    assert worker.left(line) == []
    line(torch.rand(3, 2)).sum().backward()
    line.train().head.bias.requires_grad_(False)
    assert worker.left(line) == ["training mode", "frozen parameters", "parameter gradients"]
    worker.clean(line)
    forwards, both = worker.units(line, torch.rand(3, 2), torch.zeros(3, dtype=torch.int64), least=0.0)
    assert len(forwards) == len(both) == 3 and min(forwards) >= 0 and worker.left(line) == []


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Our part on an untrained network and noise, and a library that is not there."""
    folder = tmp_path_factory.mktemp("bench")
    model = models.build(SUBJECTS["mlp"].family, **SUBJECTS["mlp"].settings)
    x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    torch.save({"weights": model.state_dict(), "x": x, "y": y}, folder / "mlp.pt")
    given = dict(samples=6, reps=2, seed=0, limit=60, checkouts={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(libraries.LIBRARIES, "lost", libraries.Library("not_there", None))
        with comparison.Comparison(folder / "cache", ["margins", "lost"], **given) as made:
            yield argparse.Namespace(comparison=made, file=folder / "mlp.pt")


def test_our_part_runs_and_a_broken_library_does_not_stop_it(bench, capfd):
    record = bench.comparison.run("mlp", CASES["pgd-20-linf"], bench.file)
    assert record["libraries"]["lost"] == {"error": "does not start"}
    row = record["libraries"]["margins"]
    assert len(row["seconds"]) == len(row["robust"]) == 2 and row["units"] > 10 and row["samples"] == 6
    assert max(row["robust"]) <= 5 / 6 and row["robust_difference"] == 0
    assert row["outside"] <= 1e-4 and row["left"] == []
    assert row["versions"]["torch"] == torch.__version__ and str(paths.REPO) not in str(record)
    assert "lost: see" in capfd.readouterr().err


def test_margins_without_a_judgement_and_a_process_that_died(bench):
    bench.comparison.workers["margins"].process.kill()
    bench.comparison.workers["margins"].process.wait()
    row = bench.comparison.run("mlp", CASES["effective-margin-l2"], bench.file)["libraries"]["margins"]
    assert row["units"] > 2 and "robust" not in row
    broken = bench.comparison.workers["margins"].ask({"subject": "mlp"})
    assert broken["error"].startswith("KeyError") and bench.comparison.workers["margins"].alive


# --- training and evaluation --------------------------------------------------------------------------------------


def test_passes_by_themselves_add_up_to_a_whole_step_and_sgd():
    sizes = {100: dict(forward=1.0, input=2.5, full=3.0, twice=7.0), 10: dict(forward=0.5, input=1.0, full=1.5)}
    took = {(kind, size): seconds for size, found in sizes.items() for kind, seconds in found.items()}
    took["step", 100] = 0.25
    once = Counter({("forward", 100): 1, ("input", 100): 1, ("full", 100): 1, ("twice", 100): 1})
    assert training.bare_seconds(cost.Cost(once, 100), took) == 7 + 0.25
    two_steps = Counter({("forward", 100): 22, ("input", 100): 20, ("full", 100): 2, ("forward", 10): 2})
    assert training.bare_seconds(cost.Cost(two_steps, 200), took) == 10 * 2.5 + 3 + 0.5 + 0.25
    assert ("twice", 100) in training.kinds(cost.Cost(once, 100)) and ("twice", 100) not in training.kinds(
        cost.Cost(two_steps, 200)
    )


def test_the_clock_leaves_out_what_is_between_two_steps(monkeypatch):
    now = iter([10.0, 13.0, 20.0, 24.5, 90.0])
    monkeypatch.setattr(training.time, "process_time", lambda: next(now))
    asked = []
    clock = training.Clock(lambda: asked.append(1))
    assert clock.load("model") is None
    for _ in range(3):
        clock.tick(dict)
    assert clock.seconds == [3.0, 4.5] and len(asked) == 3


def test_steps_of_training_are_measured_and_their_record_is_read(tmp_path, monkeypatch):
    model = models.build("mlp", inputs=6, hidden=(8,), classes=3)
    names, samples = ["ST", "IGR", "AMM"], data(training.BATCH * training.STEPS, dtype=torch.float32)
    record = {"net": "tiny", **training.measure(model, samples, names, reps=1)}
    assert record["rows"]["ST"]["forwards"] == 3 and record["rows"]["IGR"]["forwards"] == 6
    assert all(0 < value < math.inf for row in record["rows"].values() for value in row.values())
    path = training.save(record, tmp_path)
    monkeypatch.setattr(cost, "MEASURED", path.parent)
    assert [row["method"] for row in cost.measured()] == names
    assert [line.split()[0] for line in training.table(record).splitlines()[2:]] == names


def test_an_evaluation_is_measured_without_its_checks():
    model, survey = models.build("linear", inputs=4, classes=3), probes.survey
    x = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    record = evaluation.measure(model, x, model(x).argmax(1), eps=0.1, reps=1)
    assert 0 < record["checks"] < record["seconds"] and record["of_attacks"] > 0
    assert probes.survey is survey


def test_training_and_evaluation_are_commands_by_their_first_word(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(training, "MEASURED", tmp_path)
    assert command.main(["training", "--show"]) == 0 and "nothing is recorded" in capsys.readouterr().out
    monkeypatch.setattr(comparison, "commit", lambda: ("0" * 40, True))
    for name in ("training", "evaluation"):
        assert command.main([name, "--record"]) == 1
        assert "commit your changes first" in capsys.readouterr().err
    assert training.options([]).methods == list(METHODS)
    for line in (["--methods", "PGD"], ["--reps", "0"], ["--record", "--methods", "AT"]):
        with pytest.raises(SystemExit):
            training.options(line)
