"""KV caches of several texts, joined into one: texts of any length come to be decoded together."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from steerlens.errors import SteerlensError
from steerlens.models.fast_forward import Keys, decoding_cache
from steerlens.models.host import Cache, Model, is_hooked


class Held(NamedTuple):
    """Rows of a KV cache that hold the keys and values of texts of one length."""

    cache: Cache
    rows: Int[Tensor, " row"]
    """A row may be named several times."""
    length: int
    """Tokens of each text; what stands before them in the cache is padding."""


def require_joinable(model: Model) -> None:
    """Refuse a model whose KV caches cannot be joined.

    A bridge counts places by columns, so that a text could not be moved to other columns.

    >>> require_joinable(load_model())
    """
    if not is_hooked(model):
        raise SteerlensError(
            f"got {model.cfg.model_name} as a {type(model).__name__}; expected a "
            "HookedTransformer, whose rows can join and leave a running batch: use "
            "TransformerLens 3, or generate()"
        )


def joined(
    model: Model, parts: Sequence[Held], room: int, fast: bool
) -> tuple[Cache, Bool[Tensor, "row text"]]:
    """One KV cache of all rows, padded on the left, and the mask of its real tokens.

    Args:
        model: The model.
        parts: Where the rows are now; none is changed.
        room: How many more tokens the new cache is to hold.
        fast: Whether the forward passes skip redundant work, as of `decoding_cache`.
    """
    lengths = torch.cat([torch.full((len(part.rows),), part.length) for part in parts])
    width = int(lengths.max())
    cache = decoding_cache(model, len(lengths), width + room, fast)
    for layer, entry in enumerate(cache.entries):
        held = [(part, part.cache.entries[layer]) for part in parts]
        entry.append(
            torch.cat([_padded(part, old.past_keys, width) for part, old in held]),
            torch.cat([_padded(part, old.past_values, width) for part, old in held]),
        )
    mask = torch.arange(width)[None] >= width - lengths[:, None]
    mask = mask.to(model.cfg.device)
    cache.previous_attention_mask = mask.int()
    return cache, mask


def _padded(part: Held, kept: Keys, width: int) -> Float[Tensor, "row text head d_head"]:
    """A part's keys or values; padding is zero, as 0 × NaN would show."""
    rows = kept[part.rows.to(kept.device), kept.shape[1] - part.length :]
    return pad(rows, (0, 0, 0, 0, width - part.length, 0))
