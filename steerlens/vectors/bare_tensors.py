"""`.pt` and `.npz` files: tensors without metadata, read without running any code."""

import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike
from steerlens.vectors.foreign import (
    VectorFile,
    as_vector_file,
    by_layer,
    noted,
    require_floats,
    require_modest_size,
)

LARGEST_SCRIPT = 2**18
"""Most bytes of the pickle in a `.pt`, which names the tensors; 100 layers take 2**14."""


def read_bare(
    path: PathLike,
    layer: int | None = None,
    *,
    unpack: Callable[[PathLike], Tensor | Mapping[Any, Any]],
) -> VectorFile:
    """Read one tensor of all layers, one direction of one layer, or one direction for each layer.

    Args:
        path: The file; a single direction's layer is taken from its name, if that has one, as in
            CAA's `vec_layer_13_<model>.pt`. A tensor [layer, d_model] begins at layer 0.
        layer: The layer of a single direction.
        unpack: Gives the file's tensor, or its tensors by name.
    """
    _require_modest_archive(path)
    unpacked = unpack(path)
    if isinstance(unpacked, Mapping) and len(unpacked) == 1 and not _names_layers(unpacked):
        [unpacked] = unpacked.values()
    named = unpacked if isinstance(unpacked, Mapping) else {"the tensor": unpacked}
    for name, tensor in named.items():
        _require_stored(name, tensor)
    many = isinstance(unpacked, Mapping) or (unpacked.ndim == 2 and len(unpacked) != 1)
    if many and layer is not None:
        raise SteerlensError(
            f"got layer={layer}; expected none, as it holds {len(unpacked)} layers: load it "
            f"without, then take .at([{layer}])"
        )
    if isinstance(unpacked, Mapping):
        directions = by_layer(named.items(), _LAYER_NAME)
    elif many:
        directions = dict(enumerate(unpacked))
    else:
        directions = {_layer_of(path, layer): unpacked.reshape(-1)}
    return noted(as_vector_file(directions), path)


_LAYER_NAME = r"(?:layer[_.-]?)?(\d{1,4})"


def _names_layers(named: Mapping[Any, Any]) -> bool:
    return all(re.fullmatch(_LAYER_NAME, str(name), re.ASCII) for name in named)


def _layer_of(path: PathLike, layer: int | None) -> int:
    if layer is not None:
        return layer
    layers = {int(number) for number in re.findall(r"(?i)layer[_.-]?(\d{1,4})", Path(path).stem)}
    if len(layers) != 1:
        raise SteerlensError(
            "it holds one direction and does not say of which layer; give the layer: "
            "SteeringVector.load(path, layer=13)"
        )
    return layers.pop()


def _require_stored(name: object, tensor: object) -> None:
    """Refuse a tensor that is not of floats, or whose strides reach past the data in the file."""
    if not isinstance(tensor, Tensor):
        raise SteerlensError(f"{name!r} is a {type(tensor).__name__}; expected a tensor")
    require_floats(name, tensor)
    if tensor.device.type != "cpu" or tensor.ndim not in (1, 2):
        raise SteerlensError(
            f"{name!r} has shape {tuple(tensor.shape)} on {tensor.device.type}; "
            "expected [d_model] or [layer, d_model]"
        )
    stored = tensor.untyped_storage().nbytes()
    if math.prod(tensor.shape) * tensor.element_size() > stored:
        raise SteerlensError(
            f"{name!r} declares the shape {tuple(tensor.shape)}, but {stored} bytes are stored"
        )


def _require_modest_archive(path: PathLike) -> None:
    """Both formats are zip archives, which may unpack to far more than their size."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    require_modest_size(sum(entry.file_size for entry in entries))
    kinds = {entry.compress_type for entry in entries}
    if kinds - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:  # others may take much memory
        raise SteerlensError(f"it uses a compression that tensor files never have: {kinds}")


_TENSOR_GLOBALS = re.compile(
    r"collections OrderedDict|torch (\w+Storage|[a-z]\w+)"
    r"|torch\._utils _rebuild_(tensor_v2|parameter|sparse_tensor|qtensor)"
    r"|torch\.serialization _get_layout"
)


def _require_only_tensors(path: PathLike) -> None:
    """Refuse names that `torch.load` allows, but that no saved tensor needs.

    `bytearray` is one: it allocates any number of bytes.
    """
    with zipfile.ZipFile(path) as archive:
        scripts = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
        if len(scripts) != 1 or scripts[0].file_size > LARGEST_SCRIPT:
            raise ValueError("torch.save writes one short data.pkl")
        script = archive.read(scripts[0])
    for code, arg, _ in pickletools.genops(script):
        if code.name == "GLOBAL" and not _TENSOR_GLOBALS.fullmatch(str(arg)):
            raise ValueError(f"it uses {short_repr(arg)}, which no plain tensor needs")


def torch_tensors(path: PathLike) -> Any:
    """The content of a `torch.save` file; only tensors and containers are unpickled."""
    _require_only_tensors(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _require_stored_arrays(path: PathLike) -> None:
    """Refuse headers that declare more data than is stored: NumPy allocates it before reading."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as opened:
                major = np.lib.format.read_magic(opened)[0]
                read = getattr(np.lib.format, f"read_array_header_{min(major, 2)}_0")
                shape, _, dtype = read(opened)
            if math.prod(shape) * dtype.itemsize > entry.file_size:
                raise SteerlensError(
                    f"{short_repr(entry.filename)} declares the shape {short_repr(shape)} of "
                    f"{dtype}, but {entry.file_size} bytes are stored"
                )


def numpy_arrays(path: PathLike) -> dict[str, Tensor]:
    """The arrays of a `numpy.savez` file; arrays of objects, which are pickles, are refused."""
    _require_stored_arrays(path)
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {name: torch.from_numpy(np.atleast_1d(array)) for name, array in arrays.items()}
