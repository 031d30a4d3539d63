"""The plans that a server offers by name, and how requests name them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import NamedTuple

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike, as_path
from steerlens.models.host import Model
from steerlens.steering.fitting import require_fit
from steerlens.steering.plan_files import load_plan
from steerlens.steering.plan_format import PLAN_ENDING
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

_NAME = re.compile(r"[\w.-]{1,100}")


class Dose(NamedTuple):
    """A plan by its name, at a strength."""

    plan: str
    strength: float | None = None
    """Replaces that of every steering of the plan; None: the plan's own."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is steered with under one name."""

    name: str
    steerings: tuple[Steering, ...]
    file: str

    def at(self, strength: float | None) -> tuple[Steering, ...]:
        """Its steerings at another strength; None: as they are.

        >>> [one] = Plan("refuse", (steering,), "refuse.safetensors").at(0.5)
        >>> one.strength
        0.5
        """
        if strength is None:
            return self.steerings
        return tuple(replace(steering, strength=strength) for steering in self.steerings)


def read_plan(
    path: PathLike,
    name: str | None = None,
    *,
    layers: Sequence[int] | None = None,
    strength: float | None = None,
    relative: bool = False,
) -> Plan:
    """Read a plan: a saved one, or a vector and how to steer with it.

    Args:
        path: The file.
        name: The plan's name; None: the file's, without its ending.
        layers: Of a vector: where it steers; None: everywhere.
        strength: Of a vector: how strongly; None: 1.
        relative: Of a vector: whether strengths are fractions of mean activation norms.

    Raises:
        SteerlensError: No such file, a broken one, or settings beside a saved plan, which has its
            own.

    >>> vector.save("refuse.safetensors")
    >>> read_plan("refuse.safetensors", layers=[3]).name
    'refuse'
    """
    file = as_path(path)
    name = file.stem if name is None else name
    if not _NAME.fullmatch(name):
        raise SteerlensError(
            f"got {short_repr(name)} as the name of a plan; expected letters, digits, '_', '-' and "
            "'.' only: give it another name"
        )
    if file.suffix.lower() != PLAN_ENDING:
        at = 1.0 if strength is None else strength
        vector = SteeringVector.load(file)
        return Plan(name, (Steering(vector, layers, at, relative=relative),), file.name)
    if layers is not None or strength is not None or relative:
        raise SteerlensError(
            f"got layers, strength or relative beside the plan {str(path)!r}, which has its own; "
            "leave them out"
        )
    return Plan(name, load_plan(file), file.name)


class Shelf:
    """The plans of a server, by name.

    Args:
        model: The model; its plans must fit it.
        plans: The plans to begin with.
    """

    def __init__(self, model: Model, plans: Sequence[Plan] = ()) -> None:
        self._model = model
        self._plans: dict[str, Plan] = {}
        self._lock = Lock()
        for plan in plans:
            self.add(plan)

    @property
    def plans(self) -> list[Plan]:
        """All plans, in the order in which they came."""
        with self._lock:
            return list(self._plans.values())

    def add(self, plan: Plan) -> None:
        """Offer a plan.

        Raises:
            SteerlensError: It does not fit the model, or another has its name.
        """
        require_fit(self._model, plan.steerings)
        with self._lock:
            if plan.name in self._plans:
                raise SteerlensError(
                    f"got a second plan of the name {plan.name!r}; expected each name once: name "
                    "it otherwise, or unload the first"
                )
            self._plans[plan.name] = plan

    def remove(self, name: str) -> None:
        """Offer a plan no more; requests that run with it go on."""
        with self._lock:
            if name not in self._plans:
                raise self._unknown(name)
            del self._plans[name]

    def steerings(self, doses: Sequence[Dose]) -> tuple[Steering, ...]:
        """What plans at their strengths do together.

        Raises:
            UnknownPlanError: There is no plan of such a name.
        """
        with self._lock:
            unknown = [dose.plan for dose in doses if dose.plan not in self._plans]
            if unknown:
                raise self._unknown(unknown[0])
            plans = [self._plans[dose.plan] for dose in doses]
        return tuple(
            steering
            for plan, dose in zip(plans, doses, strict=True)
            for steering in plan.at(dose.strength)
        )

    def _unknown(self, name: str) -> "UnknownPlanError":
        known = ", ".join(map(repr, self._plans)) or "none"
        return UnknownPlanError(
            f"got the plan {short_repr(name)}; expected one of those loaded: {known}"
        )


class UnknownPlanError(SteerlensError):
    """There is no plan of this name."""


def parse_model(name: str) -> tuple[str, tuple[Dose, ...]]:
    """The model and the plans that the name of a model asks for.

    >>> parse_model("smollm2+refuse@0.3+formal")
    ('smollm2', (Dose(plan='refuse', strength=0.3), Dose(plan='formal', strength=None)))
    """
    base, *plans = name.split("+")
    return base, tuple(map(_dose, plans))


def _dose(text: str) -> Dose:
    plan, at, strength = text.partition("@")
    try:
        return Dose(plan, float(strength) if at else None)
    except ValueError as error:
        raise SteerlensError(
            f"got {short_repr(text)} in the name of a model; expected PLAN or PLAN@STRENGTH, as in "
            "'smollm2+refuse@0.3'"
        ) from error
