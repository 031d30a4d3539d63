"""The arms of an evaluation: what replies to the same prompts, to be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from steerlens.data.asking import Asking
from steerlens.errors import SteerlensError
from steerlens.evaluation.controls import random_directions
from steerlens.evaluation.effects import (
    ARMS,
    ASKED,
    ASKED_AND_STEERED,
    NEGATIVE,
    STEERED,
    UNSTEERED,
    is_control,
)
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

Control = SteeringVector | Asking
"""Another vector, or a way to ask for the effect in the prompt."""
Controls = Sequence[Control] | Mapping[str, Control]
"""Controls by name, or named by their provenance and by how they ask."""


class Arm(NamedTuple):
    """One of the things compared, at one strength."""

    name: str
    strength: float
    steering: Steering | None
    asking: Asking | None = None
    """How its prompts ask for the effect."""

    def asked(self, prompts: Sequence[Any]) -> list[Any]:
        """The prompts of this arm."""
        return list(prompts) if self.asking is None else [self.asking(one) for one in prompts]


def named_controls(steering: Steering, controls: int | Controls, seed: int) -> dict[str, Control]:
    """By the name of their arm; vectors without a name are named by their provenance."""
    if isinstance(controls, int):
        if controls < 0:
            raise SteerlensError(f"got controls={controls}; expected 0 or more, or vectors")
        vector = steering.vector.at(steering.layers_steered)
        controls = random_directions(vector, controls, seed=seed)
    if isinstance(controls, Mapping):
        pairs = list(controls.items())
    else:
        pairs = [
            (_name_of(control, number), control) for number, control in enumerate(controls, start=1)
        ]
    names = [name for name, _ in pairs]
    taken = sorted({
        name
        for name in names
        if not is_control(name) or name.endswith(ASKED_AND_STEERED) or names.count(name) > 1
    })  # fmt: skip
    if taken:
        raise SteerlensError(
            f"got controls named {taken}; expected names that differ from each other and from "
            f"{', '.join(ARMS)}: give a mapping of name to vector"
        )
    return dict(pairs)


def _name_of(control: Control, number: int) -> str:
    if isinstance(control, Asking):
        return control.name
    return str(control.provenance.get("name", f"control {number}"))


def arms_of(
    steering: Steering, doses: Sequence[float], controls: Mapping[str, Control], strength: float
) -> list[Arm]:
    """Unsteered, then each vector at each dose; a dose multiplies strengths by layer.

    Then each way to ask, alone and steered as well at one strength.
    """
    vectors = {STEERED: (steering.vector, 1), NEGATIVE: (steering.vector, -1)}
    asking = {name: one for name, one in controls.items() if isinstance(one, Asking)}
    vectors |= {name: (one, 1) for name, one in controls.items() if not isinstance(one, Asking)}
    arms = [Arm(UNSTEERED, 0.0, None)]
    for name, (vector, sign) in vectors.items():
        for dose in (sign * dose for dose in doses):
            arms.append(Arm(name, dose, _at(steering, vector, dose)))
    steered = _at(steering, steering.vector, strength)
    for name, ask in asking.items():
        arms.append(Arm(f"{ASKED}{name}", 0.0, None, ask))
        arms.append(Arm(f"{ASKED}{name}{ASKED_AND_STEERED}", strength, steered, ask))
    return arms


def _at(steering: Steering, vector: SteeringVector, dose: float) -> Steering:
    by_layer = None if isinstance(steering.strength, int | float) else steering.strengths
    strength = dose if by_layer is None else tuple(dose * each for each in by_layer)
    return replace(steering, vector=vector, strength=strength)
