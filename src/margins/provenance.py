"""Where a record comes from: the machine, the versions and the commit that made it."""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata

from margins import paths


def machine() -> dict:
    """What a run ran on, and with; peak_memory_mib is that of the process so far, or of the GPU where there is one."""
    import resource

    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    device = "cpu"
    if torch.cuda.is_available():
        device, peak = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated() / 2**20
    packages = ("torch", "numpy", "margins-book")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "peak_memory_mib": round(peak),
        "device": f"{device} ({platform.machine()}, {platform.system()})",
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def commit() -> tuple[str | None, str]:
    """The checkout's commit, and why it does not say what runs ("" where it does); changed records do not matter.

    A copy of a clean checkout without its .git, on a training machine, is told its commit by MARGINS_COMMIT.
    """
    if paths.REPO is None:
        return None, ""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=paths.REPO, capture_output=True, text=True)

    head = git("rev-parse", "HEAD") if shutil.which("git") else None
    if head is None or head.returncode:
        commit = os.environ.get("MARGINS_COMMIT")
        return commit, "" if commit else "there is none; MARGINS_COMMIT names that of a copy without .git"
    status = git("status", "--porcelain", "--", ".", ":!data/results")
    if status.returncode:
        return head.stdout.strip(), f"git status fails ({status.stderr.strip()})"
    changes = status.stdout.splitlines()
    return head.stdout.strip(), f"there are uncommitted changes ({changes[0].strip()})" if changes else ""
