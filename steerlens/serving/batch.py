"""The running batch: rows of many requests in one forward pass, each steered by its own run."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steerlens.models.fast_forward import ForwardPasses, is_on
from steerlens.models.hooking import NamedHook, placed
from steerlens.models.host import Cache, Model, next_logits
from steerlens.models.joined_cache import Held, joined, require_joinable
from steerlens.serving.requests import Piece, RequestRows
from steerlens.shapes import TokenMask

ROOM = 64
"""Columns by which a joined KV cache may grow before it is joined again."""
_Part = tuple[RequestRows, slice, Callable[..., Any]]


class RunningBatch:
    """The rows that are decoded together, in one KV cache padded on the left.

    The cache is joined anew whenever a row has come or gone.

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        require_joinable(model)
        self.fast = is_on(model)
        self.members: list[RequestRows] = []
        """The requests that have rows in the batch."""
        self._model = model
        self._joined: list[Held] = []
        """Where the joined cache has each member's rows."""
        self._cache: Cache
        self._mask: TokenMask
        self._passes: ForwardPasses
        self._room = 0

    @torch.inference_mode()
    def decode(self) -> list[tuple[RequestRows, list[Piece]]]:
        """Give each row its next token, by one forward pass.

        What fails for one member sets its `error`, and nothing else.
        """
        if not self._room or self._has_changed():
            self._join()
        for one in self.members:
            one.announce()
        tokens = torch.cat([one.newest for one in self.members])
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        mask = self._mask.int()
        logits = self._passes(partial(next_logits, self._model, tokens, mask, self._cache))
        self._room -= 1
        self._joined = [held._replace(length=held.length + 1) for held in self._joined]
        of_members = logits.split([len(held.rows) for held in self._joined])
        written: list[tuple[RequestRows, list[Piece]]] = []
        for one, own, held in zip(self.members, of_members, self._joined, strict=True):
            try:
                if one.error is None:
                    written.append((one, one.take(own, held)))
            except Exception as error:
                one.error = error
        return written

    def _has_changed(self) -> bool:
        """Whether a row has come or gone since the caches were joined."""
        return len(self.members) != len(self._joined) or any(
            one.held is not place for one, place in zip(self.members, self._joined, strict=True)
        )

    def _join(self) -> None:
        """Join the members' KV caches, and prepare forward passes with all of their hooks."""
        self._room = min(ROOM, max(one.remaining for one in self.members))
        held = [one.held for one in self.members]
        self._cache, self._mask = joined(self._model, held, self._room, self.fast)
        rows = torch.arange(len(self._mask)).split([len(part.rows) for part in held])
        self._joined = [
            Held(self._cache, own, part.length) for own, part in zip(rows, held, strict=True)
        ]
        for one, place in zip(self.members, self._joined, strict=True):
            one.held = place
        parts = [
            (one, slice(int(own[0]), int(own[-1]) + 1))
            for one, own in zip(self.members, rows, strict=True)
        ]
        self._passes = ForwardPasses(
            self._model, placed(self._model, side_by_side(parts)), self.fast
        )


def side_by_side(parts: Sequence[tuple[RequestRows, slice]]) -> list[NamedHook]:
    """Hooks that let each run see and edit its own rows of a batch only.

    Args:
        parts: Each request, and which rows of the batch are its own.
    """
    by_name: dict[str, list[_Part]] = {}
    for request, rows in parts:
        for name, function in request.run.hooks():
            by_name.setdefault(name, []).append((request, rows, function))
    return [(name, partial(steer_rows, parts=own)) for name, own in by_name.items()]


def steer_rows(activation: Tensor, hook: Any, *, parts: Sequence[_Part]) -> Tensor | None:
    """Call each request's hook on its rows; what one raises is its own affair."""
    edited = None
    for request, rows, function in parts:
        if request.error is not None:
            continue
        try:
            seen = activation if edited is None else edited
            result = function(seen[rows], hook=hook)
        except Exception as error:
            request.error = error
            continue
        if result is not None:
            edited = activation.clone() if edited is None else edited
            edited[rows] = result
    return edited
