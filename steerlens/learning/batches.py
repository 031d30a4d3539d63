"""What an objective sees of some prompts: their replies' likelihoods under the vector."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.learning.passes import Passes, Read, RowStrength, TokenLogs, TokenStream
from steerlens.learning.replies import ReplyPair, ReplyText


@dataclass(frozen=True, eq=False)
class Batch:
    """Some prompts with their replies, and the vector as it is now."""

    pairs: Sequence[ReplyPair]
    passes: Passes
    directions: Float[Tensor, "layer d_model"]
    """What the loss is differentiated by."""
    random: float = 0.0
    """A number between 0 and 1, drawn anew for each step; 0.5 where the vector is measured."""
    _done: dict[Any, Read] = field(default_factory=dict)

    def wanted(
        self, strength: RowStrength = 1.0, edit: Callable[..., Any] | None = None
    ) -> TokenLogs:
        """ln p of the wanted replies' tokens with the directions added `strength` times.

        `edit` is used in place of adding; strength 0 is the unsteered model, which is run once.
        """
        return self._logs([pair.wanted for pair in self.pairs], strength, edit)

    def unwanted(
        self, strength: RowStrength = 1.0, edit: Callable[..., Any] | None = None
    ) -> TokenLogs:
        """ln p of the unwanted replies' tokens; refuses data without any."""
        texts = [pair.unwanted for pair in self.pairs if pair.unwanted is not None]
        if len(texts) < len(self.pairs):
            raise SteerlensError(
                "this objective compares with unwanted replies, and the data has none; give "
                "(prompt, wanted, unwanted) tuples, or use reply_likelihood"
            )
        return self._logs(texts, strength, edit)

    def stream(self) -> TokenStream:
        """The unsteered stream of the wanted texts where the vector is added first."""
        return self.passes.first_stream([pair.wanted for pair in self.pairs])

    def drift(self) -> Float[Tensor, " prompt"]:
        """KL(unsteered ‖ steered) per token of what follows the wanted reply, if it has no end."""
        return self.passes.drift(self._read([pair.wanted for pair in self.pairs], 1.0, None))

    def _logs(
        self, texts: Sequence[ReplyText], strength: RowStrength, edit: Callable[..., Any] | None
    ) -> TokenLogs:
        strength = strength if isinstance(strength, Tensor) else float(strength)
        return self.passes.reply_logs(self._read(texts, strength, edit))

    def _read(
        self, texts: Sequence[ReplyText], strength: RowStrength, edit: Callable[..., Any] | None
    ) -> Read:
        """Each pass once, however often it is asked for."""
        if isinstance(strength, Tensor):
            return self.passes.read(texts, self.directions, strength, edit)
        if not strength:
            return self.passes.unsteered(texts)
        asked = (tuple(texts), strength, edit)
        if asked not in self._done:
            self._done[asked] = self.passes.read(texts, self.directions, strength, edit)
        return self._done[asked]
