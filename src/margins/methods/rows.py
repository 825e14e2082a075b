"""A training method as a row: what crafts the adversary, which terms are summed, from when on, by which recipe."""

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from margins import checks
from margins.errors import MarginsError
from margins.models.heads import Head
from margins.penalties.context import PLACES, Context, Part

WHERE = ("clean", "adversarial", "both", "parameters")
Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Steps:
    """A coefficient that changes at shares of the training: `Steps(1.0, ((0.6, 0.1), (0.9, 0.01)))`, multipliers.

    Raises MarginsError for shares outside [0, 1] or out of order.
    """

    value: float
    changes: tuple[tuple[float, float], ...]

    def __post_init__(self):
        checks.number("value", self.value)
        object.__setattr__(self, "changes", checks.drops("changes", self.changes))

    def __call__(self, progress: float) -> float:
        # a share such as 0.6 of 15 epochs must not miss its epoch by rounding
        factors = [factor for begin, factor in self.changes if progress >= begin - 1e-9]
        return self.value * (factors[-1] if factors else 1.0)


@dataclass(frozen=True)
class Ramp:
    """A coefficient that grows linearly from 0 to its value in the first share `until`, in (0, 1], of the training."""

    value: float
    until: float

    def __post_init__(self):
        checks.number("value", self.value)
        checks.number("until", self.until, 0, 1, above=True)

    def __call__(self, progress: float) -> float:
        return self.value * min(1.0, progress / self.until)


@dataclass(frozen=True)
class Term:
    """A summand of the training loss: coefficient x mean over the batch of weight x function.

    function: at "clean" or "adversarial" samples a per-sample loss (logits (B, K), y (B,)) -> (B,), as those of
        `margins.losses`; at "both" (adversarial logits, clean logits, y) -> (B,); of the "parameters" (model) -> a
        number; or a `Part`, which is asked as part(context, at).
    coefficient: a number, or a function of the share of the training that is done.
    weight: None, or a `Part`: one number a sample, (B,). A weight that is to carry no gradient detaches it itself, as
        MAIL's and GAIRAT's do.
    """

    function: Callable[..., Tensor] | Part
    at: str = "adversarial"
    coefficient: float | Schedule = 1.0
    weight: Part | None = None

    def __post_init__(self):
        if not callable(self.function):
            raise MarginsError(f"function of a term must be a function or a Part, but is {self.function!r}")
        checks.choice("at", self.at, WHERE)
        if not callable(self.coefficient):
            checks.number("coefficient", self.coefficient)
        if self.weight is not None and not isinstance(self.weight, Part):
            raise MarginsError(f"weight of a term must be a Part or None, but is {self.weight!r}")
        if isinstance(self.function, Part) and self.at not in self.function.places:
            raise MarginsError(f"at: {self.name} can be asked at {', '.join(self.function.places)}, not at {self.at}")
        if self.weight is not None and self.at == "parameters":
            raise MarginsError("weight: a term of the parameters has no samples to weight")

    @property
    def name(self) -> str:
        return called(self.function)

    def scale(self, progress: float) -> float:
        """The coefficient at that share of the training."""
        return self.coefficient(progress) if callable(self.coefficient) else self.coefficient

    def values(self, context: Context) -> Tensor:
        """The weighted values, (B,), or a number () of the parameters."""
        if self.at == "parameters":
            return torch.as_tensor(self.function(context.model))
        if isinstance(self.function, Part):
            found = self.function(context, self.at)
        elif self.at == "both":
            found = self.function(context.logits("adversarial"), context.logits("clean"), context.y)
        else:
            found = self.function(context.logits(self.at), context.y)
        if found.shape != context.y.shape:
            raise MarginsError(f"term {self.name} must return {tuple(context.y.shape)}, but gave {tuple(found.shape)}")
        return found if self.weight is None else self.weight(context, self.at) * found


@dataclass(frozen=True)
class Phase:
    """Craft and terms from a share `begin` of the epochs on. craft: a `Part` that sets `context.x_adv`, or None."""

    craft: Part | None
    terms: tuple[Term, ...]
    begin: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "terms", tuple(self.terms))
        if self.craft is not None and not isinstance(self.craft, Part):
            raise MarginsError(f"craft must be a Part or None, but is {self.craft!r}")
        if not self.terms or not all(isinstance(term, Term) for term in self.terms):
            raise MarginsError(f"terms must be one or more Terms, but are {self.terms!r}")
        if checks.number("begin", self.begin, 0, 1) == 1:
            raise MarginsError("begin must be less than 1, or the phase has no epoch")
        looking = [term.name for term in self.terms if term.at in ("adversarial", "both")]
        if self.craft is None and looking:
            raise MarginsError(f"craft: {', '.join(looking)} look at adversarial samples, but nothing crafts them")

    @property
    def parts(self) -> list[Part]:
        """Craft, penalties and weights that are more than functions of logits, each once."""
        found = [self.craft, *(one for term in self.terms for one in (term.function, term.weight))]
        return list({id(part): part for part in found if isinstance(part, Part)}.values())

    @property
    def differentiated(self) -> frozenset[tuple[str, str]]:
        """(place, mode) of the forwards that a term differentiates to the input."""
        asked = [(term.at, part) for term in self.terms for part in (term.function, term.weight)]
        return frozenset((at, mode) for at, part in asked if isinstance(part, Part) for mode in part.input_grad)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each term, as "cross_entropy at clean"; of equal ones the second is numbered 2."""
        found: list[str] = []
        for term in self.terms:
            name, count = f"{term.name} at {term.at}", 1
            while (unique := f"{name} ({count})" if count > 1 else name) in found:
                count += 1
            found.append(unique)
        return tuple(found)

    def first(self, epochs: int) -> int:
        """The epoch, counted from 0, that it begins with; a share such as 0.6 of 15 must not miss it by rounding."""
        return math.ceil((self.begin - 1e-9) * epochs)

    @property
    def looked(self) -> frozenset[str]:
        """The places that the terms look at."""
        return frozenset(place for term in self.terms for place in PLACES if term.at in (place, "both"))


@dataclass(frozen=True)
class Row:
    """One training method.

    craft, terms: of the first phase; later: the phases after it, in order.
    head: what replaces the model's last layer (`margins.models.heads`), None to leave it.
    start: the row whose trained weights it starts from, None for new ones.
    recipe: fields of the recipe that this method needs otherwise than the table has them.
    source: the paper, and the place in it. note: how it differs from that, where it does.
    """

    craft: Part | None
    terms: tuple[Term, ...]
    later: tuple[Phase, ...] = ()
    head: Head | None = None
    start: "Row | None" = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    note: str = ""

    def __post_init__(self):
        begins = [phase.begin for phase in self.phases]
        if begins != sorted(set(begins)):
            raise MarginsError(f"later: phases must begin one after the other, but begin at {begins}")
        if self.start is not None and self.start.head != self.head:
            raise MarginsError(f"start: the row to start from has the head {self.start.head}, this one {self.head}")

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(self.craft, self.terms), *self.later)

    def check(self, epochs: int) -> None:
        """Raise MarginsError where a phase would have no epoch."""
        firsts = [phase.first(epochs) for phase in self.phases]
        for phase, first, end in zip(self.phases, firsts, [*firsts[1:], epochs], strict=True):
            if first >= end:
                raise MarginsError(f"epochs: of {epochs} none is left for the phase that begins at {phase.begin:.3g}")

    @property
    def selection(self) -> str:
        """What the best epoch is selected by: "PGD-10", or "clean" accuracy where nothing is crafted."""
        return "PGD-10" if any(phase.craft is not None for phase in self.phases) else "clean"

    def describe(self) -> dict[str, Any]:
        """Everything of the row that decides the outcome of its training, as JSON."""
        told = {"phases": [describe(phase) for phase in self.phases], "recipe": describe(dict(self.recipe))}
        told |= {"selection": "clean"} if self.selection == "clean" else {}
        told |= {"head": describe(self.head)} if self.head is not None else {}
        return told | ({"start": self.start.describe()} if self.start is not None else {})


def called(function: object) -> str:
    """A short name for a function, a partial of one, or a part."""
    if isinstance(function, partial):
        return called(function.func)
    return function.__name__ if isinstance(function, FunctionType) else type(function).__name__


def describe(value: Any) -> Any:
    """`value` as JSON: functions by module and name, parts and other dataclasses by their settings and revision.

    What is not of this package has the digest of its source too: nobody raises a revision while trying things out.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return [describe(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): describe(one) for name, one in value.items()}
    if isinstance(value, FunctionType):
        name = f"{value.__module__.removeprefix('margins.')}.{value.__qualname__}"
        if value.__closure__:  # what it holds can be anything
            raise MarginsError(f"{name} closes over variables: give it what it is to know by functools.partial")
        told = " ".join([name, *_sources([value])])
        given = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return {"function": told, "defaults": describe(given)} if given and not _ours(value.__module__) else told
    if isinstance(value, partial):
        return {"function": describe(value.func), "given": describe([*value.args, value.keywords])}
    if is_dataclass(value):
        told = {"kind": type(value).__name__} | {one.name: describe(getattr(value, one.name)) for one in _told(value)}
        told |= {"revision": value.revision} if isinstance(value, Part) else {}
        return told | _own(value)
    raise MarginsError(
        f"{value!r} of a row can't be recorded: use functions, functools.partial, numbers, text, and dataclasses"
    )


def _told(value: Any) -> list[Field]:
    return [one for one in fields(value) if "added" not in one.metadata or getattr(value, one.name) != one.default]


def _own(value: Any) -> dict[str, Any]:
    """What else decides of a dataclass from outside the package: the source of its methods, and its class attributes.

    Raises MarginsError for one with settings that are no fields.
    """
    kinds = [kind for kind in type(value).__mro__ if not _ours(kind.__module__) and kind is not object]
    names = {one.name for one in fields(value)}
    plain = {
        name: one for kind in reversed(kinds) for name, one in vars(kind).items()
        if isinstance(one, bool | int | float | str | tuple) and not name.startswith("__") and name not in names
    }  # fmt: skip
    other = sorted(set(vars(value)) - names - {"state"}) if kinds else []
    if other or any("__dataclass_fields__" not in vars(kind) for kind in kinds):
        what = f"{', '.join(other)} of {type(value).__name__}" if other else type(value).__name__
        raise MarginsError(f"{what} can't be recorded: make it a dataclass, and each setting a field with its type")
    methods = [one for kind in kinds for one in vars(kind).values() if isinstance(one, FunctionType)]
    # dataclasses writes methods that have no source
    sources = _sources([one for one in methods if inspect.unwrap(one).__code__.co_filename != "<string>"])
    return ({"source": sources} if sources else {}) | ({"class": describe(plain)} if plain else {})


def _ours(module: str | None) -> bool:
    """Whether it is of the package, where a revision is raised by who changes a result; a paper's tables are not."""
    return (module or "").split(".")[0] == "margins" and not (module or "").startswith("margins.papers.")


def _sources(functions: list[FunctionType]) -> list[str]:
    """A digest of the source of those that are not this package's; [] where all are. What they call is not in it."""
    own = [one for one in functions if not _ours(one.__module__)]
    try:
        text = "".join(inspect.getsource(one) for one in own)
    except OSError as error:
        names = ", ".join(one.__qualname__ for one in own)
        raise MarginsError(f"the source of {names} can't be read ({error}): write it in a file or a notebook") from None
    return [hashlib.sha256(text.encode()).hexdigest()[:16]] if own else []
