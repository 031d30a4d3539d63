"""A condition search as JSON."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from steerlens.errors import SteerlensError
from steerlens.schemas import Declared, FileModel, Many
from steerlens.steering.confounds import Confounds
from steerlens.steering.similarities import SIMILARITIES
from steerlens.steering.thresholds import Similarities


class SidesFile(Declared):
    """Similarities of positive and negative prompts, one row a prompt and one number a layer."""

    positive: Annotated[Many[Many[float]], Field(min_length=1)]
    negative: Annotated[Many[Many[float]], Field(min_length=1)]

    def similarities(self, width: int) -> Similarities:
        """The similarities as arrays; refuses other row lengths, and what float32 cannot hold."""
        sides = []
        for side, rows in (("positive", self.positive), ("negative", self.negative)):
            if any(len(row) != width for row in rows):
                raise SteerlensError(
                    f"got {side} similarities of {sorted({*map(len, rows)})[:5]} numbers a row; "
                    f"expected {width}, one for each layer"
                )
            values = np.array(rows, dtype=np.float64)
            if (np.abs(values) > np.finfo(np.float32).max).any():
                raise SteerlensError(
                    f"got {side} similarities too large for float32; expected at most "
                    f"{np.finfo(np.float32).max:.3g}"
                )
            sides.append(values.astype(np.float32))
        return Similarities(sides[0], sides[1])


def _require_known(similarity: str) -> str:
    if similarity not in SIMILARITIES:
        raise ValueError(f"one of {', '.join(SIMILARITIES)}")
    return similarity


class DecisionsFile(Declared):
    """What a baseline fires on."""

    positive: Many[bool]
    negative: Many[bool]


class ConfoundsFile(Declared):
    """Lengths of the prompts, and what their words decide."""

    chosen_lengths: SidesFile
    scored_lengths: SidesFile
    by_words: DecisionsFile

    @classmethod
    def of(cls, confounds: Confounds) -> "ConfoundsFile":
        """As it is written."""
        positive, negative = (fired.tolist() for fired in confounds.by_words)
        return cls(
            chosen_lengths=SidesFile(**listed(confounds.chosen_lengths)),
            scored_lengths=SidesFile(**listed(confounds.scored_lengths)),
            by_words=DecisionsFile(positive=positive, negative=negative),
        )

    def confounds(self, scored_on: Similarities) -> Confounds:
        """As it was; refuses other numbers of prompts than were scored."""
        words = [np.array(side, bool) for side in (self.by_words.positive, self.by_words.negative)]
        scored = self.scored_lengths.similarities(1)
        for what, sides in (("lengths", scored), ("decisions by words", words)):
            if [*map(len, sides)] != [*map(len, scored_on)]:
                raise SteerlensError(
                    f"got {what} of {' and '.join(str(len(side)) for side in sides)} prompts; "
                    f"expected those of {scored_on}"
                )
        return Confounds(self.chosen_lengths.similarities(1), scored, (words[0], words[1]))


class SearchFile(FileModel):
    """A condition search as JSON."""

    title = "a condition search"
    format: Literal["steerlens.search/1"] = "steerlens.search/1"
    name: str
    vector: str | None
    """Hash of the pairs that the vector came from."""
    layers: Annotated[list[int], Field(min_length=1)]
    combine: int | None
    similarity: Annotated[str, AfterValidator(_require_known)]
    tokens: str | int
    sinks: bool = False
    site: str | None
    seed: Annotated[int, Field(ge=0)]
    best: dict[str, Any]
    """Like the scores, for other programs to read: `load` computes both again."""
    scores: dict[str, Any]
    chosen_on: SidesFile
    scored_on: SidesFile
    confounds: ConfoundsFile | None = None


def listed(similarities: Similarities) -> dict[str, Any]:
    """Similarities as lists, for JSON."""
    return {side: values.astype(float).tolist() for side, values in similarities._asdict().items()}
