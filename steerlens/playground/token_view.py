"""Projections of each prompt token on the library's vectors, and figures of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.reading import every_token, read_residual
from steerlens.dashboards.theme import LINES, TEMPLATE
from steerlens.interpret.token_marks import mark_read
from steerlens.models.host import Model
from steerlens.models.tokenizing import Readable, tokenize
from steerlens.playground.library import Entry, Library
from steerlens.vectors.vector import SteeringVector


@dataclass(frozen=True, eq=False)
class TokenProjections:
    """Cosines and projections of a prompt's tokens with one vector."""

    layers: tuple[int, ...]
    cosines: Float[Tensor, "pos layer"]
    projections: Float[Tensor, "pos layer"]
    """Along the unit direction."""
    compared: Float[Tensor, " layer"]
    """What the vector's condition compares with its threshold."""

    def cosine(self, layer: int) -> float:
        """What the vector's condition compares at a layer."""
        return self.compared[self.layers.index(layer)].item()


@dataclass(frozen=True, eq=False)
class Reading:
    """A prompt's tokens, and their projections on each vector."""

    tokens: tuple[str, ...]
    by_vector: Mapping[str, TokenProjections]

    def colours(self, name: str, layer: int) -> list[float]:
        """Each token's projection as a share of the largest: −1 to 1.

        The first token does not set the scale: as an attention sink it is many times longer.
        """
        measured = self.by_vector[name]
        projections = measured.projections[:, measured.layers.index(layer)]
        scale = projections[1:].abs().max() if len(projections) > 1 else projections.abs().max()
        return (projections / scale.clamp_min(1e-9)).clamp(-1, 1).tolist()


def read_prompt(model: Model, prompt: Readable, library: Library) -> Reading:
    """Run the prompt once, unsteered; project every token on every vector at its site."""
    places = {
        (entry.vector.site, layer) for entry in library.values() for layer in entry.vector.layers
    }
    [row] = tokenize(model, [prompt])
    stream = every_token(model, row.ids, places)
    by_vector = {
        name: _project(entry.vector, stream, _compared(model, prompt, entry))
        for name, entry in library.items()
    }
    return Reading(mark_read(model, prompt, "all").tokens, by_vector)


def _compared(model: Model, prompt: Readable, entry: Entry) -> Float[Tensor, " layer"]:
    vector = entry.vector
    read = read_residual(
        model, [prompt], vector.layers, tokens=entry.tokens, site=vector.site, progress=False
    )
    return torch.cosine_similarity(read[0].float(), vector.directions.float(), dim=-1)


def _project(
    vector: SteeringVector,
    stream: Mapping[tuple[str, int], Tensor],
    compared: Float[Tensor, " layer"],
) -> TokenProjections:
    resid = torch.stack([stream[vector.site, layer] for layer in vector.layers], dim=1)
    unit = vector.normalized().directions.to(resid)
    projections = einsum(resid, unit, "pos layer d_model, layer d_model -> pos layer")
    lengths = resid.norm(dim=-1).clamp_min(torch.finfo(resid.dtype).tiny)
    return TokenProjections(vector.layers, projections / lengths, projections, compared)


def cosines_by_layer(reading: Reading, name: str) -> go.Figure:
    """Cosine of prompt and vector at each layer: the last token's, and the mean over tokens."""
    measured = reading.by_vector[name]
    figure = go.Figure(layout={"template": TEMPLATE})
    for label, values, colour in (
        # Neither orange nor blue, which show signs; both legible on light and dark ground.
        ("last token", measured.cosines[-1], LINES[2]),
        ("mean of all tokens", measured.cosines.mean(dim=0), LINES[3]),
    ):
        figure.add_scatter(
            x=list(measured.layers),
            y=values.tolist(),
            name=label,
            mode="lines+markers",
            line={"color": colour},
            hovertemplate=f"{label}, layer %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    return figure.update_layout(
        xaxis={"title": "layer", "dtick": max(1, len(measured.layers) // 10)},
        yaxis={"title": f"cosine with “{name}”"},
        legend={"y": 1},
        margin={"t": 40, "b": 50, "l": 60, "r": 10},
        height=300,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
