"""Which callbacks the page has: their inputs and outputs."""

from functools import partial
from typing import Any

from dash import ALL, Input, Output, State

from steerlens.playground import callbacks
from steerlens.playground.callbacks import Page
from steerlens.playground.settings import fields


def add_callbacks(app: Any, page: Page) -> None:
    """Register the callbacks: their inputs and outputs on the page."""
    _add_result_callbacks(app, page)
    _add_view_callbacks(app, page)
    _add_setting_callbacks(app, page)
    _add_vector_callbacks(app, page)


def _add_result_callbacks(app: Any, page: Page) -> None:
    """Sending a prompt, and showing its replies."""
    tab = State("tab", "data")
    app.callback(
        output={"asked": Output("asked", "data"), "error": Output("error", "children")},
        inputs={"clicks": Input("send", "n_clicks")},
        state={"key": tab, "settings": fields(State)},
        prevent_initial_call=True,
    )(partial(callbacks.send, page))
    app.callback(inputs={"clicks": Input("stop", "n_clicks")}, state={"key": tab},
                 prevent_initial_call=True)(partial(callbacks.stop, page))  # fmt: skip
    app.callback(
        output={
            "status": Output("status", "children"),
            "unsteered": Output("unsteered", "children"),
            "steered": Output("steered", "children"),
            "gates": Output("gates", "children"),
            "rungs": Output("rungs", "children"),
            "code": Output("code", "children"),
            "error": Output("error", "children", allow_duplicate=True),
            "seen": Output("seen", "data"),
            "made": Output("made", "data"),
            "stop": Output("stop", "disabled"),
            "ticks": Output("clock", "max_intervals"),
        },
        inputs={"tick": Input("clock", "n_intervals"), "asked": Input("asked", "data")},
        state={"key": tab, "told": State("made", "data")},
        prevent_initial_call=True,
        # one query at a time: Dash drops an answer that a later one overtakes
        running=[(Output("clock", "disabled"), True, False)],
    )(partial(callbacks.show_progress, page))
    app.callback(
        output={
            "strengths": Output({"push": "strength", "of": ALL}, "value"),
            "auto": Output({"push": "auto", "of": ALL}, "value"),
            "places": Output({"cut": "place", "of": ALL}, "children"),
        },
        inputs={"made": Input("made", "data")},
        state={
            "key": tab,
            "auto": State({"push": "auto", "of": ALL}, "value"),
            "pushes": State({"push": "auto", "of": ALL}, "id"),
            "places": State({"cut": "place", "of": ALL}, "id"),
            "cuts": State({"cut": "layer", "of": ALL}, "id"),
        },
        prevent_initial_call=True,
    )(partial(callbacks.settle, page))


def _add_view_callbacks(app: Any, page: Page) -> None:
    """The prompt's tokens, and its conditions."""
    tab = State("tab", "data")
    app.callback(
        output={"cosines": Output("cosines", "children"), "tokens": Output("tokens", "children")},
        inputs={"seen": Input("seen", "data"), "layer": Input("look", "value")},
        state={"vector": State("along", "value"), "key": tab},
    )(partial(callbacks.draw, page))
    app.callback(
        output=Output("look-place", "children"),
        inputs={"along": Input("along", "value")},
        state={"key": tab},
        prevent_initial_call=True,
    )(partial(callbacks.look, page))
    app.callback(
        output=Output({"cut": "seen", "of": ALL}, "children"),
        inputs={
            "seen": Input("seen", "data"),
            "at": Input({"cut": "layer", "of": ALL}, "value"),
            "above": Input({"cut": "above", "of": ALL}, "value"),
        },
        state={
            "shown": State({"cut": "seen", "of": ALL}, "id"),
            "ids": State({"cut": "layer", "of": ALL}, "id"),
            "key": tab,
        },
    )(partial(callbacks.show_conditions, page))


def _add_setting_callbacks(app: Any, page: Page) -> None:
    """Checking the settings, and taking them from a link or preset."""
    tab = State("tab", "data")
    app.callback(
        output={
            "message": Output("check", "children"),
            "kind": Output("check", "className"),
            "fresh": Output("stale", "hidden"),
            "link": Output("link", "href"),
        },
        inputs={"settings": fields(Input), "seen": Input("made", "data")},
        state={"key": tab},
    )(partial(callbacks.check, page))
    app.callback(
        output=Output({"push": "strength", "of": ALL}, "disabled"),
        inputs={"auto": Input({"push": "auto", "of": ALL}, "value")},
        prevent_initial_call=True,
    )(callbacks.lock)
    app.callback(
        output={
            "vector": Output("vector", "value", allow_duplicate=True),
            "rows": Output("pushes", "children", allow_duplicate=True),
            "conditions": Output("conditions", "children", allow_duplicate=True),
            "controls": {
                name: Output(name, "value")
                for name in (
                    "rule",
                    "prompt",
                    "length",
                    "temperature",
                    "top-p",
                    "seed",
                    "edit",
                    "positions",
                    "keep-norm",
                    "ladder",
                )
            },
            "error": Output("error", "children", allow_duplicate=True),
        },
        inputs={"link": Input("url", "hash"), "preset": Input("preset", "value")},
        state={"key": tab},
        prevent_initial_call="initial_duplicate",
    )(partial(callbacks.restore, page))


def _add_vector_callbacks(app: Any, page: Page) -> None:
    """Choosing vectors, uploading one, and making a condition from two lists."""
    tab = State("tab", "data")
    app.callback(
        output={
            "rows": Output("pushes", "children"),
            "options": Output("along", "options"),
            "along": Output("along", "value"),
        },
        inputs={"vectors": Input("vector", "value")},
        state={
            "key": tab,
            "rows": State({"push": "layers", "of": ALL}, "id"),
            "along": State("along", "value"),
        },
        prevent_initial_call=True,
    )(partial(callbacks.choose, page))
    app.callback(
        output={
            "conditions": Output("conditions", "children", allow_duplicate=True),
            "options": Output("vector", "options", allow_duplicate=True),
            "message": Output("listed", "children"),
        },
        inputs={"clicks": Input("list-add", "n_clicks")},
        state={
            "name": State("list-name", "value"),
            "positive": State("list-yes", "value"),
            "negative": State("list-no", "value"),
            "key": tab,
        },
        prevent_initial_call=True,
    )(partial(callbacks.add_lists, page))
    app.callback(
        output={
            "options": Output("vector", "options"),
            "vector": Output("vector", "value"),
            "conditions": Output("conditions", "children"),
            "message": Output("uploaded", "children"),
        },
        inputs={"contents": Input("upload", "contents")},
        state={
            "filename": State("upload", "filename"),
            "chosen": State("vector", "value"),
            "key": tab,
        },
        prevent_initial_call=True,
    )(partial(callbacks.upload, page))
