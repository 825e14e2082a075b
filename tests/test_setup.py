"""What is installed: pyproject.toml, requirements.lock and environment.yml agree, and the wheel carries the data."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from margins import paths

ROOT = paths.REPO
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
#: Names that differ on conda-forge; what it lacks and comes from PyPI; what only the environment itself needs.
CONDA_NAMES = {"torch": "pytorch-cpu"}
FROM_PYPI = {"sphinx-mathjax-offline"}
CONDA_ONLY = {"python", "pip", "setuptools"}
PYTHONS = ("3.11", "3.12", "3.13")
SYSTEMS = {"Linux": ("linux", "posix"), "Darwin": ("darwin", "posix"), "Windows": ("win32", "nt")}


#: Without what a `make test` around us passes on to the makes below it.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


def make(*arguments, cwd):
    return subprocess.run(["make", *arguments], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)


def requirements(lines):
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def locked(python, system):
    """The lock's requirements for one Python on one system, as name -> version."""
    platform, os_name = SYSTEMS[system]
    environment = {
        **default_environment(), "python_version": python, "python_full_version": f"{python}.9", "os_name": os_name,
        "platform_system": system, "sys_platform": platform,
    }  # fmt: skip
    kept = [r for r in map(Requirement, LOCK) if r.marker is None or r.marker.evaluate(environment)]
    names = [canonicalize_name(r.name) for r in kept]
    assert len(set(names)) == len(names)
    return {name: str(r.specifier).removeprefix("==") for name, r in zip(names, kept, strict=True)}


def test_the_supported_pythons_are_those_of_the_ranges():
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [v for v in ("3.10", *PYTHONS, "3.14") if v in allowed] == list(PYTHONS)
    assert f"python {PROJECT['requires-python']}" in CONDA


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_within_its_range(system, python):
    pins = locked(python, system)
    for requirement in map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["tests"]):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    assert {"setuptools", "wheel"} <= set(pins)  # the editable install builds without isolation
    cuda = [name for name in pins if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert bool(cuda) == (system == "Linux")


def test_the_lock_has_exact_versions_and_names_no_place():
    for line in LOCK:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [\w]+ [=!]= \"[\w.]+\")?", line), line
    assert sorted(LOCK, key=lambda line: line.split("==")[0]) == LOCK
    assert "://" not in (ROOT / "requirements.lock").read_text()


def test_this_environment_fits_the_ranges():
    from importlib.metadata import version

    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert requirement.specifier.contains(version(requirement.name), prereleases=True), requirement


def test_conda_has_the_same_names_and_ranges():
    given = requirements(line for line in CONDA if isinstance(line, str))
    (pip,) = (entry["pip"] for entry in CONDA if isinstance(entry, dict))
    assert pip[-1] == "-e ." and set(requirements(pip[:-1])) == FROM_PYPI
    given |= requirements(pip[:-1])
    expected = {CONDA_NAMES.get(name, name): r.specifier for name, r in requirements(PROJECT["dependencies"]).items()}
    assert {name: r.specifier for name, r in given.items() if name not in CONDA_ONLY} == expected
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert requirements(build)["setuptools"].specifier == given["setuptools"].specifier


def test_readme_commands_are_targets_of_make():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = re.findall(r"^    make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands == ["book", "test", "bench"] and set(commands) <= set(targets)
    for target in targets:
        done = make("-n", target, cwd=ROOT)
        assert done.returncode == 0, done.stderr


def test_make_refuses_another_python(tmp_path):
    python = tmp_path / "python-of-another-time"
    code = "import sys; sys.version_info = (3, 14, 0); exec(sys.argv[1])"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$2\"\n")
    python.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    done = make("test", f"PYTHON={python}", cwd=tmp_path)
    assert done.returncode != 0 and f"is needed, but {python} is 3.14; name one" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_citation_licence_and_workflow():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"] == "MIT"
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert citation["repository-code"] == config["repository"]["url"]
    assert citation["authors"][0]["name"] == config["author"] == PROJECT["authors"][0]["name"]
    assert "MIT License" in (ROOT / "LICENSE").read_text() and config["author"] in (ROOT / "LICENSE").read_text()
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())["jobs"]
    runs = [step.get("run") for job in jobs.values() for step in job["steps"]]
    assert {"make test", "make book"} <= set(runs)
    assert set(jobs["test"]["strategy"]["matrix"]["python"]) <= set(PYTHONS)


def test_the_wheel_carries_the_package_and_its_data(tmp_path):
    source = tmp_path / "source"
    for name in ("src", "data/paper", "data/results"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "data" / "cache").mkdir()
    (source / "data" / "cache" / "weights.npz").write_bytes(b"large")
    expected = {
        str(path.relative_to(source / base)).replace(os.sep, "/") if base == "src" else
        "margins/_data/" + str(path.relative_to(source / "data")).replace(os.sep, "/")
        for base in ("src", "data/paper", "data/results")
        for path in (source / base).rglob("*") if path.is_file()
    }  # fmt: skip
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected and "margins/_data/paper/amm/claims.yaml" in names

    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = "from margins import paths; print(paths.REPO, (paths.DATA / 'paper/amm/claims.yaml').is_file())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "None True\n", done.stderr
