"""Schemas of steerlens's files: pydantic models, with errors that name the place of a fault."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike, read_json

T = TypeVar("T")


class Declared(BaseModel):
    """A table with declared keys and types; nothing is converted, unknown keys are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class FileModel(Declared):
    """A JSON file, identified by its `format`, which a subclass declares as a `Literal`."""

    title: ClassVar[str]
    """What users call such a file, with the article."""
    format: str

    @classmethod
    def formats(cls) -> tuple[str, ...]:
        """The allowed values of `format`."""
        return get_args(cls.model_fields["format"].annotation)


Table = TypeVar("Table", bound=Declared)
Model = TypeVar("Model", bound=FileModel)


Many = Annotated[list[T], Field(fail_fast=True)]
"""A list that may be long: only its first wrong entry is reported."""
Numbers = Annotated[Many[float], Field(min_length=1)]
Two = Annotated[list[T], Field(min_length=2, max_length=2)]
"""A list of two."""


def read_as(path: PathLike, *kinds: type[Model]) -> Model:
    """Read a JSON file as the schema, among `kinds`, of its `format`."""
    return check_file(read_json(path), path, *kinds)


def check_file(content: Any, path: PathLike, *kinds: type[Model]) -> Model:
    """Check a file's content against the schema, among `kinds`, of its `format`."""
    known = {name: kind for kind in kinds for name in kind.formats()}
    named = content.get("format") if isinstance(content, dict) else None
    if not isinstance(named, str) or named not in known:
        got = f"the format {short_repr(named)}" if isinstance(content, dict) else "no table"
        titles = " or ".join(dict.fromkeys(kind.title for kind in kinds))
        expected = " or ".join(map(repr, known))
        raise SteerlensError(
            f"{str(path)!r} is not {titles}: got {got}; expected the format {expected}; "
            "give another file"
        )
    return check(known[named], content, path)


def check(kind: type[Table], content: Any, path: PathLike) -> Table:
    """Check content against a schema; the error names the place of the fault.

    Args:
        kind: The schema.
        content: What was read.
        path: Where from, for messages.

    >>> class Point(Declared):
    ...     x: list[int]
    >>> check(Point, {"x": [1, "2"]}, "point.json")
    Traceback (most recent call last):
    steerlens.errors.SteerlensError: in 'point.json', at x[1]: got '2'; expected a valid integer
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    raise SteerlensError(f"in {str(path)!r}, {_describe(faults, content)}")


def _describe(faults: Sequence[Any], content: Any) -> str:
    """Describe the deepest fault: of several allowed types, the one that fits best was meant."""
    places = [_place(fault["loc"], content) for fault in faults]
    deepest = max(places, key=len)
    deepest_faults = [
        fault for fault, place in zip(faults, places, strict=True) if place == deepest
    ]
    fault, where = (
        deepest_faults[0],
        "".join(
            f"[{key}]" if isinstance(key, int) else f".{short_repr(key)[1:-1]}" for key in deepest
        ),
    )
    location = f"at {where.removeprefix('.')}" if where else "on the whole"
    if fault["type"] == "missing":
        return f"{location}: got no {fault['loc'][-1]!r}; expected one"
    if fault["type"] == "extra_forbidden":
        key = fault["loc"][-1]
        return f"{location}: got the unknown key {key!r}; expected none, or another spelling"
    expected = dict.fromkeys(_expected(fault) for fault in deepest_faults)
    return f"{location}: got {short_repr(fault['input'])}; expected {' or '.join(expected)}"


def _expected(fault: Any) -> str:
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    if fault["type"] in ("too_short", "too_long"):
        bound = "min_length" if fault["type"] == "too_short" else "max_length"
        least = "at least" if fault["type"] == "too_short" else "at most"
        return f"{least} {fault['ctx'][bound]} entries"
    message = str(fault["msg"]).removeprefix("Input should be ")
    is_table = fault["type"] in ("dict_type", "model_type")
    return "a table" if is_table else message[:1].lower() + message[1:]


def _place(location: Sequence[int | str], content: Any) -> tuple[int | str, ...]:
    """The keys and indices that lead to a value, without the types that pydantic tried."""
    place: list[int | str] = []
    for key in location:
        is_there = (isinstance(content, dict) and key in content) or (
            isinstance(content, list) and isinstance(key, int) and key < len(content)
        )
        if is_there:
            content = content[key]
            place.append(key)
    return tuple(place)
