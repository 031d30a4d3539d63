"""The text of a reply that ends at certain strings, as far as it can be shown."""

from collections.abc import Sequence
from typing import Any

from steerlens.steering.transcripts import GrowingText

_HALF = "\ufffd"
"""What half a character is decoded to."""


class StoppingText:
    """The text of a growing reply, up to the first stop string.

    Args:
        tokenizer: The model's tokenizer.
        stops: The stop strings; none of them is part of the text.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._growing, self._stops = GrowingText(tokenizer), tuple(stops)
        self.text = ""
        """What can be shown: no later token changes it."""
        self.stopped = False
        """Whether a stop string was found."""

    def grow(self, tokens: Sequence[int], ended: bool) -> str:
        """Take all tokens so far; returns the new text that can be shown.

        Args:
            tokens: All tokens of the reply; they begin with those of the call before.
            ended: Whether no more will follow.
        """
        whole = self._growing.of(tokens, ended)
        found = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        self.stopped = bool(found)
        if found:
            shown = whole[: min(found)]
        elif ended:
            shown = whole
        else:
            shown = whole.rstrip(_HALF)
            shown = shown[: len(shown) - self._open(shown)]
        new = shown[len(self.text) :]
        self.text += new
        return new

    def _open(self, text: str) -> int:
        """How many characters at a text's end may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=0)
        lengths = range(min(longest - 1, len(text)), 0, -1)
        return next(
            (n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0
        )
