"""Vectors → figures: cosines, explained variance, writers, and the contrast they come from."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from steerlens.dashboards.theme import (
    DIVERGING,
    FLOOR,
    INK,
    NEGATIVE,
    PALE_DIVERGING,
    POSITIVE,
    SEQUENTIAL,
    SIGNS,
    WIDE,
    layer_axis,
    layer_slider,
    line_style,
    plain,
    symmetric_range,
    titled,
)
from steerlens.errors import SteerlensError
from steerlens.interpret.contrasts import Scatter, Spectrum
from steerlens.interpret.writers import Writers
from steerlens.vectors.vector import SteeringVector

MOST_POINTS = 1500
"""Most prompts of one side drawn in a scatter; more are thinned evenly."""
MOST_VALUES = 20
"""Singular values that are drawn."""


def vector_cosines(vectors: Mapping[str, SteeringVector], to: str) -> go.Figure:
    """Cosine of several vectors to one of them, by layer.

    Args:
        vectors: At least two, by name, of the same layers and site.
        to: The name of the vector that the others are compared with.

    >>> figure = vector_cosines({"refuse": vector, "opposite": -vector}, to="refuse")
    >>> np.round(figure.data[0].y, 3)
    array([-1., -1.])
    """
    if to not in vectors or len(vectors) < 2:
        raise SteerlensError(
            f"got to={to!r} and the vectors {', '.join(vectors) or '(none)'}; expected the vector "
            f"{to!r} and at least one more"
        )
    figure = go.Figure()
    cosines = {
        name: vector.cosine(vectors[to]).tolist() for name, vector in vectors.items() if name != to
    }
    for index, (name, values) in enumerate(cosines.items()):
        figure.add_scatter(
            x=list(vectors[name].layers),
            y=values,
            name=plain(name),
            showlegend=True,
            hovertemplate="layer %{x}: cosine %{y:.3f}",
            **line_style(index),
        )
    figure.update_xaxes(**layer_axis(vectors[to].layers))
    reach = min(
        1.05, 1.15 * max(0.1, *(abs(value) for values in cosines.values() for value in values))
    )
    figure.update_yaxes(title="cosine", range=[-reach, reach])
    figure.add_hline(0, line={"color": FLOOR, "width": 1})
    return titled(figure, f"Cosine of each vector to “{plain(to)}”, by layer")


def cosine_matrix(vectors: Mapping[str, SteeringVector]) -> go.Figure:
    """Cosine of each vector to each other, at one layer; a slider for layers.

    Args:
        vectors: At least two, by name, of the same layers and site.

    >>> cosine_matrix({"refuse": vector, "opposite": -vector}).data[0].z.round(2)
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    if len(vectors) < 2:
        raise SteerlensError(f"got {len(vectors)} vectors; expected at least two to compare")
    names = [plain(name) for name in vectors]
    layers = next(iter(vectors.values())).layers
    cosines = np.array([
        [each.cosine(other).tolist() for other in vectors.values()] for each in vectors.values()
    ])  # fmt: skip
    middle = len(layers) // 2
    figure = go.Figure([
        go.Heatmap(
            x=names,
            y=names,
            z=cosines[:, :, row],
            colorscale=PALE_DIVERGING,
            zmin=-1,
            zmax=1,
            texttemplate="%{z:.2f}",
            textfont={"color": INK},
            visible=row == middle,
            colorbar={"title": {"text": "cosine"}},
            hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
        )
        for row in range(len(layers))
    ])  # fmt: skip
    titles = [f"Cosine of each vector to each other, at layer {layer}" for layer in layers]
    steps = [
        [{"visible": [row == other for other in range(len(layers))]}, {"title.text": title}]
        for row, title in enumerate(titles)
    ]
    figure.update_layout(sliders=layer_slider(layers, middle, steps))
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, autorange="reversed")
    note = SIGNS.format("similar (positive)", "opposite (negative)")
    return titled(figure, titles[middle], note, height=300 + 40 * len(names), min_width=WIDE)


def explained_variance(vectors: Mapping[str, SteeringVector]) -> go.Figure:
    """The share of its contrast's variance that each vector explains, by layer.

    Args:
        vectors: By name; those without `explained` (sums, multiples) are counted below the title.

    >>> explained_variance({"refuse": vector}).layout.yaxis.title.text
    'share of variance'
    """
    known = {name: v.explained for name, v in vectors.items() if v.explained is not None}
    if not known:
        raise SteerlensError(
            f"got the vectors {', '.join(vectors) or '(none)'} without explained variance; "
            "expected at least one as extract returned it: sums and multiples have none"
        )
    figure = go.Figure()
    for index, (name, explained) in enumerate(known.items()):
        vector = vectors[name]
        pairs = vector.provenance.get("pairs", "?")
        figure.add_scatter(
            x=list(vector.layers),
            y=explained.tolist(),
            name=f"{plain(name)} (n = {pairs} pairs)",
            showlegend=True,
            hovertemplate="layer %{x}: %{y:.1%}",
            **line_style(index),
        )
    figure.update_xaxes(**layer_axis([layer for name in known for layer in vectors[name].layers]))
    most = max(explained.max().item() for explained in known.values())
    figure.update_yaxes(title="share of variance", range=[0, min(1.02, 1.15 * max(most, 0.1))])
    unknown = len(vectors) - len(known)
    return titled(
        figure,
        "Variance of the contrast along the vector, by layer",
        f"{unknown} of {len(vectors)} vectors have none" if unknown else "",
    )


def writers(result: Writers) -> go.Figure:
    """The heads and MLPs that write along a layer's direction.

    Args:
        result: Of `interpret.mean_writers` (on prompts) or `interpret.weight_writers`.

    >>> writers(interpret.weight_writers(model, vector, 3)).layout.title.text
    'Who writes the direction of layer 3'
    """
    values = np.column_stack([result.heads.numpy(), result.mlps.numpy()])
    signed = bool((values < 0).any())
    reach = symmetric_range(values)
    figure = go.Figure(
        go.Heatmap(
            x=[f"{head}" for head in range(result.heads.shape[1])] + ["MLP"],
            y=list(range(len(values))),
            z=values,
            colorscale=DIVERGING if signed else SEQUENTIAL,
            zmin=-reach if signed else 0,
            zmax=reach,
            hovertemplate="block %{y}, %{x}: %{z:.4f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="heads by number, and MLP", type="category")
    figure.update_yaxes(title="block", dtick=max(1, len(values) // 16), showgrid=False)
    return titled(
        figure,
        f"Who writes the direction of layer {result.layer}",
        plain(result.measure),
        SIGNS.format("along it (positive)", "against it (negative)") if signed else "",
    )


def principal_scatter(scatter: Scatter) -> go.Figure:
    """Positive and negative prompts on their first two principal axes; a slider for layers.

    Args:
        scatter: Result of `interpret.principal_scatter`.

    >>> positive, negative = torch.randn(2, 9, 1, 8)
    >>> scatter = interpret.principal_scatter(positive + 3, negative, [2])
    >>> [points.name for points in principal_scatter(scatter).data]
    ['positive', 'negative']
    """
    figure = go.Figure()
    middle = len(scatter.layers) // 2
    sides = (("positive", POSITIVE, "circle"), ("negative", NEGATIVE, "diamond-open"))
    largest_step = 1
    for row in range(len(scatter.layers)):
        for side, color, symbol in sides:
            points = getattr(scatter, side)[:, row]
            step = -(-len(points) // MOST_POINTS)
            largest_step = max(largest_step, step)
            figure.add_scatter(
                x=points[::step, 0].float().numpy(),
                y=points[::step, 1].float().numpy(),
                name=side,
                mode="markers",
                marker={"color": color, "symbol": symbol, "size": 7, "opacity": 0.75},
                visible=row == middle,
                hovertemplate="%{x:.2f}, %{y:.2f}",
            )
    titles = [
        f"Prompts on the principal axes of layer {layer} ({first:.0%} and {second:.0%} of variance)"
        for layer, (first, second) in zip(scatter.layers, scatter.explained.tolist(), strict=True)
    ]
    steps = [
        [
            {"visible": [row == other for other in range(len(scatter.layers)) for _ in sides]},
            {"title.text": title},
        ]
        for row, title in enumerate(titles)
    ]
    figure.update_layout(sliders=layer_slider(scatter.layers, middle, steps))
    figure.update_xaxes(title="first principal axis (units of the residual stream)")
    figure.update_yaxes(title="second principal axis")
    return titled(
        figure,
        titles[middle],
        f"n = {len(scatter.positive)} + {len(scatter.negative)}",
        f"one in {largest_step} shown" if largest_step > 1 else "",
        height=600,
    )


def singular_spectrum(spectrum: Spectrum) -> go.Figure:
    """Singular values of the differences as shares of their squared length, a line per layer.

    Args:
        spectrum: Result of `interpret.difference_spectrum`.

    >>> positive, negative = torch.randn(2, 9, 1, 8)
    >>> singular_spectrum(interpret.difference_spectrum(positive, negative, [2])).data[0].name
    'layer 2'
    """
    shares = (spectrum.values.square() / spectrum.values.square().sum(dim=1, keepdim=True)).float()
    depth = np.linspace(0.25, 0.85, len(spectrum.layers))
    colors = sample_colorscale("Viridis", depth)
    figure = go.Figure()
    for layer, share, color in zip(
        spectrum.layers, shares[:, :MOST_VALUES].numpy(), colors, strict=True
    ):
        figure.add_scatter(
            x=list(range(1, len(share) + 1)),
            y=share,
            name=f"layer {layer}",
            showlegend=len(spectrum.layers) <= 12,
            mode="lines+markers",
            line={"color": color},
            hovertemplate=f"layer {layer}, value %{{x}}: %{{y:.2%}}<extra></extra>",
        )
    figure.update_xaxes(title="singular value, largest first")
    figure.update_yaxes(title="share of squared length", rangemode="tozero")
    return titled(
        figure,
        "Singular spectrum of the differences, by layer",
        f"n = {spectrum.n_pairs} pairs",
        "lighter: later layers",
    )
