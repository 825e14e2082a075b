"""A training that is stopped, at any moment and in any way, and goes on ends in the same weights, bit for bit."""

import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from killed_training import ROWS, same, trained
from small import data

from margins.checkpoints import Checkpoint, OutOfTime
from margins.errors import MarginsError

STOPS, KILLS = 20, 3


class Stopping(Checkpoint):
    """Saves, and stops, at its n-th tick."""

    def __init__(self, path, after):
        super().__init__(path)
        self.after = after

    def tick(self, state):
        self.after -= 1
        if not self.after:
            self.deadline = 0.0
        super().tick(state)


@pytest.mark.parametrize("name", ROWS)
def test_stopped_at_random_moments_it_ends_in_the_same_weights(tmp_path, name):
    undisturbed, moments, stops, runs = trained(name, None), random.Random(name), 0, 0
    while stops < STOPS:
        path, runs = tmp_path / f"{runs}.pt", runs + 1
        found = None
        while found is None:
            try:
                found = trained(name, Stopping(path, moments.randint(1, 4)))
            except OutOfTime:
                stops += 1
        assert same(found, undisturbed)


@pytest.mark.parametrize("name", ["LMA-AT", "MAIL", "second derivatives"])
def test_killed_it_ends_in_the_same_weights(tmp_path, name):
    checkpoint, result = tmp_path / "state.pt", tmp_path / "result.pt"
    command = [sys.executable, str(Path(__file__).with_name("killed_training.py")), name, str(checkpoint), str(result)]
    moments, hits = random.Random(name), 0
    for _ in range(KILLS):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        hits += process.poll() is None
        process.kill()
        process.communicate()
    assert hits, "every kill came too late to disturb anything"
    subprocess.run(command, check=True)
    assert same(torch.load(result), trained(name, None))


def test_a_checkpoint_of_something_else_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(MarginsError, match="unreadable checkpoint"):
        trained("MAIL", Checkpoint(path))
    other = Stopping(tmp_path / "other.pt", 3)
    with pytest.raises(OutOfTime):
        trained("LMA-AT", other)
    with pytest.raises(MarginsError, match="of another run"):
        trained("MAIL", Checkpoint(other.path))
    monkeypatch.setattr("killed_training.data", partial(data, seed=9))
    with pytest.raises(MarginsError, match="of another run"):
        trained("LMA-AT", Checkpoint(other.path))
