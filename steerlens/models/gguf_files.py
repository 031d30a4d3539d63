"""GGUF files of llama.cpp → Hugging Face directories.

`transformers` converts the weights. What it ignores without a word is handled or refused here: the
pre-tokenizer, end tokens, and tensors and settings that it does not read.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import Metaspace
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf import GGUF_ARCHS
from transformers.modeling_gguf_pytorch_utils import (
    GGUF_SUPPORTED_ARCHITECTURES,
    GGUF_TO_TRANSFORMERS_MAPPING,
)

from steerlens.errors import SteerlensError, short_repr
from steerlens.models.gguf_header import CONTROL_VECTOR, GgufHeader, read_header
from steerlens.models.pre_tokenizers import apply_cuts, cuts_of

END_TOKENS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
"""Metadata keys of the end tokens: end of text, of turn, of message."""

_UNREAD_BUT_HARMLESS = {
    "rope.dimension_count", "attention.key_length", "attention.value_length", "vocab_size",
    "context_length", "rope.freq_base", "attention.layer_norm_epsilon", "feed_forward_length",
    "attention.layer_norm_rms_epsilon", "attention.causal", "use_parallel_residual",
    "tensor_data_layout", "expert_count", "rope.dimension_sections",
}  # fmt: skip
"""Settings that `transformers` may ignore: it infers them from the tensors, or knows them."""

_NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "rope.scaling.type": lambda value: value == "none",
    "rope.scaling.factor": lambda value: value in (0, 1),
    "attention.sliding_window": lambda value: value == 0,
    "attention.clamp_kqv": lambda value: value == 0,
    "attention.max_alibi_bias": lambda value: value in (0, 8),
}
"""Ignored settings that have no effect at these values."""


def write_as_directory(path: Path, directory: Path) -> None:
    """Convert the GGUF file `path` to a Hugging Face directory, with weights in float32."""
    header = read_header(path)
    require_model(path, header)
    tokenizer = _tokenizer(path, header)
    model = _model(path, header)
    model.generation_config.eos_token_id = end_tokens(header) or None
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def require_model(path: Path, header: GgufHeader) -> None:
    """Refuse files that hold no model, or one that would be converted only in part."""
    architecture = header.architecture
    if architecture == CONTROL_VECTOR:
        raise SteerlensError(
            f"{str(path)!r} is a control vector, not a model: read it with SteeringVector.load"
        )
    if architecture not in known_architectures():
        raise SteerlensError(
            f"{str(path)!r} is a GGUF file of the architecture {short_repr(architecture)}, which "
            f"this version of transformers cannot convert; it converts "
            f"{', '.join(known_architectures())}. Load the model's Hugging Face directory instead"
        )
    unread = [
        f"{key}={short_repr(value)}"
        for key, value in header.metadata.items()
        if key.startswith(f"{architecture}.") and not _is_read(architecture, key, value)
    ]
    if unread:
        raise SteerlensError(
            f"{str(path)!r} has settings that transformers does not read from GGUF files: "
            f"{', '.join(unread[:6])}. The result would be another model; load the model's Hugging "
            "Face directory instead"
        )


def known_architectures() -> list[str]:
    """The architectures of GGUF files that `transformers` converts."""
    return sorted({*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_ARCHS} - {"general", "tokenizer"})


def end_tokens(header: GgufHeader) -> list[int]:
    """The ids of all end tokens that the file declares, each once."""
    tokens = (header.metadata.get(key) for key in END_TOKENS)
    return list(dict.fromkeys(token for token in tokens if token is not None))


def _is_read(architecture: str, key: str, value: Any) -> bool:
    setting = key.removeprefix(f"{architecture}.")
    if architecture in GGUF_ARCHS:  # newer converters read all settings
        return True
    reads = GGUF_TO_TRANSFORMERS_MAPPING["config"].get(architecture, {})
    return (
        setting in reads.keys() | _UNREAD_BUT_HARMLESS
        or (setting in _NEUTRAL and _NEUTRAL[setting](value))
        or setting.startswith("rope.scaling.orig")  # matters only with a type of scaling
    )


def _tokenizer(path: Path, header: GgufHeader) -> Any:
    metadata = header.metadata
    cuts = cuts_of(metadata, str(path))
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    backend = tokenizer.backend_tokenizer
    if cuts is not None:
        apply_cuts(backend, cuts)
    elif metadata.get("tokenizer.ggml.add_space_prefix") is False and isinstance(
        backend.pre_tokenizer, Metaspace
    ):
        backend.pre_tokenizer = Metaspace(prepend_scheme="never", split=False)
    if "tokenizer.ggml.add_bos_token" not in metadata and cuts is not None:
        tokenizer.add_bos_token = cuts.adds_bos
        tokenizer.update_post_processor()
    context = metadata.get(f"{header.architecture}.context_length")
    if context:
        tokenizer.model_max_length = context
    return tokenizer


def _model(path: Path, header: GgufHeader) -> Any:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            output_loading_info=True,
            **_left_out(header),
        )
    except (RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        raise SteerlensError(
            f"transformers could not convert the GGUF file {str(path)!r} of the architecture "
            f"{header.architecture!r}: {error}. Load the model's Hugging Face directory instead"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise SteerlensError(
            f"{str(path)!r} lacks {_listed(missing)}, which would be random; fetch the file again"
        )
    _require_all_read(path, header, model)
    model.config.architectures = [type(model).__name__]
    # The weights are no longer quantised.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _left_out(header: GgufHeader) -> dict[str, Any]:
    """Settings that transformers would leave at the defaults of the architecture."""
    keys = {
        "gpt2": {"n_positions": "context_length"},
        "qwen3": {"head_dim": "attention.key_length"},
        "qwen3moe": {"head_dim": "attention.key_length"},
    }.get(header.architecture, {})
    metadata, prefix = header.metadata, header.architecture
    values = {name: metadata.get(f"{prefix}.{key}") for name, key in keys.items()}
    return {name: value for name, value in values.items() if value is not None}


def _require_all_read(path: Path, header: GgufHeader, model: Any) -> None:
    """Refuse a model with fewer or more numbers than the file: some tensor was ignored."""
    sizes = {id(weight): weight.numel() for weight in model.parameters()}
    if header.n_numbers == sum(sizes.values()):
        return
    used = {tuple(weight.shape) for weight in model.parameters()}
    unused = [name for name, shape in header.shapes.items() if shape not in used]
    raise SteerlensError(
        f"{str(path)!r} holds {header.n_numbers:,} numbers, but its {type(model).__name__} has "
        f"{sum(sizes.values()):,}: transformers ignored some tensors"
        + (f", likely {_listed(unused)}" if unused else "")
        + ". The result would be another model; load the model's Hugging Face directory instead"
    )


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
