"""CAST (arXiv 2409.05907) as its implementation goes about it, on a Hugging Face model.

Written from its description. One thing is better than there: padding is not pooled, so that results
can be compared; that changes no time. Texts come with the chat template applied.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, product
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import f1_score

LARGEST_THRESHOLD = 0.06


@torch.no_grad()
def hidden_means(
    model: Any, tokenizer: Any, texts: Sequence[str], suffix_lengths: Sequence[int] | None = None
) -> np.ndarray:
    """Block outputs of every layer (the last one's after the final norm), [text, layer, d_model].

    Pooled over each text's last `suffix_lengths` tokens, or over all.
    """
    means = []
    for start in range(0, len(texts), 32):
        batch = tokenizer(
            list(texts[start : start + 32]),
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        hidden = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
        ).hidden_states[1:]
        for row, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
            first = 0 if suffix_lengths is None else length - suffix_lengths[start + row]
            means.append(
                [layer[row, first:length].mean(dim=0).float().cpu().numpy() for layer in hidden]
            )
    return np.array(means)


def principal_directions(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """`pca_pairwise`: pairs centred on their midpoints, scikit-learn's PCA, layer by layer."""
    centre = (positive + negative) / 2
    rows = np.stack([positive - centre, negative - centre], axis=1)  # alternating, as there
    directions = []
    for layer in range(rows.shape[2]):
        flat = rows[:, :, layer].reshape(-1, rows.shape[-1])
        directions.append(PCA(n_components=1, whiten=False).fit(flat).components_[0])
    return np.array(directions)


def extract(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    suffix_lengths: Sequence[tuple[int, int]] | None = None,
) -> np.ndarray:
    """One direction per layer, of either sign."""
    lengths = None if suffix_lengths is None else list(chain.from_iterable(suffix_lengths))
    means = hidden_means(model, tokenizer, list(chain.from_iterable(pairs)), lengths)
    return principal_directions(means[::2], means[1::2])


def similarity(hidden: torch.Tensor, direction: torch.Tensor) -> float:
    """cos(h, tanh(P h)), with P the projection on the direction."""
    projection = torch.outer(direction, direction) / (direction @ direction)
    return torch.cosine_similarity(hidden, torch.tanh(projection @ hidden), dim=0).item()


@contextmanager
def hooked(layers: Any, inputs: dict[int, Any]) -> Iterator[None]:
    """Functions of blocks' inputs, by layer; what one returns replaces the input."""

    def before(module: Any, args: tuple[Any, ...], act: Any) -> tuple[Any, ...] | None:
        new = act(args[0])
        return None if new is None else (new, *args[1:])

    handles = [
        layers[layer].register_forward_pre_hook(
            lambda module, args, act=act: before(module, args, act)
        )
        for layer, act in inputs.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def prompt_similarities(
    model: Any, rows: Sequence[Sequence[int]], directions: dict[int, torch.Tensor]
) -> np.ndarray:
    """[prompt, layer]: one prompt at a time, pooled over all tokens of the block's input."""
    found: list[list[float]] = []

    def read(layer: int) -> Any:
        return lambda h: found[-1].append(similarity(h[0].mean(dim=0), directions[layer]))

    with hooked(model.model.layers, {layer: read(layer) for layer in directions}):
        for row in rows:
            found.append([])
            model(input_ids=torch.tensor([row], device=model.device))
    return np.array(found)


class Cut(NamedTuple):
    f1: float
    column: int
    threshold: float
    above: bool


def grid_search(positive: np.ndarray, negative: np.ndarray, step: float) -> Cut:
    """The best of all columns × thresholds × directions, scored one by one."""
    grid = np.arange(0, LARGEST_THRESHOLD + step / 2, step)
    values = np.concatenate([positive, negative])
    truth = [1] * len(positive) + [0] * len(negative)
    return max(
        Cut(f1_score(truth, (column > cut) == above, zero_division=0), index, cut, above)
        for (index, column), cut, above in product(enumerate(values.T), grid, (True, False))
    )


class Gated(NamedTuple):
    tokens: list[list[int]]
    fired: list[bool]


@torch.no_grad()
def generate_gated(
    model: Any,
    rows: Sequence[Sequence[int]],
    condition: tuple[int, torch.Tensor, float],
    additions: dict[int, torch.Tensor],
    new_tokens: int,
) -> Gated:
    """One prompt at a time: judged on its first pass, then steered if it fired."""
    layer, direction, threshold = condition
    tokens, fired = [], []
    judged: list[bool] = []

    def judge(hidden: torch.Tensor) -> None:
        if not judged:
            judged.append(similarity(hidden[0].mean(dim=0), direction) > threshold)

    def steer(hidden: torch.Tensor, addition: torch.Tensor) -> torch.Tensor | None:
        return hidden + addition if judged[0] else None

    inputs = {
        layer: judge,
        **{at: lambda h, addition=one: steer(h, addition) for at, one in additions.items()},
    }
    with hooked(model.model.layers, inputs):
        for row in rows:
            judged.clear()
            prompt = torch.tensor([row], device=model.device)
            text = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
            tokens.append(text[0, len(row) :].tolist())
            fired.append(judged[0])
    return Gated(tokens, fired)
