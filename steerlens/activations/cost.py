"""What an extraction will cost, said before it is begun."""

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
"""How many tokens are read, twice, to find out how long one takes."""


@dataclass(frozen=True)
class CostEstimate:
    """The cost of an extraction: tokens are counted, time is measured, memory is estimated."""

    tokens: int
    """That are computed, padding included; equal prompts and beginnings count once."""
    passes: int
    seconds: float
    weight_bytes: int
    batch_bytes: int
    """Of activations in the largest pass."""
    result_bytes: int
    """Of what is read, until directions are made of it."""

    @property
    def peak_bytes(self) -> int:
        """All memory together."""
        return self.weight_bytes + self.batch_bytes + self.result_bytes

    def __str__(self) -> str:
        shares = ", ".join(
            f"{what} {size / 2**20:,.0f}"
            for what, size in (
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
    """What `extract` with these arguments would cost, at the price of a short read.

    >>> model = load_model()
    >>> estimate_cost(model, (["I love you."], ["I hate you."])).passes
    1
    """
    numbers = resolve_layers(model, layers)
    positive, negative = tokenize_sides(model, data)
    rows = [*positive, *negative]
    passes = reading_passes(model, rows, tokens, batch_tokens)
    total = sum(one.tokens for one in passes)
    values = len(rows) * len(numbers) * site_width(model, site)
    return CostEstimate(
        tokens=total,
        passes=len(passes),
        seconds=total * _seconds_per_token(model, rows, numbers, site),
        weight_bytes=sum(part.numel() * part.element_size() for part in model.parameters()),
        batch_bytes=max(_activations(model, one, len(numbers)) for one in passes)
        * next(model.parameters()).element_size(),
        result_bytes=2 * 4 * values,  # float32, once by prompt and once by side
    )


def _seconds_per_token(
    model: Model, rows: Sequence[TokenRow], layers: Sequence[int], site: str
) -> float:
    """Of rows spread over all lengths; a first read pays for what only a first one does."""
    ordered = sorted({row.ids: row for row in rows}.values(), key=lambda row: len(row.ids))
    mean = sum(len(row.ids) for row in ordered) / len(ordered)
    sample = ordered[:: max(1, round(len(ordered) * mean / WARM_UP_TOKENS))]
    seconds = 0.0
    for _ in range(2):
        start = perf_counter()
        read_rows(model, sample, layers, site=site, progress=False)
        seconds = perf_counter() - start
    return seconds / sum(one.tokens for one in reading_passes(model, sample))


def _activations(model: Model, one: Pass, n_layers: int) -> int:
    """How many numbers a pass holds at once: layers read, one block's work, keys and values."""
    cfg = model.cfg
    width = one.n_shared + one.width
    kept = n_layers * cfg.d_model * one.rows * one.width
    mlp = cfg.d_mlp or 4 * cfg.d_model
    block = (4 * cfg.d_model + 3 * mlp) * one.rows * one.width
    scores = 2 * cfg.n_heads * one.rows * one.width * width
    cached = cached_numbers(model) * one.rows * width if one.n_shared else 0
    return kept + block + scores + cached
