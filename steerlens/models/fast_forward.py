"""Remove redundant work from HookedTransformer's forward pass.

HookedTransformer normalises a block's input three times, rotates all cached keys at every decoding
step, copies the KV cache to append one token, and again for each head that shares it, and computes
positions and masks in every layer. A `forward_pass` does each of these once or not at all, by
methods set on the model's modules and removed afterwards: no class is changed, every hook point
fires, and logits stay bit-identical. A TransformerBridge has no redundant work. `disabled()` and
`load_model(fast=False)` turn this off.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import get_ident
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache as HuggingFaceCache

from steerlens.models.hooking import PlacedHook, hook_steps
from steerlens.models.host import Cache, CacheEntry, Model, is_hooked, new_cache
from steerlens.models.ownership import Change, restoring, run_with

Result = TypeVar("Result")

Keys = Float[Tensor, "batch pos head d_head"]
NewKeys = Float[Tensor, "batch new head d_head"]


class _KeyValues(CacheEntry):
    """One layer's KV cache, preallocated for a whole text; keys are stored rotated.

    The axes in memory are in the order that the attention's matrix products need, so that these
    copy nothing. (For a single row the host's order needs no copy; another would round otherwise.)
    """

    past_keys: Any
    past_values: Any

    def __init__(self, empty: CacheEntry, capacity: int) -> None:
        super().__init__(empty.past_keys, empty.past_values)
        rows, _, heads, d_head = empty.past_keys.shape
        axes = "row head pos d_head" if rows == 1 else "row head d_head pos"
        # Axes as the host sees them, without a copy.
        self._keys = rearrange(
            empty.past_keys.new_empty(
                (rows, heads, capacity, d_head) if rows == 1 else (rows, heads, d_head, capacity)
            ),
            f"{axes} -> row pos head d_head",
        )
        self._values = rearrange(
            empty.past_values.new_empty(rows, heads, capacity, d_head),
            "row head pos d_head -> row pos head d_head",
        )

    def append(self, new_keys: NewKeys, new_values: NewKeys) -> tuple[Keys, Keys]:
        """Add tokens; returns all keys and values so far."""
        start = self.past_keys.shape[1]
        end = start + new_keys.shape[1]
        self.past_keys, self.past_values = self._keys[:, :end], self._values[:, :end]
        self.past_keys[:, start:], self.past_values[:, start:] = new_keys, new_values
        self.past_keys.rotated = start
        return self.past_keys, self.past_values

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Keep these rows, in this order."""
        length = self.past_keys.shape[1]
        self._keys, self._values = self._keys[rows], self._values[rows]
        self.past_keys, self.past_values = self._keys[:, :length], self._values[:, :length]

    def begin_with(
        self, other: CacheEntry, of_row: Int[Tensor, " row"], real: Bool[Tensor, "row pos"]
    ) -> None:
        """Begin each row with the tokens of a row of another cache, after its padding."""
        length = real.shape[1]
        place = (real.cumsum(dim=1) - 1).clamp_min(0)
        self.past_keys, self.past_values = self._keys[:, :length], self._values[:, :length]
        for mine, its in (
            (self.past_keys, other.past_keys),
            (self.past_values, other.past_values),
        ):
            # Padding is masked, but 0 × NaN would show: it gets zeros.
            mine[:] = its[of_row[:, None], place] * real[..., None, None]


def decoding_cache(model: Model, rows: int, capacity: int, fast: bool) -> Cache:
    """An empty KV cache.

    Args:
        model: The model.
        rows: Texts in the batch.
        capacity: Most tokens of a text.
        fast: Whether the forward passes skip redundant work; the cache must match them.
    """
    cache = new_cache(model, rows)
    if not fast or isinstance(cache, HuggingFaceCache):
        return cache
    cache.entries = [_KeyValues(entry, capacity) for entry in cache.entries]
    return cache


def cached_numbers(model: Model) -> int:
    """How many numbers one token takes in the KV cache, over all layers.

    >>> cached_numbers(load_model())
    2304
    """
    heads = getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
    return int(2 * model.cfg.n_layers * heads * model.cfg.d_head)


def select_rows(cache: Cache, rows: Int[Tensor, " row"]) -> None:
    """Keep these rows of a KV cache, in this order; a row may be repeated."""
    if isinstance(cache, HuggingFaceCache):
        cache.batch_select_indices(rows)
        return
    for entry in cache.entries:
        if isinstance(entry, _KeyValues):
            entry.select(rows)
        else:
            entry.past_keys, entry.past_values = entry.past_keys[rows], entry.past_values[rows]
    cache.previous_attention_mask = cache.previous_attention_mask[rows]


def begin_rows_with(
    cache: Cache, other: Cache, of_row: Int[Tensor, " row"], mask: Int[Tensor, "row pos"]
) -> None:
    """Begin each row of an empty KV cache with a row of another, shifted by the row's padding.

    Args:
        cache: A `decoding_cache` of fast passes.
        other: A KV cache of texts without padding.
        of_row: Which of these each row begins with.
        mask: The rows' beginnings: 0 for padding, which stands on the left, and 1 for text.
    """
    for mine, its in zip(cache.entries, other.entries, strict=True):
        mine.begin_with(its, of_row, mask.bool())
    cache.previous_attention_mask = mask


_OFF: ContextVar[bool] = ContextVar("fast_forward_off", default=False)
_PLAIN: WeakSet[Model] = WeakSet()


@contextmanager
def disabled() -> Iterator[None]:
    """Run the host's own forward passes in this thread until the block ends.

    Results stay the same; only the time differs.

    >>> with disabled():
    ...     is_on(load_model())
    False
    """
    before = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(before)


def turn_off(model: Model) -> None:
    """Run the host's own forward passes of this model, permanently."""
    _PLAIN.add(model)


def is_on(model: Model) -> bool:
    """Whether forward passes of this model skip redundant work.

    >>> is_on(load_model())
    True
    """
    return is_hooked(model) and not _OFF.get() and model not in _PLAIN


def forward_pass(
    model: Model,
    work: Callable[[], Result],
    hooks: Sequence[PlacedHook] = (),
    *,
    fast: bool | None = None,
    frozen: bool = False,
) -> Result:
    """Run the model with these hooks and no other run's, while other threads wait.

    The model is restored afterwards, also after exceptions and interrupts.

    Args:
        model: The model.
        work: Calls the model.
        hooks: Hook points and functions, for this pass only.
        fast: Whether to skip redundant work; None for `is_on(model)`.
        frozen: Whether weights stop asking for gradients during the pass.

    >>> model = load_model()
    >>> forward_pass(model, lambda: model(torch.tensor([[1, 40]]))).shape
    torch.Size([1, 2, 3072])
    """
    return ForwardPasses(model, hooks, is_on(model) if fast is None else fast, frozen)(work)


class ForwardPasses:
    """Repeated `forward_pass`es, prepared once and again only when the model has changed."""

    def __init__(
        self, model: Model, hooks: Sequence[PlacedHook], fast: bool, frozen: bool = False
    ) -> None:
        self._model, self._hooks, self._fast, self._frozen = model, hooks, fast, frozen
        self._change: Change | None = None
        self._methods: list[tuple[dict[str, Any], str]] = []

    def __call__(self, work: Callable[[], Result]) -> Result:
        """Run one forward pass."""
        if self._change is None or self._is_stale(self._change):
            self._change = self._prepared()
        return run_with(self._model, self._change, work)

    def _is_stale(self, change: Change) -> bool:
        """Whether the thread has changed, or other code has replaced one of these methods."""
        unusable = change.thread != get_ident() or not is_hooked(self._model)
        return unusable or any(name in attributes for attributes, name in self._methods)

    def _prepared(self) -> Change:
        put_on, take_off = hook_steps(self._model, self._hooks)
        for weight in self._model.parameters() if self._frozen else ():
            if weight.requires_grad:
                put_on.append((weight.requires_grad_, False))
                take_off.append((weight.requires_grad_, True))
        self._methods = []
        for module, name, method in _replacements(self._model) if self._fast else ():
            put_on.append((dict.__setitem__, vars(module), name, method))
            take_off.append(restoring(module, name))
            self._methods.append((vars(module), name))
        return Change(put_on, take_off)


def _replacements(model: Model) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """Methods of the model's modules, with faster equivalents for this thread."""
    padding = _Padding()
    for block in model.blocks:
        norm, attention = getattr(block, "ln1", None), block.attn
        if norm is not None:
            yield norm, "forward", _InThisThread(_RememberingNorm(norm.forward), norm.forward)
        if _rotates_once(attention):
            rotation = _Rotation(attention, padding)
            yield attention, "apply_rotary", _InThisThread(rotation, attention.apply_rotary)
        if attention.attn_type == "global":
            mask = _CausalMask(attention, padding)
            yield (
                attention,
                "apply_causal_mask",
                _InThisThread(mask, attention.apply_causal_mask),
            )
        if getattr(attention, "repeat_kv_heads", 1) > 1:
            for name, method in _SharedHeads(attention).methods().items():
                yield attention, name, _InThisThread(method, getattr(attention, name))


class _InThisThread:
    """The faster method here; the host's own for another thread that calls the model itself."""

    def __init__(self, fast: Callable[..., Any], stock: Callable[..., Any]) -> None:
        self._fast, self._stock, self._thread = fast, stock, get_ident()

    def __call__(self, *args: Any, **options: Any) -> Any:
        return (self._fast if get_ident() == self._thread else self._stock)(*args, **options)


class _RememberingNorm:
    """The norm before attention: the host calls it for queries, keys and values, on one tensor."""

    def __init__(self, norm: Callable[[Tensor], Tensor]) -> None:
        self._norm, self._calls = norm, 0
        self._input: Tensor | None = None
        self._output: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x is not self._input:
            self._input, self._output, self._calls = x, self._norm(x), 0
        output, self._calls = self._output, self._calls + 1
        if self._calls == 3:  # no tensor is kept alive beyond the block
            self._input = self._output = None
        assert output is not None
        return output


class _Padding:
    """What a forward pass's attention mask implies, computed once for all layers."""

    def __init__(self) -> None:
        self._mask: Tensor | None = None

    def of(self, mask: Int[Tensor, "batch text"] | None) -> "_Padding | None":
        """The padding of a mask; None if nothing is padded."""
        if mask is None:
            return None
        if mask is not self._mask:
            self._mask = mask
            self.real: Bool[Tensor, "batch text"] = mask.bool()
            self.any = not bool(self.real.all())
            self.place = (mask.cumsum(dim=1) - 1).clamp_min(0)
        return self if self.any else None


def _rotates_once(attention: Any) -> bool:
    """Dynamic-NTK RoPE re-rotates cached keys, so they cannot be cached rotated."""
    return attention.cfg.positional_embedding_type == "rotary" and not getattr(
        attention.cfg, "use_dynamic_ntk_rope", False
    )


class _Rotation:
    """Rotary positions: angles computed once for queries and keys, cached keys rotated once."""

    def __init__(self, attention: Any, padding: _Padding) -> None:
        self._attention, self._padding = attention, padding
        self._stock: Callable[..., Tensor] = attention.apply_rotary
        self._last: tuple[Any, ...] = (None, None)

    def __call__(
        self, x: Keys, start: int = 0, mask: Int[Tensor, "batch text"] | None = None
    ) -> Keys:
        rotated = getattr(x, "rotated", None)
        if rotated is None:
            return self._all(x, start, mask)
        x[:, rotated:] = self._all(x[:, rotated:], rotated, mask)
        return x

    def _all(self, x: Keys, start: int, mask: Int[Tensor, "batch text"] | None) -> Keys:
        attention, end = self._attention, start + x.shape[1]
        if end > attention.rotary_cos.shape[0]:
            self._stock(x[:, :1], end - 1)  # makes the host extend its tables
        x = x.to(attention.rotary_cos.device)
        cos, sin = self._angles(start, end, mask)
        width = attention.cfg.rotary_dim
        part = x[..., :width]
        rotated = part * cos
        for target, source, accumulate in _rotary_halves(
            attention.cfg.rotary_adjacent_pairs, width
        ):
            accumulate(rotated[..., target], part[..., source] * sin[..., target])
        return rotated if width == x.shape[-1] else torch.cat([rotated, x[..., width:]], -1)

    def _angles(self, start: int, end: int, mask: Int[Tensor, "batch text"] | None) -> Any:
        tables = self._attention.rotary_cos, self._attention.rotary_sin
        padded = self._padding.of(mask)
        if padded is None:
            return tuple(table[None, start:end, None] for table in tables)
        if self._last[0] is not padded.place or self._last[1] != (start, end):
            place = padded.place[:, start:end].to(tables[0].device)
            self._last = padded.place, (start, end), [table[place][:, :, None] for table in tables]
        return self._last[2]


def _rotary_halves(adjacent: bool, width: int) -> Iterator[tuple[slice, slice, Callable[..., Any]]]:
    """Index pairs of a rotation: sin · [−b, a] is added to [a, b]."""
    half = width // 2
    first, second = (
        (slice(0, None, 2), slice(1, None, 2)) if adjacent else (slice(half), slice(half, None))
    )
    yield first, second, Tensor.sub_
    yield second, first, Tensor.add_


class _CausalMask:
    """The mask of attention scores; a single new token needs none for what comes later."""

    def __init__(self, attention: Any, padding: _Padding) -> None:
        self._attention, self._padding = attention, padding
        self._stock: Callable[..., Tensor] = attention.apply_causal_mask

    def __call__(
        self,
        scores: Float[Tensor, "batch head pos key"],
        start: int = 0,
        mask: Int[Tensor, "batch text"] | None = None,
    ) -> Float[Tensor, "batch head pos key"]:
        padded = self._padding.of(mask)
        if scores.shape[2] > 1:
            return self._stock(scores, start, None if padded is None else mask)
        if padded is None:
            return scores  # a single new token attends to everything
        return torch.where(padded.real[:, None, None], scores, self._attention.IGNORE)


class _SharedHeads:
    """Attention whose heads share keys and values, without the copies that the host gives each.

    Products are of the host's shapes, one for each head that shares: equal to it to the bit. Only
    for batches on a CPU: elsewhere more and smaller products cost more than a copy.
    """

    def __init__(self, attention: Any) -> None:
        # TransformerLens 4 has no such module, and no such attention.
        from transformer_lens.components.abstract_attention import AbstractAttention

        self._attention = attention
        self._of_equal_heads = AbstractAttention.calculate_attention_scores
        self._stock = attention.calculate_attention_scores, attention.calculate_z_scores

    def methods(self) -> dict[str, Callable[..., Tensor]]:
        """In place of the host's, by name."""
        return {"calculate_attention_scores": self._scores, "calculate_z_scores": self._sums}

    def _copies(self, shared: Tensor) -> bool:
        """Whether the host's own way is taken."""
        ungrouped = self._attention.cfg.ungroup_grouped_query_attention
        return ungrouped or len(shared) == 1 or shared.device.type != "cpu"

    def _scores(
        self, q: Keys, k: Float[Tensor, "batch key shared d_head"]
    ) -> Float[Tensor, "batch head pos key"]:
        if self._copies(k):
            return self._stock[0](q, k)
        times = self._attention.repeat_kv_heads
        of_each = [
            self._of_equal_heads(self._attention, q[:, :, nth::times], k) for nth in range(times)
        ]
        return rearrange(of_each, "nth batch head pos key -> batch (head nth) pos key")

    def _sums(
        self,
        v: Float[Tensor, "batch key shared d_head"],
        pattern: Float[Tensor, "batch head pos key"],
    ) -> Float[Tensor, "batch pos head d_head"]:
        if self._copies(v):
            return self._stock[1](v, pattern)
        times, values = self._attention.repeat_kv_heads, rearrange(v, "b key h d -> b h key d")
        of_each = [pattern[:, nth::times] @ values for nth in range(times)]
        summed = rearrange(of_each, "nth batch head pos d_head -> batch (head nth) pos d_head")
        return self._attention.hook_z(rearrange(summed, "batch head pos d -> batch pos head d"))
