"""What to look for in a prompt (conditions), and what was seen (gates)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlens.activations.pooling import Readers
from steerlens.activations.selection import Tokens, read_positions, require_tokens
from steerlens.display import card
from steerlens.errors import SteerlensError, short_repr
from steerlens.models.sites import require_site
from steerlens.numerics import at_least_float32
from steerlens.steering.clocks import Clock
from steerlens.steering.predicates import Leaf
from steerlens.steering.similarities import Similarity, cast_similarity
from steerlens.vectors.vector import SteeringVector


@dataclass(frozen=True, eq=False)
class Condition(Leaf):
    """A prompt's pooled activation is similar to a vector, above or below a threshold.

    Fires if any of the layers does. It is a specification only: what a run sees is in its `Gate`.

    >>> v = SteeringVector(torch.eye(2), layers=(0, 1))
    >>> Condition(v, layers=1, above=0.5)
    Condition(cast similarity at layer 1 above 0.5)
    """

    vector: SteeringVector
    layers: int | Sequence[int]
    above: float | None = None
    below: float | None = None
    similarity: Similarity = cast_similarity
    tokens: Tokens = "all"
    """Which tokens of the prompt are averaged: "all", "last", the last k, or a slice."""
    site: str | None = None
    """Where it is read; None means where the vector was."""
    name: str = ""

    def __post_init__(self) -> None:
        layers = (self.layers,) if isinstance(self.layers, int) else tuple(self.layers)
        object.__setattr__(self, "layers", tuple(sorted(set(layers))))
        for layer in self.layers_read:
            self.vector.row(layer)
        require_site(self.site_read)
        if not layers:
            raise SteerlensError("a condition needs at least one layer to read")
        if (self.above is None) == (self.below is None):
            given = "both" if self.above is not None else "neither"
            raise SteerlensError(f"{given} of above= and below= came; give exactly one")
        if not math.isfinite(self.threshold):
            raise SteerlensError(f"the threshold {self.threshold} is not a finite number")
        require_tokens(self.tokens)
        if callable(self.tokens) or self.tokens in ("suffix", "reply"):
            raise SteerlensError(
                f"a condition cannot read tokens={self.tokens!r}: a running model shows no text; "
                'use "all", "last", an int or a slice'
            )

    @property
    def layers_read(self) -> tuple[int, ...]:
        """`layers` as the tuple it is kept as."""
        assert isinstance(self.layers, tuple)
        return self.layers

    @property
    def threshold(self) -> float:
        """The number after `above=` or `below=`."""
        threshold = self.above if self.above is not None else self.below
        assert threshold is not None
        return threshold

    @property
    def site_read(self) -> str:
        """Where it is read."""
        return self.site or self.vector.site

    def fires(self, similarities: Float[Tensor, "row layer"]) -> Bool[Tensor, " row"]:
        """Which rows fire, given their similarity at each of the layers."""
        exact = similarities.double()  # a threshold between two float32 numbers must stay there
        cut = exact > self.threshold if self.above is not None else exact < self.threshold
        return cut.any(dim=1)

    def measure(self, pooled: Float[Tensor, "row d_model"], layer: int) -> Float[Tensor, " row"]:
        """Similarity of pooled activations to the vector at one layer, in float32 at least."""
        wide = at_least_float32(pooled)
        # Copies: a similarity of the user's own may work in place.
        found = self.similarity(wide.clone(), self.vector[layer].to(wide, copy=True))
        array = isinstance(found, np.ndarray) and found.dtype.kind in "fiu"
        values = torch.from_numpy(found) if array else found
        if not isinstance(values, Tensor) or tuple(values.shape) != (len(pooled),):
            given = (
                f"shape {tuple(values.shape)}"
                if isinstance(values, Tensor)
                else f"{type(found).__name__} {short_repr(found)}"
            )
            raise SteerlensError(
                f"the similarity of {self} returned {given}; expected a tensor (or an array) of "
                f"one number for each of the {len(pooled)} rows"
            )
        return values.to(wide)

    def __repr__(self) -> str:
        side = "above" if self.above is not None else "below"
        plural = "s" if len(self.layers_read) > 1 else ""
        numbers = ", ".join(map(str, self.layers_read))
        what = f"{self.name}: " if self.name else ""
        kind = self.similarity.__name__.removesuffix("_similarity")
        return (
            f"Condition({what}{kind} similarity at layer{plural} {numbers} "
            f"{side} {self.threshold:.4g})"
        )

    def _repr_html_(self) -> str:
        """For notebooks: what is read where, and when it fires."""
        side = "above" if self.above is not None else "below"
        return card(
            f"Condition {self.name}",
            {
                "fires where": f"{self.similarity.__name__.replace('_', ' ')} is {side} "
                f"{self.threshold:.4g}",
                "at layers" if len(self.layers_read) > 1 else "at layer": (
                    ", ".join(map(str, self.layers_read))
                ),
                "site": self.site_read,
                "tokens": self.tokens,
                "vector": repr(self.vector),
            },
        )

    def __str__(self) -> str:
        return self.name or repr(self)


@dataclass(eq=False)
class Gate:
    """What one condition saw in one run: a similarity per row and layer, and who passes."""

    condition: Condition
    clock: Clock
    _seen: dict[int, Tensor] = field(default_factory=dict)

    def read(self, resid: Float[Tensor, "row pos d_model"], layer: int) -> None:
        """Judge the prompt; later passes of the same run change nothing."""
        if not self.clock.shown.at_prompt:
            return
        width = self.condition.vector.width
        if resid.shape[-1] != width:
            raise SteerlensError(
                f"the condition {self.condition} is {width} wide, but the stream "
                f"{resid.shape[-1]}; its vector belongs to another model"
            )
        pooled = self._pooled(resid)
        similarity = self.condition.measure(pooled, layer).cpu()
        if not similarity.isfinite().all():
            raise SteerlensError(
                f"the condition {self.condition} met NaN or infinite activations at layer {layer}"
            )
        self._seen[layer] = similarity

    @property
    def similarity(self) -> Float[Tensor, "row layer"]:
        """One column for each layer that the condition reads."""
        missing = [layer for layer in self.condition.layers_read if layer not in self._seen]
        if missing:
            raise SteerlensError(
                f"the condition {self.condition} has not read layer(s) {missing} of this prompt; "
                "run the model's whole forward pass with all of the hooks"
            )
        return torch.stack([self._seen[layer] for layer in self.condition.layers_read], dim=1)

    @property
    def open(self) -> Bool[Tensor, " row"]:
        """Which rows the condition fires on."""
        return self.condition.fires(self.similarity)

    def forget(self) -> None:
        """A new prompt begins."""
        self._seen.clear()

    def keep_rows(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with these rows only, in this order."""
        self._seen = {layer: seen[rows] for layer, seen in self._seen.items()}

    def _pooled(self, resid: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row d_model"]:
        mask = self.clock.shown.rows.require_mask(f"the condition {self.condition}").cpu()
        tokens = self.condition.tokens
        chosen = []
        for row, real in enumerate(mask):
            places = real.nonzero().flatten()
            at = read_positions(tokens, len(places), {}, list)
            chosen.append((row, places[at].tolist()))
        return Readers.of(chosen, resid.device).mean(resid)
