"""Vector files ⇄ named tensors and metadata."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.files import PathLike, write_atomically

VECTOR_FORMAT = "steerlens.vector/1"


class VectorFile(NamedTuple):
    """What a file of vectors holds, whatever its format."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def write_safetensors(path: PathLike, content: VectorFile) -> None:
    """The native format: tensors, and the metadata as one JSON string in the header."""
    header = {"format": VECTOR_FORMAT, "steerlens": json.dumps(content.metadata, sort_keys=True)}
    tensors = {name: tensor.contiguous().cpu() for name, tensor in content.tensors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, header))


def read_safetensors(path: PathLike) -> VectorFile:
    """Read what `write_safetensors` wrote; anything else is refused by name and place."""
    if not Path(path).is_file():
        raise SteerlensError(f"there is no vector file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as opened:
            header = opened.metadata() or {}
            _require_format(path, header.get("format"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = json.loads(header["steerlens"])
    except (SafetensorError, json.JSONDecodeError, KeyError, OSError) as error:
        raise SteerlensError(
            f"{str(path)!r} is not a readable steerlens vector: {error}; "
            "the file may be truncated or from another program"
        ) from error
    if not isinstance(metadata, dict):
        raise SteerlensError(f"the metadata of {str(path)!r} is not a table but {metadata!r}")
    return VectorFile(tensors, metadata)


def _require_format(path: PathLike, found: str | None) -> None:
    if found != VECTOR_FORMAT:
        raise SteerlensError(
            f"{str(path)!r} is a safetensors file of format {found!r}; needed is {VECTOR_FORMAT!r}"
        )
