"""A text that grows, such as a conversation: read without running its beginning again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.prefixes import common_length
from steerlens.activations.reading import Place, every_token, require_context
from steerlens.models.cache_beginnings import begin_with, can_be_cut
from steerlens.models.fast_forward import decoding_cache, is_on
from steerlens.models.host import Cache, Model, users_hooks


@dataclass(frozen=True, eq=False)
class ReadText:
    """What was read of a text, and the KV cache of the layers that this took; never changed."""

    ids: tuple[int, ...]
    activations: dict[Place, Float[Tensor, "pos d_model"]]
    """Of every token at each place; float32 at least, on the CPU."""
    cache: Cache | None
    """None: nothing can be taken from it, and a longer text is run from its beginning."""
    fast: bool
    """Whether the cache is one of fast forward passes."""


@torch.no_grad()
def read_on(
    model: Model, ids: Sequence[int], places: Iterable[Place], before: ReadText | None = None
) -> ReadText:
    """The activations of every token of a text, of which only the rest is run that is new.

    Args:
        model: The model to read; it is not steered.
        ids: The token ids of the text.
        places: Sites and layers, such as `("resid_post", 5)`.
        before: What this function returned for another text, such as this one's beginning.

    >>> place = ("resid_post", 2)
    >>> first = read_on(model, (1, 40, 41), [place])
    >>> read_on(model, (1, 40, 41, 42), [place], before=first).activations[place].shape
    torch.Size([4, 192])
    """
    require_context(model, len(ids))
    text, wanted, fast = tuple(ids), tuple(dict.fromkeys(places)), is_on(model)
    untouched = not users_hooks(model)  # hooks of the user may change what is read, and when
    cache = decoding_cache(model, 1, len(text), fast)
    known: dict[Place, Tensor] = {}
    n = 0
    if before is not None and before.cache is not None and untouched and before.fast == fast:
        # A cache holds no more layers than were run for the places that were read.
        n = common_length(before.ids, text[:-1]) if set(before.activations) == {*wanted} else 0
        if n:
            begin_with(cache, before.cache, n)
            known = {place: seen[:n] for place, seen in before.activations.items()}
    new = every_token(model, text[n:], wanted, cache)
    activations = {
        place: torch.cat([known[place], new[place]]) if known else new[place] for place in wanted
    }
    return ReadText(text, activations, cache if untouched and can_be_cut(cache) else None, fast)
