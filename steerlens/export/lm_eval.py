"""Plans for EleutherAI's lm-evaluation-harness, whose model `steered` reads a `.pt`.

A file holds, by the name of a module (`layers.3`), one action on its output at every token: "add"
the coefficient times the vector, or "clamp" the length along the vector to the coefficient. Layer N
is ours: both count blocks from 0 and act on their outputs.

https://github.com/EleutherAI/lm-evaluation-harness/blob/main/lm_eval/models/hf_steered.py
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.export.block_outputs import as_steps, block_additions, block_of
from steerlens.export.checkpoints import FAMILIES
from steerlens.export.weight_edits import why_not_everywhere
from steerlens.files import PathLike, as_path, write_atomically
from steerlens.schemas import Declared, check
from steerlens.shapes import Direction
from steerlens.steering import hooks
from steerlens.steering.steering import Steering
from steerlens.vectors.bare_tensors import torch_tensors
from steerlens.vectors.tensor_files import reading
from steerlens.vectors.vector import SteeringVector

INTO = "a file for lm-eval"


class LmEvalWarning(UserWarning):
    """lm-eval, as it is today, does something else with a file than the file says."""


LENGTH_SET: dict[Callable[..., Any], Callable[[Direction, float, Direction | None], float]] = {
    hooks.clamp_direction: lambda direction, strength, reference: strength,
    hooks.ablate_then_add: lambda direction, strength, reference: strength * _length(direction),
    hooks.affine_direction: lambda direction, strength, reference: (
        strength * _length(direction) + _along(reference, direction)
    ),
    hooks.ablate_direction: lambda direction, strength, reference: 0.0,
}
"""The edits that set the length along the direction, and to what."""


@dataclass(frozen=True, eq=False)
class LmEvalFile:
    """What lm-eval does at the output of each module; `lm_eval_file` makes it."""

    actions: Mapping[str, Mapping[str, Any]]
    """By the module's name: `action`, `steering_vector`, `steering_coefficient`, `bias`."""

    def save(self, path: PathLike) -> None:
        """Write a `.pt` of tensors, names and numbers; nothing of it is code.

        Raises:
            SteerlensError: Another ending.
        """
        if as_path(path).suffix.lower() not in (".pt", ".pth"):
            raise SteerlensError(
                f"got {str(path)!r}; expected a name that ends in .pt, as lm-eval does"
            )
        content = {module: dict(action) for module, action in self.actions.items()}
        write_atomically(path, lambda temporary: torch.save(content, temporary))


def lm_eval_file(plan: Steering | Sequence[Steering], model_type: str | None = None) -> LmEvalFile:
    """A plan as lm-eval's steered model does it, exactly.

    Args:
        plan: Unconditional additions to blocks' outputs at every token, and edits that set the
            length along a direction: `clamp_direction`, `ablate_direction` at strength 1,
            `ablate_then_add`, `affine_direction`.
        model_type: Such as "llama", which says how modules are called; None: as the vector's
            provenance has it, or "llama".

    Raises:
        SteerlensError: What lm-eval cannot do, with the reason.

    >>> steering = Steering(SteeringVector(torch.ones(1, 2), layers=(3,)), strength=0.5)
    >>> lm_eval_file(steering).actions["layers.3"]["steering_vector"]
    tensor([0.5000, 0.5000])
    """
    steps = as_steps(plan)
    adding = [step for step in steps if step.edit not in LENGTH_SET]
    added = block_additions(adding, INTO) if adding else {}
    actions = {block: _action("add", vector, 1.0) for block, vector in added.items()}
    setting: dict[int, dict[str, Any]] = {}
    for step in steps:
        if step.edit in LENGTH_SET:
            for block, action in _clamps(step):
                if block in setting or block in actions:
                    raise SteerlensError(
                        f"got two edits of the output of block {block}, one of them {step}; "
                        "expected one, as lm-eval has one action for each module: steer by hooks"
                    )
                setting[block] = action
    if len(added) > 1 and any(not torch.equal(one, added[min(added)]) for one in added.values()):
        warnings.warn(
            f"lm-eval's steered model adds the vector of the last layer, {max(added)}, at all of "
            f"the {len(added)} layers (its hooks share one variable), as of version 0.4.9; the "
            "file is right, but until that is mended steer one layer",
            LmEvalWarning,
            stacklevel=2,
        )
    # Additions last: they take the vector and the number of the last action, whatever that is.
    named = _module_names(steps, model_type)
    return LmEvalFile({named.format(block): one for block, one in (setting | actions).items()})


def read_lm_eval(path: PathLike) -> tuple[Steering, ...]:
    """The plan of a file for lm-eval: what adds, and what clamps.

    Args:
        path: A `.pt` file, of which only tensors, names and numbers are read.

    Raises:
        SteerlensError: Another kind of file, or a broken one.

    >>> steering = Steering(SteeringVector(torch.ones(1, 2), layers=(3,)), strength=0.5)
    >>> lm_eval_file(steering).save("v.pt")
    >>> read_lm_eval("v.pt")
    (Steering(add_direction by-layer strengths (1) × 'v' at resid_post layers 3, all positions),)
    """
    with reading(path, "file for lm-eval"):
        content = torch_tensors(path)
        if not isinstance(content, dict) or not content:
            raise SteerlensError("it holds no actions by the name of a module")
        found: dict[str, dict[int, tuple[Tensor, float]]] = {"add": {}, "clamp": {}}
        for module, action in content.items():
            match = re.fullmatch(r"(?:\w+\.)*(?:layers|h)\.(\d{1,4})", str(module), re.ASCII)
            if match is None:
                raise SteerlensError(f"got the module {module!r}; expected a block: layers.3")
            known = check(_Action, action, f"{path}, {module}")
            vector, number = known.steering_vector.float(), float(known.steering_coefficient)
            if known.action == "clamp" and known.bias is not None:
                number += _along(known.bias.float(), vector)
            found[known.action][int(match[1])] = vector, number
        edits = {"add": hooks.add_direction, "clamp": hooks.clamp_direction}
        name = as_path(path).stem
        return tuple(
            _steering(dict(sorted(layers.items())), edits[kind], name)
            for kind, layers in found.items()
            if layers
        )


class _Action(Declared):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    action: Literal["add", "clamp"]
    steering_vector: Tensor
    steering_coefficient: float
    bias: Tensor | None = None


def _steering(
    layers: Mapping[int, tuple[Tensor, float]], edit: Callable[..., Any], name: str
) -> Steering:
    vectors, numbers = zip(*layers.values(), strict=True)
    vector = SteeringVector(torch.stack(vectors), tuple(layers), provenance={"name": name})
    return Steering(vector, strength=list(numbers), edit=edit)


def _clamps(step: Steering) -> list[tuple[int, dict[str, Any]]]:
    """The block and the action of each layer of a steering that sets a length."""
    reason = why_not_everywhere(step)
    if step.edit is hooks.ablate_direction and any(one != 1 for one in step.strengths):
        reason = "it removes a part of the projection, and lm-eval removes all of it, or none"
    if any(not step.direction(layer).any() for layer in step.layers_steered):
        reason = "its direction is zero at a layer, and lm-eval would divide by its length"
    if reason:
        raise SteerlensError(f"{step} cannot be made {INTO}: {reason}; use its hooks() instead")
    lengths = LENGTH_SET[step.edit]
    return [
        (block_of(step, layer, INTO), _action("clamp", direction, lengths(direction, strength, to)))
        for layer, strength in zip(step.layers_steered, step.strengths, strict=True)
        for direction in [step.direction(layer)]
        for to in [None if step.reference is None else step.reference[layer]]
    ]


def _action(kind: str, vector: Direction, coefficient: float) -> dict[str, Any]:
    return {
        "action": kind,
        "steering_vector": vector.clone(),
        "steering_coefficient": coefficient,
        "bias": None,
    }


def _module_names(steps: Sequence[Steering], model_type: str | None) -> str:
    """How the blocks of a model are called within what transformers calls its `base_model`."""
    known = model_type or steps[0].vector.provenance.get("model_type") or "llama"
    if known not in FAMILIES:
        raise SteerlensError(
            f"got the model type {known!r}; expected one of {', '.join(FAMILIES)}, whose modules' "
            "names are known"
        )
    return FAMILIES[known].attention.partition("{}")[0].partition(".")[2] + "{}"


def _length(direction: Direction) -> float:
    return direction.norm().item()


def _along(reference: Direction | None, direction: Direction) -> float:
    assert reference is not None  # `Steering` asks for it where the edit does
    return (reference @ direction / direction.norm()).item()
