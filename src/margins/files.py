"""Files that are written whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path

from margins.errors import MarginsError


@contextlib.contextmanager
def atomic(path: Path):
    """A binary file that appears under `path` whole or not at all; a full disk is one clear error."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise MarginsError(f"{path} could not be written ({error}); nothing that was there has changed") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
