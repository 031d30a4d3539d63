"""Vector files ⇄ named tensors and metadata; the ending of a file's name says its format."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike, parse_json, write_atomically
from steerlens.vectors.bare_tensors import numpy_arrays, read_bare, torch_tensors
from steerlens.vectors.foreign import VectorFile, require_floats, require_modest_size
from steerlens.vectors.gguf import gguf_left_out, read_gguf, write_gguf
from steerlens.vectors.svec import read_svec, svec_left_out, write_svec

VECTOR_FORMAT = "steerlens.vector/1"


class LossyFormatWarning(UserWarning):
    """A vector was saved in a format that cannot hold all of it; the message says what is lost."""


class Format(NamedTuple):
    """How files of one ending are read and written."""

    title: str
    read: Callable[..., VectorFile]
    write: Callable[[PathLike, VectorFile], object] | None = None
    """None: files of others that are read only."""
    left_out: Callable[[PathLike, VectorFile], list[str]] = lambda path, content: []
    """What of a vector is lost, or means something else to other programs."""
    names_layers: bool = True
    """False: `read` takes the layer from its caller, who may know it when the file doesn't."""


def read_vector_file(path: PathLike, layer: int | None = None) -> VectorFile:
    """Read a file by its ending; what is broken is refused by file, place and reason."""
    form = _format_of(path)
    _require_modest_file(path)
    if layer is not None and form.names_layers:
        raise SteerlensError(
            f"layer={layer} came for {str(path)!r}, but a {form.title} says itself which layers "
            f"it holds; load it without, then take .at([{layer}])"
        )
    try:
        content = form.read(path) if form.names_layers else form.read(path, layer)
    except SteerlensError:
        raise
    except Exception as error:  # whatever a hostile file makes the libraries raise
        raise SteerlensError(
            f"{str(path)!r} is not a readable {form.title}: {_reason(error)}; "
            "the file may be truncated or from another program"
        ) from error
    _require_sound(path, content)
    return content


def write_vector_file(path: PathLike, content: VectorFile) -> None:
    """Write a file by its ending, atomically."""
    writer_of(path)(path, content)


def left_out(path: PathLike, content: VectorFile) -> list[str]:
    """What the format that `path` ends in cannot hold of a vector, in words."""
    writer_of(path)
    return _format_of(path).left_out(path, content)


def writer_of(path: PathLike) -> Callable[[PathLike, VectorFile], object]:
    """What writes the format that `path` ends in; refuses endings that cannot be written."""
    form = _format_of(path)
    if form.write is None:
        written = ", ".join(ending for ending, other in FORMATS.items() if other.write)
        raise SteerlensError(f"{str(path)!r}: a {form.title} is only read; save as {written}")
    return form.write


def _format_of(path: PathLike) -> Format:
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise SteerlensError(
            f"the ending {ending!r} of {str(path)!r} names no format of vectors; "
            f"the endings are {', '.join(FORMATS)}"
        )
    return FORMATS[ending]


def _require_modest_file(path: PathLike) -> None:
    path = Path(path)
    if not path.is_file():
        raise SteerlensError(f"there is no vector file {str(path)!r}")
    require_modest_size(path, path.stat().st_size)


def _reason(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    return first[:200] or type(error).__name__


def _require_sound(path: PathLike, content: VectorFile) -> None:
    """What every format must give, before values are looked at."""
    for name in ("directions", "layers"):
        if name not in content.tensors:
            raise SteerlensError(f"the vector file {str(path)!r} lacks {name!r}")
    for name, kind in (("site", str), ("provenance", dict)):
        if name not in content.metadata:
            raise SteerlensError(f"the vector file {str(path)!r} lacks {name!r}")
        if not isinstance(content.metadata[name], kind):
            raise SteerlensError(
                f"the {name} in {str(path)!r} is {short_repr(content.metadata[name])}; "
                f"needed is a {kind.__name__}"
            )
    layers = content.tensors["layers"]
    if layers.ndim != 1 or layers.dtype != torch.int64 or (layers < 0).any():
        raise SteerlensError(
            f"the layers in {str(path)!r} are {layers.dtype} of shape {tuple(layers.shape)}; "
            "needed is a row of int64, none negative"
        )
    if not content.tensors["directions"].numel():
        raise SteerlensError(f"the directions in {str(path)!r} are empty")
    for name in {"directions", "norms", "explained"} & set(content.tensors):
        require_floats(path, name, content.tensors[name])
        content.tensors[name] = content.tensors[name].float()  # some kinds can do no arithmetic


# .safetensors: the native format, which holds everything


def write_safetensors(path: PathLike, content: VectorFile) -> None:
    """The native format: tensors, and the metadata as one JSON string in the header."""
    header = {"format": VECTOR_FORMAT, "steerlens": json.dumps(content.metadata, sort_keys=True)}
    tensors = {name: tensor.contiguous().cpu() for name, tensor in content.tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, header)
        except SafetensorError as error:  # it wraps the disk's errors in its own
            raise OSError(str(error)) from error

    write_atomically(path, write)


def read_safetensors(path: PathLike) -> VectorFile:
    """Read what `write_safetensors` wrote; anything else is refused by name and place."""
    with safe_open(path, framework="pt") as opened:
        header = opened.metadata() or {}
        _require_format(path, header.get("format"))
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    metadata = parse_json(header.get("steerlens", "null"), path)
    if not isinstance(metadata, dict):
        raise SteerlensError(
            f"the metadata of {str(path)!r} is not a table but {short_repr(metadata)}"
        )
    return VectorFile(tensors, metadata)


def _require_format(path: PathLike, found: str | None) -> None:
    if found != VECTOR_FORMAT:
        raise SteerlensError(
            f"{str(path)!r} is a safetensors file of format {short_repr(found)}; "
            f"needed is {VECTOR_FORMAT!r}"
        )


FORMATS = {
    ".safetensors": Format("steerlens vector", read_safetensors, write_safetensors),
    ".svec": Format("activation-steering vector", read_svec, write_svec, svec_left_out),
    ".gguf": Format("GGUF control vector", read_gguf, write_gguf, gguf_left_out),
    ".pt": Format(
        "file of bare tensors", partial(read_bare, unpack=torch_tensors), names_layers=False
    ),
    ".npz": Format(
        "file of bare arrays", partial(read_bare, unpack=numpy_arrays), names_layers=False
    ),
}
"""Ending → format. A new format is a line here."""
