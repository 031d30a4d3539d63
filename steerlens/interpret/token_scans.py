"""A vector's projection at every token of a text, and a condition's similarity over a reply."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.pooling import mean_of
from steerlens.activations.provenance import check_provenance
from steerlens.activations.reading import every_token
from steerlens.activations.selection import read_positions
from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.models.token_text import text_pieces
from steerlens.models.tokenizing import Readable, tokenize
from steerlens.steering.conditions import Condition
from steerlens.steering.similarities import Similarity, projection, similarity_of
from steerlens.steering.transcripts import GateTimeline
from steerlens.vectors.vector import SteeringVector


class TokenScan(NamedTuple):
    """The similarity to a vector at each token of a text, layer by layer."""

    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    values: Float[Tensor, "layer pos"]
    n_prompt: int
    """How many tokens are the prompt's; the others are the reply's."""
    measure: str
    """The name of the similarity."""


def scan_tokens(
    model: Model,
    prompt: Readable,
    vector: SteeringVector,
    reply: Sequence[int] = (),
    *,
    similarity: Similarity = projection,
    chat: bool | None = None,
) -> TokenScan:
    """The similarity to a vector at each token of a prompt and reply: RepE's LAT scan, unsteered.

    Args:
        model: The model that the vector was extracted from.
        prompt: Text, chat or token ids.
        vector: The vector, read at its own site and layers.
        reply: Token ids that follow the prompt, such as `Replies.tokens[0]`.
        similarity: A function of `steerlens.similarities`: `projection` is the dot product with
            the unit direction; `cosine` does not depend on the activations' norms.
        chat: Whether to apply the chat template; None: if the model has one.

    >>> v = SteeringVector(torch.ones(2, 192), layers=(2, 3))
    >>> scan_tokens(load_model(), "Hi there.", v).values.shape
    torch.Size([2, 7])
    """
    check_provenance(model, vector)
    ids, n_prompt = _ids(model, prompt, reply, chat)
    stream = _every_token(model, ids, vector.site, vector.layers)
    values = [
        similarity_of(similarity, stream[:, row], direction)
        for row, direction in enumerate(vector.directions)
    ]
    return TokenScan(
        text_pieces(model.tokenizer, ids),
        vector.layers,
        torch.stack(values),
        n_prompt,
        similarity.__name__.removesuffix("_similarity"),
    )


def gate_timeline(
    model: Model,
    prompt: Readable,
    condition: Condition,
    reply: Sequence[int] = (),
    *,
    chat: bool | None = None,
) -> GateTimeline:
    """A condition's similarity for every prefix of a text, as if the prompt ended there, unsteered.

    A gate decides once, at the prompt's last token; this shows how clear the decision was, and how
    it would have changed with the reply.

    Args:
        model: The model that the condition's vector was extracted from.
        prompt: Text, chat or token ids.
        condition: The condition.
        reply: Token ids that follow the prompt, such as `Replies.tokens[0]`.
        chat: Whether to apply the chat template; None: if the model has one.

    >>> likes_ones = Condition(SteeringVector(torch.ones(1, 192), layers=(3,)), 3, above=0)
    >>> gate_timeline(load_model(), "Hi there.", likes_ones).open.shape
    torch.Size([7])
    """
    check_provenance(model, condition.vector, condition.site_read, condition.layers_read)
    [row] = tokenize(model, [prompt], chat=chat)
    ids = (*row.ids, *reply)
    stream = _every_token(model, ids, condition.site_read, condition.layers_read)
    similarity = condition.unseen(len(ids))
    tokens = row.parts["user"] if condition.tokens == "user" else condition.tokens
    if tokens is None:
        raise SteerlensError(
            f"got a prompt whose user's words are not known; {condition} reads them: give text or "
            "a chat"
        )
    ends = [
        end for end in range(1, len(ids) + 1) if not isinstance(tokens, slice) or range(end)[tokens]
    ]
    chosen = torch.zeros(len(ends), len(ids), dtype=torch.bool)
    for until, end in zip(chosen, ends, strict=True):
        until[read_positions(tokens, end, {}, list)] = True
    real = torch.arange(len(ids)) < torch.tensor(ends)[:, None]
    for column, layer in enumerate(condition.layers_read):
        activation = stream[None, :, column].expand(len(ends), -1, -1)
        pooled = mean_of(activation, chosen, real, sinks=condition.sinks)
        similarity[[end - 1 for end in ends], column] = condition.measure(pooled, layer)
    return GateTimeline(
        text_pieces(model.tokenizer, ids),
        condition,
        similarity,
        condition.fires(similarity),
        len(row.ids),
    )


def _ids(
    model: Model, prompt: Readable, reply: Sequence[int], chat: bool | None
) -> tuple[tuple[int, ...], int]:
    [row] = tokenize(model, [prompt], chat=chat)
    return (*row.ids, *reply), len(row.ids)


def _every_token(
    model: Model, ids: Sequence[int], site: str, layers: Sequence[int]
) -> Float[Tensor, "pos layer d_model"]:
    stream = every_token(model, ids, [(site, layer) for layer in layers])
    return torch.stack(list(stream.values()), dim=1)
