"""`.svec` files: the JSON of IBM/activation-steering."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.files import PathLike, read_json, write_json
from steerlens.vectors.foreign import (
    BLOCK_OUTPUT,
    VectorFile,
    as_vector_file,
    by_layer,
    model_type,
    rows_by_layer,
)


def write_svec(path: PathLike, content: VectorFile) -> None:
    """Directions and explained variances by layer, as activation-steering writes them."""
    explained = content.tensors.get("explained")
    rows = rows_by_layer(content)
    values = {} if explained is None else dict(zip(rows, explained.tolist(), strict=True))
    write_json(
        path,
        {
            "model_type": model_type(content),
            "directions": {str(layer): row.tolist() for layer, row in rows.items()},
            "explained_variances": {str(layer): value for layer, value in values.items()},
        },
    )


def read_svec(path: PathLike) -> VectorFile:
    """Read what activation-steering wrote; a direction stays at the block output it was read at."""
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("directions"), dict):
        raise SteerlensError(
            f"{str(path)!r} is no .svec file; needed is a table with 'model_type', 'directions' "
            "(layer → numbers) and 'explained_variances'"
        )
    variances = found.get("explained_variances") or {}
    if not isinstance(variances, dict):
        raise SteerlensError(f"'explained_variances' in {str(path)!r} is no table of layers")
    rows = by_layer(path, found["directions"].items())
    explained = by_layer(path, variances.items())
    if explained and explained.keys() != rows.keys():
        raise SteerlensError(
            f"{str(path)!r} has directions for layers {sorted(rows)}, but explained variances for "
            f"{sorted(explained)}; the file may be incomplete"
        )
    return as_vector_file(
        path,
        {layer: _numbers(path, layer, row) for layer, row in rows.items()},
        None if found.get("model_type") is None else str(found["model_type"]),
        {layer: _numbers(path, layer, [value]).item() for layer, value in explained.items()},
    )


def _numbers(path: PathLike, layer: int, row: Any) -> Tensor:
    numbers = [] if not isinstance(row, list) else row
    if not numbers or not all(type(number) in (int, float) for number in numbers):
        raise SteerlensError(f"layer {layer} in {str(path)!r} is no list of numbers")
    return torch.tensor([float(number) for number in numbers])


def svec_left_out(path: PathLike, content: VectorFile) -> list[str]:
    """The file holds directions, explained variances and one word on the model."""
    site, provenance = content.metadata["site"], content.metadata["provenance"]
    kept = {"model_type" if provenance.get("model_type") else "model", "source"}
    if provenance.get("name") == Path(path).stem:  # as which it is loaded again
        kept.add("name")
    told = sorted(provenance.keys() - kept)
    lost = [f"the site {site!r}"] if site != BLOCK_OUTPUT else []
    lost += ["the activation norms"] if "norms" in content.tensors else []
    return lost + ([f"the provenance ({', '.join(told)})"] if told else [])
