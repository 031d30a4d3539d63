"""Logit lens: the tokens that a vector's directions promote and suppress."""

from typing import NamedTuple

from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.provenance import check_provenance
from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.models.token_text import decoded
from steerlens.vectors.vector import SteeringVector

STREAM_SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Sites whose directions are in the residual stream, and so can be unembedded."""


class LogitLens(NamedTuple):
    """The tokens that each layer's direction makes most and least likely, strongest first."""

    layers: tuple[int, ...]
    promoted: tuple[tuple[str, ...], ...]
    promoted_by: Float[Tensor, "layer k"]
    suppressed: tuple[tuple[str, ...], ...]
    suppressed_by: Float[Tensor, "layer k"]


def token_logits(model: Model, vector: SteeringVector) -> Float[Tensor, "layer d_vocab"]:
    """How each unit direction moves the logits, by the direct path to the unembedding.

    The direction is centred if the final norm is a LayerNorm, multiplied by that norm's weight and
    by the unembedding; the mean over the vocabulary, on which no probability depends, is
    subtracted. The norm's divisor, which depends on the text and scales all logits of a layer
    equally, is taken as 1. Effects through later blocks are left out.

    Args:
        model: The model that the vector was extracted from.
        vector: A vector read in the residual stream.

    Raises:
        SteerlensError: A vector of another model, or one read outside the stream.

    >>> model = load_model()
    >>> token_logits(model, SteeringVector(torch.ones(1, 192), layers=(3,))).shape
    torch.Size([1, 3072])
    """
    _require_in_stream(model, vector)
    directions = vector.normalized().directions.to(model.cfg.device)
    if str(model.cfg.normalization_type).startswith("LN"):
        directions = directions - reduce(directions, "layer d_model -> layer 1", "mean")
    weight = getattr(getattr(model, "ln_final", None), "w", None)  # None: folded, or no norm
    if weight is not None:
        directions = directions * weight.detach().float()
    unembedding = model.W_U.detach().float()
    logits = einsum(directions, unembedding, "layer d_model, d_model d_vocab -> layer d_vocab")
    return (logits - reduce(logits, "layer d_vocab -> layer 1", "mean")).cpu()


def logit_lens(model: Model, vector: SteeringVector, k: int = 10) -> LogitLens:
    """The tokens that each direction promotes most and suppresses most; see `token_logits`.

    Args:
        model: The model that the vector was extracted from.
        vector: A vector read in the residual stream.
        k: How many tokens of either kind.

    >>> lens = logit_lens(load_model(), SteeringVector(torch.ones(1, 192), layers=(3,)), k=3)
    >>> len(lens.promoted[0])
    3
    """
    logits = token_logits(model, vector)
    if not 1 <= k <= logits.shape[1]:
        raise SteerlensError(f"got k={k}; expected 1 to {logits.shape[1]}, the vocabulary's size")
    sides = [(sign * logits).topk(k, dim=1) for sign in (1, -1)]
    texts = [
        tuple(
            tuple(decoded(model.tokenizer, [token]) for token in row.tolist())
            for row in side.indices
        )
        for side in sides
    ]
    return LogitLens(vector.layers, texts[0], sides[0].values, texts[1], -sides[1].values)


def _require_in_stream(model: Model, vector: SteeringVector) -> None:
    check_provenance(model, vector)
    if vector.site not in STREAM_SITES:
        raise SteerlensError(
            f"got {vector}, read at {vector.site}, which is not in the stream; expected a vector "
            f"read at {', '.join(STREAM_SITES)}"
        )
