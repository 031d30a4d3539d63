"""From a contrastive dataset to a steering vector."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import chain

from steerlens.contrast import ContrastiveDataset
from steerlens.directions import (
    CENTRING,
    Estimator,
    explained_variance,
    pairwise_centred,
    pca_pairwise,
    require_contrast,
)
from steerlens.errors import SteerlensError
from steerlens.models import Model, fingerprint, resolve_layers
from steerlens.positions import Tokens
from steerlens.residual import BATCH_TOKENS, Readable, TokenRow, read_rows, tokenize
from steerlens.vector import SteeringVector

LIBRARIES = ("steerlens", "transformer-lens", "transformers", "torch")


def extract(
    model: Model,
    data: ContrastiveDataset | tuple[Sequence[Readable], Sequence[Readable]],
    estimator: Estimator = pca_pairwise,
    *,
    tokens: Tokens = "last",
    layers: Iterable[int] | None = None,
    site: str = "resid_post",
    name: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> SteeringVector:
    """One direction per layer, from what each pair leaves in the residual stream.

    `data` is a dataset, or two equally long lists (positive, negative) of text, chats or token
    ids. The vector points from negative to positive and remembers the activations' length.

    >>> pair = (["I love you."], ["I hate you."])
    >>> extract(load_model(), pair, mean_difference, layers=[2, 3])
    SteeringVector('pairs', resid_post, layers 2–3, d 192)
    """
    numbers = resolve_layers(model, layers)
    positive, negative = _token_rows(model, data)
    reading = read_rows(
        model,
        [*positive, *negative],
        numbers,
        tokens=tokens,
        site=site,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    sides = reading.pooled[: len(positive)], reading.pooled[len(positive) :]
    require_contrast(*sides)
    directions = estimator(*sides)
    if directions.shape != sides[0].shape[1:]:
        raise SteerlensError(
            f"the estimator {_name_of(estimator)} returned shape {tuple(directions.shape)}; "
            f"needed is [layer, d_model] = {tuple(sides[0].shape[1:])}"
        )
    centred = CENTRING.get(estimator, pairwise_centred)(*sides)
    return SteeringVector(
        directions,
        numbers,
        site,
        norms=reading.norms.mean(dim=0),
        explained=explained_variance(centred, directions).float(),
        provenance={
            "name": name or (data.name if isinstance(data, ContrastiveDataset) else "pairs"),
            "model": model.cfg.model_name,
            "weights": fingerprint(model),
            "processing": _processing(model),
            "tokens": tokens if isinstance(tokens, str | int) else _name_of(tokens),
            "estimator": _name_of(estimator),
            "pairs": len(positive),
            "pairs_hash": _hash_of(chain(positive, negative)),
            "template": _template_hash(model),
            "versions": {library: version(library) for library in LIBRARIES},
        },
    )


def _token_rows(
    model: Model, data: ContrastiveDataset | tuple[Sequence[Readable], Sequence[Readable]]
) -> tuple[list[TokenRow], list[TokenRow]]:
    if isinstance(data, ContrastiveDataset):
        sides = [
            tokenize(model, side, chat=data.chat, generation_prompt=data.generation_prompt)
            for side in (data.positive, data.negative)
        ]
        return sides[0], sides[1]
    positive, negative = data
    if len(positive) != len(negative):
        raise SteerlensError(
            f"{len(positive)} positive but {len(negative)} negative prompts came; "
            "an extraction needs pairs"
        )
    return tokenize(model, positive), tokenize(model, negative)


def _processing(model: Model) -> str:
    """Folded normalisation leaves its mark in the type's name (LNPre, RMSPre)."""
    folded = str(model.cfg.normalization_type).endswith("Pre")
    return "folded" if folded else "none"


def _name_of(value: object) -> str:
    return getattr(value, "__qualname__", repr(value))


def _hash_of(rows: Iterable[TokenRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]


def _template_hash(model: Model) -> str | None:
    template = getattr(model.tokenizer, "chat_template", None)
    return None if template is None else hashlib.sha256(str(template).encode()).hexdigest()[:16]
