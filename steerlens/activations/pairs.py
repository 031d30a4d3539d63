"""Contrasting pairs → the activations of both sides, or what merges of them part by part."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeVar, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.reading import read_rows
from steerlens.activations.selection import Tokens
from steerlens.errors import SteerlensError
from steerlens.models.engine import LOCAL, RUN, RunOptions, RunSettings, run_settings
from steerlens.models.host import Model
from steerlens.models.progress import progress_bar
from steerlens.models.sites import resolve_layers
from steerlens.models.tokenizing import Sides, TokenRow, tokenize_sides
from steerlens.vectors.estimators import require_finite, sign_votes
from steerlens.vectors.streaming import ContrastMoments

Pairs = tuple[Sequence[TokenRow], Sequence[TokenRow]]
"""Positives and negatives; of equal number, but where only both sides are read."""

Result = TypeVar("Result")


class SidesRead(NamedTuple):
    """The activations of both sides, as an estimator gets them."""

    positive: Float[Tensor, "positive layer d_model"]
    negative: Float[Tensor, "negative layer d_model"]
    norms: Float[Tensor, " layer"]
    """The mean length of an activation."""


class _Part(NamedTuple):
    """Some of the pairs, with what is read of them."""

    pairs: Pairs
    tokens: Tokens | Sequence[int]


@dataclass(frozen=True)
class PairReader:
    """Reads pairs at these layers of a site: whole, or part by part, for more than memory holds."""

    model: Model
    layers: tuple[int, ...]
    site: str = "resid_post"
    tokens: Tokens | Sequence[int] = "last"
    """One selection for all rows, or an index for each: of the positives, then the negatives."""
    batch_tokens: int | None = None
    run: RunSettings = RUN

    def sides(self, pairs: Pairs) -> SidesRead:
        """Both sides at once."""
        positive, negative = pairs
        reading = read_rows(
            self.model,
            [*positive, *negative],
            self.layers,
            tokens=self.tokens,
            site=self.site,
            batch_tokens=self.batch_tokens,
            **self.run.given(),
        )
        pooled, n = reading.pooled, len(positive)
        return SidesRead(pooled[:n], pooled[n:], reading.norms.mean(dim=0))

    def moments(
        self, pairs: Pairs, at_once: int, *, common: bool
    ) -> tuple[ContrastMoments, Float[Tensor, " layer"]]:
        """The pairs' moments (with those of p + n if `common`) and their mean norms."""
        moments: ContrastMoments | None = None
        norms = torch.zeros(())
        for part, part_norms in self._each_part(
            partial(_moments_of, common=common), pairs, at_once
        ):
            moments = part if moments is None else moments + part
            norms = norms + part_norms * part.apart.n
        assert moments is not None  # an empty dataset has been refused
        return moments, norms / moments.apart.n

    def votes(
        self, pairs: Pairs, at_once: int, directions: Float[Tensor, "layer d_model"]
    ) -> Float[Tensor, " layer"]:
        """How many more pairs agree with each direction's sign than would turn it round."""
        votes_of = partial(_votes_of, directions=directions)
        return torch.stack([*self._each_part(votes_of, pairs, at_once)]).sum(dim=0)

    def _each_part(
        self, work: Callable[..., Result], pairs: Pairs, at_once: int
    ) -> Iterator[Result]:
        """What `work` makes of what a reader reads of each part of the pairs."""
        if at_once < 1:
            raise SteerlensError(f"got pairs_at_once={at_once}; expected at least 1")
        there = replace(self.run, progress=False, engine=LOCAL)
        settings = (self.layers, self.site, self.batch_tokens, there)
        parts = ((len(part.pairs[0]), part) for part in self._parts(pairs, at_once))
        with progress_bar(len(pairs[0]), "pair", self.run.progress, what="reading") as bar:
            for n_pairs, found in self.run.engine.run(
                self.model, partial(work, settings=settings), parts
            ):
                yield found
                bar.update(n_pairs)

    def _parts(self, pairs: Pairs, size: int) -> Iterator[_Part]:
        positive, negative = pairs
        n = len(positive)
        for start in range(0, n, size):
            part, tokens = slice(start, start + size), self.tokens
            if isinstance(tokens, Sequence) and not isinstance(tokens, str):
                tokens = [*tokens[:n][part], *tokens[n:][part]]
            yield _Part((positive[part], negative[part]), tokens)


def read_contrast(
    model: Model,
    data: Sides,
    layers: Sequence[int] | range | None = None,
    *,
    tokens: Tokens | Sequence[int] = "last",
    site: str = "resid_post",
    **run: Unpack[RunOptions],
) -> tuple[Float[Tensor, "positive layer d_model"], Float[Tensor, "negative layer d_model"]]:
    """The activations of both sides of a contrast, as an estimator gets them.

    >>> positive, negative = read_contrast(load_model(), (["I love you."], ["I hate you."]))
    >>> positive.shape
    torch.Size([1, 6, 192])
    """
    numbers = resolve_layers(model, layers)
    reader = PairReader(model, numbers, site, tokens, run=run_settings(**run))
    found = reader.sides(tokenize_sides(model, data))
    return found.positive, found.negative


_Settings = tuple[tuple[int, ...], str, int | None, RunSettings]
"""Of a reader, without its model, which does not travel: layers, site, batch_tokens, run."""


def _reader_of(model: Model, part: _Part, settings: _Settings) -> PairReader:
    layers, site, batch_tokens, run = settings
    return PairReader(model, layers, site, part.tokens, batch_tokens, run)


def _moments_of(
    model: Model,
    part: _Part,
    *,
    settings: _Settings,
    common: bool,
) -> tuple[ContrastMoments, Float[Tensor, " layer"]]:
    """A part's moments, wherever its model is; `_votes_of` likewise."""
    positive, negative, norms = _reader_of(model, part, settings).sides(part.pairs)
    require_finite(positive, negative)
    return ContrastMoments.of(positive, negative, common=common), norms


def _votes_of(
    model: Model,
    part: _Part,
    *,
    settings: _Settings,
    directions: Float[Tensor, "layer d_model"],
) -> Float[Tensor, " layer"]:
    positive, negative, _ = _reader_of(model, part, settings).sides(part.pairs)
    return sign_votes(directions, positive, negative)
