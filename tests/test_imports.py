"""Imports go one way, in the order below, and recording needs no Jupyter."""

import ast
import subprocess
import sys

import pytest

import margins
from margins import paths

#: Rooms from the ground up: a module imports from rooms below its own, and from its own room.
ORDER = [
    {"errors", "paths", "files", "_sources", "checks"},
    {"losses", "datasets", "tinyimagenet", "models", "published"},
    {"attacks"},
    {"margin", "planar"},
    {"penalties"},
    {"methods"},
    {"records", "checkpoints"},
    {"training", "evaluation", "imagenet"},
    {"linear"},
    {"experiments", "provenance", "running", "estimates", "search", "cluster", "recording"},
    {"tables"},
    {"intervals", "verdicts", "claims"},
    {"papers"},
    {"scoreboard", "claimpage", "forest"},
    {"parameters", "plots", "_page"},
    {"notebooks", "execution", "rendering", "book", "cli", "__main__"},
]
RANK = {name: rank for rank, room in enumerate(ORDER) for name in room}
FOLDER = paths.REPO / "src" / "margins"
FILES = [path for path in sorted(FOLDER.rglob("*.py")) if path != FOLDER / "__init__.py"]


def room(path):
    return path.relative_to(FOLDER).parts[0].removesuffix(".py")


def imported(path):
    """The parts of margins that a file imports, anywhere in it, as (dotted name below margins, line)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("margins."):
                    yield alias.name.removeprefix("margins."), node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "margins":
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif node.module and node.module.startswith("margins."):
                yield node.module.removeprefix("margins."), node.lineno


def test_the_reader_of_imports_sees_every_form(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "import margins.paths\nimport marginsextra\nfrom margins import errors, records\n"
        "def f():\n    from margins.models.mlp import MLP\n    import torch\n"
    )
    assert [*imported(file)] == [("paths", 1), ("errors", 3), ("records", 3), ("models.mlp", 5)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_imports_go_one_way(path):
    assert room(path) in RANK, f"{path.name} has no place in the order of tests/test_imports.py"
    for name, line in imported(path):
        target = name.split(".")[0]
        if target in dir(margins) and target not in RANK:
            continue  # a name that the package itself exports
        assert target in RANK, f"{path}:{line}: margins.{name} has no place in the order"
        assert RANK[target] <= RANK[room(path)], f"{path}:{line}: {room(path)} lies below {target}"


def test_files_are_no_longer_than_300_lines():
    long = {path.name: n for path in FILES if (n := len(path.read_text(encoding="utf-8").splitlines())) > 300}
    assert not long


@pytest.mark.parametrize("modules", ["margins", "margins.cli", "margins.papers, margins.recording"])
def test_recording_imports_no_jupyter_and_no_plots(modules):
    heavy = "{'jupyter_book', 'papermill', 'IPython', 'nbformat', 'sphinx', 'torchvision', 'matplotlib', 'pandas'}"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
