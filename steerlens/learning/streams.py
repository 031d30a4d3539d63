"""What lies below the first steered block: computed once, and kept."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.batching import BATCH_TOKENS, CPU_BATCH_TOKENS, by_length
from steerlens.learning.replies import ReplyText
from steerlens.models.engine import halving
from steerlens.models.fast_forward import decoding_cache, forward_pass, is_on, select_rows
from steerlens.models.host import Model, is_hooked, unmasked
from steerlens.models.progress import progress_bar
from steerlens.models.sites import hook_name
from steerlens.models.tokenizing import pad_token, right_padded

MEMORY_BYTES = 2**31
"""What kept activations may take of the memory; more is kept on the disk."""


class Start(NamedTuple):
    """Where the part of the model begins that the vector reaches."""

    block: int
    """The first block that is run."""
    point: str | None = None
    """The hook point that is passed before it, at which the vector is added."""


def start_of(model: Model, site: str, layer: int) -> Start | None:
    """Where a pass may begin that is steered from this layer on; None: where the text does."""
    if not is_hooked(model) or model.cfg.positional_embedding_type == "shortformer":
        return None
    if site == "resid_post":
        return Start(layer + 1, hook_name(model, site, layer))
    return Start(layer)


@dataclass(frozen=True, eq=False)
class Streams:
    """The unsteered stream of each text where the steered part begins."""

    start: Start
    shared: Float[Tensor, "1 shared d_model"]
    """Of the tokens that all texts begin with."""
    places: dict[tuple[int, ...], slice]
    """Where in `kept` each text's own tokens are."""
    kept: Float[Tensor, "token d_model"]
    """In memory, or mapped from a file."""

    @property
    def n_shared(self) -> int:
        """How many tokens all texts begin with alike."""
        return self.shared.shape[1]

    def batch(self, texts: Sequence[ReplyText], like: Tensor) -> Float[Tensor, "text pos d_model"]:
        """What follows the shared tokens, padded on the right with zeros."""
        rows = [self.kept[self.places[text.ids]] for text in texts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(like)


def keep_streams(
    model: Model,
    texts: Sequence[ReplyText],
    start: Start,
    n_shared: int,
    *,
    progress: bool = True,
    memory_bytes: int = MEMORY_BYTES,
) -> Streams:
    """Run the lower part of the model once for each different text."""
    rows = list(dict.fromkeys(text.ids for text in texts))
    lengths = [len(row) - n_shared for row in rows]
    ends = list(accumulate(lengths))
    places = {
        row: slice(end - length, end) for row, end, length in zip(rows, ends, lengths, strict=True)
    }
    kept = _room(ends[-1], model.cfg.d_model, memory_bytes)
    cpu = torch.device(model.cfg.device).type == "cpu"
    budget = CPU_BATCH_TOKENS if cpu else BATCH_TOKENS
    shared = _lower(model, rows[:1], 0, n_shared, start)[:1]
    with progress_bar(len(rows), "text", progress, what="below the vector") as bar:
        for batch in by_length(lengths, tokens=budget):
            some = [rows[index] for index in batch]
            work = partial(_own_streams, model, n_shared=n_shared, start=start)
            for row, stream in zip(some, _flat(halving(work, some)), strict=True):
                kept[places[row]] = stream.float().cpu()
            bar.update(len(batch))
    return Streams(start, shared, places, kept)


def _flat(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [stream for part in parts for stream in part]


def _room(tokens: int, width: int, memory_bytes: int) -> Float[Tensor, "token d_model"]:
    """Memory for so many tokens, or a file."""
    if 4 * tokens * width <= memory_bytes:
        return torch.zeros(tokens, width)
    with tempfile.TemporaryFile() as file:  # it has no name, and ends with what maps it
        array = np.memmap(file, dtype=np.float32, mode="w+", shape=(tokens, width))
    return torch.from_numpy(array)


def _own_streams(
    model: Model, rows: Sequence[tuple[int, ...]], *, n_shared: int, start: Start
) -> list[Tensor]:
    """The stream of each row after the shared tokens."""
    stream = _lower(model, rows, n_shared, None, start)
    return [one[: len(row) - n_shared] for one, row in zip(stream, rows, strict=True)]


@torch.no_grad()
def _lower(
    model: Model, rows: Sequence[tuple[int, ...]], first: int, last: int | None, start: Start
) -> Float[Tensor, "row pos d_model"]:
    """The stream of these positions of rows that have the first `first` in common."""
    if last == 0:
        return torch.zeros(1, 0, model.cfg.d_model, device=model.cfg.device, dtype=model.cfg.dtype)
    again = 0 if start.block == 0 else first  # without blocks, there are no keys to go on from
    padded, _ = right_padded([row[again:last] for row in rows], pad_token(model), model.cfg.device)

    def run() -> Tensor:
        cache = None
        if again:
            cache = decoding_cache(model, 1, again + padded.shape[1], is_on(model))
            beginning = torch.tensor([rows[0][:again]], device=padded.device)
            model(**unmasked(model, beginning, cache), stop_at_layer=start.block)
            select_rows(cache, torch.zeros(len(rows), dtype=torch.long, device=padded.device))
        stream: Tensor = model(**unmasked(model, padded, cache), stop_at_layer=start.block)
        return stream[:, first - again :]

    return forward_pass(model, run)
