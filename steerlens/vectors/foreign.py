"""Vector files of other programs ⇄ named tensors and metadata.

`.svec` (IBM activation-steering) and `.gguf` (repeng, llama.cpp) count blocks from 0, and their
directions live in the blocks' outputs: both are our `resid_post` of the same number. IBM reads
there but steers at the block's *input*: `Steering(site="resid_pre")` does that. IBM and repeng
read the last layer *after* the final norm, and llama.cpp's own cvector-generator writes what it
read at block l as `direction.<l + 1>`; neither can be seen in a file, so neither is undone.

https://github.com/IBM/activation-steering/blob/main/activation_steering/steering_vector.py
https://github.com/vgel/repeng/blob/main/repeng/extract.py
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.cpp
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike

BLOCK_OUTPUT = "resid_post"
"""The site that a direction of another program's file belongs to."""

LARGEST_FILE = 2**28
"""Bytes; thirty times the vector of the largest open model. What is larger is a model."""


class VectorFile(NamedTuple):
    """What a file of vectors holds, whatever its format."""

    tensors: dict[str, Tensor]
    """`directions` [layer, d_model] and `layers`; `norms` and `explained` if they are known."""
    metadata: dict[str, Any]
    """`site` and `provenance`."""


def require_modest_size(size: int) -> None:
    """Refuse what cannot be a vector before it is read."""
    if size > LARGEST_FILE:
        raise SteerlensError(
            f"it holds {size:,} bytes; no steering vector is larger than {LARGEST_FILE:,}: is it a "
            "model?"
        )


def require_floats(name: object, tensor: Tensor) -> None:
    """Refuse whole numbers, quantised ones and sparse layouts."""
    if tensor.layout != torch.strided or not tensor.is_floating_point():
        raise SteerlensError(
            f"{name!r} holds {tensor.dtype} ({tensor.layout}); expected plain floating-point "
            "numbers"
        )


def as_vector_file(
    directions: Mapping[int, Tensor],
    model_type: str | None = None,
    explained: Mapping[int, float] | None = None,
) -> VectorFile:
    """The content of a file that holds a direction for each of some layers."""
    if not directions:
        raise SteerlensError("it holds no direction for any layer")
    for layer, direction in directions.items():
        require_floats(f"layer {layer}", direction)
        if direction.ndim != 1 or not len(direction):
            raise SteerlensError(
                f"the direction of layer {layer} has shape {tuple(direction.shape)}; "
                "expected [d_model]"
            )
    widths = {layer: len(direction) for layer, direction in directions.items()}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{width} at layer {layer}" for layer, width in sorted(widths.items()))
        raise SteerlensError(f"the directions differ in width: {told}")
    layers = sorted(directions)
    tensors = {
        "directions": torch.stack([directions[layer].float() for layer in layers]),
        "layers": torch.tensor(layers),
    }
    if explained:
        tensors["explained"] = torch.tensor([explained[layer] for layer in layers]).float()
    provenance = {} if model_type is None else {"model_type": model_type}
    return VectorFile(tensors, {"site": BLOCK_OUTPUT, "provenance": provenance})


def noted(content: VectorFile, path: PathLike) -> VectorFile:
    """A vector whose provenance says which file it came from, and is named as that is."""
    source = {"format": Path(path).suffix.lower(), "file": Path(path).name}
    provenance = {"name": Path(path).stem} | content.metadata["provenance"] | {"source": source}
    return content._replace(metadata=content.metadata | {"provenance": provenance})


def _layer_number(name: object, pattern: str) -> int:
    found = re.fullmatch(pattern, str(name), re.ASCII)
    if found is None:
        raise SteerlensError(f"{short_repr(name)} names no layer; expected a layer number")
    return int(found[1])


def by_layer(named: Iterable[tuple[object, Any]], pattern: str = r"(\d{1,4})") -> dict[int, Any]:
    """Name → value as layer → value; refuses names that mean no layer, or the same one."""
    by_layer: dict[int, Any] = {}
    for name, value in named:
        layer = _layer_number(name, pattern)
        if layer in by_layer:
            raise SteerlensError(f"it holds layer {layer} twice")
        by_layer[layer] = value
    return by_layer


def rows_by_layer(content: VectorFile) -> dict[int, Tensor]:
    """The direction of each layer."""
    layers = content.tensors["layers"].tolist()
    return dict(zip(layers, content.tensors["directions"].cpu(), strict=True))


def model_type(content: VectorFile) -> str:
    """What other programs note of the model; none of them checks it."""
    provenance = content.metadata["provenance"]
    return str(provenance.get("model_type") or provenance.get("model") or "unknown")
