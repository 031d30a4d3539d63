"""Exclusive use of a model, and its restoration after every change.

All changes to a model (hooks, methods, weights) are made here: for one forward pass at a time, or
recorded, so that other threads are refused. Every change is undone by *one* call of C code, which
no signal can interrupt: Python handles signals between bytecodes, and that call has none.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat, starmap
from operator import call
from threading import RLock, get_ident
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Parameter

from steerlens.errors import SteerlensError
from steerlens.models.host import Model

Result = TypeVar("Result")
Step = tuple[Any, ...]
"""A C function and its arguments."""


def at_once(steps: Sequence[Step]) -> Callable[[], object]:
    """All steps as one call that no signal interrupts; it takes effect once.

    >>> numbers = [1]
    >>> _ = at_once([(numbers.append, 2), (numbers.append, 3)])()
    >>> numbers
    [1, 2, 3]
    """
    return partial(deque, starmap(call, steps), maxlen=0)


def restoring(owner: Any, name: str) -> Step:
    """The step that resets an object's attribute to its present value, or removes it."""
    attributes = vars(owner)
    if name in attributes:
        return (dict.__setitem__, attributes, name, attributes[name])
    return (dict.pop, attributes, name, None)


@dataclass(eq=False)
class Change:
    """A temporary change of a model: the steps that make it and that undo it."""

    put_on: Sequence[Step]
    take_off: Sequence[Step]
    """Harmless even if their counterparts in `put_on` have not been done."""
    thread: int = field(default_factory=get_ident)


@dataclass(eq=False)
class _Edit:
    """An edit of weights for as long as a `with` lasts."""

    name: str
    undo: Callable[[], object] = tuple
    thread: int = field(default_factory=get_ident)
    left: bool = False
    """Whether its `with` has ended, though one that began later has not."""


class _Use:
    """What is being done with one model."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.running: tuple[Change, ...] = ()
        """The current pass, preceded by those that wait for it (an edit that runs the model)."""
        self.edits: tuple[_Edit, ...] = ()


_USES: WeakKeyDictionary[Model, _Use] = WeakKeyDictionary()
_OWN_EDITS: ContextVar[tuple[_Edit, ...]] = ContextVar("own_edits", default=())
"""The edits of weights within which this thread or asyncio task runs."""


def _use_of(model: Model) -> _Use:
    return _USES.setdefault(model, _Use())


def exclusive(model: Model) -> Any:
    """The reentrant lock that is held during every forward pass of steerlens.

    >>> with exclusive(model):
    ...     logits = model("Hi.")
    """
    return _use_of(model).lock


def holding(model: Model, work: Callable[[list[Step]], Result]) -> Result:
    """Run `work` with the model's lock; steps that it appends to its argument run at the end."""
    lock, ending = _use_of(model).lock, list[Step]()
    end = at_once(ending)
    try:
        try:
            at_once([(lock.acquire,), (ending.append, (lock.release,))])()
            return work(ending)
        finally:
            end()
    finally:
        end()  # in case a signal arrived right before; a second call does nothing


def run_with(model: Model, change: Change, work: Callable[[], Result]) -> Result:
    """Run `work` with this change of the model and no other run's; other threads wait.

    Refuses if another thread or task has edited the weights.
    """
    return holding(model, partial(_one_pass, model, change, work))


def _one_pass(
    model: Model, change: Change, work: Callable[[], Result], ending: list[Step]
) -> Result:
    use = _use_of(model)
    _require_own_edits(model, use)
    waiting = use.running[-1:]
    suspend = [step for outer in waiting for step in outer.take_off]
    resume = [step for outer in waiting for step in outer.put_on]
    ending[:0] = [*change.take_off, *resume, restoring(use, "running")]
    at_once([(setattr, use, "running", (*use.running, change)), *suspend, *change.put_on])()
    return work()


@contextmanager
def edited_weights(
    model: Model, name: str, new_values: Callable[[], Sequence[tuple[Parameter, Tensor]]]
) -> Iterator[None]:
    """Give parameters new values, and afterwards the same tensors that they had before.

    Meanwhile the model is refused to other threads and asyncio tasks. Nested edits are undone in
    reverse order; leaving one too early raises, and it is undone with the later one.

    Args:
        model: The model.
        name: What is edited, for messages.
        new_values: Returns parameters with their new data; called with the model's lock.
    """
    use, edit = _use_of(model), _Edit(name)
    old, held = dict[Parameter, Tensor](), list[Tensor]()

    def begin(_: list[Step]) -> None:
        _require_own_edits(model, use)
        changes = new_values()
        old.update((parameter, parameter.data) for parameter, _ in changes)
        record = held.extend, map(getattr, old, repeat("data"))
        restore = [(setattr, parameter, "data", data) for parameter, data in old.items()]
        edit.undo = at_once([record, *restore, restoring(use, "edits")])
        apply = [(setattr, parameter, "data", data) for parameter, data in changes]
        at_once([*apply, (setattr, use, "edits", (*use.edits, edit))])()

    ended = False
    try:
        try:
            holding(model, begin)
            _OWN_EDITS.set((*_OWN_EDITS.get(), edit))
            yield
            ended = True
        finally:
            # Nothing is called before `undo`, so that no signal is handled before it.
            edit.left = True
            if use.edits[-1:] == (edit,):
                edit.undo()
    finally:
        # Again, in case a signal arrived right before; and with the edits that began inside this
        # `with`, if an exception has ended it.
        edit.left = True
        while edit in use.edits and (use.edits[-1].left or not ended):
            use.edits[-1].undo()
        while use.edits and use.edits[-1].left:
            use.edits[-1].undo()
        if edit in use.edits:
            raise SteerlensError(
                f"{edit.name} of {model.cfg.model_name} was left before an edit that began later: "
                "the weights stay edited until that one is left, too; leave edits in reverse order"
            )
    _OWN_EDITS.set(tuple(other for other in _OWN_EDITS.get() if other is not edit))
    for parameter, data in zip(old, held, strict=True):
        if (data.device, data.dtype) != (parameter.device, parameter.dtype):
            parameter.data = parameter.data.to(data)  # the model has been moved


def _require_own_edits(model: Model, use: _Use) -> None:
    foreign = [edit.name for edit in use.edits if edit not in _OWN_EDITS.get()]
    if foreign:
        raise SteerlensError(
            f"the weights of {model.cfg.model_name} are being edited ({', '.join(foreign)}) by "
            "another thread or task, so that its output would be that of the edited model; wait "
            "until the `with` there has ended, or load the model again for this thread"
        )


def _after_fork() -> None:
    """The child has only this thread: undo what others were doing, and free their locks."""
    torch.set_num_threads(1)  # OpenMP's threads are gone, and torch would wait for them forever
    for use in list(_USES.values()):
        for change in reversed(use.running):
            if change.thread != get_ident():
                at_once(change.take_off)()
        for edit in reversed(use.edits):
            if edit.thread != get_ident():
                edit.undo()
        if any(change.thread != get_ident() for change in use.running):
            use.running = ()
        if not use.running:
            use.lock = RLock()


os.register_at_fork(after_in_child=_after_fork)
