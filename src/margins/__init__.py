"""Margins: margin-based adversarial robustness, and the book that checks four papers about it."""

from importlib import import_module

from margins.errors import MarginsError

_ROOMS = ("attacks", "datasets", "losses", "margin", "methods", "models", "training")
__all__ = ["MarginsError", "evaluate", "page"]


def __getattr__(name: str) -> object:
    # Imported on first use: it needs IPython, which `margins record` on a training machine does without.
    if name == "page":
        from margins._page import page

        return page
    if name == "evaluate":  # it needs torch, which takes seconds
        from margins.evaluation import evaluate

        return evaluate
    if name in _ROOMS:  # so that `import margins` is enough
        return import_module(f"margins.{name}")
    raise AttributeError(f"module 'margins' has no attribute {name!r}")
