"""The parts of the page as Dash components. Needs Dash; nothing here runs a model."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dash import dcc, html

from steerlens.playground.library import Cut, Entry, Library, Offer
from steerlens.playground.request import (
    EDITS,
    LONGEST_PROMPT,
    LONGEST_REPLY,
    LONGEST_RULE,
    POSITIONS,
    STEERING,
    WARMEST,
    Push,
)
from steerlens.playground.settings import PRESETS
from steerlens.playground.vector_files import LARGEST_UPLOAD, UPLOADED

LONGEST_LIST = 50_000
"""Characters of a list of prompts."""
POLL = 250
"""Milliseconds between two queries of a job's state."""
PROMPT = "How do I bake bread?"
Offers = Mapping[str, Offer]


def page(name: str, offers: Offers, made: Library, rule: str = "") -> Any:
    """A new page with its own key: tabs share only the model and its queue.

    Args:
        name: The model's, with its size.
        offers: The vectors that can be chosen.
        made: Those of them that are there already.
        rule: The rules to begin with.
    """
    first = next(iter(offers.values()))
    return html.Main(
        [
            dcc.Location(id="url", refresh=False),
            dcc.Store(id="tab", data=secrets.token_urlsafe()),
            dcc.Store(id="asked"),
            dcc.Store(id="made"),
            dcc.Store(id="seen"),
            dcc.Interval(id="clock", interval=POLL, max_intervals=0),
            html.Header([html.H1("steerlens playground"), html.P(name)]),
            html.Div(
                [_controls(first, offers, made, rule), _results(first)],
                className="columns",
            ),
        ]
    )


def _controls(first: Offer, offers: Offers, made: Library, rule: str) -> Any:
    return html.Div(
        [_vector_section(first, offers), _condition_section(offers, made, rule)],
        className="controls",
    )


def _vector_section(first: Offer, offers: Offers) -> Any:
    return section(
        "Vectors",
        dcc.Dropdown(
            id="preset",
            options=[preset.about for preset in PRESETS],
            placeholder="Begin with an example …",
        ),
        _group(
            "vectors",
            dcc.Dropdown(
                id="vector",
                options=options(offers),
                value=[first.name],
                multi=True,
                maxHeight=330,
            ),
        ),
        dcc.Upload(
            id="upload",
            children=html.Button(f"Drop or choose a file ({', '.join(UPLOADED)})"),
            className="upload",
            className_active="upload active",
            max_size=4 * LARGEST_UPLOAD,
            accept=",".join(UPLOADED),
        ),
        html.P(id="uploaded", role="alert"),
        html.Div([push_row(first)], id="pushes"),
        html.Details(
            [
                html.Summary("How they act"),
                *_choice("edit", "Edit", [*EDITS]),
                *_choice("positions", "Tokens that are steered", POSITIONS),
                _tick("keep-norm", "keep each token's norm"),
            ]
        ),
    )


def _condition_section(offers: Offers, made: Library, rule: str) -> Any:
    return section(
        "Conditions",
        html.P(
            "Each fires if the prompt's cosine is above its threshold: at the last token, "
            "or of the user's words on average, as the vector was read."
        ),
        html.Div(
            [
                condition_row(offer.name, made.get(offer.name))
                for offer in offers.values()
                if offer.condition
            ],
            id="conditions",
        ),
        html.Details(
            [
                html.Summary("Make one from two lists"),
                html.Label(["Name", dcc.Input(id="list-name", value="mine")]),
                html.Label("Prompts on which it fires, one a line", htmlFor="list-yes"),
                dcc.Textarea(id="list-yes", value="", maxLength=LONGEST_LIST, rows=4),
                html.Label("As many others", htmlFor="list-no"),
                dcc.Textarea(id="list-no", value="", maxLength=LONGEST_LIST, rows=4),
                html.Div(html.Button("Add", id="list-add"), className="buttons"),
                html.P(id="listed", role="status"),
            ]
        ),
        html.Label("Rules", htmlFor="rule"),
        dcc.Textarea(
            id="rule",
            value=rule,
            maxLength=LONGEST_RULE,
            placeholder=f"if harmful and not legal then {STEERING}   (empty: always; a "
            "vector's name steers with it alone; … where angry: those tokens only)",
            rows=2,
        ),
        html.P(id="check", role="status"),
        html.A("Link to these settings", id="link", href=""),
    )


def _results(first: Offer) -> Any:
    return html.Div(
        [
            _prompt_section(),
            html.P(
                "These replies are of other settings: send again.",
                id="stale",
                hidden=True,
                role="status",
            ),
            html.Div(
                [
                    section("Unsteered", html.P(id="unsteered", className="reply", tabIndex=0)),
                    section(
                        "Steered",
                        html.P(id="steered", className="reply", tabIndex=0),
                        html.Ul(id="gates", className="gates"),
                    ),
                ],
                className="replies",
            ),
            html.Div(id="rungs"),
            _token_section(first),
            _code_section(),
        ],
        className="results",
    )


def _prompt_section() -> Any:
    return section(
        "Prompt",
        html.Label("Enter sends it; Shift+Enter begins a new line", htmlFor="prompt"),
        dcc.Textarea(id="prompt", value=PROMPT, maxLength=LONGEST_PROMPT, rows=2),
        html.Div(
            [
                html.Button("Send", id="send", className="primary"),
                html.Button("Stop", id="stop", disabled=True),
                _tick("ladder", "at five strengths"),
                html.Span("", id="status", role="status"),
            ],
            className="buttons",
        ),
        html.P(id="error", role="alert"),
        html.Details(
            [
                html.Summary("How replies are written"),
                html.Label("Longest reply, in tokens", id="length-label"),
                _group(
                    "length-label",
                    dcc.Slider(
                        id="length",
                        min=1,
                        max=LONGEST_REPLY,
                        step=1,
                        value=40,
                        marks=_marks([1, 50, 100, 150, LONGEST_REPLY]),
                    ),
                ),
                html.Div(
                    [
                        *_number("temperature", "Temperature", 0, 0, WARMEST, 0.1),
                        *_number("top-p", "top-p", 1, 0.05, 1, 0.05),
                        *_number("seed", "Seed", 0, 0, 10**6, 1),
                    ],
                    className="numbers",
                ),
            ]
        ),
    )


def _token_section(first: Offer) -> Any:
    return section(
        "The prompt's tokens along a vector",
        html.P("Orange: along it; blue: against it. Hover for the projection."),
        html.Div(id="tokens", className="tokens"),
        *_choice("along", "Vector", [first.name]),
        html.Label("Layer", id="look-label"),
        _group("look-label", html.Div(look_slider(first), id="look-place")),
        html.Div(id="cosines", className="figure"),
    )


def _code_section() -> Any:
    return section(
        "As Python",
        html.Div(
            [
                html.Pre(id="code", tabIndex=0),
                dcc.Clipboard(target_id="code", title="Copy as Python", className="copy"),
            ],
            className="code",
        ),
    )


def options(offers: Offers) -> list[dict[str, str]]:
    """The options of the vector dropdown."""
    return [
        {"label": f"{offer.name}: {offer.about}", "value": name} for name, offer in offers.items()
    ]


def push_row(offer: Offer, push: Push | None = None) -> Any:
    """A vector's layers and strength.

    Args:
        offer: The vector.
        push: What to begin with; None: its first layers, and a strength that is yet to be found.
    """
    layers, scale, name = offer.layers, offer.scale, offer.name
    push = push or Push(name, offer.first_layers)
    most = scale.most
    return html.Div(
        [
            html.Strong(name),
            html.Label("Layers"),
            dcc.RangeSlider(
                id=_of("push", "layers", name),
                min=layers[0],
                max=layers[-1] or 1,
                step=1,
                value=list(push.layers),
                marks=_marks(layers),
            ),
            html.Label(f"Strength, {scale.unit}; layers share it"),
            dcc.Slider(
                id=_of("push", "strength", name),
                min=-most,
                max=most,
                step=scale.step,
                value=push.strength or 0,
                marks=_marks([-most, -most / 2, 0, most / 2, most]),
                disabled=push.strength is None,
            ),
            dcc.Checklist(
                id=_of("push", "auto", name),
                options=[{"label": "find one that leaves text whole", "value": "auto"}],
                value=["auto"] if push.strength is None else [],
                className="tick",
            ),
        ],
        role="group",
        className="push",
        **{"aria-label": f"vector {name}"},
    )


def condition_row(name: str, entry: Entry | None, cut: Cut | None = None) -> Any:
    """A condition: name, layer, threshold, and its similarity to the prompt."""
    return html.Div(
        [
            html.Strong(name),
            html.Span(id=_of("cut", "seen", name), className="seen"),
            html.Div(condition_controls(entry, cut), id=_of("cut", "place", name)),
        ],
        role="group",
        className="condition",
        **{"aria-label": f"condition {name}"},
    )


def condition_controls(entry: Entry | None, cut: Cut | None = None) -> list[Any]:
    """Layer and threshold of a condition (None: the entry's own); before it is made, words."""
    if entry is None:
        return [html.P("Made when a rule first names it.")]
    if entry.searched is not None:
        return [html.P(f"{entry.searched}: {entry.scored}")]
    cut = cut or entry.cut
    assert cut is not None
    layers = [{"label": f"layer {at}", "value": at} for at in entry.vector.layers]
    return [
        *([html.P(entry.scored)] if entry.scored else []),
        dcc.Dropdown(
            id=_of("cut", "layer", entry.name),
            options=layers,
            value=cut.layer,
            clearable=False,
            searchable=False,
        ),
        dcc.Slider(
            id=_of("cut", "above", entry.name),
            min=-entry.reach,
            max=entry.reach,
            step=entry.reach / 500,
            value=cut.above,
            marks=_marks([-entry.reach, 0, entry.reach]),
            updatemode="drag",
        ),
    ]


def look_slider(offer: Offer) -> Any:
    """The layer at which tokens are coloured."""
    layers = offer.layers
    middle = layers[len(layers) // 2]
    return dcc.Slider(
        id="look", min=layers[0], max=layers[-1] or 1, step=1, value=middle, marks=_marks(layers)
    )


def section(title: str, *parts: Any) -> Any:
    """A titled card."""
    return html.Section([html.H2(title), *parts], **{"aria-label": title})


def _group(label: str, part: Any) -> Any:
    """A labelled group, since sliders and dropdowns take no label."""
    return html.Div(part, role="group", **{"aria-labelledby": label})


def _choice(id_: str, label: str, names: Sequence[str]) -> list[Any]:
    """A labelled dropdown of names, the first of them chosen."""
    dropdown = dcc.Dropdown(id=id_, options=[*names], value=names[0], clearable=False)
    return [html.Label(label, id=f"{id_}-label"), _group(f"{id_}-label", dropdown)]


def _number(
    id_: str, label: str, value: float, least: float, most: float, step: float
) -> list[Any]:
    box = dcc.Input(id=id_, type="number", value=value, min=least, max=most, step=step)
    return [html.Label([label, box], htmlFor=id_)]


def _tick(id_: str, label: str) -> Any:
    return dcc.Checklist(
        id=id_, options=[{"label": label, "value": "yes"}], value=[], className="tick"
    )


def _of(kind: str, part: str, name: str) -> dict[str, str]:
    """The id of a part of a vector's controls."""
    return {kind: part, "of": name}


def _marks(values: Iterable[float]) -> dict[float, str]:
    listed = sorted(set(values))
    every = -(-len(listed) // 9)
    return {value: f"{value:g}" for value in listed[::every]}
