"""The book's own pages, executed at their quick scale: in the checkout, without data, and as on Colab."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from margins import notebooks, paths

PAGES = notebooks.pages(paths.REPO)
#: Those that load a data set that can be missing.
LIVE = [page for page, path in PAGES.items() if re.search(r"margins\.page\(.*data=(?!.{1,2}toy2d)", path.read_text())]

assert {"amr/logistic-regression", "practice/own-method", "practice/own-model"} <= set(LIVE)


def papermill(python: str, source: Path, target: Path, env: dict[str, str]) -> str:
    """Execute a notebook with its quick parameters by plain papermill; return what was said. Fails if it failed."""
    quick = notebooks.read(source).metadata["margins"]["quick"]
    command = [python, "-m", "papermill", str(source), str(target), "-k", "python3", "--no-progress-bar"]
    for name, value in quick.items():
        command += ["-p", name, str(value)]
    done = subprocess.run(command, env={**os.environ, **env}, cwd=source.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def shown(notebook: Path) -> str:
    """All Markdown that an executed notebook displays."""
    outputs = [output for cell in notebooks.read(notebook).cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    return "\n".join(str(o.get("data", {}).get("text/markdown", "")) for o in outputs)


@pytest.fixture(scope="module")
def executed(request, tmp_path_factory):
    """Of each test below that was asked for, by its name: a future of its executed page, two at a time."""
    folder, settings = tmp_path_factory.mktemp("executed"), {"MARGINS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(test: str, page: str) -> Path:
        target = folder / f"{test} {page.replace('/', ' ')}.ipynb"
        without = {"MARGINS_CACHE": str(target.with_suffix("")), "MARGINS_DATA": ""} if "without_data" in test else {}
        papermill(sys.executable, PAGES[page], target, settings | without)
        return target

    asked = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    with ThreadPoolExecutor(2) as pool:
        yield {item.name: pool.submit(run, item.originalname, item.callspec.params["page"]) for item in asked}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("page", PAGES)
def test_page_at_its_quick_scale(page, executed, request):
    """On real data where they can be had without a download, on the digits otherwise."""
    assert f"margins run {page}" in shown(executed[request.node.name].result())


@pytest.mark.parametrize("page", LIVE)
def test_without_data_and_network_a_page_runs_on_digits_and_says_so(page, executed, request):
    text = shown(executed[request.node.name].result())
    assert "This page asks for the data set `mnist`, which cannot be had here" in text
    assert "was computed on `digits` in its place" in text


def bare_environment(folder: Path) -> Path:
    """An environment with the package installed as a wheel, and no checkout; the other packages are this one's."""
    source = folder / "source"
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths.REPO / name, source / name)
    shutil.copytree(paths.REPO / "src" / "margins", source / "src" / "margins")
    for part in ("paper", "results"):
        shutil.copytree(paths.DATA / part, source / "data" / part)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(build, check=True)
    venv.create(folder / "env")
    python = folder / "env" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], **PIPE
    ).stdout.strip()
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    # A plain path: what this environment has installed in editable mode is not seen through it
    (Path(site) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


PIPE = {"check": True, "capture_output": True, "text": True}
MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(done.stderr, file=sys.stderr)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_a_page_as_on_colab(tmp_path):
    """The package as a wheel, the notebook alone in another folder, in less than 2 GB of memory."""
    python = str(bare_environment(tmp_path))
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MARGINS_DATA")}
    env |= {"MARGINS_OFFLINE": "1", "HOME": str(tmp_path), "MARGINS_CACHE": ""}
    where = subprocess.run([python, "-c", "import margins.paths as p; print(p.REPO, p.DATA)"], env=env, **PIPE).stdout
    assert where.startswith("None ") and where.strip().endswith(os.path.join("margins", "_data"))
    alone = tmp_path / "alone"
    alone.mkdir()
    for page in ("amm/toy", "amr/logistic-regression"):
        notebook, out = alone / "page.ipynb", alone / "out.ipynb"
        shutil.copy(PAGES[page], notebook)
        run = [python, "-m", "papermill", str(notebook), str(out), "-k", "python3", "--no-progress-bar"]
        for name, value in notebooks.read(notebook).metadata["margins"]["quick"].items():
            run += ["-p", name, str(value)]
        done = subprocess.run([python, "-c", MEASURED, *run], env=env, cwd=alone, **PIPE)
        status, peak = map(int, done.stdout.split())
        assert status == 0, done.stderr
        assert peak * (1 if sys.platform == "darwin" else 1024) < 2e9
        assert f"margins run {page}" in shown(out)
