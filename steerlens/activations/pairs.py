"""Contrasting pairs → the activations of both sides, or moments merged part by part."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeVar, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.reading import Sink, largest_sinks, read_rows
from steerlens.activations.selection import Tokens
from steerlens.errors import SteerlensError
from steerlens.models.engine import LOCAL, RUN, RunOptions, RunSettings, run_settings
from steerlens.models.host import Model
from steerlens.models.progress import progress_bar
from steerlens.models.sites import resolve_layers
from steerlens.models.tokenizing import Sides, TokenRow, tokenize_sides
from steerlens.shapes import Directions, PerLayer
from steerlens.vectors.estimators import require_finite, sign_votes
from steerlens.vectors.streaming import ContrastMoments

Pairs = tuple[Sequence[TokenRow], Sequence[TokenRow]]
"""Positive and negative rows: equally many, unless only the activations are read."""

Result = TypeVar("Result")


class SidesRead(NamedTuple):
    """The activations of both sides, as an estimator gets them."""

    positive: Float[Tensor, "positive layer d_model"]
    negative: Float[Tensor, "negative layer d_model"]
    norms: PerLayer
    """The mean length of an activation."""
    sinks: tuple[Sink, ...]
    """The token of largest norm at each layer where it is a sink."""


class _Part(NamedTuple):
    """Some of the pairs, and the tokens to read in them."""

    pairs: Pairs
    tokens: Tokens | Sequence[int]


@dataclass(frozen=True)
class PairReader:
    """Reads pairs at some layers of a site: all at once, or in parts where memory is short.

    >>> reader = PairReader(load_model(), layers=(2, 3))
    >>> reader.sides(tokenize_sides(reader.model, (["I love you."], ["I hate you."]))).norms.shape
    torch.Size([2])
    """

    model: Model
    layers: tuple[int, ...]
    site: str = "resid_post"
    tokens: Tokens | Sequence[int] = "last"
    """One selection for all rows, or an index for each: of the positives, then the negatives."""
    batch_tokens: int | None = None
    """Most tokens in a forward pass, padding included; None chooses by device."""
    run: RunSettings = RUN
    sinks: bool = False
    """Whether attention sinks are averaged too."""

    def sides(self, pairs: Pairs) -> SidesRead:
        """The activations of both sides, read at once."""
        positive, negative = pairs
        reading = read_rows(
            self.model,
            [*positive, *negative],
            self.layers,
            tokens=self.tokens,
            sinks=self.sinks,
            site=self.site,
            batch_tokens=self.batch_tokens,
            **self.run.given(),
        )
        pooled, n = reading.pooled, len(positive)
        sinks = largest_sinks(reading, self.layers)
        return SidesRead(pooled[:n], pooled[n:], reading.norms.mean(dim=0), sinks)

    def moments(
        self, pairs: Pairs, at_once: int, *, with_sum: bool
    ) -> tuple[ContrastMoments, PerLayer]:
        """The pairs' moments and mean norms.

        Args:
            pairs: Positive and negative rows, equally many.
            at_once: How many pairs are read, and held, at a time.
            with_sum: Gather the moments of p + n, too, which only `pca_center` needs.
        """
        moments: ContrastMoments | None = None
        norms = torch.zeros(())
        for part, part_norms in self._each_part(
            partial(_moments_of, with_sum=with_sum), pairs, at_once
        ):
            moments = part if moments is None else moments + part
            norms = norms + part_norms * part.difference.n
        assert moments is not None  # an empty dataset has been refused
        return moments, norms / moments.difference.n

    def votes(self, pairs: Pairs, at_once: int, directions: Directions) -> PerLayer:
        """Pairs that agree with each direction's sign, minus pairs that do not."""
        votes_of = partial(_votes_of, directions=directions)
        return torch.stack([*self._each_part(votes_of, pairs, at_once)]).sum(dim=0)

    def _each_part(
        self, work: Callable[..., Result], pairs: Pairs, at_once: int
    ) -> Iterator[Result]:
        """The result of `work` for each part of the pairs."""
        if at_once < 1:
            raise SteerlensError(f"got pairs_at_once={at_once}; expected at least 1")
        worker_run = replace(self.run, progress=False, engine=LOCAL)
        settings = (self.layers, self.site, self.batch_tokens, worker_run, self.sinks)
        parts = ((len(part.pairs[0]), part) for part in self._parts(pairs, at_once))
        with progress_bar(len(pairs[0]), "pair", self.run.progress, what="reading") as bar:
            for n_pairs, result in self.run.engine.run(
                self.model, partial(work, settings=settings), parts
            ):
                yield result
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
    sinks: bool = False,
    site: str = "resid_post",
    **run: Unpack[RunOptions],
) -> tuple[Float[Tensor, "positive layer d_model"], Float[Tensor, "negative layer d_model"]]:
    """The activations of both sides of a contrast, as an estimator gets them.

    Args:
        model: The model to read.
        data: A dataset, or two lists (positive, negative) of texts, chats or token ids.
        layers: Layers to read; −1 is the last, None stands for all.
        tokens: Which tokens are read and averaged, as in `extract`.
        sinks: Whether attention sinks are averaged too.
        site: Where in each block, such as "resid_post".
        **run: `batch_size`, `progress` and `engine`.

    >>> positive, negative = read_contrast(load_model(), (["I love you."], ["I hate you."]))
    >>> positive.shape
    torch.Size([1, 6, 192])
    """
    numbers = resolve_layers(model, layers)
    reader = PairReader(model, numbers, site, tokens, run=run_settings(**run), sinks=sinks)
    sides = reader.sides(tokenize_sides(model, data))
    return sides.positive, sides.negative


_Settings = tuple[tuple[int, ...], str, int | None, RunSettings, bool]
"""A reader's layers, site, batch_tokens, run and sinks; its model stays where the work is done."""


def _reader_of(model: Model, part: _Part, settings: _Settings) -> PairReader:
    layers, site, batch_tokens, run, sinks = settings
    return PairReader(model, layers, site, part.tokens, batch_tokens, run, sinks)


def _moments_of(
    model: Model,
    part: _Part,
    *,
    settings: _Settings,
    with_sum: bool,
) -> tuple[ContrastMoments, PerLayer]:
    """A part's moments and mean norms; like `_votes_of`, it may run on another machine."""
    positive, negative, norms, _ = _reader_of(model, part, settings).sides(part.pairs)
    require_finite(positive, negative)
    return ContrastMoments.of(positive, negative, with_sum=with_sum), norms


def _votes_of(
    model: Model,
    part: _Part,
    *,
    settings: _Settings,
    directions: Directions,
) -> PerLayer:
    positive, negative, *_ = _reader_of(model, part, settings).sides(part.pairs)
    return sign_votes(directions, positive, negative)
