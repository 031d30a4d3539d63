"""Hooks on a model's hook points: for one forward pass, or until they are taken off."""

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
    points = model.hook_dict  # a bridge makes it anew whenever it is looked at
    return [(points[name], function) for name, function in hooks]


def hook_steps(model: Model, hooks: Sequence[PlacedHook]) -> tuple[list[Step], list[Step]]:
    """How hooks are put on for one forward pass of this thread, and taken off.

    Not by the host's `with model.hooks()`: it adds before it notes down, and takes off whatever
    anybody added since.
    """
    put_on: list[Step] = []
    take_off: list[Step] = []
    for point, function in hooks:
        key = object()
        shown = partial(_call, function, get_ident())
        put_on.append((point._forward_hooks.__setitem__, key, shown))
        take_off.append((point._forward_hooks.pop, key, None))
    if not is_hooked(model):  # whose points may be passed only if they list a hook
        for point in dict.fromkeys(point for point, _ in hooks):
            listed = LensHandle(RemovableHandle(OrderedDict()))
            now = [*point.fwd_hooks, listed]
            put_on.append((dict.__setitem__, vars(point), "fwd_hooks", now))
            take_off.append(restoring(point, "fwd_hooks"))
    return put_on, take_off


def _call(
    function: Callable[..., Any], thread: int, point: Any, _: Any, activation: Tensor
) -> Tensor | None:
    """As the host's hook points call a hook; but another thread that runs the model has none."""
    if get_ident() != thread:
        return None
    form = getattr(point, "hook_conversion", None)
    if form is None:
        return function(activation, hook=point)
    result = function(form.convert(activation), hook=point)
    return None if result is None else form.revert(result)


def as_they_are(model: Model, names: Iterable[str]) -> Callable[[], object]:
    """Gives points the hooks back that they have now, if something is stopped midway."""
    points = model.hook_dict
    steps: list[Step] = []
    for name in names:
        point, hooks = points[name], points[name]._forward_hooks
        listed = (dict.__setitem__, vars(point), "fwd_hooks", list(point.fwd_hooks))
        steps += [(hooks.clear,), (hooks.update, hooks.copy()), listed]
    counts = [name for name in ("context_level", "is_caching") if name in vars(model)]
    return at_once([*steps, *(restoring(model, name) for name in counts)])


class Attachment:
    """Hooks that stay on a model without a `with`, for notebooks; `remove()` takes them off."""

    def __init__(self) -> None:
        self._added: list[tuple[Any, LensHandle]] = []

    def attach(self, model: Model, hooks: Iterable[NamedHook]) -> None:
        """Put these hooks on, all or none."""
        named = list(hooks)

        def add(_: list[Step]) -> None:
            undo = as_they_are(model, dict.fromkeys(name for name, _ in named))
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
        """Take these hooks off, and no others; more than once does no harm."""
        handles = [handle for _, handle in self._added]
        steps: list[Step] = [
            (point._forward_hooks.pop, handle.hook.id, None) for point, handle in self._added
        ]
        for point in dict.fromkeys(point for point, _ in self._added):
            kept = [one for one in point.fwd_hooks if not any(one is own for own in handles)]
            steps.append((dict.__setitem__, vars(point), "fwd_hooks", kept))
        at_once([*steps, (setattr, self, "_added", [])])()
