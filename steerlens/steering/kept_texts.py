"""What a conversation keeps between its turns: keys and values, and how each token was edited.

The next turn's text begins as the last one's did, up to where its template, its tokens or the
edits of its tokens differ. So far, keys and values are what a run of the whole text would give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from steerlens.activations.prefixes import common_length
from steerlens.models.cache_beginnings import begin_with, can_be_cut
from steerlens.models.fast_forward import is_on
from steerlens.models.host import Cache, Model, users_hooks
from steerlens.models.tokenizing import TokenRow, reply_starts
from steerlens.shapes import TokenMask
from steerlens.steering.batch_plans import Plan, equal_but_for, steering_of
from steerlens.steering.beginnings import edits_each_token_alone
from steerlens.steering.clocks import DecodingClock
from steerlens.steering.steering import Steering

WHERE = frozenset({"positions", "skip_bos", "when", "name"})
"""Fields of a steering that choose its tokens, or nothing; the others say what is done to these."""


class Edits(NamedTuple):
    """Which tokens of a text are edited, and by what."""

    steerings: tuple[Steering, ...]
    """Those that act: their conditions have been decided."""
    where: Bool[Tensor, "steering place"]

    @classmethod
    def of(cls, steerings: Sequence[Steering], row: TokenRow, ids: Sequence[int]) -> "Edits":
        """The edits of the tokens of a prompt and its reply.

        Args:
            steerings: They act on this row.
            row: The prompt.
            ids: Its tokens and the reply's.
        """
        real = torch.ones(1, len(row.ids), dtype=torch.bool)
        clock = DecodingClock(real, reply_starts([row]))
        clock.show(0, len(ids), torch.tensor([ids]))
        where = torch.ones(len(steerings), len(ids), dtype=torch.bool)
        for edited, steering in zip(where, steerings, strict=True):
            chosen = clock.current.steered(steering.positions, steering.skip_bos)
            if chosen is not None:
                edited[:] = chosen[0]
        return cls(tuple(steerings), where)

    def alike(self, other: "Edits", n_tokens: int) -> int:
        """How many of the first tokens are edited alike; both know at least `n_tokens`."""
        mine, its = self.where[:, :n_tokens], other.where[:, :n_tokens]
        same = len(mine) == len(its) and all(
            equal_but_for(WHERE, *pair)
            for pair in zip(self.steerings, other.steerings, strict=True)
        )
        differs = (mine != its).any(dim=0) if same else mine.any(dim=0) | its.any(dim=0)
        return int(differs.nonzero()[0]) if differs.any() else n_tokens


@dataclass(frozen=True, eq=False)
class KeptText:
    """A text that was run, with its KV cache; never changed, so that several may go on from it."""

    ids: tuple[int, ...]
    edits: Edits
    cache: Cache
    fast: bool
    """Whether the cache is one of fast forward passes."""

    def serves(self, model: Model, row: TokenRow, steerings: Sequence[Steering]) -> int:
        """For how many of its first tokens a prompt need not be run."""
        if is_on(model) != self.fast:
            return 0
        n_tokens = common_length(self.ids, row.ids[:-1])  # the last one's logits are needed
        edits = Edits.of(steerings, row, row.ids)
        for steering, edited in zip(steerings, edits.where, strict=True):
            if edited.any() and not edits_each_token_alone(steering):
                return 0  # the edit must see the whole prompt in one pass
            if edited[:n_tokens].any() and steering.schedule is not None:
                return 0  # what was the reply is now the prompt, and of another age
        return self.edits.alike(edits, n_tokens)


@dataclass(eq=False)
class Continuing:
    """The `begin` of one decoding run, which goes on from a text that was kept, if there is one."""

    before: KeptText | None
    n_kept: int = 0
    """How many tokens of the prompt were not run again."""
    _cache: Cache | None = None
    _fast: bool = False

    @torch.inference_mode()
    def __call__(
        self,
        model: Model,
        rows: Sequence[TokenRow],
        plans: Sequence[Plan],
        mask: TokenMask,
        cache: Cache | None,
    ) -> int:
        """Begin the cache of the one row with what was kept; returns its length."""
        [row] = rows
        if cache is None or users_hooks(model):  # these may change what is computed, and when
            return 0
        self._cache, self._fast = cache, is_on(model)
        if self.before is not None:
            self.n_kept = self.before.serves(model, row, [steering_of(plan) for plan in plans])
            if self.n_kept:
                begin_with(cache, self.before.cache, self.n_kept)
        return self.n_kept

    def kept(
        self, model: Model, row: TokenRow, tokens: Sequence[int], steerings: Sequence[Steering]
    ) -> KeptText | None:
        """What the next turn can go on from; None where nothing can be kept.

        Args:
            model: The model that has run.
            row: The prompt.
            tokens: The tokens of the reply that were run.
            steerings: They acted on the row.
        """
        if self._cache is None or not can_be_cut(self._cache) or users_hooks(model):
            return None
        ids = (*row.ids, *tokens)
        return KeptText(ids, Edits.of(steerings, row, ids), self._cache, self._fast)
