"""Gates that are read at each token: which tokens a condition fires on, as they are computed."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlens.activations.pooling import TIMES_MEDIAN, norms_of
from steerlens.errors import SteerlensError
from steerlens.shapes import Resid, TokenMask
from steerlens.steering.clocks import Clock, PassTokens
from steerlens.steering.conditions import Condition


@dataclass(eq=False)
class TokenGate:
    """What one condition sees of each token of the current pass.

    The condition's `tokens` play no part: every token is measured by itself. Attention sinks never
    fire (unless `sinks=True`): a text's first token, and tokens of more than 10 times the median
    norm of the prompt's, which does not change while a reply grows.
    """

    condition: Condition
    clock: Clock
    _seen: dict[int, tuple[PassTokens, Tensor]] = field(default_factory=dict)
    """By layer: the pass, and each token's similarity; NaN at padding and sinks."""
    _median: dict[int, Float[Tensor, " batch"]] = field(default_factory=dict)
    """By layer: the median norm of each row's prompt."""

    def read(self, resid: Resid, layer: int) -> None:
        """Measure every token of the pass at a layer.

        Raises:
            SteerlensError: Activations of another width than the vector's, no mask for a padded
                batch, or a similarity that is NaN or infinite.
        """
        shown = self.clock.current
        self.condition.require_width(resid)
        real = self.real.to(resid.device)
        measured = self.condition.measure(resid[real], layer)
        self.condition.require_finite(measured, layer)
        similarity = measured.new_full((*real.shape, *measured.shape[1:]), torch.nan)
        similarity[real] = measured
        if not self.condition.sinks:
            similarity[self._sinks(resid, real, shown, layer)] = torch.nan
        self._seen[layer] = shown, similarity.cpu()

    @property
    def real(self) -> TokenMask:
        """Which tokens of the pass are no padding."""
        return self.clock.current.real(f"the token condition {self.condition}")

    @property
    def similarity(self) -> Float[Tensor, "batch pos layer ..."]:
        """Similarity of each token, one column for each layer that the condition reads."""
        shown = self.clock.current
        layers = self.condition.layers_read
        missing = [layer for layer in layers if self._seen.get(layer, (None,))[0] is not shown]
        if missing:
            raise SteerlensError(
                f"the token condition {self.condition} has not read layer(s) {missing} of these "
                "tokens; run the model's whole forward pass with all of the hooks"
            )
        return torch.stack([self._seen[layer][1] for layer in layers], dim=2)

    @property
    def open(self) -> Bool[Tensor, "batch pos"]:
        """Which tokens the condition fires on."""
        similarity = self.similarity
        return self.condition.fires(similarity.flatten(0, 1)).unflatten(0, similarity.shape[:2])

    @property
    def never(self) -> TokenMask:
        """Tokens that were not measured: padding, and sinks."""
        return self.similarity.flatten(2).isnan().any(dim=2)

    def forget(self) -> None:
        """Drop what was seen: a new prompt begins."""
        self._seen.clear()
        self._median.clear()

    def keep_rows(self, rows: Int[Tensor, " kept"]) -> None:
        """Continue with these rows of the batch only, in this order."""
        self._seen.clear()
        self._median = {layer: median[rows] for layer, median in self._median.items()}

    def _sinks(self, resid: Resid, real: TokenMask, shown: PassTokens, layer: int) -> TokenMask:
        norms = norms_of(resid)
        n_prompt = shown.rows.width - shown.offset
        if n_prompt > 0:
            of_prompt = norms.masked_fill(~real, torch.nan)[:, :n_prompt]
            self._median[layer] = of_prompt.nanmedian(dim=1).values
        first = (shown.place("token conditions") == 0).to(norms.device)
        return first | (norms > TIMES_MEDIAN * self._median[layer][:, None])
