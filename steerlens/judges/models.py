"""Judges that are models: a text classifier, and how likely the unsteered model finds a text."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import __version__ as transformers_version
from transformers import pipeline

from steerlens.activations.batching import by_length
from steerlens.data.prompts import Passage, Prompt
from steerlens.errors import SteerlensError
from steerlens.judges.judging import Judge
from steerlens.models.fingerprint import digest_of, fingerprint
from steerlens.models.host import Model, all_logits, require_no_hooks
from steerlens.models.tokenizing import TokenRow, pad_token, right_padded, tokenize
from steerlens.numerics import at_least_float32


def classifier(
    name: str,
    label: str | None = None,
    *,
    batch_size: int = 32,
    device: str | None = None,
) -> Judge:
    """A Hugging Face text classifier: the probability of a label; NaN for an empty text.

    `name` is a local directory or a hub name. Without `label`, the score is P(positive) −
    P(negative), if the labels say so. Long texts are cut to what the classifier reads. Raises if
    it cannot be loaded or lacks the label.

    >>> classifier("./my-classifier", "joy")(["What a day!"])  # doctest: +SKIP
    array([0.93])
    """
    try:
        asked = pipeline("text-classification", model=name, device=device)
    except Exception as error:  # whatever a broken directory or a missing hub makes it raise
        raise SteerlensError(
            f"{name!r} could not be loaded as a text classifier ({error}); needed is a directory "
            "with a sequence-classification model and its tokenizer, or a name on a reachable hub"
        ) from error
    weight = _weights_of_labels(name, list(asked.model.config.id2label.values()), label)
    # Not every tokenizer knows its model's length, and RoBERTa counts positions from 2.
    positions = getattr(asked.model.config, "max_position_embeddings", None) or math.inf
    longest = min(asked.tokenizer.model_max_length, positions - 2)
    cut: dict[str, Any] = {"truncation": True, "max_length": longest} if longest < 1e6 else {}

    def score(texts: Sequence[str], told: list[int]) -> list[float]:
        found = asked([texts[index] for index in told], top_k=None, batch_size=batch_size, **cut)
        return [
            sum(one["score"] * weight.get(one["label"], 0.0) for one in labels) for labels in found
        ]

    weights = sorted(asked.model.state_dict().items())
    return Judge(
        f"{name}:{label or 'positive−negative'}",
        partial(_of_told, score=score),
        f"weights {digest_of(weights)}, transformers {transformers_version}",
    )


def _weights_of_labels(name: str, labels: list[str], label: str | None) -> dict[str, float]:
    """What each label's probability counts for."""
    if label is not None:
        if label not in labels:
            raise SteerlensError(f"{name!r} has no label {label!r}; it has {', '.join(labels)}")
        return {label: 1.0}
    signs = {"positive": 1.0, "pos": 1.0, "negative": -1.0, "neg": -1.0}
    weight = {one: signs[one.lower()] for one in labels if one.lower() in signs}
    if sorted(weight.values()) != [-1.0, 1.0]:
        raise SteerlensError(
            f"which label of {name!r} is meant is not plain; give label= one of {', '.join(labels)}"
        )
    return weight


def bits_per_character(
    model: Model, prompts: Sequence[Prompt] | None = None, *, batch_size: int = 16
) -> Judge:
    """How surprising the unsteered model finds a text, in bits per character; NaN if it is empty.

    A text is read as a document of its own, after BOS; with `prompts`, as the reply to the prompt
    of its index, in the chat template if there is one. A first token with nothing before it is
    not counted. What repeats itself is not surprising at all: read `repetition` beside it.
    Raises if hooks are attached to the model, or a text does not fit into its context.

    >>> fluent, scrambled = bits_per_character(load_model())(["I like it.", "Li ike. tI"])
    >>> bool(fluent < scrambled)
    True
    """

    def score(texts: Sequence[str], told: list[int]) -> Float[np.ndarray, " text"]:
        if prompts is None:
            rows = tokenize(model, [texts[index] for index in told], chat=False)
        elif len(prompts) == len(texts):
            rows = tokenize(model, [Passage(prompts[index], texts[index]) for index in told])
        else:
            raise SteerlensError(
                f"{len(texts)} texts came for {len(prompts)} prompts; give each text its prompt"
            )
        require_no_hooks(model, "the unsteered model is to judge")
        return _bits_per_character(model, rows, [texts[index] for index in told], batch_size)

    if batch_size < 1:
        raise SteerlensError(f"batch_size={batch_size} came; it must be at least 1")
    reading = "alone" if prompts is None else "as reply"
    version = f"{model.cfg.model_name}, weights {fingerprint(model)}, bits, read {reading}"
    return Judge("bits_per_character", partial(_of_told, score=score), version)


def _of_told(
    texts: Sequence[str], score: Callable[[Sequence[str], list[int]], Any]
) -> Float[np.ndarray, " text"]:
    """Scores of the texts that say anything, by their index; NaN for the others."""
    scores = np.full(len(texts), math.nan)
    told = [index for index, text in enumerate(texts) if text.strip()]
    if told:
        scores[told] = score(texts, told)
    return scores


@torch.no_grad()
def _bits_per_character(
    model: Model, rows: Sequence[TokenRow], texts: Sequence[str], batch_size: int
) -> Float[np.ndarray, " text"]:
    bits = np.zeros(len(rows))
    for batch in by_length([len(row.ids) for row in rows], rows=batch_size):
        tokens, mask = right_padded([rows[i].ids for i in batch], pad_token(model))
        # No mask is needed: causal attention never looks at what pads the right.
        surprise = _surprise(model, tokens.to(model.cfg.device)).cpu()
        first = torch.tensor([rows[i].suffix_start or 0 for i in batch])[:, None]
        counted = mask[:, 1:] & (torch.arange(1, tokens.shape[1])[None] >= first)
        bits[batch] = (surprise * counted).sum(dim=1, dtype=torch.float64).numpy() / math.log(2)
    return bits / [_characters(model, row, text) for row, text in zip(rows, texts, strict=True)]


def _surprise(model: Model, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row next"]:
    """Of every token but the first, in nats; log-probabilities in float32 at least."""
    logits = at_least_float32(all_logits(model, tokens)[:, :-1])
    chosen = logits.gather(2, tokens[:, 1:, None])[..., 0]
    return logits.logsumexp(dim=2) - chosen


def _characters(model: Model, row: TokenRow, text: str) -> float:
    """How many characters of a text are counted: all, unless nothing stands before its first."""
    if row.suffix_start is not None or model.cfg.default_prepend_bos:
        return len(text)
    return len(text) - len(model.tokenizer.decode(row.ids[:1])) or math.nan
