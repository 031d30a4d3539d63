"""The identity of a model: a hash of its weights, and how loading processed them."""

import hashlib
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from steerlens.files import digest
from steerlens.models.host import Model


def fingerprint(model: Model) -> str:
    """A short hash of samples of every weight, the same for equal models on any host.

    Experts and norms are left out, as hosts store them in different forms.

    >>> len(fingerprint(load_model()))
    16
    """
    return digest_of(_weights_of_any_host(model))


def digest_of(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A short hash of named tensors, from 256 numbers of each, without copying a tensor.

    >>> digest_of([("weight", torch.ones(2, 3))])
    '0833de39510a2441'
    """
    digest = hashlib.sha256()
    for name, weight in weights:
        places = torch.arange(0, weight.numel(), max(1, weight.numel() // 256))[:256]
        sample = weight.detach()[torch.unravel_index(places.to(weight.device), weight.shape)]
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


_COMMON_WEIGHTS = (
    *((f"attn.W_{kind}", f"attn._W_{kind}") for kind in "KV"),  # grouped, not repeated, if possible
    *((f"attn.{name}",) for name in ("W_Q", "W_O", "b_Q", "b_O")),
    *((f"mlp.{name}",) for name in ("W_in", "W_gate", "W_out", "b_in", "b_out")),
)
"""Weights that both hosts have with equal shape and values, under the first or second name."""


def _weights_of_any_host(model: Any) -> Iterator[tuple[str, Tensor]]:
    yield "W_E", model.W_E
    yield "W_U", model.W_U
    for layer, block in enumerate(model.blocks):
        n_weights = 0
        for names in _COMMON_WEIGHTS:
            weights = [weight for name in names if (weight := _weight(block, name)) is not None]
            # A bias that one host lacks is zero on the other.
            if weights and (".W_" in names[0] or weights[-1].any()):
                yield f"{layer}.{names[0]}", weights[-1]
                n_weights += 1
        if not n_weights:
            yield from ((f"{layer}.{name}", w) for name, w in block.state_dict().items())


def _weight(block: Any, path: str) -> Tensor | None:
    try:
        weight = attrgetter(path)(block)
    except Exception:  # a bridge computes it, and may raise anything
        return None
    return weight if isinstance(weight, Tensor) else None


def processing(model: Model) -> str:
    """How loading processed the weights, as far as vectors depend on it.

    "folded" if the norms' weights were folded into others; "centred" if the mean was removed from
    the residual stream of a LayerNorm model, which does not read it; or both, or "none".

    >>> processing(load_model())
    'none'
    """
    kind = str(model.cfg.normalization_type)
    rows = model.W_E[:1024].detach().float()
    steps = {
        "folded": kind.endswith("Pre") or getattr(model.cfg, "layer_norm_folding", False),
        # Means of random rows are far larger; those of centred rows are rounding errors.
        "centred": kind.startswith("LN") and rows.mean(dim=1).abs().max() < 1e-3 * rows.std(),
    }
    return ", ".join(name for name, applies in steps.items() if applies) or "none"


def model_type(model: Model) -> str | None:
    """The architecture as transformers' configs call it, such as "llama"; None if unknown.

    >>> model_type(load_model())
    'llama'
    """
    cfg: Any = model.cfg
    called = getattr(cfg, "original_architecture", None) or getattr(cfg, "architecture", None)
    # Others share a class: what the class is named after is the one.
    kinds = [
        kind
        for kind, architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
        if architecture == called and called.lower().startswith(kind.replace("_", ""))
    ]
    return max(kinds, key=len, default=None)


LIBRARIES = ("steerlens", "transformer-lens", "transformers", "torch")
"""Libraries whose versions affect results."""


def model_provenance(model: Model) -> dict[str, Any]:
    """The part of a vector's provenance that describes its model and the libraries."""
    template = getattr(model.tokenizer, "chat_template", None)
    return {
        "model": model.cfg.model_name,
        "model_type": model_type(model),
        "weights": fingerprint(model),
        "processing": processing(model),
        "template": None if template is None else digest(str(template).encode()),
        "versions": {library: version(library) for library in LIBRARIES},
    }
