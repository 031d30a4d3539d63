"""Plans for vllm-lens, a plugin of vLLM that steers by request.

vLLM itself steers nothing. The plugin takes vectors in a request's `vllm_xargs`, and adds each to
the outputs of blocks at every token of that request.

https://github.com/UKGovernmentBEIS/vllm-lens
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steerlens.export.block_outputs import block_additions
from steerlens.files import PathLike, write_json
from steerlens.shapes import Directions
from steerlens.steering.steering import Steering


@dataclass(frozen=True, eq=False)
class VllmRequest:
    """What a request adds to the outputs of blocks; `vllm_request` makes it."""

    directions: Directions
    layers: tuple[int, ...]

    @property
    def content(self) -> dict[str, Any]:
        """`apply_steering_vectors`, as the plugin reads it."""
        numbers = self.directions.contiguous().numpy().astype("<f4")
        vector = {
            "activations": {
                "data": base64.b64encode(numbers.tobytes()).decode("ascii"),
                "dtype": "float32",
                "shape": list(numbers.shape),
            },
            "layer_indices": list(self.layers),
            "scale": 1.0,
            "norm_match": False,
            "position_indices": None,
        }
        return {"apply_steering_vectors": [vector]}

    @property
    def extra_body(self) -> dict[str, Any]:
        """For `client.chat.completions.create(..., extra_body=…)` of the package openai."""
        return {"vllm_xargs": {name: json.dumps(value) for name, value in self.content.items()}}

    def save(self, path: PathLike) -> None:
        """Write the content as JSON."""
        write_json(path, self.content)


def vllm_request(plan: Steering | Sequence[Steering]) -> VllmRequest:
    """A plan as vllm-lens does it, exactly.

    Args:
        plan: Unconditional additions to blocks' outputs at every token.

    Raises:
        SteerlensError: What it cannot do, with the reason.

    >>> steering = Steering(SteeringVector(torch.ones(2, 2), layers=(3, 4)), [4], strength=0.5)
    >>> vllm_request(steering).content["apply_steering_vectors"][0]["layer_indices"]
    [4]
    """
    added = block_additions(plan, "a request to vllm-lens")
    return VllmRequest(torch.stack([*added.values()]), tuple(added))
