"""The interface of a loaded model that the package uses, whichever host it runs on.

TransformerLens has two hosts: HookedTransformer, until version 3, and TransformerBridge, which
wraps a Hugging Face model.
"""

from inspect import signature
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry
from transformers import Cache as HuggingFaceCache
from transformers import DynamicCache

from steerlens.errors import SteerlensError
from steerlens.shapes import TokenIds

try:
    from transformer_lens import HookedTransformer
except ImportError:  # TransformerLens 4 and later
    HookedTransformer = None

Cache: TypeAlias = TransformerLensKeyValueCache | HuggingFaceCache
CacheEntry: TypeAlias = TransformerLensKeyValueCacheEntry


@runtime_checkable
class Model(Protocol):
    """What the package uses of a HookedTransformer or TransformerBridge."""

    cfg: Any
    tokenizer: Any

    def __call__(self, *args: Any, **options: Any) -> Any: ...
    def run_with_cache(self, *args: Any, **options: Any) -> Any: ...
    def hooks(self, *args: Any, **options: Any) -> Any: ...
    # Its modules and weights; and `hook_dict`, which a bridge rebuilds at every access.
    def __getattr__(self, name: str) -> Any: ...


def is_hooked(model: Any) -> bool:
    """Whether a model is a HookedTransformer.

    >>> is_hooked(load_model())
    True
    """
    return HookedTransformer is not None and isinstance(model, HookedTransformer)


def new_cache(model: Model, batch: int) -> Cache:
    """An empty KV cache for `batch` rows.

    >>> len(new_cache(load_model(), batch=2).entries)
    6
    """
    if not is_hooked(model):
        return DynamicCache(config=model.original_model.config)
    return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, batch)


def require_kept(model: Model, cache: Cache | None) -> None:
    """Refuse a bridge that put nothing into its KV cache: what it wrote next would be noise.

    >>> require_kept(model, None)
    """
    if not isinstance(cache, HuggingFaceCache):
        return
    # Layers with a state of fixed size do not count tokens.
    counting = [layer for layer in cache.layers if hasattr(layer, "get_seq_length")]
    if counting and not any(layer.get_seq_length() for layer in counting):
        raise SteerlensError(
            f"{model.cfg.model_name} kept no keys and values of its prompt: this TransformerLens "
            "does not hand the KV cache to this transformers (4.3 does not to 5.24); install the "
            "versions that steerlens asks for, or generate with use_cache=False"
        )


def unmasked(model: Model, tokens: TokenIds, cache: Cache | None = None) -> dict[str, Any]:
    """Arguments of a forward pass without an attention mask, which HookedTransformer would build.

    Args:
        model: The model.
        tokens: Rows without padding on the left.
        cache: The KV cache of the text that the rows continue.
    """
    if not is_hooked(model):
        return {"input": tokens, **_continuing(model, cache)}
    offset = 0 if cache is None else cache[0].past_keys.shape[1]
    resid, shortformer = model.get_residual(model.embed(tokens), offset)
    return {
        "input": resid,
        "start_at_layer": 0,
        "shortformer_pos_embed": shortformer,
        "past_kv_cache": cache,
    }


def users_hooks(model: Model) -> list[str]:
    """The hook points at which the user has hooks; a bridge has some of its own.

    >>> with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", print)]):
    ...     users_hooks(model)
    ['blocks.0.hook_resid_pre']
    """
    return [
        name
        for name, point in model.hook_dict.items()
        if not all(hook.is_permanent for hook in point.fwd_hooks)
    ]


def require_no_hooks(model: Model, why: str) -> None:
    """Refuse a model with the user's own hooks; `why` says what they would break."""
    hooked = users_hooks(model)
    if hooked:
        raise SteerlensError(
            f"got a model with hooks at {', '.join(hooked[:3])}; expected none: {why}. Take them "
            "off with remove(), or call this outside of `with model.hooks(...)`"
        )


def all_logits(
    model: Model, tokens: TokenIds, copies: int = 1, shared_layers: int = 0
) -> Float[Tensor, "copied pos d_vocab"]:
    """Logits at every position of rows without padding on the left.

    Args:
        model: The model.
        tokens: The rows.
        copies: How often the rows are repeated in the batch, one copy after the other.
        shared_layers: Blocks in which the copies are alike, so that one of them is run; of a
            HookedTransformer only.
    """
    alike = is_hooked(model) and model.cfg.positional_embedding_type != "shortformer"
    if shared_layers and copies > 1 and alike:
        resid = model(**unmasked(model, tokens), stop_at_layer=shared_layers)
        shared: Tensor = model(resid.repeat(copies, 1, 1), start_at_layer=shared_layers)
        return shared
    arguments = unmasked(model, tokens.repeat(copies, 1))
    arguments.pop("logits_to_keep", None)
    logits: Tensor = model(**arguments)
    return logits


def next_logits(
    model: Model,
    tokens: TokenIds,
    mask: Int[Tensor, "batch text"],
    cache: Cache | None = None,
) -> Float[Tensor, "batch d_vocab"]:
    """Logits at the last position of each row; only that position is unembedded.

    Args:
        model: The model.
        tokens: Rows, padded on the left.
        mask: 1 for text, 0 for padding, for `tokens` and everything in the cache before them.
        cache: The KV cache of the text that the rows continue.
    """
    if not is_hooked(model):
        return model(tokens, attention_mask=mask, **_continuing(model, cache))[:, -1]
    new = mask[:, -tokens.shape[1] :]  # the cache holds the rest
    resid = model(tokens, attention_mask=new, past_kv_cache=cache, stop_at_layer=model.cfg.n_layers)
    return unembedded(model, resid[:, -1:])[:, 0]


def unembedded(
    model: Model, resid: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row pos d_vocab"]:
    """A HookedTransformer's logits of what its last block put out."""
    if model.cfg.normalization_type is not None:
        resid = model.ln_final(resid)
    logits: Tensor = model.unembed(resid)
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap and cap > 0 else logits


def _continuing(model: Model, cache: Cache | None) -> dict[str, Any]:
    """A bridge's options: its KV cache, and only the last position's logits where possible."""
    can_cut = "logits_to_keep" in signature(model.original_model.forward).parameters
    return {
        "past_key_values": cache,
        "use_cache": cache is not None,
        **({"logits_to_keep": 1} if can_cut else {}),
    }
