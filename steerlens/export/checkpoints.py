"""Hugging Face checkpoints: which modules write to the stream, and saving changed weights."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from steerlens.errors import SteerlensError
from steerlens.files import read_json, write_json
from steerlens.models.loading import quiet


class Family(NamedTuple):
    """The modules of an architecture that write to the stream; `{}` is the layer's number."""

    attention: str
    mlp: str
    embedding: str
    positions: str = ""
    embedding_norm: str = ""
    transposed: bool = True
    """Weights are [d_model, in], as `nn.Linear` has them."""


LLAMA = Family(
    "model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj", "model.embed_tokens"
)
FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3"), LLAMA),
    "gpt2": Family(
        "transformer.h.{}.attn.c_proj",
        "transformer.h.{}.mlp.c_proj",
        "transformer.wte",
        "transformer.wpe",
        transposed=False,
    ),
    "gpt_neo": Family(
        "transformer.h.{}.attn.attention.out_proj",
        "transformer.h.{}.mlp.c_proj",
        "transformer.wte",
        "transformer.wpe",
    ),
    "gptj": Family(
        "transformer.h.{}.attn.out_proj", "transformer.h.{}.mlp.fc_out", "transformer.wte"
    ),
    "gpt_neox": Family(
        "gpt_neox.layers.{}.attention.dense",
        "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "gpt_neox.embed_in",
    ),
    "opt": Family(
        "model.decoder.layers.{}.self_attn.out_proj",
        "model.decoder.layers.{}.fc2",
        "model.decoder.embed_tokens",
        "model.decoder.embed_positions",
    ),
    "bloom": Family(
        "transformer.h.{}.self_attention.dense",
        "transformer.h.{}.mlp.dense_4h_to_h",
        "transformer.word_embeddings",
        embedding_norm="transformer.word_embeddings_layernorm",
    ),
}
"""By the `model_type` of a config. Families that normalise what their blocks write are left out: no
bias of theirs moves the stream by a constant."""

_SWITCHES = ("attention_bias", "mlp_bias")
"""Settings of a config that give its projections biases."""


@dataclass(frozen=True, eq=False)
class FoldedModel:
    """A checkpoint with some tensors changed."""

    config: Any
    tensors: Mapping[str, Tensor]
    changed: tuple[str, ...]
    source_architecture: str
    architecture: str
    dtype: str

    def save(self, folder: Path) -> None:
        """Write config and weights with the architecture's own class, each tensor in its dtype."""
        model = _empty(self.config)
        model.load_state_dict(dict(self.tensors), assign=True)
        with quiet():
            model.save_pretrained(folder)
        # The class writes the dtype of its first tensor, which may be a changed one.
        write_json(
            folder / "config.json", read_json(folder / "config.json") | {"dtype": self.dtype}
        )


def folded_model(source: Path, changes: Mapping[str, Tensor]) -> FoldedModel:
    """The checkpoint in `source` with changed parameters.

    Args:
        source: A Hugging Face directory.
        changes: New values by TransformerLens's names of the parameters.

    Raises:
        SteerlensError: A change without a parameter in the architecture, or in a Llama that
            computes the same.
    """
    with quiet():
        original = AutoModelForCausalLM.from_pretrained(source, dtype="auto", local_files_only=True)
    config, tensors = original.config, original.state_dict()
    kind = config.model_type
    if kind not in FAMILIES or getattr(config, "quantization_config", None) is not None:
        raise SteerlensError(
            f"got {source.name!r} of model type {kind!r}"
            f"{', quantised' if kind in FAMILIES else ''}; expected unquantised weights of "
            f"{', '.join(FAMILIES)}: steer this model by hooks"
        )
    family = FAMILIES[kind]
    placed = dict(_placed(family, name, values) for name, values in changes.items())
    # The host has biases of zero where the checkpoint has none.
    placed = {name: values for name, values in placed.items() if name in tensors or values.any()}
    missing = [name for name in placed if name not in tensors]
    if missing:
        config, tensors = _with_biases(config, tensors, missing)
    if f"{family.embedding}.weight" in placed:
        config.tie_word_embeddings = False  # the unembedding keeps the old values
    return FoldedModel(
        config,
        tensors | {name: _fitted(tensors[name], values) for name, values in placed.items()},
        tuple(sorted(placed)),
        type(original).__name__,
        type(_empty(config)).__name__,
        str(original.dtype).removeprefix("torch."),
    )


def _placed(family: Family, name: str, values: Tensor) -> tuple[str, Tensor]:
    """A parameter of the host under the checkpoint's name and in its layout."""
    match name.split("."):
        case ["blocks", layer, "attn", ("W_O" | "b_O") as kind]:
            module = family.attention.format(layer)
        case ["blocks", layer, "mlp", ("W_out" | "b_out") as kind]:
            module = family.mlp.format(layer)
        case ["embed", "W_E" as kind]:
            module = family.embedding
        case ["embed", "ln", "b" as kind]:
            module = family.embedding_norm
        case ["pos_embed", "W_pos" as kind]:
            module = family.positions
        case _:
            raise SteerlensError(
                f"got an edit of {name}, which does not write to the stream; expected one of "
                "parameters that do: steer resid_pre, attn_out, resid_mid, mlp_out or resid_post"
            )
    if kind == "W_O":
        values = rearrange(values, "head d_head d_model -> (head d_head) d_model")
    if kind in ("W_O", "W_out") and family.transposed:
        values = values.T
    return f"{module}.{'bias' if kind.startswith('b') else 'weight'}", values.contiguous()


def _fitted(old: Tensor, new: Tensor) -> Tensor:
    """The new values in float32, after the unused rows that OPT's positions begin with."""
    new = new.float().cpu()
    return torch.cat([old[: len(old) - len(new)].float().cpu(), new])


def _with_biases(
    config: Any, tensors: dict[str, Tensor], missing: list[str]
) -> tuple[Any, dict[str, Tensor]]:
    """The same model with the missing biases, and the others of their switch, at zero."""
    switches = {_SWITCHES["mlp" in name] for name in missing}
    if not all(hasattr(config, switch) for switch in switches):
        config, tensors = _as_llama(config, tensors, missing)
    for switch in switches:
        setattr(config, switch, True)
    empty = _empty(config).state_dict()
    for name in empty.keys() - tensors.keys():
        if name.endswith(".bias"):
            tensors[name] = torch.zeros(empty[name].shape, dtype=next(iter(tensors.values())).dtype)
    return config, tensors


def _as_llama(
    config: Any, tensors: dict[str, Tensor], missing: list[str]
) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """The model as a Llama; Mistral, Qwen2 and Phi-3 differ in biases, windows, projections."""
    rope = getattr(config, "rope_parameters", None) or {}
    window = getattr(config, "sliding_window", None)
    obstacles = {
        f"{config.model_type} has no place for {missing[0]}, and no other architecture computes "
        "the same with one" + (
            "; resid_mid or attn_out can be exported" if hasattr(config, "attention_bias") else ""
        ): config.model_type not in ("mistral", "qwen2", "phi3"),
        f"its attention slides over {window} tokens, and a Llama's does not": (
            window is not None and window < config.max_position_embeddings
        ),
        "its rotary embedding is not a Llama's": (
            rope.get("partial_rotary_factor", 1.0) != 1.0
            or (config.model_type == "phi3" and rope.get("rope_type", "default") != "default")
        ),
    }  # fmt: skip
    for obstacle, holds in obstacles.items():
        if holds:
            raise SteerlensError(
                f"got an edit that needs a bias, which {config.model_type} lacks; and the model "
                f"cannot be stored as a Llama, which has it: {obstacle}; steer by hooks"
            )
    settings = config.to_dict()
    shared = LlamaConfig().to_dict().keys() & settings.keys()
    kept = {name: settings[name] for name in shared - {"model_type", "architectures"}}
    if any(name.endswith("q_proj.bias") for name in tensors):
        kept["attention_bias"] = True
    return LlamaConfig(**kept), _split(config, tensors)


def _split(config: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with Phi-3's joined projections split."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".qkv_proj." in name:
            width = config.hidden_size // config.num_attention_heads
            heads = [config.num_attention_heads, *[config.num_key_value_heads] * 2]
            parts = tensor.split([count * width for count in heads])
            names = [name.replace("qkv_proj", f"{part}_proj") for part in "qkv"]
        elif ".gate_up_proj." in name:
            parts = tensor.chunk(2)
            names = [name.replace("gate_up_proj", f"{part}_proj") for part in ("gate", "up")]
        else:
            parts, names = (tensor,), [name]
        split |= {new: part.contiguous() for new, part in zip(names, parts, strict=True)}
    return split


def _empty(config: Any) -> Any:
    """A model of a config on the meta device, which takes no memory.

    Made in a thread of its own, where Ctrl-C does not arrive: torch's stack of devices would not
    survive it.
    """

    def made() -> Any:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(made).result()
