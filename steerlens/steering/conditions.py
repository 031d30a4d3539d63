"""Conditions, which say what to look for in a prompt, and gates, which hold what a run saw."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlens.activations.pooling import mean_of
from steerlens.activations.selection import Tokens, read_positions, require_tokens
from steerlens.display import card
from steerlens.errors import SteerlensError, short_repr
from steerlens.layer_text import as_layers, display_layers
from steerlens.models.sites import require_site
from steerlens.numerics import at_least_float32, is_number
from steerlens.shapes import Resid, TokenMask
from steerlens.steering.clocks import Clock, PassTokens, PromptRows
from steerlens.steering.evidence import no_evidence
from steerlens.steering.predicates import Leaf
from steerlens.steering.similarities import Similarity, Standard, cast_similarity, similarity_of
from steerlens.vectors.vector import SteeringVector


@dataclass(frozen=True, eq=False)
class Condition(Leaf):
    """Fires on a prompt whose pooled activation is similar to a vector: a gate for a `Steering`.

    A condition is a specification; what a run sees is in its `Gate`. Conditions combine with `&`,
    `|` and `~`. `search_conditions` finds layers and a threshold.

    Args:
        vector: The vector to compare with; it must have all of `layers`.
        layers: One layer, or several; the condition fires if it does at any of them, or, with
            `standard`, if the mean of their standardised similarities does.
        above: Fire where the similarity is greater than this. Give exactly one of `above` and
            `below`.
        below: Fire where the similarity is less than this.
        similarity: A function of pooled activations [batch, d_model] and a direction [d_model],
            which returns one number per row; see `steerlens.similarities`.
        tokens: Which tokens of the prompt are averaged: "all", "last", "user" (the user's own
            words), an int k (the last k), or a slice. Padding is never part of them.
        sinks: Whether attention sinks are averaged too: a text's first token, and tokens more than
            10 times as long as its median token. Where nothing else is selected, they are.
        site: Where the activations are read, such as "resid_post"; None: where the vector was.
        standard: Mean and deviation of the similarity at each of `layers`, in increasing order:
            then layers are combined by the mean of the standardised similarities.
        name: A short name for messages and reports.

    Raises:
        SteerlensError: The vector lacks a layer, or another argument is not as described.

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
    sinks: bool = False
    site: str | None = None
    name: str = ""
    standard: Standard | None = None
    evidence: Mapping[str, Any] = no_evidence()
    """What was measured of it, if anything was: scores on held-out prompts, and their verdict."""

    def __post_init__(self) -> None:
        if not isinstance(self.vector, SteeringVector) or not callable(self.similarity):
            raise SteerlensError(
                f"got a condition on {short_repr(self.vector)} by the similarity "
                f"{short_repr(self.similarity)}; expected a SteeringVector and a function such as "
                "similarities.cosine"
            )
        layers = as_layers(self.layers if isinstance(self.layers, Iterable) else (self.layers,))
        object.__setattr__(self, "layers", tuple(sorted(set(layers))))
        for layer in self.layers_read:
            self.vector.row(layer)
        require_site(self.site_read)
        if not layers:
            raise SteerlensError(
                "got layers=[] for a condition; expected at least one layer to read"
            )
        if (self.above is None) == (self.below is None):
            given = "both" if self.above is not None else "neither"
            raise SteerlensError(f"got {given} of above= and below=; expected exactly one")
        if not is_number(self.threshold) or not math.isfinite(self.threshold):
            raise SteerlensError(
                f"got {self._side}={short_repr(self.threshold)}; expected a finite number as the "
                "threshold"
            )
        if self.standard is not None and {len(layers)} != {*map(len, self.standard)}:
            raise SteerlensError(
                f"got standard= for {len(self.standard.means)} layers; expected a mean and a "
                f"deviation for each of the {len(layers)} layers that are read"
            )
        if self.standard is not None and not all(size > 0 for size in self.standard.deviations):
            raise SteerlensError(
                f"got standard= with the deviations {self.standard.deviations}; expected positive "
                "ones"
            )
        require_tokens(self.tokens)
        if callable(self.tokens) or self.tokens in ("suffix", "reply"):
            raise SteerlensError(
                f'got tokens={self.tokens!r} for a condition; expected "all", "last", "user", an '
                "int or a slice: hooks see activations, not text"
            )

    @property
    def layers_read(self) -> tuple[int, ...]:
        """`layers` as a sorted tuple."""
        assert isinstance(self.layers, tuple)
        return self.layers

    @property
    def threshold(self) -> float:
        """The value of `above` or `below`, whichever is given."""
        threshold = self.above if self.above is not None else self.below
        assert threshold is not None
        return threshold

    @property
    def site_read(self) -> str:
        """The site whose activations are read."""
        return self.site or self.vector.site

    @property
    def _side(self) -> str:
        return "above" if self.above is not None else "below"

    def compared(
        self, similarities: Float[Tensor, "batch layer ..."]
    ) -> Float[Tensor, "batch column"]:
        """What is compared with the threshold: each layer's similarity, or their one mean.

        >>> v = SteeringVector(torch.eye(2), layers=(0, 1))
        >>> both = Condition(v, [0, 1], above=0, standard=Standard((0.5, 0.5), (0.1, 0.2)))
        >>> both.compared(torch.tensor([[0.6, 0.9]]))
        tensor([[1.5000]], dtype=torch.float64)
        """
        return similarities if self.standard is None else self.standard.mean_of(similarities)

    def unseen(self, n_rows: int) -> Float[Tensor, "batch layer ..."]:
        """NaN in the shape of what a gate sees of so many rows."""
        return torch.full((n_rows, len(self.layers_read)), torch.nan)

    def fires(self, similarities: Float[Tensor, "batch layer ..."]) -> Bool[Tensor, " batch"]:
        """Which rows the condition fires on.

        Args:
            similarities: Of each row, one column for each of `layers_read`.

        >>> v = SteeringVector(torch.eye(2), layers=(0, 1))
        >>> Condition(v, layers=1, above=0.5).fires(torch.tensor([[0.4], [0.6]]))
        tensor([False,  True])
        """
        # In float64: a threshold between two float32 numbers must stay there.
        exact = self.compared(similarities).double()
        cut = exact > self.threshold if self.above is not None else exact < self.threshold
        return cut.any(dim=1)

    def margin(self, similarities: Float[Tensor, "batch layer ..."]) -> Float[Tensor, " batch"]:
        """How far beyond its threshold a row's score is, at the layer that is furthest.

        Negative where the condition does not fire.

        Args:
            similarities: Of each row, one column for each of `layers_read`.

        >>> v = SteeringVector(torch.eye(2), layers=(0, 1))
        >>> Condition(v, layers=1, below=0.5).margin(torch.tensor([[0.25], [0.75]]))
        tensor([ 0.2500, -0.2500], dtype=torch.float64)
        """
        beyond = self.compared(similarities).double() - self.threshold
        return (beyond if self.above is not None else -beyond).amax(dim=1)

    def measure(
        self, pooled: Float[Tensor, "batch d_model"], layer: int
    ) -> Float[Tensor, "batch ..."]:
        """Similarity of pooled activations to the vector at one layer, in float32 at least.

        >>> v = SteeringVector(torch.eye(2), layers=(0, 1))
        >>> Condition(v, layers=1, above=0.5).measure(torch.tensor([[0.0, 3.0]]), layer=1)
        tensor([1.])
        """
        wide = at_least_float32(pooled)
        what = f"the similarity of {self}"
        return similarity_of(self.similarity, wide, self.vector[layer], what)

    def require_width(self, resid: Resid) -> None:
        """Refuse activations of another width than the vector's."""
        if resid.shape[-1] != self.vector.width:
            raise SteerlensError(
                f"got activations of width {resid.shape[-1]}; expected {self.vector.width}, as in "
                f"the vector of the condition {self}: use a vector of this model"
            )

    def require_finite(self, similarity: Float[Tensor, "batch ..."], layer: int) -> None:
        """Refuse similarities that no threshold can judge."""
        if not similarity.isfinite().all():
            raise SteerlensError(
                f"got NaN or infinite similarities at layer {layer} for the condition {self}; "
                "expected finite numbers: check the activations, or load a wider dtype"
            )

    @property
    def measure_told(self) -> str:
        """What is compared with the threshold, in words."""
        kind = self.similarity.__name__.removesuffix("_similarity")
        mean = "mean standardised " if self.standard is not None else ""
        return f"{mean}{kind} similarity"

    def __repr__(self) -> str:
        plural = "s" if len(self.layers_read) > 1 else ""
        what = f"{self.name}: " if self.name else ""
        return (
            f"Condition({what}{self.measure_told} at layer{plural} {self._layers_told} "
            f"{self._side} {self.threshold:.4g})"
        )

    @property
    def _layers_told(self) -> str:
        if self.standard is not None:
            return display_layers(self.layers_read)
        return ", ".join(map(str, self.layers_read))

    def _repr_html_(self) -> str:
        """For notebooks: what is read where, and when the condition fires."""
        return card(
            f"Condition {self.name}",
            {
                "fires where": f"{self.measure_told} is {self._side} {self.threshold:.4g}",
                "at layers" if len(self.layers_read) > 1 else "at layer": self._layers_told,
                "site": self.site_read,
                "tokens": f"{self.tokens}{', sinks too' if self.sinks else ''}",
                "vector": repr(self.vector),
            },
        )

    def __str__(self) -> str:
        return self.name or repr(self)


@dataclass(eq=False)
class Gate:
    """What one condition saw in one run: a similarity per row and layer, and which rows pass."""

    condition: Condition
    clock: Clock
    _seen: dict[int, Tensor] = field(default_factory=dict)
    _chosen: tuple[PassTokens, Tensor] | None = None
    """The tokens that are read in a pass: all layers share them."""

    def read(self, resid: Resid, layer: int) -> None:
        """Measure the prompt's similarity at a layer; later passes of a run change nothing.

        Raises:
            SteerlensError: Activations of another width than the vector's, no mask for a padded
                batch, or a similarity that is NaN or infinite.
        """
        if not self.clock.current.at_prompt:
            return
        self.condition.require_width(resid)
        similarity = self.condition.measure(self._pooled(resid), layer).cpu()
        self.condition.require_finite(similarity, layer)
        self._seen[layer] = similarity

    @property
    def similarity(self) -> Float[Tensor, "batch layer ..."]:
        """Similarity of each row, one column for each layer that the condition reads."""
        missing = [layer for layer in self.condition.layers_read if layer not in self._seen]
        if missing:
            raise SteerlensError(
                f"the condition {self.condition} has not read layer(s) {missing} of this prompt; "
                "run the model's whole forward pass with all of the hooks"
            )
        return torch.stack([self._seen[layer] for layer in self.condition.layers_read], dim=1)

    @property
    def open(self) -> Bool[Tensor, " batch"]:
        """Which rows the condition fires on."""
        return self.condition.fires(self.similarity)

    def forget(self) -> None:
        """Drop what was seen: a new prompt begins."""
        self._seen.clear()

    def keep_rows(self, rows: Int[Tensor, " kept"]) -> None:
        """Continue with these rows of the batch only, in this order."""
        self._seen = {layer: seen[rows] for layer, seen in self._seen.items()}

    def _pooled(self, resid: Resid) -> Float[Tensor, "batch d_model"]:
        shown = self.clock.current
        real = shown.rows.require_mask(f"the condition {self.condition}").to(resid.device)
        if self._chosen is None or self._chosen[0] is not shown:
            self._chosen = shown, _tokens_read(self.condition, shown.rows).to(resid.device)
        return mean_of(resid, self._chosen[1], real, sinks=self.condition.sinks)


def _tokens_read(condition: Condition, rows: PromptRows) -> TokenMask:
    """Which tokens of each row a condition reads, padding counted."""
    mask = rows.require_mask(f"the condition {condition}").cpu()
    if condition.tokens == "user" and rows.words is None:
        raise SteerlensError(
            f"the condition {condition} reads the user's words, and where they are is not known: "
            "use steerlens.generate with text or chats, or a condition that reads "
            '"last", "all" or a slice'
        )
    chosen = torch.zeros_like(mask)
    for row, real in enumerate(mask):
        positions = real.nonzero().flatten()
        words = None if rows.words is None else slice(*rows.words[row].tolist())
        at = read_positions(condition.tokens, len(positions), {"user": words}, list)
        chosen[row, positions[at]] = True
    return chosen
