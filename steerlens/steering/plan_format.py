"""`.steer` files: steerings, and all that they are made of ⇄ tensors and JSON.

A plan is a graph of values. Each value of a class in `CLASSES` becomes one table, of those of its
fields that differ from their defaults; other tables refer to it by its number, so that what is
shared, such as a condition's gate, is shared again. A new field needs nothing here; a new class or
function is a line. Functions are stored by name: no file holds code.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

import numpy as np
from pydantic import ConfigDict, Field, create_model
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike, as_path, naming
from steerlens.schemas import Declared, FileModel, check, check_file
from steerlens.steering import hooks, places, schedules, similarities, soft_gates
from steerlens.steering.conditions import Condition
from steerlens.steering.predicates import AllOf, AnyOf, Not
from steerlens.steering.soft_gates import SoftGate
from steerlens.steering.topics import TopicCondition, Topics
from steerlens.vectors.discriminants import Discriminant
from steerlens.vectors.tensor_files import read_tensors, reading, write_tensors
from steerlens.vectors.vector import SteeringVector

PLAN_ENDING = ".steer"
MOST_PARTS = 10_000
"""Most values that one value may unfold to. What is shared twice, and that twice, and so on, would
take years to walk through."""

CLASSES: tuple[type, ...] = (
    SteeringVector,
    Condition,
    TopicCondition,
    Topics,
    Discriminant,
    similarities.Standard,
    Not,
    AllOf,
    AnyOf,
    SoftGate,
    soft_gates.Linear,
    soft_gates.Relu,
    soft_gates.Logistic,
    schedules.Decay,
    schedules.Ramp,
    places.At,
    places.Generated,
    places.TokenIn,
    places.Between,
)
"""What a plan is made of, beside its steerings."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        hooks.add_direction,
        hooks.ablate_direction,
        hooks.ablate_then_add,
        hooks.clamp_direction,
        hooks.cap_direction,
        hooks.floor_direction,
        hooks.move_to_projection,
        hooks.mirror_direction,
        hooks.affine_direction,
        hooks.rotate_to_direction,
        hooks.restore_norm,
        hooks.restore_grown_norm,
        similarities.cast_similarity,
        similarities.cosine,
        similarities.projection,
    )
}
"""Functions that files name; others are the user's own."""

Step = TypeVar("Step")


def write_plan(path: PathLike, steps: Sequence[Any]) -> None:
    """Write steerings atomically; equal plans give equal bytes.

    Args:
        path: The file, which ends in `.steer`.
        steps: The steerings.

    Raises:
        SteerlensError: A value that no file can hold, such as a function without a name.
    """
    require_plan_ending(path)
    with naming(path):
        writer = _Writer({*CLASSES, *map(type, steps)})
        numbers = [writer.number_of(step) for step in steps]
        content = PlanFile(steps=numbers, values=writer.tables)
        write_tensors(path, writer.tensors, content.model_dump())


def read_plan(
    path: PathLike, step: type[Step], functions: Mapping[str, Callable[..., Any]]
) -> tuple[Step, ...]:
    """Read what `write_plan` wrote; a file that is broken or hostile is refused.

    Args:
        path: The file.
        step: The class of a plan's steps.
        functions: The user's own functions that the plan names.
    """
    require_plan_ending(path)
    with reading(path, "plan"):
        tensors, content, _ = read_tensors(path)
        plan = check_file(content, path, PlanFile)
        kinds = {kind.__name__: kind for kind in (step, *CLASSES)}
        reader = _Reader(path, tensors, kinds, functions)
        for table in plan.values:
            reader.add(table)
        return tuple(reader.step(number, step) for number in plan.steps)


def require_plan_ending(path: PathLike) -> None:
    """Refuse file names that are not a plan's."""
    if as_path(path).suffix.lower() != PLAN_ENDING:
        raise SteerlensError(
            f"got {str(path)!r}; expected the name of a plan, which ends in {PLAN_ENDING}"
        )


class PlanFile(FileModel):
    """The JSON of a plan; the values' tables are checked by the annotations of their classes."""

    title = "a plan"
    format: Literal["steerlens.plan/1"] = "steerlens.plan/1"
    steps: Annotated[list[int], Field(min_length=1)]
    """The numbers of the steerings' tables."""
    values: list[dict[str, Any]]


class _Field(NamedTuple):
    """A field of a class in a plan."""

    name: str
    default: Any
    """MISSING: it has none."""
    init: bool
    """Whether the constructor takes it."""


@cache
def _fields_of(kind: type) -> tuple[_Field, ...]:
    """The fields of a dataclass or named tuple."""
    if is_dataclass(kind):
        return tuple(
            _Field(
                one.name,
                one.default if one.default_factory is MISSING else one.default_factory(),
                one.init,
            )
            for one in fields(kind)
        )
    named: Any = kind
    defaults = named._field_defaults
    return tuple(_Field(name, defaults.get(name, MISSING), True) for name in named._fields)


class _Table(Declared):
    model_config = ConfigDict(arbitrary_types_allowed=True)  # tensors, functions, predicates


@cache
def _schema_of(kind: type) -> type[_Table]:
    """What the class's annotations say of its fields, to be checked before it is made."""
    hints = get_type_hints(kind)
    declared = {
        one.name: (hints[one.name], ... if one.default is MISSING else one.default)
        for one in _fields_of(kind)
    }
    schema: type[_Table] = create_model(kind.__name__, __base__=_Table, **declared)  # type: ignore[call-overload]
    return schema


@dataclass
class _Writer:
    """Tables and tensors of the values that were met so far."""

    classes: set[type]
    tables: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)
    """By the identity of a value."""

    def number_of(self, value: Any) -> int:
        """The number of a value's table, which is made when the value is first met."""
        if id(value) not in self._numbers:
            kind: type = type(value)
            table = {
                one.name: self._written(part, f"{kind.__name__}.{one.name}")
                for one in _fields_of(kind)
                for part in [getattr(value, one.name)]
                if one.default is MISSING or not _is(part, one.default)
            }
            self._numbers[id(value)] = len(self.tables)
            self.tables.append({"class": kind.__name__} | table)
        return self._numbers[id(value)]

    def _written(self, value: Any, place: str) -> Any:
        """A value as JSON; tensors are set aside, named by their number and place."""
        match value:
            case None | bool() | int() | str():
                return value
            case float() if math.isfinite(value):
                return value
            case np.generic():
                return self._written(value.item(), place)
            case Tensor():
                name = f"{len(self.tensors)} {place}"
                self.tensors[name] = value
                return {"tensor": name}
            case slice():
                return {"slice": [value.start, value.stop, value.step]}
            case Mapping():
                return {"table": _plain(value)}
            case _ if type(value) in self.classes:
                return {"value": self.number_of(value)}
            case list() | tuple():
                return [self._written(part, place) for part in value]
            case _ if callable(value):
                return _named(value)
        raise SteerlensError(f"got {short_repr(value)}, which a plan's file cannot hold")


def _is(value: Any, default: Any) -> bool:
    """Whether a field has its default, so that it need not be written."""
    return value is default or (
        type(value) is type(default) and not isinstance(value, Tensor) and bool(value == default)
    )


def _plain(table: Mapping[str, Any]) -> Any:
    """A table as JSON gives it back; refuses what JSON cannot hold."""
    try:
        return json.loads(json.dumps(dict(table), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SteerlensError(
            f"got {short_repr(dict(table))}; expected what JSON can hold: {error}"
        ) from error


def _named(function: Callable[..., Any]) -> dict[str, Any]:
    """A function by name: the package's, or the user's own and whether its edits add up."""
    name = getattr(function, "__name__", None)
    if name is None:
        raise SteerlensError(
            f"got {short_repr(function)}, which has no name; expected a function made by def: a "
            "file names it, and load_plan is given it again"
        )
    if FUNCTIONS.get(name) is function:
        return {"function": name}
    return {"own": [name, getattr(function, "adds_up", False)]}


@dataclass
class _Reader:
    """The values of the tables that were read so far."""

    path: PathLike
    tensors: Mapping[str, Tensor]
    classes: Mapping[str, type]
    functions: Mapping[str, Callable[..., Any]]
    values: list[Any] = field(default_factory=list)
    _sizes: list[int] = field(default_factory=list)
    """Of each value: how many it unfolds to."""
    _size: int = 0
    """Of the value that is being read."""

    def add(self, table: dict[str, Any]) -> None:
        """Make a value, of those before it."""
        kind = self.classes.get(str(table.get("class")))
        if kind is None:
            raise SteerlensError(
                f"got {short_repr(table.get('class'))} as a class; expected one of "
                f"{', '.join(self.classes)}: a newer steerlens may have written it"
            )
        self._size = 1
        parts = {name: self._read(part) for name, part in table.items() if name != "class"}
        check(_schema_of(kind), parts, f"{self.path}, {kind.__name__} {len(self.values)}")
        late = {one.name for one in _fields_of(kind) if not one.init} & parts.keys()
        try:
            value = kind(**{name: part for name, part in parts.items() if name not in late})
        except SteerlensError:
            raise
        except Exception as error:  # a hostile table may make a class raise anything
            raise SteerlensError(
                f"{kind.__name__} {len(self.values)} cannot be made ({type(error).__name__}: "
                f"{short_repr(str(error))}); the file may be broken"
            ) from error
        for name in late:
            object.__setattr__(value, name, parts[name])
        self.values.append(value)
        self._sizes.append(self._size)

    def step(self, number: int, step: type[Step]) -> Step:
        """The value of a number, as a step of the plan."""
        value = self._value(number)
        if type(value) is not step:
            raise SteerlensError(f"got {short_repr(value)} as a step; expected a {step.__name__}")
        return value

    def _read(self, written: Any) -> Any:
        """What `_Writer` wrote, as it was."""
        if isinstance(written, list):
            return tuple(map(self._read, written))
        if not isinstance(written, dict):
            return written
        match [*written.items()]:
            case [("tensor", str(name))] if name in self.tensors:
                return self.tensors[name]
            case [("slice", [start, stop, step])] if {type(start), type(stop), type(step)} <= _ENDS:
                return slice(start, stop, step)
            case [("table", dict(table))]:
                return table
            case [("value", number)]:
                return self._value(number)
            case [("function", str(name))] if name in FUNCTIONS:
                return FUNCTIONS[name]
            case [("own", [str(name), bool(adds_up)])]:
                return self._own(name, adds_up)
        raise SteerlensError(
            f"got {short_repr(written)}, which names nothing that this steerlens knows; the file "
            "may be broken, or of a newer one"
        )

    def _value(self, number: Any) -> Any:
        if type(number) is not int or not 0 <= number < len(self.values):
            raise SteerlensError(
                f"got {short_repr(number)} as the number of a value; expected one of the "
                f"{len(self.values)} before it"
            )
        self._size += self._sizes[number]
        if self._size > MOST_PARTS:
            raise SteerlensError(
                f"it unfolds to more than {MOST_PARTS} values; the file is hostile"
            )
        return self.values[number]

    def _own(self, name: str, adds_up: bool) -> Callable[..., Any]:
        own = self.functions.get(name)
        if not callable(own):
            raise SteerlensError(
                f"it uses {short_repr(name)}, a function of its author's own, which no file holds; "
                f"give it: load_plan(path, functions={{{short_repr(name)}: …}})"
            )
        if getattr(own, "adds_up", False) is not adds_up:
            raise SteerlensError(
                f"got {short_repr(name)} with adds_up={not adds_up}; expected {adds_up}, as when "
                f"the plan was saved: give steering_hook({name}, adds_up={adds_up})"
            )
        return own


_ENDS = {int, type(None)}
"""The types of a slice's ends."""


def stand_ins(path: PathLike) -> dict[str, Callable[..., Any]]:
    """For each of its author's own functions that a plan names, one that only has its name.

    With them a plan can be looked at, and saved again, but not run.

    Args:
        path: The `.steer` file.
    """
    with reading(path, "plan"):
        _, content, _ = read_tensors(path)
        plan = check_file(content, path, PlanFile)
    found: dict[str, Callable[..., Any]] = {}
    waiting: list[Any] = [*plan.values]
    while waiting:
        match waiting.pop():
            case {"own": [str(name), bool(adds_up)]}:
                found[name] = _stand_in(name, adds_up)
            case dict(table):
                waiting += table.values()
            case list(parts):
                waiting += parts
    return found


def _stand_in(name: str, adds_up: bool) -> Callable[..., Any]:
    def missing(*arguments: Any) -> Any:
        raise SteerlensError(
            f"got a plan without {name!r}, a function of its author's own; give it: "
            f"load_plan(path, functions={{{name!r}: …}})"
        )

    missing.__name__ = name
    return hooks.steering_hook(missing, adds_up=adds_up)
