"""How far along a vector the tokens of reference texts lie: what is usual, and what is much."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.pooling import norms_of, times_median, without_sinks
from steerlens.activations.provenance import check_provenance
from steerlens.activations.reading import every_token
from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.models.progress import progress_bar
from steerlens.models.tokenizing import Readable, as_prompts, tokenize
from steerlens.numerics import unit
from steerlens.vectors.vector import SteeringVector


@dataclass(frozen=True, eq=False)
class Projections:
    """The signed length along a vector of every token of some texts, attention sinks left out."""

    values: Float[Tensor, "token layer"]
    """In units of the stream."""
    layers: tuple[int, ...]

    def percentile(self, q: float) -> tuple[float, ...]:
        """The q-th percentile at each layer: bounds for `hooks.cap_direction` and the like.

        >>> Projections(torch.tensor([[1.0], [2.0], [3.0]]), (0,)).percentile(50)
        (2.0,)
        """
        if not 0 <= q <= 100:
            raise SteerlensError(f"got the percentile {q}; expected 0 to 100")
        return tuple(self.values.double().quantile(q / 100, dim=0).tolist())

    def __repr__(self) -> str:
        spans = zip(self.layers, *map(self.percentile, (5, 50, 95)), strict=True)
        told = "; ".join(f"layer {layer}: {a:.3g}, {b:.3g}, {c:.3g}" for layer, a, b, c in spans)
        return f"Projections of {len(self.values)} tokens (5, 50, 95 %: {told})"


def projections(
    model: Model,
    prompts: Sequence[Readable],
    vector: SteeringVector,
    replies: Sequence[Sequence[int]] | None = None,
    *,
    layers: Sequence[int] | None = None,
    chat: bool | None = None,
    progress: bool = True,
) -> Projections:
    """The projection on a vector of every token of a reference run, unsteered.

    Args:
        model: The model that the vector is of.
        prompts: Texts, chats or token ids.
        vector: The vector.
        replies: Token ids that follow each prompt, such as `Replies.tokens`; None: prompts only.
        layers: Which of the vector's; None: all.
        chat: Whether to apply the chat template; None: if the model has one.
        progress: False hides the bar.

    >>> usual = projections(model, prompts, vector, layers=[2], progress=False)
    >>> capped = Steering(
    ...     vector, [2], usual.percentile(75), edit=hooks.cap_direction, skip_bos=True
    ... )
    >>> len(usual.percentile(75))
    1
    """
    vector = vector if layers is None else vector.at(layers)
    check_provenance(model, vector)
    rows = tokenize(model, as_prompts(prompts), chat=chat)
    if replies is not None and len(replies) != len(rows):
        raise SteerlensError(
            f"got {len(replies)} replies for {len(rows)} prompts; expected as many"
        )
    places = [(vector.site, layer) for layer in vector.layers]
    units, parts = unit(vector.directions.float()), []
    with progress_bar(len(rows), "text", progress, what="reading") as bar:
        for index, row in enumerate(rows):
            ids = (*row.ids, *(() if replies is None else replies[index]))
            stream = torch.stack(list(every_token(model, ids, places).values()))
            real = torch.ones(stream.shape[:2], dtype=torch.bool)
            kept = without_sinks(real, times_median(norms_of(stream), real), real).all(dim=0)
            along = einsum(stream, units, "layer pos d_model, layer d_model -> pos layer")
            parts.append(along[kept])
            bar.update()
    return Projections(torch.cat(parts), vector.layers)
