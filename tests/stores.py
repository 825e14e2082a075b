"""What a store holds, to compare one with another."""

import json
from pathlib import Path


def contents(results: Path) -> dict[str, object]:
    """Every file of a store: arrays as bytes, records without what tells of time and machine."""
    found = {}
    for path in sorted(results.rglob("*.*")):
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            del record["provenance"]
            found[str(path.relative_to(results))] = record
        elif path.is_file():
            found[str(path.relative_to(results))] = path.read_bytes()
    return found
