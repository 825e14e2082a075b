"""Checkpoints of a run that is under way: a killed run goes on from the last one and ends in the same numbers."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from margins.errors import MarginsError
from margins.files import atomic

#: Least time between two checkpoints of a run.
SECONDS = 20.0


class OutOfTime(BaseException):  # as KeyboardInterrupt: what guards against a failing model must let it through
    """The time budget has passed; the run's state is saved and the same command goes on from there."""


def _silent(line: str) -> None:
    """Where nobody looks."""


class Checkpoint:
    """The state of one run in a file. `deadline` is a time.monotonic() after which the run stops at its next tick.

    `say(line)` shows a line about how far the run is to whoever looks; it may be called often and changes nothing.
    """

    def __init__(self, path: Path, deadline: float | None = None, say: Callable[[str], None] = _silent):
        self.path, self.deadline, self.say, self._saved = path, deadline, say, time.monotonic()

    def beside(self, name: str) -> "Checkpoint":
        """Another state of the same run, in a file of its own: that of its training, say, and that of an attack."""
        path = self.path.with_name(f"{self.path.stem}-{quote(name, safe='')}{self.path.suffix}")
        return Checkpoint(path, self.deadline, self.say)

    def load(self, *keys: str) -> dict[str, Any] | None:
        """The saved state (tensors, on the CPU, numbers, strings and containers of them), or None. Raises MarginsError.

        `keys` are those that the state must have: another version of the code may have had others.
        """
        if not self.path.exists():
            return None
        import torch

        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if missing := [key for key in keys if key not in state]:
                raise ValueError(f"it has no {', '.join(missing)}")
            return state
        except Exception as error:  # torch raises many kinds for a damaged file
            why = f"{type(error).__name__}: {error}"
            raise MarginsError(
                f"{self.path}: unreadable checkpoint ({why}); delete it to start that run anew"
            ) from error

    def tick(self, state: Callable[[], dict[str, Any]]) -> None:
        """To be called now and then: saves the state when it is time to, and raises OutOfTime past the deadline."""
        late = self.deadline is not None and time.monotonic() > self.deadline
        if late or time.monotonic() - self._saved >= SECONDS:
            import torch

            with atomic(self.path) as file:
                torch.save(state(), file)
            self._saved = time.monotonic()
        if late:
            raise OutOfTime

    def clear(self) -> None:
        """Delete the state, and those beside it."""
        for path in (self.path, *self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}")):
            path.unlink(missing_ok=True)
