"""What identifies a model: a hash of its weights, and what loading did to them."""

import hashlib
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from steerlens.files import digest
from steerlens.models.host import Model


def fingerprint(model: Model) -> str:
    """A short hash of the weights, from samples of each: equal models have equal ones on any host.

    Of a mixture's experts and of norms nothing is looked at: hosts keep them in different forms.
    """
    return digest_of(_weights_of_any_host(model))


def digest_of(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A short hash of named tensors, from 256 numbers of each; no tensor is copied for it."""
    digest = hashlib.sha256()
    for name, weight in weights:
        places = torch.arange(0, weight.numel(), max(1, weight.numel() // 256))[:256]
        sample = weight.detach()[torch.unravel_index(places.to(weight.device), weight.shape)]
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


_COMMON_WEIGHTS = (
    *((f"attn.W_{of}", f"attn._W_{of}") for of in "KV"),  # grouped ones, not repeated, if it can be
    *((f"attn.{name}",) for name in ("W_Q", "W_O", "b_Q", "b_O")),
    *((f"mlp.{name}",) for name in ("W_in", "W_gate", "W_out", "b_in", "b_out")),
)
"""What both hosts have under one name (or the second), in one shape, with equal values."""


def _weights_of_any_host(model: Any) -> Iterator[tuple[str, Tensor]]:
    yield "W_E", model.W_E
    yield "W_U", model.W_U
    for layer, block in enumerate(model.blocks):
        found = 0
        for names in _COMMON_WEIGHTS:
            weights = [weight for name in names if (weight := _weight(block, name)) is not None]
            # A bias that one host lacks is zero on the other.
            if weights and (".W_" in names[0] or weights[-1].any()):
                yield f"{layer}.{names[0]}", weights[-1]
                found += 1
        if not found:
            yield from ((f"{layer}.{name}", own) for name, own in block.state_dict().items())


def _weight(block: Any, path: str) -> Tensor | None:
    try:
        weight = attrgetter(path)(block)
    except Exception:  # a bridge computes it, and raises what it likes where it cannot
        return None
    return weight if isinstance(weight, Tensor) else None


def processing(model: Model) -> str:
    """What loading did to the weights, as far as vectors of one model depend on it.

    "folded": norms have no weights of their own; "centred": a LayerNorm model's stream, whose mean
    it does not read, has the mean taken out.
    """
    kind = str(model.cfg.normalization_type)
    rows = model.W_E[:1024].detach().float()
    done = {
        "folded": kind.endswith("Pre") or getattr(model.cfg, "layer_norm_folding", False),
        # Of random numbers, means are larger by far, and of centred ones by rounding only.
        "centred": kind.startswith("LN") and rows.mean(dim=1).abs().max() < 1e-3 * rows.std(),
    }
    return ", ".join(name for name, holds in done.items() if holds) or "none"


LIBRARIES = ("steerlens", "transformer-lens", "transformers", "torch")


def model_provenance(model: Model) -> dict[str, Any]:
    """Which model, as it is loaded, and which libraries: what a vector made with it notes down."""
    template = getattr(model.tokenizer, "chat_template", None)
    return {
        "model": model.cfg.model_name,
        "weights": fingerprint(model),
        "processing": processing(model),
        "template": None if template is None else digest(str(template).encode()),
        "versions": {library: version(library) for library in LIBRARIES},
    }
