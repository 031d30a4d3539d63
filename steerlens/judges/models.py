"""Judges that are models: a text classifier, and how likely the unsteered model finds a text."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import __version__ as transformers_version
from transformers import pipeline

from steerlens.activations.batching import by_length
from steerlens.data.prompts import Passage, Prompt
from steerlens.errors import SteerlensError
from steerlens.judges.judging import Judge
from steerlens.models.fingerprint import digest_of, fingerprint
from steerlens.models.host import Model, all_logits, require_no_hooks
from steerlens.models.token_text import decoded
from steerlens.models.tokenizing import TokenRow, pad_token, right_padded, tokenize
from steerlens.numerics import at_least_float32
from steerlens.shapes import TokenIds


def classifier(
    name: str,
    label: str | None = None,
    *,
    batch_size: int = 32,
    device: str | None = None,
) -> Judge:
    """A judge that is a Hugging Face text classifier; NaN for an empty text.

    Long texts are cut to the classifier's context.

    Args:
        name: A local directory, or a name on the hub.
        label: The score is this label's probability; None: P(positive) − P(negative).
        batch_size: Most texts of a batch.
        device: Such as "cuda"; None: transformers' choice.

    Raises:
        SteerlensError: It cannot be loaded, or lacks the label.

    >>> classifier("./my-classifier", "joy")(["What a day!"])  # doctest: +SKIP
    array([0.93])
    """
    try:
        classify = pipeline("text-classification", model=name, device=device)
    except Exception as error:  # broken directories and missing hubs raise errors of many classes
        raise SteerlensError(
            f"{name!r} could not be loaded as a text classifier ({error}); expected a directory "
            "with a sequence-classification model and its tokenizer, or a name on a reachable hub"
        ) from error
    weight = _weights_of_labels(name, list(classify.model.config.id2label.values()), label)
    # Not every tokenizer knows its model's length, and RoBERTa counts positions from 2.
    positions = getattr(classify.model.config, "max_position_embeddings", None) or math.inf
    longest = min(classify.tokenizer.model_max_length, positions - 2)
    cut: dict[str, Any] = {"truncation": True, "max_length": longest} if longest < 1e6 else {}

    def score(texts: Sequence[str], indices: list[int]) -> list[float]:
        chosen = [texts[index] for index in indices]
        return [
            sum(guess["score"] * weight.get(guess["label"], 0.0) for guess in guesses)
            for guesses in classify(chosen, top_k=None, batch_size=batch_size, **cut)
        ]

    weights = sorted(classify.model.state_dict().items())
    return Judge(
        f"{name}:{label or 'positive−negative'}",
        partial(_of_non_empty, score=score),
        f"weights {digest_of(weights)}, transformers {transformers_version}",
    )


def _weights_of_labels(name: str, labels: list[str], label: str | None) -> dict[str, float]:
    """The weight of each label's probability in the score."""
    if label is not None:
        if label not in labels:
            raise SteerlensError(
                f"got label={label!r} for {name!r}; expected one of {', '.join(labels)}"
            )
        return {label: 1.0}
    signs = {"positive": 1.0, "pos": 1.0, "negative": -1.0, "neg": -1.0}
    weight = {known: signs[known.lower()] for known in labels if known.lower() in signs}
    if sorted(weight.values()) != [-1.0, 1.0]:
        raise SteerlensError(
            f"got no label for {name!r}, whose labels are not positive and negative; give label= "
            f"one of {', '.join(labels)}"
        )
    return weight


def bits_per_character(
    model: Model, prompts: Sequence[Prompt] | None = None, *, batch_size: int = 16
) -> Judge:
    """A judge of how surprising the unsteered model finds a text, in bits per character.

    An empty text is NaN. A first token with nothing before it is not counted. Text that repeats
    itself is not surprising at all: read this judge along with `repetition`.

    Args:
        model: The model.
        prompts: The prompt of each text, which is then read as the reply, in the chat template if
            there is one; None: each text is a document of its own, after BOS.
        batch_size: Most texts of a batch.

    Raises:
        SteerlensError: When called, if hooks are attached to the model, or a text does not fit
            into its context.

    >>> fluent, scrambled = bits_per_character(load_model())(["I like it.", "Li ike. tI"])
    >>> bool(fluent < scrambled)
    True
    """

    def score(texts: Sequence[str], indices: list[int]) -> Float[np.ndarray, " text"]:
        if prompts is None:
            rows = tokenize(model, [texts[index] for index in indices], chat=False)
        elif len(prompts) == len(texts):
            rows = tokenize(model, [Passage(prompts[index], texts[index]) for index in indices])
        else:
            raise SteerlensError(
                f"got {len(texts)} texts for {len(prompts)} prompts; expected one prompt for each "
                "text"
            )
        require_no_hooks(model, "the unsteered model is to judge")
        return _bits_per_character(model, rows, [texts[index] for index in indices], batch_size)

    if batch_size < 1:
        raise SteerlensError(f"got batch_size={batch_size}; expected at least 1")
    reading = "alone" if prompts is None else "as reply"
    version = f"{model.cfg.model_name}, weights {fingerprint(model)}, bits, read {reading}"
    return Judge("bits_per_character", partial(_of_non_empty, score=score), version)


def _of_non_empty(
    texts: Sequence[str], score: Callable[[Sequence[str], list[int]], Any]
) -> Float[np.ndarray, " text"]:
    """Scores of texts that are not blank; NaN for the others."""
    scores = np.full(len(texts), math.nan)
    indices = [index for index, text in enumerate(texts) if text.strip()]
    if indices:
        scores[indices] = score(texts, indices)
    return scores


@torch.no_grad()
def _bits_per_character(
    model: Model, rows: Sequence[TokenRow], texts: Sequence[str], batch_size: int
) -> Float[np.ndarray, " text"]:
    bits = np.zeros(len(rows))
    for batch in by_length([len(row.ids) for row in rows], rows=batch_size):
        tokens, mask = right_padded([rows[i].ids for i in batch], pad_token(model))
        # No mask is needed: causal attention never sees padding on the right.
        surprise = _surprise(model, tokens.to(model.cfg.device)).cpu()
        first = torch.tensor([rows[i].suffix_start or 0 for i in batch])[:, None]
        counted = mask[:, 1:] & (torch.arange(1, tokens.shape[1])[None] >= first)
        bits[batch] = (surprise * counted).sum(dim=1, dtype=torch.float64).numpy() / math.log(2)
    return bits / [_characters(model, row, text) for row, text in zip(rows, texts, strict=True)]


def _surprise(model: Model, tokens: TokenIds) -> Float[Tensor, "batch next"]:
    """Negative log-probability of every token but the first, in nats, in float32 at least."""
    logits = at_least_float32(all_logits(model, tokens)[:, :-1])
    chosen = logits.gather(2, tokens[:, 1:, None])[..., 0]
    return logits.logsumexp(dim=2) - chosen


def _characters(model: Model, row: TokenRow, text: str) -> float:
    """How many characters of a text count: all but those of a first token without context."""
    if row.suffix_start is not None or model.cfg.default_prepend_bos:
        return len(text)
    return len(text) - len(decoded(model.tokenizer, row.ids[:1])) or math.nan
