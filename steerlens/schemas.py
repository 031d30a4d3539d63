"""What the files of steerlens must hold, declared as pydantic models, and told where they don't."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike, read_json

T = TypeVar("T")


class Declared(BaseModel):
    """A table whose keys and kinds of values are declared; nothing is converted or left unread."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class FileModel(Declared):
    """A whole JSON file, which says by its `format` what it is; a subclass declares a `Literal`."""

    title: ClassVar[str]
    """What people call such a file, with its article."""
    format: str

    @classmethod
    def formats(cls) -> tuple[str, ...]:
        """What `format` may be."""
        return get_args(cls.model_fields["format"].annotation)


Table = TypeVar("Table", bound=Declared)
Model = TypeVar("Model", bound=FileModel)


Many = Annotated[list[T], Field(fail_fast=True)]
"""A list that may be long: the first wrong entry is told, and no other is looked for."""
Numbers = Annotated[Many[float], Field(min_length=1)]
Two = Annotated[list[T], Field(min_length=2, max_length=2)]
"""A pair, as JSON has it."""


def read_as(path: PathLike, *kinds: type[Model]) -> Model:
    """Read a JSON file as the one of `kinds` that its format names."""
    return check_file(read_json(path), path, *kinds)


def check_file(content: Any, path: PathLike, *kinds: type[Model]) -> Model:
    """What was read from a file, as the one of `kinds` that its format names."""
    known = {name: kind for kind in kinds for name in kind.formats()}
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, str) or found not in known:
        got = f"the format {short_repr(found)}" if isinstance(content, dict) else "no table"
        titles = " or ".join(dict.fromkeys(kind.title for kind in kinds))
        expected = " or ".join(map(repr, known))
        raise SteerlensError(
            f"{str(path)!r} is not {titles}: got {got}; expected the format {expected}; "
            "give another file"
        )
    return check(known[found], content, path)


def check(kind: type[Table], content: Any, path: PathLike) -> Table:
    """What was read from a file, as a declared table; the fault is told by its place.

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
    raise SteerlensError(f"in {str(path)!r}, {_told(faults, content)}")


def _told(faults: Sequence[Any], content: Any) -> str:
    """The fault that lies deepest: where a value may be of several kinds, the nearest was meant."""
    places = [_place(fault["loc"], content) for fault in faults]
    deepest = max(places, key=len)
    alike = [fault for fault, place in zip(faults, places, strict=True) if place == deepest]
    fault, where = (
        alike[0],
        "".join(
            f"[{key}]" if isinstance(key, int) else f".{short_repr(key)[1:-1]}" for key in deepest
        ),
    )
    at = f"at {where.removeprefix('.')}" if where else "on the whole"
    if fault["type"] == "missing":
        return f"{at}: got no {fault['loc'][-1]!r}; expected one"
    if fault["type"] == "extra_forbidden":
        return f"{at}: got the unknown key {fault['loc'][-1]!r}; expected none, or another spelling"
    expected = dict.fromkeys(_expected(one) for one in alike)
    return f"{at}: got {short_repr(fault['input'])}; expected {' or '.join(expected)}"


def _expected(fault: Any) -> str:
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    if fault["type"] in ("too_short", "too_long"):
        bound = "min_length" if fault["type"] == "too_short" else "max_length"
        least = "at least" if fault["type"] == "too_short" else "at most"
        return f"{least} {fault['ctx'][bound]} entries"
    said = str(fault["msg"]).removeprefix("Input should be ")
    is_table = fault["type"] in ("dict_type", "model_type")
    return "a table" if is_table else said[:1].lower() + said[1:]


def _place(location: Sequence[int | str], content: Any) -> tuple[int | str, ...]:
    """The keys and numbers on the way to a value; pydantic puts the kinds it tried between them."""
    place: list[int | str] = []
    for key in location:
        is_there = (isinstance(content, dict) and key in content) or (
            isinstance(content, list) and isinstance(key, int) and key < len(content)
        )
        if is_there:
            content = content[key]
            place.append(key)
    return tuple(place)
