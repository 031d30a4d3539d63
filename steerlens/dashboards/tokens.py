"""Tokens → figures: what directions promote (logit lens), and where a text has them (scans)."""

from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.dashboards.theme import (
    DIVERGING,
    FLOOR,
    INK,
    NEGATIVE,
    PALE_DIVERGING,
    POSITIVE,
    SIGNS,
    WIDE,
    faded,
    layer_axis,
    plain,
    symmetric_range,
    titled,
)
from steerlens.errors import SteerlensError
from steerlens.interpret.lens import LogitLens
from steerlens.interpret.token_scans import TokenScan

_SLANTED = 40
"""Most tokens along an axis with slanted labels; those of more are vertical, not to overlap."""


def logit_lens(lens: LogitLens) -> go.Figure:
    """The tokens that each layer's direction promotes and suppresses, strongest at the top.

    Args:
        lens: Result of `interpret.logit_lens`.

    >>> promoted, suppressed = logit_lens(interpret.logit_lens(model, vector, k=3)).data
    >>> promoted.z.shape
    (3, 2)
    """
    k = lens.promoted_by.shape[1]
    figure = make_subplots(
        2, 1, subplot_titles=["promoted", "suppressed"], shared_xaxes=True, vertical_spacing=0.1
    )
    top = max(lens.promoted_by.abs().max().item(), lens.suppressed_by.abs().max().item())
    sides = ((lens.promoted, lens.promoted_by), (lens.suppressed, lens.suppressed_by))
    for row, (tokens, logits) in enumerate(sides, start=1):
        labels = [[plain(_visible(token)) for token in rank] for rank in zip(*tokens, strict=True)]
        figure.add_heatmap(
            x=[str(layer) for layer in lens.layers],
            y=list(range(1, k + 1)),
            z=logits.T.numpy(),
            text=labels,
            texttemplate="%{text}",
            textfont={"color": INK},
            coloraxis="coloraxis",
            hovertemplate="layer %{x}, rank %{y}: “%{text}” %{z:+.3f}<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_xaxes(type="category")
    figure.update_xaxes(title_text="layer", row=2)
    figure.update_yaxes(title_text="rank", autorange="reversed", dtick=1, showgrid=False)
    figure.update_layout(
        coloraxis={
            "colorscale": PALE_DIVERGING,
            "cmid": 0,
            "cmin": -top,
            "cmax": top,
            "colorbar": {"title": {"text": "logit"}, "thickness": 14},
        }
    )
    return titled(
        figure,
        "Tokens that the direction promotes and suppresses",
        "logits per unit direction, through the final norm's weight and the unembedding",
        SIGNS.format("more likely", "less likely"),
        height=240 + 2 * 26 * k,
        min_width=WIDE,
    )


def token_scan(scan: TokenScan) -> go.Figure:
    """A vector's presence at each token and layer; a dotted line precedes the reply.

    Args:
        scan: Result of `interpret.scan_tokens`.

    >>> token_scan(interpret.scan_tokens(model, prompts[0], vector)).data[0].y
    (2, 3)
    """
    positions = list(range(len(scan.tokens)))
    values = scan.values.numpy()
    reach = symmetric_range(values[:, 1:] if len(positions) > 1 else values)
    figure = go.Figure(
        go.Heatmap(
            x=positions,
            y=list(scan.layers),
            z=values,
            customdata=[[plain(repr(token)) for token in scan.tokens]] * len(scan.layers),
            colorscale=DIVERGING,
            zmin=-reach,
            zmax=reach,
            colorbar={"title": {"text": scan.measure}},
            hovertemplate="layer %{y}, %{customdata}: %{z:.3f}<extra></extra>",
        )
    )
    if scan.n_prompt < len(positions):
        figure.add_vline(scan.n_prompt - 0.5, line={"color": FLOOR, "dash": "dot", "width": 2})
    figure.update_xaxes(
        title={"text": "token", "standoff": 12},
        tickvals=positions,
        ticktext=[plain(_visible(token)) for token in scan.tokens],
        tickangle=-90 if len(positions) > _SLANTED else -60,
        tickfont={"size": 11 if len(positions) > _SLANTED else 13},
        showgrid=False,
    )
    figure.update_yaxes(showgrid=False, **layer_axis(scan.layers))
    return titled(
        figure,
        "Presence of the vector at each token (LAT scan)",
        f"{scan.measure} on the direction, unsteered",
        SIGNS.format("along the vector (positive)", "against it (negative)"),
        "colours end at the 98th percentile, without the first token (an attention sink)",
        height=480,
        min_width=max(WIDE, 120 + 15 * len(positions)),
    )


@dataclass(frozen=True)
class ColouredText:
    """A text whose tokens are shaded by their values, in notebooks and pages."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    """One per token."""
    reach: float
    """Absolute value of the strongest shade."""

    def __str__(self) -> str:
        return "".join(self.tokens)

    def _repr_html_(self) -> str:
        """Orange above zero, blue below; a token's value is its tooltip."""
        legend = SIGNS.format("along the vector (positive)", "against it (negative)")
        return (
            f'<p style="white-space: pre-wrap; line-height: 1.9; margin: 0">'
            f"{''.join(self._spans())}</p>"
            f'<p style="opacity: 0.75; margin: 0; font-size: 0.85em">{legend}</p>'
        )

    def _spans(self) -> list[str]:
        spans = []
        for token, value in zip(self.tokens, self.values, strict=True):
            share = min(1.0, abs(value) / self.reach)
            shade = faded(POSITIVE if value > 0 else NEGATIVE, round(0.55 * share, 2))
            spans.append(
                f'<span title="{value:.3f}" style="background: {shade}">{escape(token)}</span>'
            )
        return spans


def token_text(scan: TokenScan, layer: int) -> ColouredText:
    """One layer of a scan as the text itself, its tokens shaded.

    Args:
        scan: Result of `interpret.scan_tokens`.
        layer: One of the scan's layers.

    >>> text = token_text(interpret.scan_tokens(model, prompts[0], vector), layer=3)
    >>> prompts[0] in str(text)
    True
    """
    if layer not in scan.layers:
        layers = ", ".join(map(str, scan.layers))
        raise SteerlensError(f"got layer={layer}; expected one of the scan's layers {layers}")
    values = scan.values[scan.layers.index(layer)].numpy()
    reach = symmetric_range(values[1:] if len(values) > 1 else values)
    return ColouredText(scan.tokens, tuple(values.tolist()), reach)


def _visible(token: str) -> str:
    """A token with visible spaces and line breaks."""
    return token.replace(" ", "␣").replace("\n", "⏎") or "∅"
