"""Vector files ⇄ named tensors and metadata; the file's ending is its format."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike, as_path, naming
from steerlens.schemas import Declared, check
from steerlens.vectors.bare_tensors import numpy_arrays, read_bare, torch_tensors
from steerlens.vectors.foreign import VectorFile, require_floats
from steerlens.vectors.gguf import gguf_left_out, read_gguf, write_gguf
from steerlens.vectors.svec import read_svec, svec_left_out, write_svec
from steerlens.vectors.tensor_files import read_tensors, reading, write_tensors

VECTOR_FORMAT = "steerlens.vector/1"


class LossyFormatWarning(UserWarning):
    """A vector was saved in a format that cannot hold all of it; the message says what is lost."""


class Format(NamedTuple):
    """How files of one ending are read and written."""

    title: str
    read: Callable[..., VectorFile]
    write: Callable[[PathLike, VectorFile], object] | None = None
    """None for formats that are only read."""
    left_out: Callable[[PathLike, VectorFile], list[str]] = lambda path, content: []
    """What is lost of a vector, or means something else to other programs."""
    names_layers: bool = True
    """False if files may lack the layer; `read` then takes it as an argument."""


def read_vector_file(path: PathLike, layer: int | None = None) -> VectorFile:
    """Read a vector file by its ending; errors name the file, the place in it and the reason.

    Args:
        path: The file.
        layer: The layer of a `.pt` or `.npz` file with one direction.
    """
    form = _format_of(path)
    if layer is not None and form.names_layers:
        raise SteerlensError(
            f"got layer={layer} for {str(path)!r}; expected none, as a {form.title} names its own "
            f"layers: load it without, then take .at([{layer}])"
        )
    with reading(path, form.title):
        content = form.read(path) if form.names_layers else form.read(path, layer)
        return _sound(content, path)


def write_vector_file(path: PathLike, content: VectorFile) -> None:
    """Write a file by its ending, atomically."""
    with naming(path):
        writer_of(path)(path, content)


def left_out(path: PathLike, content: VectorFile) -> list[str]:
    """What the format of `path` cannot hold of a vector, in words."""
    writer_of(path)
    return _format_of(path).left_out(path, content)


def writer_of(path: PathLike) -> Callable[[PathLike, VectorFile], object]:
    """The function that writes the format of `path`; refuses formats that are only read."""
    form = _format_of(path)
    if form.write is None:
        written = ", ".join(ending for ending, other in FORMATS.items() if other.write)
        raise SteerlensError(f"{str(path)!r}: a {form.title} is only read; save as {written}")
    return form.write


def _format_of(path: PathLike) -> Format:
    ending = as_path(path).suffix.lower()
    if ending not in FORMATS:
        raise SteerlensError(
            f"got the ending {ending!r} in {str(path)!r}; expected one of a vector file: "
            f"{', '.join(FORMATS)}"
        )
    return FORMATS[ending]


class _Metadata(Declared):
    site: str
    provenance: dict[str, Any]


def _sound(content: VectorFile, path: PathLike) -> VectorFile:
    """Check what every format must give; `SteeringVector` checks the values."""
    metadata = check(_Metadata, content.metadata, path).model_dump()
    for name in ("directions", "layers"):
        if name not in content.tensors:
            raise SteerlensError(f"it lacks {name!r}; the file may be incomplete")
    layers = content.tensors["layers"]
    if layers.ndim != 1 or layers.dtype != torch.int64 or (layers < 0).any():
        raise SteerlensError(
            f"the layers are {layers.dtype} of shape {tuple(layers.shape)}; "
            "expected a 1-D tensor of int64, none negative"
        )
    if not content.tensors["directions"].numel():
        raise SteerlensError("the directions are empty; expected [layer, d_model]")
    tensors = dict(content.tensors)
    for name in {"directions", "norms", "explained"} & set(tensors):
        require_floats(name, tensors[name])
        tensors[name] = tensors[name].float()  # some dtypes support no arithmetic
    return VectorFile(tensors, metadata)


# .safetensors: the native format, which holds everything


def write_safetensors(path: PathLike, content: VectorFile) -> None:
    """The native format: tensors, and the metadata as one JSON string in the header."""
    write_tensors(path, content.tensors, content.metadata, format=VECTOR_FORMAT)


def read_safetensors(path: PathLike) -> VectorFile:
    """Read what `write_safetensors` wrote; a file of another format is refused."""
    tensors, metadata, header = read_tensors(path)
    if header.get("format") != VECTOR_FORMAT:
        raise SteerlensError(
            f"got a safetensors file of format {short_repr(header.get('format'))}; "
            f"expected {VECTOR_FORMAT!r}"
        )
    return VectorFile(tensors, metadata)


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
