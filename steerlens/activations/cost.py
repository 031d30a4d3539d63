"""Tokens, time and memory of an extraction, estimated before it runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter

from steerlens.activations.batching import Pass, reading_passes
from steerlens.activations.reading import read_rows
from steerlens.activations.selection import Tokens
from steerlens.models.fast_forward import cached_numbers
from steerlens.models.host import Model
from steerlens.models.sites import resolve_layers, site_width
from steerlens.models.tokenizing import Sides, TokenRow, tokenize_sides

WARM_UP_TOKENS = 2048
"""How many tokens are read, twice, to measure the time per token."""


@dataclass(frozen=True)
class CostEstimate:
    """The cost of an extraction: tokens are counted, time is measured, memory is estimated."""

    tokens: int
    """Tokens computed, padding included; equal prompts and shared prefixes count once."""
    passes: int
    """Forward passes."""
    seconds: float
    weight_bytes: int
    batch_bytes: int
    """Activations of the largest forward pass."""
    result_bytes: int
    """Activations read, which are held until the directions are computed."""

    @property
    def peak_bytes(self) -> int:
        """Weights, largest batch and activations read, together."""
        return self.weight_bytes + self.batch_bytes + self.result_bytes

    def __str__(self) -> str:
        shares = ", ".join(
            f"{name} {size / 2**20:,.0f}"
            for name, size in (
                ("weights", self.weight_bytes),
                ("batch", self.batch_bytes),
                ("activations read", self.result_bytes),
            )
        )
        return (
            f"{self.tokens:,} tokens in {self.passes} passes, about {self.seconds:.1f} s, "
            f"about {self.peak_bytes / 2**20:,.0f} MiB ({shares})"
        )


def estimate_cost(
    model: Model,
    data: Sides,
    *,
    tokens: Tokens | Sequence[int] = "last",
    layers: Iterable[int] | None = None,
    site: str = "resid_post",
    batch_tokens: int | None = None,
) -> CostEstimate:
    """The tokens, time and memory that `extract` would need; runs a short read to measure time.

    Args:
        model: The model to extract from.
        data: A dataset, or two lists (positive, negative) of texts, chats or token ids.
        tokens: Which tokens would be read, as in `extract`.
        layers: Layers to read; −1 is the last, None stands for all.
        site: Where in each block, such as "resid_post".
        batch_tokens: Most tokens in a forward pass, padding included; None chooses by device.

    >>> model = load_model()
    >>> estimate_cost(model, (["I love you."], ["I hate you."])).passes
    1
    """
    numbers = resolve_layers(model, layers)
    positive, negative = tokenize_sides(model, data)
    rows = [*positive, *negative]
    passes = reading_passes(model, rows, tokens, batch_tokens)
    total = sum(forward.tokens for forward in passes)
    values = len(rows) * len(numbers) * site_width(model, site)
    return CostEstimate(
        tokens=total,
        passes=len(passes),
        seconds=total * _seconds_per_token(model, rows, numbers, site),
        weight_bytes=sum(w.numel() * w.element_size() for w in model.parameters()),
        batch_bytes=max(_n_values(model, forward, len(numbers)) for forward in passes)
        * next(model.parameters()).element_size(),
        result_bytes=2 * 4 * values,  # float32; held twice, for prompts and for sides
    )


def _seconds_per_token(
    model: Model, rows: Sequence[TokenRow], layers: Sequence[int], site: str
) -> float:
    """Measured on rows of all lengths; the first read only warms up."""
    ordered = sorted({row.ids: row for row in rows}.values(), key=lambda row: len(row.ids))
    mean = sum(len(row.ids) for row in ordered) / len(ordered)
    sample = ordered[:: max(1, round(len(ordered) * mean / WARM_UP_TOKENS))]
    seconds = 0.0
    for _ in range(2):
        start = perf_counter()
        read_rows(model, sample, layers, site=site, progress=False)
        seconds = perf_counter() - start
    return seconds / sum(forward.tokens for forward in reading_passes(model, sample))


def _n_values(model: Model, forward: Pass, n_layers: int) -> int:
    """How many values a pass holds at once: layers read, forward block's activations, KV cache."""
    cfg = model.cfg
    width = forward.n_shared + forward.width
    kept = n_layers * cfg.d_model * forward.rows * forward.width
    mlp = cfg.d_mlp or 4 * cfg.d_model
    block = (4 * cfg.d_model + 3 * mlp) * forward.rows * forward.width
    scores = 2 * cfg.n_heads * forward.rows * forward.width * width
    cached = cached_numbers(model) * forward.rows * width if forward.n_shared else 0
    return kept + block + scores + cached
