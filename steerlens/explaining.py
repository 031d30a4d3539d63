"""What a vector means to its model: tokens, writers, texts, and the contrast it came from."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from steerlens.conditions import Condition, Similarity, projection
from steerlens.directions import at_least_float32
from steerlens.errors import SteerlensError
from steerlens.extraction import check_provenance
from steerlens.marking import text_pieces
from steerlens.models import Model
from steerlens.positions import Tokens, read_positions
from steerlens.residual import every_token, read_residual, read_rows
from steerlens.tokens import Readable, Sides, tokenize, tokenize_sides
from steerlens.vector import SteeringVector
from steerlens.weights import require_free_writers

STREAM_SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Sites whose directions lie in the stream, and so can be un-embedded."""


class LogitLens(NamedTuple):
    """The tokens that each layer's direction makes most and least likely, strongest first."""

    layers: tuple[int, ...]
    promoted: tuple[tuple[str, ...], ...]
    promoted_by: Float[Tensor, "layer k"]
    suppressed: tuple[tuple[str, ...], ...]
    suppressed_by: Float[Tensor, "layer k"]


class Writers(NamedTuple):
    """How much each head and MLP of the blocks below writes along one layer's direction."""

    layer: int
    """The layer of the direction; the rows are the blocks 0 to this one."""
    heads: Float[Tensor, "layer head"]
    mlps: Float[Tensor, " layer"]
    measure: str
    """What the numbers are, with their unit."""


class TokenScan(NamedTuple):
    """How strongly a vector is present at each token of a text, layer by layer."""

    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    values: Float[Tensor, "layer pos"]
    n_prompt: int
    """The tokens from here on are the reply's."""
    measure: str


class GateTimeline(NamedTuple):
    """What a condition would have seen, had the prompt ended at each of its tokens."""

    tokens: tuple[str, ...]
    condition: Condition
    similarity: Float[Tensor, "pos layer"]
    """NaN where the condition's tokens do not exist yet."""
    open: Bool[Tensor, " pos"]
    n_prompt: int
    """The gate decides at the token before this one, and keeps to it."""


class Scatter(NamedTuple):
    """Prompts on the two widest principal axes of each layer; positives lie to the right."""

    layers: tuple[int, ...]
    positive: Float[Tensor, "positive layer 2"]
    negative: Float[Tensor, "negative layer 2"]
    explained: Float[Tensor, "layer 2"]
    """Share of the variance along each axis."""


class Spectrum(NamedTuple):
    """Singular values of each layer's matrix of differences p − n, largest first."""

    layers: tuple[int, ...]
    values: Float[Tensor, "layer rank"]
    n_pairs: int


def token_logits(model: Model, vector: SteeringVector) -> Float[Tensor, "layer d_vocab"]:
    """How one unit of each direction moves the logits, if the final norm divided by 1.

    The direction goes straight to the end: centred if the final norm is a LayerNorm, times that
    norm's weight, times the unembedding; less the mean over the vocabulary, which no probability
    depends on. The norm's divisor is the text's own: it scales all logits of a layer alike. What
    later blocks make of the direction is left out.

    >>> model = load_model()
    >>> token_logits(model, SteeringVector(torch.ones(1, 192), layers=(3,))).shape
    torch.Size([1, 3072])
    """
    _require_in_stream(model, vector)
    directions = vector.normalized().directions.to(model.cfg.device)
    if str(model.cfg.normalization_type).startswith("LN"):
        directions = directions - reduce(directions, "layer d_model -> layer 1", "mean")
    weight = getattr(getattr(model, "ln_final", None), "w", None)  # none: folded, or no norm
    if weight is not None:
        directions = directions * weight.detach().float()
    unembedding = model.W_U.detach().float()
    logits = einsum(directions, unembedding, "layer d_model, d_model d_vocab -> layer d_vocab")
    return (logits - reduce(logits, "layer d_vocab -> layer 1", "mean")).cpu()


def logit_lens(model: Model, vector: SteeringVector, k: int = 10) -> LogitLens:
    """The `k` tokens that each direction promotes most and suppresses most; see `token_logits`.

    >>> lens = logit_lens(load_model(), SteeringVector(torch.ones(1, 192), layers=(3,)), k=3)
    >>> len(lens.promoted[0])
    3
    """
    logits = token_logits(model, vector)
    if not 1 <= k <= logits.shape[1]:
        raise SteerlensError(f"k={k} tokens of a vocabulary of {logits.shape[1]}; at least 1")
    sides = [(sign * logits).topk(k, dim=1) for sign in (1, -1)]
    texts = [
        tuple(tuple(model.tokenizer.decode([token]) for token in row) for row in side.indices)
        for side in sides
    ]
    return LogitLens(vector.layers, texts[0], sides[0].values, texts[1], -sides[1].values)


def mean_writers(
    model: Model,
    vector: SteeringVector,
    layer: int,
    prompts: Sequence[Readable],
    *,
    tokens: Tokens = "last",
    chat: bool | None = None,
    progress: bool = True,
) -> Writers:
    """What each head and MLP writes along a layer's direction, on average over prompts.

    Signed lengths in units of the stream. With the embedding's and the biases' they add up to the
    stream's own mean projection. Of two kinds of prompts, compare `.heads`.

    >>> v = SteeringVector(torch.ones(1, 192), layers=(3,))
    >>> mean_writers(load_model(), v, 3, ["Hi there."]).heads.shape
    torch.Size([4, 6])
    """
    unit = _written_direction(model, vector, layer)
    blocks = range(layer + 1)

    def mean(site: str) -> Float[Tensor, "layer site_width"]:
        read = read_residual(
            model, prompts, blocks, tokens=tokens, site=site, chat=chat, progress=progress
        )
        return reduce(read, "prompt layer site_width -> layer site_width", "mean")

    z = rearrange(mean("z"), "layer (head d_head) -> layer head d_head", head=model.cfg.n_heads)
    along = einsum(
        _output_weights(model, layer),
        unit,
        "layer head d_head d_model, d_model -> layer head d_head",
    )
    mlps = torch.zeros(layer + 1)
    if not model.cfg.attn_only:
        mlps = einsum(mean("mlp_out"), unit, "layer d_model, d_model -> layer").float()
    heads = einsum(z, along.to(z), "layer head d_head, layer head d_head -> layer head").float()
    return Writers(layer, heads, mlps, f"mean over {len(prompts)} prompts, in units of the stream")


def weight_writers(model: Model, vector: SteeringVector, layer: int) -> Writers:
    """Share of each head's and MLP's output weights that lies along a layer's direction.

    ‖W d‖² / ‖W‖² for the unit direction d: what share of its output a head would write along d if
    its inputs were noise. By chance it is 1 / d_model. Needs no prompts.

    >>> weight_writers(load_model(), SteeringVector(torch.ones(1, 192), layers=(3,)), 3).mlps.shape
    torch.Size([4])
    """
    unit = _written_direction(model, vector, layer)

    def share(weights: Float[Tensor, "part d_in d_model"]) -> Float[Tensor, " part"]:
        along = einsum(weights, unit, "part d_in d_model, d_model -> part d_in")
        total = reduce(weights.square(), "part d_in d_model -> part", "sum")
        return reduce(along.square(), "part d_in -> part", "sum") / total

    heads = torch.stack([share(block) for block in _output_weights(model, layer)])
    mlps = torch.zeros(layer + 1)
    if not model.cfg.attn_only:
        blocks = (model.blocks[index].mlp.W_out for index in range(layer + 1))
        mlps = torch.cat([share(weight.detach().float().cpu()[None]) for weight in blocks])
    return Writers(layer, heads, mlps, "share of the output weights, ‖W d‖² / ‖W‖²")


def scan_tokens(
    model: Model,
    prompt: Readable,
    vector: SteeringVector,
    reply: Sequence[int] = (),
    *,
    similarity: Similarity = projection,
    chat: bool | None = None,
) -> TokenScan:
    """The vector's presence at each token of a prompt, and of a reply's token ids if given.

    RepE's LAT scan, of the unsteered model. `projection` is the dot product with the unit
    direction; `conditions.cosine` does away with the tokens' different lengths.

    >>> v = SteeringVector(torch.ones(2, 192), layers=(2, 3))
    >>> scan_tokens(load_model(), "Hi there.", v).values.shape
    torch.Size([2, 7])
    """
    check_provenance(model, vector)
    ids, n_prompt = _ids(model, prompt, reply, chat)
    stream = _every_token(model, ids, vector.site, vector.layers)
    values = [
        similarity(stream[:, row], vector.directions[row].to(stream)) for row in range(len(vector))
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
    """What a condition sees as the text goes on: its similarity, had the prompt ended there.

    A gate decides once, at the prompt's last token; this shows how clear the case was, and how it
    would have changed with the reply (token ids, as `Replies.tokens` holds them). Unsteered.

    >>> likes_ones = Condition(SteeringVector(torch.ones(1, 192), layers=(3,)), 3, above=0)
    >>> gate_timeline(load_model(), "Hi there.", likes_ones).open.shape
    torch.Size([7])
    """
    check_provenance(model, condition.vector, condition.site_read, condition.layers_read)
    ids, n_prompt = _ids(model, prompt, reply, chat)
    stream = _every_token(model, ids, condition.site_read, condition.layers_read)
    similarity = torch.full((len(ids), len(condition.layers_read)), torch.nan)
    for end in range(1, len(ids) + 1):
        if isinstance(condition.tokens, slice) and not range(end)[condition.tokens]:
            continue
        pooled = stream[read_positions(condition.tokens, end, {}, list)].mean(dim=0, keepdim=True)
        for column, layer in enumerate(condition.layers_read):
            similarity[end - 1, column] = condition.measure(pooled[:, column], layer).item()
    return GateTimeline(
        text_pieces(model.tokenizer, ids),
        condition,
        similarity,
        condition.fires(similarity),
        n_prompt,
    )


def read_contrast(
    model: Model,
    data: Sides,
    layers: Sequence[int] | range | None = None,
    *,
    tokens: Tokens = "last",
    site: str = "resid_post",
    progress: bool = True,
) -> tuple[Float[Tensor, "positive layer d_model"], Float[Tensor, "negative layer d_model"]]:
    """The activations of both sides of a contrast, as an estimator gets them.

    >>> positive, negative = read_contrast(load_model(), (["I love you."], ["I hate you."]))
    >>> positive.shape
    torch.Size([1, 6, 192])
    """
    positive, negative = tokenize_sides(model, data)
    rows = [*positive, *negative]
    pooled = read_rows(model, rows, layers, tokens=tokens, site=site, progress=progress).pooled
    return pooled[: len(positive)], pooled[len(positive) :]


def principal_scatter(
    positive: Float[Tensor, "positive layer d_model"],
    negative: Float[Tensor, "negative layer d_model"],
    layers: Sequence[int],
) -> Scatter:
    """Both sides on the two principal axes of all rows about their common mean, per layer.

    >>> random = torch.randn(20, 1, 8)
    >>> principal_scatter(random + 1, random - 1, layers=[3]).positive.shape
    torch.Size([20, 1, 2])
    """
    _require_layers(positive, layers)
    rows = torch.cat([at_least_float32(positive), at_least_float32(negative)])
    if min(len(rows), rows.shape[2]) < 2:
        raise SteerlensError(
            f"{len(rows)} prompts of width {rows.shape[2]} came; two axes need at least two of both"
        )
    centred = rows - reduce(rows, "row layer d_model -> layer d_model", "mean")
    left, sizes, _ = torch.linalg.svd(
        rearrange(centred, "row layer d_model -> layer row d_model"), full_matrices=False
    )
    places = einsum(left[..., :2], sizes[:, :2], "layer row plane, layer plane -> row layer plane")
    n = len(positive)
    to_the_right = places[:n].mean(dim=0) >= places[n:].mean(dim=0)
    places = places * torch.where(to_the_right, 1, -1)
    shares = sizes.square() / reduce(sizes.square(), "layer rank -> layer 1", "sum")
    return Scatter(tuple(layers), places[:n], places[n:], shares[:, :2])


def difference_spectrum(
    positive: Float[Tensor, "pair layer d_model"],
    negative: Float[Tensor, "pair layer d_model"],
    layers: Sequence[int],
) -> Spectrum:
    """Singular values of p − n per layer: one large one means that one direction is the contrast.

    Not centred, so that the mean difference is in it.

    >>> difference_spectrum(torch.ones(4, 1, 4), torch.zeros(4, 1, 4), layers=[3]).values.round()
    tensor([[4., 0., 0., 0.]])
    """
    _require_layers(positive, layers)
    rows = at_least_float32(positive) - at_least_float32(negative)
    values = torch.linalg.svdvals(rearrange(rows, "pair layer d_model -> layer pair d_model"))
    return Spectrum(tuple(layers), values, len(rows))


def _require_layers(rows: Float[Tensor, "prompt layer d_model"], layers: Sequence[int]) -> None:
    if rows.shape[1] != len(layers):
        raise SteerlensError(
            f"activations of {rows.shape[1]} layers came with the layers {list(layers)}; "
            "name the layers that were read"
        )


def _require_in_stream(model: Model, vector: SteeringVector) -> None:
    check_provenance(model, vector)
    if vector.site not in STREAM_SITES:
        raise SteerlensError(
            f"{vector} was read at {vector.site}, which is no place in the stream; "
            f"needed is a vector read at {', '.join(STREAM_SITES)}"
        )


def _written_direction(
    model: Model, vector: SteeringVector, layer: int
) -> Float[Tensor, " d_model"]:
    """The unit direction, of a site that all heads and MLPs up to the layer have written to."""
    require_free_writers(model, "who writes a direction")
    if vector.site != "resid_post":
        raise SteerlensError(
            f"{vector} was read at {vector.site}; its writers are told of resid_post only, to "
            "which all heads and MLPs up to that layer have written"
        )
    check_provenance(model, vector)
    return vector.at([layer]).normalized().directions[0]


def _output_weights(model: Model, last: int) -> Float[Tensor, "layer head d_head d_model"]:
    blocks = (model.blocks[index].attn.W_O for index in range(last + 1))
    return torch.stack([weight.detach().float().cpu() for weight in blocks])


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
