"""steering-vectors and repeng, where they are installed."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np

Vectors = dict[int, np.ndarray]
Extraction = Callable[[Any, Any, Sequence[tuple[str, str]], int], Vectors]
"""(Hugging Face model, tokenizer, pairs of texts, batch size) → last token's directions."""


def steering_vectors() -> Extraction | None:
    """Mean differences at the last token."""
    if find_spec("steering_vectors") is None:
        return None
    from steering_vectors import train_steering_vector

    def extract(
        model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], batch: int
    ) -> Vectors:
        vector = train_steering_vector(model, tokenizer, pairs, batch_size=batch)
        return {at: one.cpu().numpy() for at, one in vector.layer_activations.items()}

    return extract


def repeng() -> Extraction | None:
    """Its "pca_center" at the last token, which is our `pca_pairwise`."""
    if find_spec("repeng") is None:
        return None
    np.float_ = np.float64  # its annotations name a type that numpy 2 has not
    from repeng import ControlVector, DatasetEntry
    from repeng import extract as module

    module.tqdm = SimpleNamespace(tqdm=iter)  # no progress bars

    def extract(
        model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], batch: int
    ) -> Vectors:
        return ControlVector.train(
            model,
            tokenizer,
            [DatasetEntry(positive=p, negative=n) for p, n in pairs],
            method="pca_center",
            batch_size=batch,
            hidden_layers=list(range(model.config.num_hidden_layers)),
        ).directions

    return extract
