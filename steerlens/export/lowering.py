"""Plans in the terms of other programs: exactly, or refused with the reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from steerlens.errors import SteerlensError, short_repr
from steerlens.export.block_outputs import as_steps, control_vector
from steerlens.export.exporting import Certificate, export_model
from steerlens.export.lm_eval import lm_eval_file
from steerlens.export.vllm_lens import vllm_request
from steerlens.export.weight_edits import require_constant
from steerlens.files import PathLike
from steerlens.steering.steering import Steering


@runtime_checkable
class Lowered(Protocol):
    """A plan in the terms of another program."""

    def save(self, path: PathLike) -> Any:
        """Write the file or directory that the program reads."""


@dataclass(frozen=True)
class SteeredCheckpoint:
    """A Hugging Face directory whose biases do what a plan does; `save` writes and verifies it."""

    plan: Sequence[Steering]
    source: PathLike

    def save(self, path: PathLike) -> Certificate:
        """Write the directory; see `export_model`."""
        return export_model(self.plan, self.source, path)


def steered_checkpoint(
    plan: Steering | Sequence[Steering], source: PathLike = "tiny-chat"
) -> SteeredCheckpoint:
    """A plan as a Hugging Face checkpoint, to be written by `save`.

    Args:
        plan: Unconditional additions to every token, at any site that a bias shifts.
        source: The model's Hugging Face directory, or "tiny-chat".

    Raises:
        SteerlensError: What a bias cannot do.

    >>> steered_checkpoint(Steering(vector, [3])).source
    'tiny-chat'
    """
    steps = as_steps(plan)
    for step in steps:
        require_constant(step)
    return SteeredCheckpoint(tuple(steps), source)


TARGETS: dict[str, Callable[..., Lowered]] = {
    "hf": steered_checkpoint,
    "gguf": control_vector,
    "lm-eval": lm_eval_file,
    "vllm": vllm_request,
}
"""Programs by name: transformers and all that load its checkpoints, llama.cpp,
lm-evaluation-harness, vLLM with vllm-lens."""


def lower(plan: Steering | Sequence[Steering], to: str, **options: Any) -> Lowered:
    """A plan in the terms of another program, which does exactly the same; `save` writes it.

    Args:
        plan: One steering or several.
        to: One of `TARGETS`.
        **options: Those of the target: `source` for "hf", `model_type` for "lm-eval".

    Raises:
        SteerlensError: What the program cannot do, with the reason: conditions, chosen positions,
            kept norms, edits, sites.

    >>> lower(Steering(vector, [2, 3], strength=4.0), "gguf").save("refuse.gguf")
    """
    if to not in TARGETS:
        raise SteerlensError(f"got {short_repr(to)}; expected one of {', '.join(TARGETS)}")
    return TARGETS[to](plan, **options)
