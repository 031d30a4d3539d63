"""Forward passes without what the host would compute again for every layer and step.

HookedTransformer normalises a block's input three times, rotates all cached keys at every step,
copies them to append one, and builds positions and masks in every layer. In a `forward_pass` these
are done once, by attributes of the model's own modules that are gone afterwards: no class is
changed, every hook point is passed, and logits stay bit-identical. A TransformerBridge repeats
nothing, and runs as it is. `disabled()` and `load_model(fast=False)` turn it off.
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

Keys = Float[Tensor, "row pos head d_head"]
NewKeys = Float[Tensor, "row new head d_head"]


class _KeyValues(CacheEntry):
    """One layer's keys and values, in memory reserved for a whole text; keys are kept rotated.

    In memory, axes stand as the attention's products of matrices want them, so that nothing is
    copied there. (The host's keys of a single row need no copy; other axes would round otherwise.)
    """

    past_keys: Any
    past_values: Any

    def __init__(self, empty: CacheEntry, room: int) -> None:
        super().__init__(empty.past_keys, empty.past_values)
        rows, _, heads, d_head = empty.past_keys.shape
        axes = "row head pos d_head" if rows == 1 else "row head d_head pos"
        # Axes as the host sees them, without a copy.
        self._keys = rearrange(
            empty.past_keys.new_empty(
                (rows, heads, room, d_head) if rows == 1 else (rows, heads, d_head, room)
            ),
            f"{axes} -> row pos head d_head",
        )
        self._values = rearrange(
            empty.past_values.new_empty(rows, heads, room, d_head),
            "row head pos d_head -> row pos head d_head",
        )

    def append(self, new_keys: NewKeys, new_values: NewKeys) -> tuple[Keys, Keys]:
        start = self.past_keys.shape[1]
        end = start + new_keys.shape[1]
        self.past_keys, self.past_values = self._keys[:, :end], self._values[:, :end]
        self.past_keys[:, start:], self.past_values[:, start:] = new_keys, new_values
        self.past_keys.rotated = start
        return self.past_keys, self.past_values

    def select(self, rows: Int[Tensor, " row"]) -> None:
        length = self.past_keys.shape[1]
        self._keys, self._values = self._keys[rows], self._values[rows]
        self.past_keys, self.past_values = self._keys[:, :length], self._values[:, :length]


def decoding_cache(model: Model, rows: int, room: int, fast: bool) -> Cache:
    """An empty cache for texts of up to `room` tokens, for forward passes that are as `fast`."""
    cache = new_cache(model, rows)
    if not fast or isinstance(cache, HuggingFaceCache):
        return cache
    cache.entries = [_KeyValues(entry, room) for entry in cache.entries]
    return cache


def cached_numbers(model: Model) -> int:
    """How many numbers the keys and values of one token are, in all layers."""
    heads = getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
    return int(2 * model.cfg.n_layers * heads * model.cfg.d_head)


def select_rows(cache: Cache, rows: Int[Tensor, " row"]) -> None:
    """Go on with these rows of a cache, in this order; a row may be given out repeatedly."""
    if isinstance(cache, HuggingFaceCache):
        cache.batch_select_indices(rows)
        return
    for entry in cache.entries:
        if isinstance(entry, _KeyValues):
            entry.select(rows)
        else:
            entry.past_keys, entry.past_values = entry.past_keys[rows], entry.past_values[rows]
    cache.previous_attention_mask = cache.previous_attention_mask[rows]


_OFF: ContextVar[bool] = ContextVar("fast_forward_off", default=False)
_PLAIN: WeakSet[Model] = WeakSet()


@contextmanager
def disabled() -> Iterator[None]:
    """Until the block ends, this thread's forward passes are the host's own, to the last call.

    Nothing that comes out changes, but for the time it takes.

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
    """For good, for this model."""
    _PLAIN.add(model)


def is_on(model: Model) -> bool:
    """Whether forward passes of this model skip repeated work."""
    return is_hooked(model) and not _OFF.get() and model not in _PLAIN


def forward_pass(
    model: Model,
    work: Callable[[], Result],
    hooks: Sequence[PlacedHook] = (),
    *,
    fast: bool | None = None,
    frozen: bool = False,
) -> Result:
    """`work`, which runs the model, under these hooks and no other run's; other threads wait.

    Repeated work is skipped if `fast`, or by default if `is_on(model)`; while `frozen`, no weight
    asks for a gradient. Afterwards the model is as it was, whatever happens.

    >>> model = load_model()
    >>> forward_pass(model, lambda: model(torch.tensor([[1, 40]]))).shape
    torch.Size([1, 2, 3072])
    """
    return ForwardPasses(model, hooks, is_on(model) if fast is None else fast, frozen)(work)


class ForwardPasses:
    """`forward_pass` again and again, prepared once for as long as nothing stands against it."""

    def __init__(
        self, model: Model, hooks: Sequence[PlacedHook], fast: bool, frozen: bool = False
    ) -> None:
        self._model, self._hooks, self._fast, self._frozen = model, hooks, fast, frozen
        self._change: Change | None = None
        self._methods: list[tuple[dict[str, Any], str]] = []

    def __call__(self, work: Callable[[], Result]) -> Result:
        """One pass."""
        if self._change is None or self._is_stale(self._change):
            self._change = self._prepared()
        return run_with(self._model, self._change, work)

    def _is_stale(self, change: Change) -> bool:
        """In another thread than before, or if somebody else has replaced a method of ours."""
        elsewhere = change.thread != get_ident() or not is_hooked(self._model)
        return elsewhere or any(name in attributes for attributes, name in self._methods)

    def _prepared(self) -> Change:
        put_on, take_off = hook_steps(self._model, self._hooks)
        for weight in self._model.parameters() if self._frozen else ():
            if weight.requires_grad:
                put_on.append((weight.requires_grad_, False))
                take_off.append((weight.requires_grad_, True))
        self._methods = []
        for module, name, instead in _replacements(self._model) if self._fast else ():
            put_on.append((dict.__setitem__, vars(module), name, instead))
            take_off.append(restoring(module, name))
            self._methods.append((vars(module), name))
        return Change(put_on, take_off)


def _replacements(model: Model) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """Methods of the model's modules, and what does the same in less time, in this thread."""
    shared = _Padding()
    for block in model.blocks:
        norm = getattr(block, "ln1", None)
        if norm is not None:
            yield norm, "forward", _here_only(_same_input_same_output(norm.forward), norm.forward)
        attention = block.attn
        if _turns_keys_once(attention):
            rotate = _rotate(attention, shared, attention.apply_rotary)
            yield attention, "apply_rotary", _here_only(rotate, attention.apply_rotary)
        if attention.attn_type == "global":
            hide = _hide(attention, shared, attention.apply_causal_mask)
            yield attention, "apply_causal_mask", _here_only(hide, attention.apply_causal_mask)


def _here_only(ours: Callable[..., Any], stock: Callable[..., Any]) -> Callable[..., Any]:
    """Another thread that runs the model meanwhile, not through us, gets the host's own."""
    here = get_ident()

    def method(*args: Any, **options: Any) -> Any:
        return (ours if get_ident() == here else stock)(*args, **options)

    return method


def _same_input_same_output(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The queries', keys' and values' norm: the host asks three times, with one tensor."""
    asked, answer, times = None, None, 0

    def normed(x: Tensor) -> Tensor:
        nonlocal asked, answer, times
        if x is not asked:
            asked, answer, times = x, norm(x), 0
        result, times = answer, times + 1
        if times == 3:  # nothing is kept alive beyond the block
            asked = answer = None
        assert result is not None
        return result

    return normed


class _Padding:
    """What follows from the mask of a pass, found once for all its layers."""

    def __init__(self) -> None:
        self._mask: Tensor | None = None

    def of(self, mask: Int[Tensor, "row text"] | None) -> "_Padding | None":
        """None where nothing is padded."""
        if mask is None:
            return None
        if mask is not self._mask:
            self._mask = mask
            self.real: Bool[Tensor, "row text"] = mask.bool()
            self.any = not bool(self.real.all())
            self.place = (mask.cumsum(dim=1) - 1).clamp_min(0)
        return self if self.any else None


def _turns_keys_once(attention: Any) -> bool:
    """Tables that are stretched as a text grows turn its old keys anew."""
    return attention.cfg.positional_embedding_type == "rotary" and not getattr(
        attention.cfg, "use_dynamic_ntk_rope", False
    )


def _rotate(
    attention: Any, padding: _Padding, stock: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    found: tuple[Any, ...] = (None, None)

    def angles(start: int, end: int, mask: Int[Tensor, "row text"] | None) -> Any:
        nonlocal found
        tables = attention.rotary_cos, attention.rotary_sin
        padded = padding.of(mask)
        if padded is None:
            return tuple(table[None, start:end, None] for table in tables)
        if found[0] is not padded.place or found[1] != (start, end):  # asked for queries and keys
            place = padded.place[:, start:end].to(tables[0].device)
            found = padded.place, (start, end), [table[place][:, :, None] for table in tables]
        return found[2]

    def turned(x: Keys, start: int, mask: Int[Tensor, "row text"] | None) -> Keys:
        end = start + x.shape[1]
        if end > attention.rotary_cos.shape[0]:
            stock(x[:, :1], end - 1)  # the host makes its tables longer
        x = x.to(attention.rotary_cos.device)
        cos, sin = angles(start, end, mask)
        width = attention.cfg.rotary_dim
        part = x[..., :width]
        rotated = part * cos
        for one, other, gain in _pairs(attention.cfg.rotary_adjacent_pairs, width):
            gain(rotated[..., one], part[..., other] * sin[..., one])
        return rotated if width == x.shape[-1] else torch.cat([rotated, x[..., width:]], -1)

    def rotate(x: Keys, start: int = 0, mask: Int[Tensor, "row text"] | None = None) -> Keys:
        rotated = getattr(x, "rotated", None)
        if rotated is None:
            return turned(x, start, mask)
        x[:, rotated:] = turned(x[:, rotated:], rotated, mask)
        return x

    return rotate


def _pairs(adjacent: bool, width: int) -> Iterator[tuple[slice, slice, Callable[..., Any]]]:
    """Which numbers are turned with which: [a, b] gains [−b, a] times the sine."""
    half = width // 2
    first, second = (
        (slice(0, None, 2), slice(1, None, 2)) if adjacent else (slice(half), slice(half, None))
    )
    yield first, second, Tensor.sub_
    yield second, first, Tensor.add_


def _hide(attention: Any, padding: _Padding, stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def hide(
        scores: Float[Tensor, "row head pos key"],
        start: int = 0,
        mask: Int[Tensor, "row text"] | None = None,
    ) -> Float[Tensor, "row head pos key"]:
        padded = padding.of(mask)
        if scores.shape[2] > 1:
            return stock(scores, start, None if padded is None else mask)
        if padded is None:
            return scores  # a single new token sees all
        return torch.where(padded.real[:, None, None], scores, attention.IGNORE)

    return hide
