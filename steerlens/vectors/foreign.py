"""Vector files of other programs ⇄ named tensors and metadata.

`.svec` (IBM activation-steering) and `.gguf` (repeng, llama.cpp) count blocks from 0, and their
directions belong to the blocks' outputs: `resid_post` of the same layer here. IBM reads there but
steers at the block's *input*, as `Steering(site="resid_pre")` does. IBM and repeng read the last
layer *after* the final norm, and llama.cpp's own cvector-generator writes what it read at block l
as `direction.<l + 1>`; files do not show either, so neither is undone.

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
"""The site of the directions in other programs' files."""

LARGEST_FILE = 2**28
"""Bytes: thirty times the vector of the largest open model. A larger file is a model."""


class VectorFile(NamedTuple):
    """The content of a vector file, in any format."""

    tensors: dict[str, Tensor]
    """`directions` [layer, d_model] and `layers`; `norms` and `explained` if known."""
    metadata: dict[str, Any]
    """`site` and `provenance`."""


def require_modest_size(size: int) -> None:
    """Refuse a file too large for a vector before it is read."""
    if size > LARGEST_FILE:
        raise SteerlensError(
            f"it holds {size:,} bytes; no steering vector is larger than {LARGEST_FILE:,}: is it a "
            "model?"
        )


def require_floats(name: object, tensor: Tensor) -> None:
    """Refuse integers, quantised numbers and sparse layouts."""
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
    """The content of another program's file: a direction for each of its layers.

    >>> as_vector_file({3: torch.ones(2)}).tensors["layers"]
    tensor([3])
    """
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
        listed = ", ".join(f"{width} at layer {layer}" for layer, width in sorted(widths.items()))
        raise SteerlensError(f"the directions differ in width: {listed}; expected one width")
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
    """Record in the provenance which file a vector was read from, and name it after the file."""
    source = {"format": Path(path).suffix.lower(), "file": Path(path).name}
    provenance = {"name": Path(path).stem} | content.metadata["provenance"] | {"source": source}
    return content._replace(metadata=content.metadata | {"provenance": provenance})


def _layer_number(name: object, pattern: str) -> int:
    match = re.fullmatch(pattern, str(name), re.ASCII)
    if match is None:
        raise SteerlensError(f"{short_repr(name)} names no layer; expected a layer number")
    return int(match[1])


def by_layer(named: Iterable[tuple[object, Any]], pattern: str = r"(\d{1,4})") -> dict[int, Any]:
    """Name → value as layer → value; refuses names without a layer number, and duplicates.

    >>> by_layer([("direction.2", "a")], r"direction\\.(\\d+)")
    {2: 'a'}
    """
    values: dict[int, Any] = {}
    for name, value in named:
        layer = _layer_number(name, pattern)
        if layer in values:
            raise SteerlensError(f"it holds layer {layer} twice")
        values[layer] = value
    return values


def rows_by_layer(content: VectorFile) -> dict[int, Tensor]:
    """The direction of each layer."""
    layers = content.tensors["layers"].tolist()
    return dict(zip(layers, content.tensors["directions"].cpu(), strict=True))


def model_type(content: VectorFile) -> str:
    """The model's name for other programs' files; none of them checks it."""
    provenance = content.metadata["provenance"]
    return str(provenance.get("model_type") or provenance.get("model") or "unknown")
