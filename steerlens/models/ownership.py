"""Whose turn it is on a model, and everything put back whatever happens.

Whoever changes a model (hooks, methods, weights) does it here: for one forward pass at a time, or
openly, so that others are refused. Whatever is changed is put back by *one* call of C code, which
no signal can interrupt: Python handles signals between bytecodes, and there are none in it.
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

from torch import Tensor
from torch.nn import Parameter

from steerlens.errors import SteerlensError
from steerlens.models.host import Model

Result = TypeVar("Result")
Step = tuple[Any, ...]
"""A function of C code and its arguments."""


def at_once(steps: Sequence[Step]) -> Callable[[], object]:
    """All steps as one call that no signal interrupts; it can be called once.

    >>> numbers = [1]
    >>> _ = at_once([(numbers.append, 2), (numbers.append, 3)])()
    >>> numbers
    [1, 2, 3]
    """
    return partial(deque, starmap(call, steps), maxlen=0)


def restoring(owner: Any, name: str) -> Step:
    """The step that gives an object's own attribute back what it is now, or takes it off."""
    attributes = vars(owner)
    if name in attributes:
        return (dict.__setitem__, attributes, name, attributes[name])
    return (dict.pop, attributes, name, None)


@dataclass(eq=False)
class Change:
    """Something that is on a model for a while: how it is put there, and taken off."""

    put_on: Sequence[Step]
    take_off: Sequence[Step]
    """Each of these does no harm where its counterpart has not been done yet."""
    thread: int = field(default_factory=get_ident)


@dataclass(eq=False)
class _Edit:
    """Weights that are changed for as long as a `with` lasts."""

    name: str
    undo: Callable[[], object] = tuple
    thread: int = field(default_factory=get_ident)
    left: bool = False
    """Whether its `with` has ended, before one that began later."""


class _Use:
    """What is being done to one model."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.running: tuple[Change, ...] = ()
        """The pass at hand, after those that wait for it to end (an edit that runs the model)."""
        self.edits: tuple[_Edit, ...] = ()


_USES: WeakKeyDictionary[Model, _Use] = WeakKeyDictionary()
_OWN_EDITS: ContextVar[tuple[_Edit, ...]] = ContextVar("own_edits", default=())
"""The edits of weights that this thread, or asyncio task, knows of: it runs inside of them."""


def _use_of(model: Model) -> _Use:
    return _USES.setdefault(model, _Use())


def exclusive(model: Model) -> Any:
    """The lock that is held during every forward pass of ours; its holder may take it again."""
    return _use_of(model).lock


def holding(model: Model, work: Callable[[list[Step]], Result]) -> Result:
    """`work` while the model's lock is held; the steps that it notes down are done at the end."""
    lock, ending = _use_of(model).lock, list[Step]()
    end = at_once(ending)
    try:
        try:
            at_once([(lock.acquire,), (ending.append, (lock.release,))])()
            return work(ending)
        finally:
            end()
    finally:
        end()  # for a signal that came right before; done already, it does nothing


def run_with(model: Model, change: Change, work: Callable[[], Result]) -> Result:
    """`work` while the change is on the model and no other of ours; other threads wait.

    Refuses if another thread or task has edited the weights.
    """
    use = _use_of(model)

    def one_pass(ending: list[Step]) -> Result:
        _require_own_edits(model, use)
        waiting = use.running[-1:]
        off = [step for one in waiting for step in one.take_off]
        on_again = [step for one in waiting for step in one.put_on]
        ending[:0] = [*change.take_off, *on_again, restoring(use, "running")]
        at_once([(setattr, use, "running", (*use.running, change)), *off, *change.put_on])()
        return work()

    return holding(model, one_pass)


@contextmanager
def edited_weights(
    model: Model, name: str, new_values: Callable[[], Sequence[tuple[Parameter, Tensor]]]
) -> Iterator[None]:
    """Let parameters hold new values; then, again, the very tensors that they held before.

    Meanwhile other threads and asyncio tasks are refused the model. Edits within edits are undone
    in reverse order; one that is left too early raises, and is undone with the later one.
    """
    use, edit = _use_of(model), _Edit(name)
    old, held = dict[Parameter, Tensor](), list[Tensor]()

    def begin(_: list[Step]) -> None:
        _require_own_edits(model, use)
        changes = new_values()
        old.update((parameter, parameter.data) for parameter, _ in changes)
        note = held.extend, map(getattr, old, repeat("data"))
        back = [(setattr, parameter, "data", data) for parameter, data in old.items()]
        edit.undo = at_once([note, *back, restoring(use, "edits")])
        there = [(setattr, parameter, "data", data) for parameter, data in changes]
        at_once([*there, (setattr, use, "edits", (*use.edits, edit))])()

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
        # Again, for a signal that came right before; and with what began inside of this `with`,
        # if an exception has ended it.
        while edit in use.edits and (use.edits[-1].left or not ended):
            use.edits[-1].undo()
        while use.edits and use.edits[-1].left:
            use.edits[-1].undo()
        if edit in use.edits:
            raise SteerlensError(
                f"{edit.name} of {model.cfg.model_name} was left before an edit that began later: "
                "the weights stay edited until that one is left, too; leave edits in reverse order"
            )
    _OWN_EDITS.set(tuple(one for one in _OWN_EDITS.get() if one is not edit))
    for parameter, data in zip(old, held, strict=True):
        if (data.device, data.dtype) != (parameter.device, parameter.dtype):
            parameter.data = parameter.data.to(data)  # the model has moved meanwhile


def _require_own_edits(model: Model, use: _Use) -> None:
    foreign = [edit.name for edit in use.edits if edit not in _OWN_EDITS.get()]
    if foreign:
        raise SteerlensError(
            f"the weights of {model.cfg.model_name} are being edited ({', '.join(foreign)}) by "
            "another thread or task, so that what it says now is not its own; wait until the "
            "`with` there has ended, or load the model again for this one"
        )


def _after_fork() -> None:
    """The child has this thread only: what others were doing is undone, their locks are free."""
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
