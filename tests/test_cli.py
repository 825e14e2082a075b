"""The command line: what it accepts, what it passes on, and its exit status."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import margins
from margins import cli, paths, recording
from margins.cluster import Cluster


def test_record_passes_on_what_was_asked_for(monkeypatch):
    asked = {}
    monkeypatch.setattr(recording, "record", lambda name, **given: asked.update(given, name=name) or 3)
    line = "record amm/toy --scale laptop --seeds 0-2,5 --rows AMM CE --jobs 2 --budget 20m --dry-run --results out"
    assert cli.main(line.split()) == 3
    assert asked == {
        "name": "amm/toy",
        "scale": "laptop",
        "seeds": (0, 1, 2, 5),
        "rows": ("AMM", "CE"),
        "jobs": 2,
        "budget": 1200.0,
        "dry_run": True,
        "results": Path("out"),
        "cluster": None,
    }
    assert cli.main(["record", "amm/toy", "--scale", "quick"]) == 3
    given = [asked[key] for key in ("seeds", "rows", "jobs", "budget", "dry_run", "results")]
    assert given == [None, None, 1, None, False, None]
    for line, cluster in [
        ("--cluster", Cluster(None, 1.0, 0.0)),
        ("--cluster auto --gpus-per-unit 0.5 --cpus-per-unit 4", Cluster("auto", 4.0, 0.5)),
    ]:
        assert cli.main(["record", "amm/toy", "--scale", "quick", *line.split()]) == 3
        assert asked["cluster"] == cluster
    asked.clear()
    assert cli.main(["record", "amm/toy", "--scale", "quick", "--cluster", "--cpus-per-unit", "0"]) == 1 and not asked


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("20m", 1200), ("1.5h", 5400)])
def test_times(text, value):
    assert cli.seconds(text) == value


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--seeds 4-0", "'4-0' given, seeds such as"),
        ("--seeds x", "'x' given, seeds such as"),
        ("--budget 20", "'20' given, a time such as"),
        ("--budget 0m", "'0m' given, a time such as"),
        ("--jobs 0", "'0' given, a whole number from 1"),
        ("--cluster --gpus-per-unit one", "'one' given, a number such as 0, 0.5 or 2"),
        ("--job", "expected one argument"),
    ],
)
def test_a_wrong_command_line_ends_with_2(option, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(f"record amm/toy --scale quick {option}".split())
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


def test_verdicts_prints_the_report(monkeypatch, capsys):
    board = SimpleNamespace(report=lambda paper, as_json: f"{paper} {as_json}")
    monkeypatch.setitem(sys.modules, "margins.scoreboard", board)
    monkeypatch.setattr(margins, "scoreboard", board, raising=False)
    assert cli.main(["verdicts"]) == 0
    assert cli.main(["verdicts", "--paper", "amm", "--json"]) == 0
    assert capsys.readouterr().out == "None False\namm True\n"


def test_without_a_checkout_there_is_no_book(monkeypatch, capsys):
    monkeypatch.setattr(paths, "REPO", None)
    for line in ("book", "tidy", "run amm/toy"):
        assert cli.main(line.split()) == 1
        assert capsys.readouterr().err.startswith("margins: this needs a checkout of the repository")


def test_recording_needs_no_jupyter():
    code = (
        "import sys\nfrom margins.cli import main\nstatus = main(['record', 'no/such', '--scale', 'quick'])\n"
        "print(status, [name for name in sys.modules if name.split('.')[0] in ('IPython', 'papermill', 'nbformat')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1 []\n"
    assert done.stderr.startswith("margins: ") and "no/such" in done.stderr
