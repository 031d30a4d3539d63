"""A text's KV cache that begins with the first tokens of another's: what both share runs once."""

from transformers import Cache as HuggingFaceCache
from transformers.cache_utils import DynamicLayer

from steerlens.models.host import Cache


def can_be_cut(cache: Cache) -> bool:
    """Whether the first tokens of a KV cache can be told from the rest.

    Not so in a bridge to a model with sliding windows, which drops old tokens, or with a state of
    fixed size; nor where a bridge has put nothing into it.

    >>> from steerlens.models.host import new_cache
    >>> can_be_cut(new_cache(load_model(), batch=1))
    True
    """
    if not isinstance(cache, HuggingFaceCache):
        return True
    only_tokens = all(type(layer) is DynamicLayer for layer in cache.layers)
    return only_tokens and cache.get_seq_length() > 0


def begin_with(cache: Cache, other: Cache, length: int) -> None:
    """Begin an empty KV cache of one text with the first tokens of another, which is copied.

    Args:
        cache: An empty cache.
        other: A cache of the same kind, which `can_be_cut`.
        length: How many tokens to take.

    >>> from steerlens.models.host import new_cache
    >>> kept, cache = new_cache(model, batch=1), new_cache(model, batch=1)
    >>> _ = model(torch.tensor([[1, 2, 3]]), past_kv_cache=kept)
    >>> begin_with(cache, kept, 2)
    >>> cache[0].past_keys.shape[1]
    2
    """
    if isinstance(cache, HuggingFaceCache):
        for index, its in enumerate(other.layers):
            if its.is_initialized:  # the pass may have stopped below this layer
                cache.update(its.keys[:, :, :length], its.values[:, :, :length], index)
        return
    for mine, its in zip(cache.entries, other.entries, strict=True):
        mine.append(its.past_keys[:, :length], its.past_values[:, :length])
    cache.append_attention_mask(other.previous_attention_mask[:, :length])
