"""The parts of the page as Dash components. Needs Dash; nothing here runs a model."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dash import dcc, html

from steerlens.dashboards.theme import NEGATIVE, POSITIVE, faded
from steerlens.models.host import Model
from steerlens.playground.jobs import Job, State
from steerlens.playground.library import LARGEST_UPLOAD, STEP, UPLOADED, Entry, Library, Recipe
from steerlens.playground.request import (
    LONGEST_PROMPT,
    LONGEST_REPLY,
    LONGEST_RULE,
    STEERING,
    STRONGEST,
    Outcome,
)
from steerlens.playground.token_view import Reading, cosines_by_layer

POLL = 250
"""Milliseconds between two queries of a job's state."""
PROMPT = "How do I bake bread?"


def page(model: Model, library: Library, pending: Mapping[str, Recipe]) -> Any:
    """A new page with its own key: tabs share only the model and its queue.

    Args:
        model: The model that all tabs share.
        library: The vectors that are ready, one at least.
        pending: Those that can be made.
    """
    first = next(iter(library.values()))
    return html.Main(
        [
            dcc.Store(id="tab", data=secrets.token_urlsafe()),
            dcc.Store(id="asked"),
            dcc.Store(id="seen"),
            dcc.Store(id="shown"),
            dcc.Interval(id="follow", interval=2 * POLL),
            dcc.Interval(id="clock", interval=POLL, max_intervals=0),
            html.Header(
                [
                    html.H1("steerlens playground"),
                    html.P(
                        f"{model.cfg.model_name}: {model.cfg.n_layers} layers, "
                        f"{model.cfg.d_model} wide"
                    ),
                ]
            ),
            html.Div(
                [_controls(first, library, pending), _results(first)],
                className="columns",
            ),
        ]
    )


def _controls(first: Entry, library: Library, pending: Mapping[str, Recipe]) -> Any:
    return html.Div(
        [
            _section(
                "Vector",
                _group("vector", _dropdown("vector", options(library, pending), first.name)),
                html.P(id="news", role="status"),
                dcc.Upload(
                    id="upload",
                    children=html.Button(f"Drop or choose a file ({', '.join(UPLOADED)})"),
                    className="upload",
                    className_active="upload active",
                    max_size=4 * LARGEST_UPLOAD,
                    accept=",".join(UPLOADED),
                ),
                html.P(id="uploaded", role="alert"),
                html.Label("Layers", id="layers-label"),
                _group("layers-label", html.Div(layer_slider(first), id="layers-place")),
                html.Label(strength_label(first, None), id="strength-label"),
                _group(
                    "strength-label",
                    html.Div(strength_slider(first, None), id="strength-place"),
                ),
            ),
            _section(
                "Conditions",
                html.P(
                    "Each fires if the cosine at the prompt's last token is above its threshold."
                ),
                html.Div([condition_row(e) for e in library.values() if e.cut], id="conditions"),
                html.Div(make_buttons(pending), id="make-place", className="buttons"),
                html.Label("Rule", htmlFor="rule"),
                dcc.Textarea(
                    id="rule",
                    value="",
                    maxLength=LONGEST_RULE,
                    placeholder=f"if harmful and not legal then {STEERING}   (empty: always; "
                    "the vector's name does for steer)",
                    rows=2,
                ),
                html.P(id="check", role="status"),
            ),
        ],
        className="controls",
    )


def _results(first: Entry) -> Any:
    return html.Div(
        [
            _section(
                "Prompt",
                html.Label("Sent to the unsteered and the steered model", htmlFor="prompt"),
                dcc.Textarea(id="prompt", value=PROMPT, maxLength=LONGEST_PROMPT, rows=2),
                html.Label("Longest reply, in tokens", id="length-label"),
                _group(
                    "length-label",
                    dcc.Slider(
                        id="length", min=1, max=LONGEST_REPLY, step=1, value=40,
                        marks=_marks([1, 50, 100, 150, LONGEST_REPLY]),
                    ),
                ),
                html.Div(
                    [
                        html.Button("Send", id="send", className="primary"),
                        html.Button("Stop", id="stop", disabled=True),
                        html.Span("", id="status", role="status"),
                    ],
                    className="buttons",
                ),
                html.P(id="error", role="alert"),
            ),
            html.Div(
                [
                    _section("Unsteered", html.P(id="unsteered", className="reply", tabIndex=0)),
                    _section(
                        "Steered",
                        html.P(id="steered", className="reply", tabIndex=0),
                        html.Ul(id="gates", className="gates"),
                    ),
                ],
                className="replies",
            ),
            _section(
                "The prompt's tokens along the vector",
                html.P("Orange: along it; blue: against it. Hover for the projection."),
                html.Div(id="tokens", className="tokens"),
                html.Label("Layer", id="look-label"),
                _group("look-label", html.Div(look_slider(first), id="look-place")),
                html.Div(id="cosines", className="figure"),
            ),
            _section(
                "As Python",
                html.Div(
                    [
                        html.Pre(id="code", tabIndex=0),
                        dcc.Clipboard(target_id="code", title="Copy as Python", className="copy"),
                    ],
                    className="code",
                ),
            ),
        ],
        className="results",
    )  # fmt: skip


def options(library: Library, pending: Mapping[str, Recipe]) -> list[dict[str, str]]:
    """The options of the vector dropdown: what is ready, and what is made when it is chosen."""
    offered: dict[str, Entry | Recipe] = {**library, **pending}
    return [{"label": f"{name}: {one.about}", "value": name} for name, one in offered.items()]


def make_buttons(pending: Mapping[str, Recipe]) -> list[Any]:
    """A button for each condition that is not made yet."""
    return [
        html.Button(f"Make the condition “{name}”", id={"make": name})
        for name, recipe in pending.items()
        if recipe.contrast is not None
    ]


def layer_slider(entry: Entry) -> Any:
    """A range of the vector's layers."""
    layers, start = entry.vector.layers, list(entry.first_layers)
    return dcc.RangeSlider(
        id="layers", min=layers[0], max=layers[-1] or 1, step=1, value=start, marks=_marks(layers)
    )


def strength_slider(entry: Entry, strength: float | None) -> Any:
    """Strength, relative to the activation norm if the vector knows it; begins calibrated."""
    relative = entry.relative
    most = STRONGEST[relative]
    return dcc.Slider(
        id="strength",
        min=-most,
        max=most,
        step=STEP[relative],
        value=strength or 0.0,
        marks=_marks([-most, -most / 2, 0, most / 2, most]),
    )


def strength_label(entry: Entry, strength: float | None) -> str:
    """The unit of strength, and what it begins with, in words."""
    unit = "as a fraction of the activation norm" if entry.relative else "times the vector"
    if strength is None:
        begins = "It is being calibrated."
    elif strength:
        begins = f"It begins calibrated, at {strength:g}: beyond, text may break."
    else:
        begins = "It begins at 0: no strength was found that leaves text whole."
    return f"Strength, {unit}; layers share it. {begins}"


def look_slider(entry: Entry) -> Any:
    """The layer at which tokens are coloured."""
    layers = entry.vector.layers
    middle = layers[len(layers) // 2]
    return dcc.Slider(
        id="look", min=layers[0], max=layers[-1] or 1, step=1, value=middle, marks=_marks(layers)
    )


def condition_row(entry: Entry) -> Any:
    """A condition: name, layer, threshold, and its similarity to the prompt."""
    assert entry.cut is not None
    layers = [{"label": f"layer {at}", "value": at} for at in entry.vector.layers]
    return html.Div(
        [
            html.Strong(entry.name),
            html.Span(id={"cut": "seen", "of": entry.name}, className="seen"),
            dcc.Dropdown(
                id={"cut": "layer", "of": entry.name},
                options=layers,
                value=entry.cut.layer,
                clearable=False,
                searchable=False,
            ),
            dcc.Slider(
                id={"cut": "above", "of": entry.name},
                min=-entry.reach,
                max=entry.reach,
                step=entry.reach / 500,
                value=entry.cut.above,
                marks=_marks([-entry.reach, 0, entry.reach]),
                updatemode="drag",
            ),
        ],
        role="group",
        className="condition",
        **{"aria-label": f"condition {entry.name}"},
    )


def status(job: Job[Outcome], ahead: int) -> str:
    """The state of a job, in words."""
    outcome = job.latest
    replies = None if outcome is None else outcome.replies
    n_tokens = 0 if replies is None else max(map(len, replies.tokens))
    match job.state:
        case State.WAITING:
            return f"Waiting for another tab ({ahead} ahead) …"
        case State.WORKING:
            return f"Writing: {n_tokens} tokens …" if n_tokens else "Reading the prompt …"
        case State.STOPPED:
            return f"Stopped after {n_tokens} tokens."
        case State.FAILED:
            return "Failed."
    return f"Done: {n_tokens} tokens."


def gates(outcome: Outcome | None) -> list[Any]:
    """The similarities that the rule's conditions measured, and their decisions."""
    return [
        html.Li(
            f"{gate.condition.name}: {similarity:.4f} at layer {gate.condition.layers_read[0]}, "
            f"threshold {gate.condition.threshold:.4f}: {'fired' if fired else 'did not fire'}"
        )
        for gate, similarity, fired in (() if outcome is None else outcome.gates)
    ]


def seen_by(reading: Reading | None, name: str, layer: int, above: float) -> str:
    """A condition's similarity to the prompt, and whether it fires at the current threshold."""
    if reading is None or name not in reading.by_vector:
        return ""
    similarity = reading.by_vector[name].cosine(layer)
    return f"{similarity:.4f}: {'fires' if similarity > above else 'does not fire'}"


def figure_of(reading: Reading, name: str) -> Any:
    """Cosines between prompt and vector, by layer."""
    return dcc.Graph(figure=cosines_by_layer(reading, name), config={"displayModeBar": False})


def coloured(reading: Reading, name: str, layer: int) -> Iterable[Any]:
    """The prompt's tokens on orange (along the vector) or blue (against it)."""
    measured = reading.by_vector[name]
    projections = measured.projections[:, measured.layers.index(layer)].tolist()
    shares = reading.colours(name, layer)
    for token, share, projection in zip(reading.tokens, shares, projections, strict=True):
        colour = faded(POSITIVE if share > 0 else NEGATIVE, round(abs(share) * 0.6, 2))
        yield html.Span(
            token.replace("\n", "⏎"),
            title=f"{projection:.3g}",
            style={"backgroundColor": colour},
        )


def _section(title: str, *parts: Any) -> Any:
    return html.Section([html.H2(title), *parts], **{"aria-label": title})


def _group(label: str, part: Any) -> Any:
    """A labelled group, since sliders and dropdowns take no label."""
    return html.Div(part, role="group", **{"aria-labelledby": label})


def _dropdown(id_: str, choices: Sequence[dict[str, str]], value: str) -> Any:
    return dcc.Dropdown(id=id_, options=choices, value=value, clearable=False)


def _marks(values: Iterable[float]) -> dict[float, str]:
    listed = sorted(set(values))
    every = -(-len(listed) // 9)
    return {value: f"{value:g}" for value in listed[::every]}
