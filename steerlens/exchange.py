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

import json
import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steerlens.errors import SteerlensError, shown
from steerlens.files import PathLike, parse_json, read_json, write_atomically, write_json

BLOCK_OUTPUT = "resid_post"
"""The site that a direction of another program's file belongs to."""

LARGEST_FILE = 2**28
"""Bytes; thirty times the vector of the largest open model. What is larger is a model."""
LARGEST_SCRIPT = 2**18
"""Bytes of the pickle in a `.pt`, which names the tensors; 100 layers take 2**14."""
LARGEST_HEADER = 100_000
"""Reads that the header of a GGUF file may take; a control vector of 100 layers takes 1,000."""

_GGUF_ARCHITECTURE = "controlvector"
_GGUF_METADATA = "steerlens.metadata"


class VectorFile(NamedTuple):
    """What a file of vectors holds, whatever its format."""

    tensors: dict[str, Tensor]
    """`directions` [layer, d_model] and `layers`; `norms` and `explained` if they are known."""
    metadata: dict[str, Any]
    """`site` and `provenance`."""


# .svec: JSON of IBM/activation-steering


def write_svec(path: PathLike, content: VectorFile) -> None:
    """Directions and explained variances by layer, as activation-steering writes them."""
    explained = content.tensors.get("explained")
    rows = _rows(content)
    values = {} if explained is None else dict(zip(rows, explained.tolist(), strict=True))
    write_json(
        path,
        {
            "model_type": _model_type(content),
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
    rows = _by_layer(path, found["directions"].items())
    explained = _by_layer(path, variances.items())
    if explained and explained.keys() != rows.keys():
        raise SteerlensError(
            f"{str(path)!r} has directions for layers {sorted(rows)}, but explained variances for "
            f"{sorted(explained)}; the file may be incomplete"
        )
    return _placed(
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


# .gguf: control vectors of repeng and llama.cpp


def write_gguf(path: PathLike, content: VectorFile) -> None:
    """Tensors `direction.<layer>`; what only steerlens reads is one more string of metadata."""
    gguf = _gguf()
    rows = _rows(content)
    if 0 in rows:
        rest = sorted(rows)[1:]
        raise SteerlensError(
            f"{str(path)!r}: llama.cpp never steers the output of layer 0, and rejects control "
            "vectors that have a direction for it; "
            + (f"save vector.at({rest}), or all" if rest else "save it")
            + " as .safetensors"
        )
    own = {name: content.tensors[name].tolist() for name in _OWN & content.tensors.keys()}

    def write(temporary: Path) -> None:
        writer = gguf.GGUFWriter(temporary, _GGUF_ARCHITECTURE)
        try:
            writer.add_string(f"{_GGUF_ARCHITECTURE}.model_hint", _model_type(content))
            writer.add_uint32(f"{_GGUF_ARCHITECTURE}.layer_count", len(rows))
            writer.add_string(_GGUF_METADATA, json.dumps(content.metadata | own, sort_keys=True))
            for layer, row in rows.items():
                writer.add_tensor(f"direction.{layer}", row.numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    write_atomically(path, write)


_OWN = {"norms", "explained"}
"""Tensors that are metadata in GGUF: llama.cpp rejects files with tensors it does not know."""


def read_gguf(path: PathLike) -> VectorFile:
    """Read a control vector; `direction.0`, which only repeng writes, is block 0's output too."""
    gguf = _gguf()
    with np.errstate(over="raise"):
        reader = _bounded_reader(gguf, path)
    if reader.get_field("general.architecture") is None:
        raise SteerlensError(f"{str(path)!r} names no architecture; needed is a control vector")
    named = [(tensor.name, tensor) for tensor in reader.tensors]
    tensors = _by_layer(path, named, r"direction\.(\d{1,4})")
    hint = reader.get_field(f"{_GGUF_ARCHITECTURE}.model_hint")
    content = _placed(
        path,
        {layer: _gguf_tensor(gguf, path, tensor) for layer, tensor in tensors.items()},
        None if hint is None else _text(hint),
    )
    own = reader.get_field(_GGUF_METADATA)
    return (
        content if own is None else _with_own_metadata(path, content, parse_json(_text(own), path))
    )


def _with_own_metadata(path: PathLike, content: VectorFile, own: Any) -> VectorFile:
    """What `write_gguf` added, over what a foreign file gives."""
    if not isinstance(own, dict) or not isinstance(own.get("provenance"), dict):
        raise SteerlensError(f"{_GGUF_METADATA!r} in {str(path)!r} is not what steerlens writes")
    tensors = {name: torch.tensor(own[name]).float() for name in _OWN & own.keys()}
    source = content.metadata["provenance"]["source"]
    provenance = own["provenance"] | {"source": source}
    metadata = {"site": own.get("site"), "provenance": provenance}
    return VectorFile(content.tensors | tensors, metadata)


def _gguf_tensor(gguf: ModuleType, path: PathLike, tensor: Any) -> Tensor:
    kinds = gguf.GGMLQuantizationType
    if tensor.tensor_type not in (kinds.F16, kinds.F32, kinds.F64):
        raise SteerlensError(
            f"{tensor.name!r} in {str(path)!r} is of type {tensor.tensor_type.name}; "
            "needed are floating-point numbers"
        )
    with np.errstate(over="raise"):
        # a copy, so that the file is let go
        return torch.from_numpy(np.array(tensor.data, dtype=np.float32))


def _bounded_reader(gguf: ModuleType, path: PathLike) -> Any:
    """gguf's own reader goes on past the end of a file, and as long as a header tells it to."""

    class BoundedReader(gguf.GGUFReader):  # type: ignore[name-defined]
        _reads = 0

        def _get(self, offset: Any, dtype: Any, count: Any = 1, *args: Any, **kwargs: Any) -> Any:
            self._reads += 1
            if self._reads > LARGEST_HEADER:
                raise SteerlensError(
                    f"the header of {str(path)!r} is larger than a control vector's can be"
                )
            found = super()._get(offset, dtype, count, *args, **kwargs)
            if len(found) != count:
                raise ValueError(f"{int(count)} values are declared past the end, at byte {offset}")
            return found

        def _push_field(self, field: Any, *args: Any, **kwargs: Any) -> Any:
            # Here, so that a model is refused before its vocabulary is read.
            if field.name == "general.architecture" and _text(field) != _GGUF_ARCHITECTURE:
                raise SteerlensError(
                    f"{str(path)!r} is a GGUF file of architecture {shown(_text(field))}; "
                    f"needed is {_GGUF_ARCHITECTURE!r}"
                )
            return super()._push_field(field, *args, **kwargs)

    return BoundedReader(path)


def _text(field: Any) -> str:
    return bytes(field.parts[field.data[0]]).decode()


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise SteerlensError(
            "GGUF control vectors need the gguf package: pip install 'steerlens[exchange]'"
        ) from error
    return gguf


def gguf_left_out(path: PathLike, content: VectorFile) -> list[str]:
    """Other programs read no metadata of ours: what they would do differently is lost on them."""
    site = content.metadata["site"]
    return [f"the site {site!r} for llama.cpp and repeng"] if site != BLOCK_OUTPUT else []


# .pt and .npz: bare tensors, as contrastive activation addition (CAA) saves them


def read_bare(
    path: PathLike,
    layer: int | None = None,
    *,
    unpack: Callable[[PathLike], Tensor | Mapping[Any, Any]],
) -> VectorFile:
    """One tensor of all layers, one of the layer in the file's name or `layer`, or one for each.

    A tensor [layer, d_model] begins at layer 0. CAA calls its files `vec_layer_13_<model>.pt`.
    """
    _require_modest_archive(path)
    found = unpack(path)
    if isinstance(found, Mapping) and len(found) == 1 and not _names_layers(found):
        [found] = found.values()
    named = found if isinstance(found, Mapping) else {"the tensor": found}
    for name, tensor in named.items():
        _require_stored(path, name, tensor)
    many = isinstance(found, Mapping) or (found.ndim == 2 and len(found) != 1)
    if many and layer is not None:
        raise SteerlensError(
            f"layer={layer} came for {str(path)!r}, which holds {len(found)} layers; "
            f"load it without, then take .at([{layer}])"
        )
    if isinstance(found, Mapping):
        return _placed(path, _by_layer(path, named.items(), _LAYER_NAME))
    if many:
        return _placed(path, dict(enumerate(found)))
    return _placed(path, {_layer_of(path, layer): found.reshape(-1)})


_LAYER_NAME = r"(?:layer[_.-]?)?(\d{1,4})"


def _names_layers(named: Mapping[Any, Any]) -> bool:
    return all(re.fullmatch(_LAYER_NAME, str(name), re.ASCII) for name in named)


def _layer_of(path: PathLike, layer: int | None) -> int:
    if layer is not None:
        return layer
    told = {int(number) for number in re.findall(r"(?i)layer[_.-]?(\d{1,4})", Path(path).stem)}
    if len(told) != 1:
        raise SteerlensError(
            f"{str(path)!r} holds one direction and does not say of which layer; "
            "give it: SteeringVector.load(path, layer=13)"
        )
    return told.pop()


def _require_stored(path: PathLike, name: object, tensor: object) -> None:
    """A tensor of floats that lies in the file, not one of strides that only pretend to."""
    if not isinstance(tensor, Tensor):
        raise SteerlensError(
            f"{name!r} in {str(path)!r} is a {type(tensor).__name__}; needed is a tensor"
        )
    require_floats(path, name, tensor)
    if tensor.device.type != "cpu" or tensor.ndim not in (1, 2):
        raise SteerlensError(
            f"{name!r} in {str(path)!r} has shape {tuple(tensor.shape)} on {tensor.device.type}; "
            "needed is [d_model] or [layer, d_model]"
        )
    stored = tensor.untyped_storage().nbytes()
    if math.prod(tensor.shape) * tensor.element_size() > stored:
        raise SteerlensError(
            f"{name!r} in {str(path)!r} declares the shape {tuple(tensor.shape)}, but {stored} "
            "bytes are stored"
        )


def _require_modest_archive(path: PathLike) -> None:
    """Both formats are zip archives, which could unpack to far more than they weigh."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    require_modest_size(path, sum(entry.file_size for entry in entries))
    kinds = {entry.compress_type for entry in entries}
    if kinds - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:  # others may ask for much memory
        raise SteerlensError(f"{str(path)!r} is compressed in a way that no tensors are: {kinds}")


_TENSOR_GLOBALS = re.compile(
    r"collections OrderedDict|torch (\w+Storage|[a-z]\w+)"
    r"|torch\._utils _rebuild_(tensor_v2|parameter|sparse_tensor|qtensor)"
    r"|torch\.serialization _get_layout"
)


def _require_only_tensors(path: PathLike) -> None:
    """Refuse names that `torch.load` knows, but that no saved tensor needs.

    `bytearray` is one, and makes as many bytes as it is told to.
    """
    with zipfile.ZipFile(path) as archive:
        scripts = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
        if len(scripts) != 1 or scripts[0].file_size > LARGEST_SCRIPT:
            raise ValueError("torch.save writes one short data.pkl")
        script = archive.read(scripts[0])
    for code, arg, _ in pickletools.genops(script):
        if code.name == "GLOBAL" and not _TENSOR_GLOBALS.fullmatch(str(arg)):
            raise ValueError(f"it asks for {shown(arg)}, which no plain tensor needs")


def torch_tensors(path: PathLike) -> Any:
    """What `torch.save` wrote; the unpickler knows tensors and containers, and runs nothing."""
    _require_only_tensors(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _require_stored_arrays(path: PathLike) -> None:
    """NumPy makes room for the shape that a header declares before it reads what is there."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as opened:
                major = np.lib.format.read_magic(opened)[0]
                read = getattr(np.lib.format, f"read_array_header_{min(major, 2)}_0")
                shape, _, dtype = read(opened)
            if math.prod(shape) * dtype.itemsize > entry.file_size:
                raise SteerlensError(
                    f"{shown(entry.filename)} in {str(path)!r} declares the shape "
                    f"{shown(shape)} of {dtype}, but {entry.file_size} bytes are stored"
                )


def numpy_arrays(path: PathLike) -> dict[str, Tensor]:
    """What `numpy.savez` wrote; arrays of objects, which are pickles, are refused."""
    _require_stored_arrays(path)
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {name: torch.from_numpy(np.atleast_1d(array)) for name, array in arrays.items()}


# What every format needs


def require_modest_size(path: PathLike, size: int) -> None:
    """Refuse what cannot be a vector before it is read."""
    if size > LARGEST_FILE:
        raise SteerlensError(
            f"{str(path)!r} holds {size:,} bytes; no steering vector is larger than "
            f"{LARGEST_FILE:,}: is it a model?"
        )


def require_floats(path: PathLike, name: object, tensor: Tensor) -> None:
    """Refuse whole numbers, quantised ones and sparse layouts."""
    if tensor.layout != torch.strided or not tensor.is_floating_point():
        raise SteerlensError(
            f"{name!r} in {str(path)!r} holds {tensor.dtype} ({tensor.layout}); "
            "needed are plain floating-point numbers"
        )


def _placed(
    path: PathLike,
    directions: Mapping[int, Tensor],
    model_type: str | None = None,
    explained: Mapping[int, float] | None = None,
) -> VectorFile:
    """The content of a file that holds a direction for each of some layers."""
    if not directions:
        raise SteerlensError(f"{str(path)!r} holds no direction for any layer")
    for layer, direction in directions.items():
        require_floats(path, f"layer {layer}", direction)
        if direction.ndim != 1 or not len(direction):
            raise SteerlensError(
                f"the direction of layer {layer} in {str(path)!r} has shape "
                f"{tuple(direction.shape)}; needed is [d_model]"
            )
    widths = {layer: len(direction) for layer, direction in directions.items()}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{width} at layer {layer}" for layer, width in sorted(widths.items()))
        raise SteerlensError(f"the directions in {str(path)!r} differ in width: {told}")
    layers = sorted(directions)
    tensors = {
        "directions": torch.stack([directions[layer].float() for layer in layers]),
        "layers": torch.tensor(layers),
    }
    if explained:
        tensors["explained"] = torch.tensor([explained[layer] for layer in layers]).float()
    source = {"format": Path(path).suffix.lower(), "file": Path(path).name}
    known = {"name": Path(path).stem, "model_type": model_type, "source": source}
    provenance = {name: value for name, value in known.items() if value is not None}
    return VectorFile(tensors, {"site": BLOCK_OUTPUT, "provenance": provenance})


def _layer_number(path: PathLike, name: object, pattern: str = r"(\d{1,4})") -> int:
    found = re.fullmatch(pattern, str(name), re.ASCII)
    if found is None:
        raise SteerlensError(
            f"{shown(name)} in {str(path)!r} names no layer; needed is a layer number"
        )
    return int(found[1])


def _by_layer(
    path: PathLike, named: Iterable[tuple[object, Any]], pattern: str = r"(\d{1,4})"
) -> dict[int, Any]:
    """Name → value as layer → value; refuses names that mean no layer, or the same one."""
    by_layer: dict[int, Any] = {}
    for name, value in named:
        layer = _layer_number(path, name, pattern)
        if layer in by_layer:
            raise SteerlensError(f"{str(path)!r} holds layer {layer} twice")
        by_layer[layer] = value
    return by_layer


def _rows(content: VectorFile) -> dict[int, Tensor]:
    layers = content.tensors["layers"].tolist()
    return dict(zip(layers, content.tensors["directions"].cpu(), strict=True))


def _model_type(content: VectorFile) -> str:
    """What other programs note of the model; none of them checks it."""
    provenance = content.metadata["provenance"]
    return str(provenance.get("model_type") or provenance.get("model") or "unknown")
