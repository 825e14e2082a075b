"""A page's typed parameters: lines `name: type = literal  # meaning and unit`, read without executing them."""

import ast
import difflib
import io
import json
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass

from margins.errors import MarginsError

Value = int | float | str | bool | list
TYPES = ("int", "float", "str", "bool", "list[int]", "list[float]", "list[str]")
_SCALARS = {"int": int, "float": (int, float), "str": str, "bool": bool}


def fits(value: object, type_: str) -> bool:
    """Tell whether `value` has the declared type: an int is a float, a bool is neither, lists go by their elements."""
    if type_.startswith("list["):
        return isinstance(value, list) and all(fits(item, type_[5:-1]) for item in value)
    return isinstance(value, _SCALARS[type_]) and (type_ == "bool" or not isinstance(value, bool))


@dataclass(frozen=True)
class Parameter:
    """One declared parameter of a page."""

    name: str
    type: str
    default: Value
    comment: str

    def __str__(self) -> str:
        return f"{self.name}: {self.type} = {self.default!r}" + (f"  # {self.comment}" if self.comment else "")

    def parse(self, text: str) -> object:
        """Read a value from the command line, lists as JSON; what is not of the type comes back as it is."""
        reader = {"int": int, "float": float, "str": str}.get(self.type, json.loads)
        try:
            return reader(text.lower() if self.type == "bool" else text)
        except ValueError:
            return text


def read(source: str, *, strict: bool = False) -> dict[str, Parameter]:
    """Return the parameters that a parameters cell declares, by name.

    Raises MarginsError, naming the line, for anything but one-line annotated assignments of literals; `strict` also
    asks for a comment on each line.
    """
    try:
        body = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError) as error:
        raise MarginsError(f"the parameters cell is not Python: {error}") from None
    comments = {token.start[0]: token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT}
    declared: dict[str, Parameter] = {}
    for node in body:
        line = source.splitlines()[node.lineno - 1]

        def refuse(why: str, line: str = line) -> MarginsError:
            return MarginsError(f"parameters cell, line {line!r}: {why}")

        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            raise refuse("expected `name: type = literal  # meaning and unit`, nothing else")
        if node.end_lineno != node.lineno:
            raise refuse("expected one line for each parameter")
        name, type_ = node.target.id, ast.unparse(node.annotation)
        if type_ not in TYPES:
            raise refuse(f"type {type_} given, one of {', '.join(TYPES)} expected")
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise refuse("the default is not a literal") from None
        if not fits(default, type_):
            raise refuse(f"the default is not of type {type_}")
        if name in declared:
            raise refuse(f"{name} is declared twice")
        comment = comments.get(node.lineno, "")
        if strict and not comment:
            raise refuse("expected a comment with the meaning and the unit")
        declared[name] = Parameter(name, type_, default, comment)
    return declared


def check(declared: Mapping[str, Parameter], given: Mapping[str, object], page: str) -> None:
    """Raise MarginsError, with all that is declared, where a given name is unknown or a value has another type."""
    wrong = []
    for name, value in given.items():
        if name not in declared:
            near = difflib.get_close_matches(name, list(declared), n=1)
            wrong.append(f"unknown parameter {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        elif not fits(value, declared[name].type):
            wrong.append(f"parameter {name}: {value!r} given, {declared[name].type} expected")
    if wrong:
        lines = "\n".join(f"  {parameter}" for parameter in declared.values())
        raise MarginsError(f"{'; '.join(wrong)}. The parameters of {page}, with their defaults:\n{lines}")


def parse(declared: Mapping[str, Parameter], given: Mapping[str, str], page: str) -> dict[str, Value]:
    """Return the values that a command line gives as texts. Raises MarginsError as `check` does."""
    values = {name: declared[name].parse(text) if name in declared else text for name, text in given.items()}
    check(declared, values, page)
    return values
