"""One prompt, read at every token: how it lies to the vectors of a shelf, and figures of that."""

from collections.abc import Mapping
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.reading import every_token
from steerlens.dashboards.theme import LINES, TEMPLATE
from steerlens.interpret.token_marks import mark_read
from steerlens.models.host import Model
from steerlens.models.tokenizing import Readable, tokenize
from steerlens.playground.library import Shelf
from steerlens.vectors.vector import SteeringVector


@dataclass(frozen=True, eq=False)
class AlongVector:
    """How a prompt's tokens lie to one vector."""

    layers: tuple[int, ...]
    cosines: Float[Tensor, "pos layer"]
    projections: Float[Tensor, "pos layer"]
    """Signed lengths along the direction, in units of the stream."""

    def cosine(self, layer: int) -> float:
        """Of the last token, as a condition sees it."""
        return self.cosines[-1, self.layers.index(layer)].item()


@dataclass(frozen=True, eq=False)
class Reading:
    """A prompt's tokens, and how they lie to each vector."""

    tokens: tuple[str, ...]
    along: Mapping[str, AlongVector]

    def colours(self, name: str, layer: int) -> list[float]:
        """Each token's projection as a share of the largest: −1 to 1.

        The first token, an attention sink, is many times longer than others; it does not set the
        scale.
        """
        seen = self.along[name]
        projections = seen.projections[:, seen.layers.index(layer)]
        scale = projections[1:].abs().max() if len(projections) > 1 else projections.abs().max()
        return (projections / scale.clamp_min(1e-9)).clamp(-1, 1).tolist()


def read_prompt(model: Model, prompt: Readable, shelf: Shelf) -> Reading:
    """Run the prompt once, unsteered, and compare every token with every vector at its site."""
    places = {
        (entry.vector.site, layer) for entry in shelf.values() for layer in entry.vector.layers
    }
    [row] = tokenize(model, [prompt])
    stream = every_token(model, row.ids, places)
    along = {name: _along(entry.vector, stream) for name, entry in shelf.items()}
    return Reading(mark_read(model, prompt, "all").tokens, along)


def _along(vector: SteeringVector, stream: Mapping[tuple[str, int], Tensor]) -> AlongVector:
    resid = torch.stack([stream[vector.site, layer] for layer in vector.layers], dim=1)
    unit = vector.normalized().directions.to(resid)
    projections = einsum(resid, unit, "pos layer d_model, layer d_model -> pos layer")
    lengths = resid.norm(dim=-1).clamp_min(torch.finfo(resid.dtype).tiny)
    return AlongVector(vector.layers, projections / lengths, projections)


def cosines_by_layer(reading: Reading, name: str) -> go.Figure:
    """Cosine of the prompt with a vector at each layer: its last token, and the mean of all."""
    seen = reading.along[name]
    figure = go.Figure(layout={"template": TEMPLATE})
    for label, values, colour in (
        ("last token", seen.cosines[-1], LINES[0]),
        ("mean of all tokens", seen.cosines.mean(dim=0), LINES[1]),
    ):
        figure.add_scatter(
            x=list(seen.layers),
            y=values.tolist(),
            name=label,
            mode="lines+markers",
            line={"color": colour},
            hovertemplate=f"{label}, layer %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    return figure.update_layout(
        xaxis={"title": "layer", "dtick": max(1, len(seen.layers) // 10)},
        yaxis={"title": f"cosine with “{name}”"},
        legend={"y": 1},
        margin={"t": 40, "b": 50, "l": 60, "r": 10},
        height=300,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
