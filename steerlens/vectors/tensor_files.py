"""Safetensors files with JSON in their metadata, and reading any tensor file with care."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os.path import isfile
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.files import PathLike, naming, parse_json, write_atomically
from steerlens.vectors.foreign import require_modest_size

CONTENT = "steerlens"
"""The key of the metadata that holds the JSON."""


def write_tensors(
    path: PathLike, tensors: Mapping[str, Tensor], content: Any, **header: str
) -> None:
    """Write tensors and JSON atomically.

    Without more of a header, equal content gives equal bytes: safetensors writes the keys of the
    metadata in random order.

    Args:
        path: The file.
        tensors: By name; each may be a view of another.
        content: What is written as JSON.
        **header: More of the metadata.
    """
    metadata = {CONTENT: json.dumps(content, sort_keys=True, allow_nan=False)} | header
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    written = save(copies, metadata)  # not save_file, which raises no OSError if the disk is full
    write_atomically(path, lambda temporary: temporary.write_bytes(written))


def read_tensors(path: PathLike) -> tuple[dict[str, Tensor], Any, dict[str, str]]:
    """The tensors, the JSON (None if there is none) and the metadata of a safetensors file."""
    with safe_open(path, framework="pt") as opened:
        header = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors, parse_json(header.get(CONTENT, "null"), path), header


@contextmanager
def reading(path: PathLike, title: str) -> Iterator[None]:
    """Read a file of tensors: what goes wrong is told with its name and the reason.

    Args:
        path: The file.
        title: What it should be, without the article.

    Raises:
        SteerlensError: There is no such file, it is larger than any such file, or libraries that
            read it raised anything.
    """
    if not isfile(path):
        raise SteerlensError(f"there is no file {str(path)!r}; expected a {title}")
    with naming(path):
        require_modest_size(Path(path).stat().st_size)
        try:
            yield
        except SteerlensError:
            raise
        except Exception as error:  # a hostile file may make the libraries raise anything
            raise SteerlensError(
                f"it is not a readable {title}: {_reason(error)}; "
                "the file may be truncated or from another program"
            ) from error


def _reason(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    return first[:200] or type(error).__name__
