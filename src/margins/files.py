"""Files that are written whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path

from margins.errors import MarginsError


@contextlib.contextmanager
def atomic(path: Path):
    """A binary file that appears under `path` whole or not at all; a full disk is one clear error."""
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        part = Path(name)
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise MarginsError(f"{path} could not be written ({error}); nothing that was there has changed") from error
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
