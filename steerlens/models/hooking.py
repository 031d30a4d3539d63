"""Hooks on a model's hook points: for one forward pass, or until they are removed."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import get_ident
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint, LensHandle

from steerlens.models.host import Model, is_hooked
from steerlens.models.ownership import Step, at_once, holding, restoring

NamedHook = tuple[str, Callable[..., Any]]
PlacedHook = tuple[HookPoint, Callable[..., Any]]


def placed(model: Model, hooks: Iterable[NamedHook]) -> list[PlacedHook]:
    """The hook point of each name, looked up once."""
    points = model.hook_dict  # a bridge rebuilds it at every access
    return [(points[name], function) for name, function in hooks]


def hook_steps(model: Model, hooks: Sequence[PlacedHook]) -> tuple[list[Step], list[Step]]:
    """The steps that add hooks for one forward pass of this thread, and those that remove them.

    The host's `with model.hooks()` would not do: it adds a hook before recording it, and removes
    all hooks that anyone has added since.
    """
    put_on: list[Step] = []
    take_off: list[Step] = []
    for point, function in hooks:
        key = object()
        hook = partial(_call, function, get_ident())
        put_on.append((point._forward_hooks.__setitem__, key, hook))
        take_off.append((point._forward_hooks.pop, key, None))
    if not is_hooked(model):  # a bridge may skip points that list no hook
        for point in dict.fromkeys(point for point, _ in hooks):
            listed = LensHandle(RemovableHandle(OrderedDict()))
            fwd_hooks = [*point.fwd_hooks, listed]
            put_on.append((dict.__setitem__, vars(point), "fwd_hooks", fwd_hooks))
            take_off.append(restoring(point, "fwd_hooks"))
    return put_on, take_off


def _call(
    function: Callable[..., Any], thread: int, point: Any, _: Any, activation: Tensor
) -> Tensor | None:
    """Call a hook as the host's hook points do, but not for other threads that run the model."""
    if get_ident() != thread:
        return None
    conversion = getattr(point, "hook_conversion", None)
    if conversion is None:
        return function(activation, hook=point)
    result = function(conversion.convert(activation), hook=point)
    return None if result is None else conversion.revert(result)


def restore_hooks(model: Model, names: Iterable[str]) -> Callable[[], object]:
    """A function that gives hook points the hooks back that they have now, after an interrupt."""
    points = model.hook_dict
    steps: list[Step] = []
    for name in names:
        point, hooks = points[name], points[name]._forward_hooks
        listed = (dict.__setitem__, vars(point), "fwd_hooks", list(point.fwd_hooks))
        steps += [(hooks.clear,), (hooks.update, hooks.copy()), listed]
    counts = [name for name in ("context_level", "is_caching") if name in vars(model)]
    return at_once([*steps, *(restoring(model, name) for name in counts)])


class Attachment:
    """Hooks that stay on a model without a `with`, for notebooks, until `remove()`."""

    def __init__(self) -> None:
        self._added: list[tuple[Any, LensHandle]] = []

    def attach(self, model: Model, hooks: Iterable[NamedHook]) -> None:
        """Add hooks to the model: all of them, or none if one fails."""
        named = list(hooks)

        def add(_: list[Step]) -> None:
            undo = restore_hooks(model, dict.fromkeys(name for name, _ in named))
            added = []
            try:
                for point, function in placed(model, named):
                    point.add_hook(function)
                    added.append((point, point.fwd_hooks[-1]))
                self._added = added
            except BaseException:
                undo()
                raise

        holding(model, add)

    def remove(self) -> None:
        """Remove these hooks and no others; a second call does nothing."""
        handles = [handle for _, handle in self._added]
        steps: list[Step] = [
            (point._forward_hooks.pop, handle.hook.id, None) for point, handle in self._added
        ]
        for point in dict.fromkeys(point for point, _ in self._added):
            kept = [
                hook for hook in point.fwd_hooks if not any(hook is handle for handle in handles)
            ]
            steps.append((dict.__setitem__, vars(point), "fwd_hooks", kept))
        at_once([*steps, (setattr, self, "_added", [])])()
