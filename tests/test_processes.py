"""Several processes on one machine train the network that one process trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_processes import REFUSED, ROWS, all_rows

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    result = tmp_path_factory.mktemp("processes") / "result.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(result)],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return torch.load(result), all_rows()


@pytest.mark.parametrize("name", ROWS)
def test_two_processes_equal_one_with_the_same_batches(told, name):
    two, one = told[0][name], told[1][name]
    assert two.keys() == one.keys()
    for key, value in one.items():
        assert torch.allclose(two[key], value, rtol=1e-9, atol=1e-12), key


def test_all_hear_what_the_first_one_does_alone(told):
    # both get 5, a message and the end of time as they were; of another failure the second one hears that there was one
    assert told[0]["alone"] == [10, 2, 2, 1]


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_the_whole_batch_is_refused_in_two_and_trained_in_one(told, name):
    assert told[1][name] == ""
    assert "batch" in told[0][name]
