"""What a vector means to its model: tokens, writers, texts, and the contrast it came from."""

from typing import NamedTuple

from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.provenance import check_provenance
from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.vectors.vector import SteeringVector

STREAM_SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Sites whose directions lie in the stream, and so can be un-embedded."""


class LogitLens(NamedTuple):
    """The tokens that each layer's direction makes most and least likely, strongest first."""

    layers: tuple[int, ...]
    promoted: tuple[tuple[str, ...], ...]
    promoted_by: Float[Tensor, "layer k"]
    suppressed: tuple[tuple[str, ...], ...]
    suppressed_by: Float[Tensor, "layer k"]


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


def _require_in_stream(model: Model, vector: SteeringVector) -> None:
    check_provenance(model, vector)
    if vector.site not in STREAM_SITES:
        raise SteerlensError(
            f"got {vector}, read at {vector.site}, which is not in the stream; expected a vector "
            f"read at {', '.join(STREAM_SITES)}"
        )
