"""`.gguf` files: control vectors of repeng and llama.cpp."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerlens.errors import SteerlensError, import_extra, short_repr
from steerlens.files import PathLike, parse_json, write_atomically
from steerlens.layer_text import display_layers
from steerlens.schemas import Declared, Numbers, check
from steerlens.vectors.foreign import (
    BLOCK_OUTPUT,
    VectorFile,
    as_vector_file,
    by_layer,
    noted,
    rows_by_layer,
)

LARGEST_HEADER = 100_000
"""Most reads for the header of a GGUF file; a control vector of 100 layers takes 1,000."""

_GGUF_ARCHITECTURE = "controlvector"
_GGUF_METADATA = "steerlens.metadata"


def write_gguf(path: PathLike, content: VectorFile) -> None:
    """Write tensors `direction.<layer>`, and what only steerlens reads as one metadata string."""
    gguf = _gguf()
    rows = rows_by_layer(content)
    if 0 in rows:
        rest = display_layers(sorted(rows)[1:])
        raise SteerlensError(
            "llama.cpp never steers the output of layer 0, and rejects control vectors that have a "
            "direction for it; "
            + (f"save layers {rest} of it with vector.at(…), or all" if rest else "save it")
            + " as .safetensors"
        )
    tensors = {
        name: content.tensors[name].tolist() for name in _AS_METADATA & content.tensors.keys()
    }

    def write(temporary: Path) -> None:
        writer = gguf.GGUFWriter(temporary, _GGUF_ARCHITECTURE)
        try:
            writer.add_string(f"{_GGUF_ARCHITECTURE}.model_hint", _hint(content))
            writer.add_uint32(f"{_GGUF_ARCHITECTURE}.layer_count", len(rows))
            writer.add_string(
                _GGUF_METADATA, json.dumps(content.metadata | tensors, sort_keys=True)
            )
            for layer, row in rows.items():
                writer.add_tensor(f"direction.{layer}", row.numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    write_atomically(path, write)


def _hint(content: VectorFile) -> str:
    """The model's architecture as llama.cpp calls it; "unknown" if the provenance lacks it."""
    waiting: list[Any] = [content.metadata["provenance"]]
    while waiting:
        match waiting.pop():
            case {"model_type": str(known)}:
                return {"mistral": "llama", "mixtral": "llama", "gpt_neox": "gptneox"}.get(
                    known, known
                )
            case {"sum": list(parts)} | {"difference": list(parts)}:
                waiting += parts
    return "unknown"


_AS_METADATA = {"norms", "explained"}
"""Tensors stored as metadata: llama.cpp rejects files with tensors it does not know."""


def read_gguf(path: PathLike) -> VectorFile:
    """Read a control vector; `direction.0`, which only repeng writes, is the output of block 0."""
    gguf = _gguf()
    with np.errstate(over="raise"):
        reader = _bounded_reader(gguf, path)
    if reader.get_field("general.architecture") is None:
        raise SteerlensError("it names no architecture; expected a control vector")
    named = [(tensor.name, tensor) for tensor in reader.tensors]
    tensors = by_layer(named, r"direction\.(\d{1,4})")
    hint = reader.get_field(f"{_GGUF_ARCHITECTURE}.model_hint")
    content = noted(
        as_vector_file(
            {layer: _gguf_tensor(gguf, tensor) for layer, tensor in tensors.items()},
            None if hint is None else _text(hint),
        ),
        path,
    )
    field = reader.get_field(_GGUF_METADATA)
    if field is None:
        return content
    metadata = check(_Metadata, parse_json(_text(field), path), f"{path}, {_GGUF_METADATA}")
    return _with_metadata(content, metadata)


class _Metadata(Declared):
    site: str
    provenance: dict[str, Any]
    norms: Numbers | None = None
    explained: Numbers | None = None


def _with_metadata(content: VectorFile, own: _Metadata) -> VectorFile:
    """The content with the metadata that `write_gguf` added."""
    values = {name: getattr(own, name) for name in _AS_METADATA}
    tensors = {name: torch.tensor(row) for name, row in values.items() if row is not None}
    provenance = own.provenance | {"source": content.metadata["provenance"]["source"]}
    metadata = {"site": own.site, "provenance": provenance}
    return VectorFile(content.tensors | tensors, metadata)


def _gguf_tensor(gguf: ModuleType, tensor: Any) -> Tensor:
    kinds = gguf.GGMLQuantizationType
    if tensor.tensor_type not in (kinds.F16, kinds.F32, kinds.F64):
        raise SteerlensError(
            f"{tensor.name!r} is of type {tensor.tensor_type.name}; expected floating-point numbers"
        )
    with np.errstate(over="raise"):
        # a copy, so that the file can be closed
        return torch.from_numpy(np.array(tensor.data, dtype=np.float32))


def _bounded_reader(gguf: ModuleType, path: PathLike) -> Any:
    """gguf's reader with bounds: it would read past the end of a file, and any number of fields."""

    class BoundedReader(gguf.GGUFReader):  # type: ignore[name-defined]
        _reads = 0

        def _get(self, offset: Any, dtype: Any, count: Any = 1, *args: Any, **kwargs: Any) -> Any:
            self._reads += 1
            if self._reads > LARGEST_HEADER:
                raise SteerlensError("its header is larger than a control vector's can be")
            values = super()._get(offset, dtype, count, *args, **kwargs)
            if len(values) != count:
                raise ValueError(f"{int(count)} values are declared past the end, at byte {offset}")
            return values

        def _push_field(self, field: Any, *args: Any, **kwargs: Any) -> Any:
            # Checked here, so that a model is refused before its vocabulary is read.
            if field.name == "general.architecture" and _text(field) != _GGUF_ARCHITECTURE:
                raise SteerlensError(
                    f"got a GGUF file of architecture {short_repr(_text(field))}; "
                    f"expected {_GGUF_ARCHITECTURE!r}"
                )
            return super()._push_field(field, *args, **kwargs)

    return BoundedReader(path)


def _text(field: Any) -> str:
    return bytes(field.parts[field.data[0]]).decode()


def _gguf() -> ModuleType:
    module: ModuleType = import_extra("gguf", "exchange", "a GGUF control vector")
    return module


def gguf_left_out(path: PathLike, content: VectorFile) -> list[str]:
    """The site, which other programs do not read from the metadata, unless it is theirs."""
    site = content.metadata["site"]
    return [f"the site {site!r} for llama.cpp and repeng"] if site != BLOCK_OUTPUT else []
