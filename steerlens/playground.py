"""`steerlens playground`: a page to steer a model by hand, served to this machine alone."""

import base64
import logging
import secrets
import webbrowser
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from steerlens.door import guard, is_loopback
from steerlens.errors import SteerlensError
from steerlens.loading import TINY_CHAT, load_model
from steerlens.models import Model
from steerlens.readings import Reading
from steerlens.shelf import (
    LARGEST_UPLOAD,
    LIBRARY,
    MOST_UPLOADS,
    Cut,
    Entry,
    Shelf,
    make_entry,
    uploaded,
)
from steerlens.trials import Outcome, Trial, python, run
from steerlens.turns import Job, Tab, Tabs, Turns

LARGEST_REQUEST = 6 * LARGEST_UPLOAD
"""Bytes; uploads travel in base64, and somewhat too large ones deserve a reason."""


def serve(
    model_name: str = TINY_CHAT,
    *,
    host: str = "127.0.0.1",
    port: int = 8050,
    open_browser: bool = False,
    console: Console | None = None,
) -> None:
    """Load the model, make the library, and serve the page until interrupted.

    On any other host than this machine's own, the address shown holds a token without which
    nothing is served. Raises if Dash is missing or the port is taken.
    """
    require_dash()
    console = console or Console()
    token = None if is_loopback(host) else secrets.token_urlsafe()
    turns = Turns()
    with listen(None, host, port) as server, closing(turns):  # a taken port comes before the work
        model = load_model(model_name)
        making = tqdm(LIBRARY, desc="vectors from the demo data", unit="vector")
        shelf = {recipe.name: make_entry(model, recipe) for recipe in making}
        server.app = make_app(model, shelf, turns, model_name, token).server
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{server.server_port}/" + (f"?token={token}" if token else "")
        told = f"The playground is at {address} (Ctrl-C ends it)"
        console.print(told, markup=False, soft_wrap=True)
        if open_browser:
            webbrowser.open(address)
        server.serve_forever()  # until Ctrl-C


def require_dash() -> None:
    """Refuse to go on without the extra that the page needs."""
    try:
        import dash  # noqa: F401
    except ImportError as error:
        raise SteerlensError(
            "the playground needs Dash, which is not installed; "
            "run: pip install 'steerlens[playground]'"
        ) from error


def listen(application: Any, host: str, port: int) -> Any:
    """A threaded server on that address; port 0 takes any that is free."""
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line per request
    try:
        return make_server(host, port, application, threaded=True)
    except (OSError, SystemExit) as error:  # werkzeug exits where a port is taken
        raise SteerlensError(
            f"cannot listen on {host}, port {port}: it is taken or not this machine's; "
            "choose another with --port or --host"
        ) from error


def make_app(
    model: Model,
    library: Shelf,
    turns: Turns,
    model_name: str = TINY_CHAT,
    token: str | None = None,
) -> Any:
    """The page and its callbacks as a Dash app; `.server` is the Flask server behind it."""
    from dash import Dash

    from steerlens.page import page

    app = Dash(
        "steerlens",
        title="steerlens playground",
        update_title=None,
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    app.server.config["MAX_CONTENT_LENGTH"] = LARGEST_REQUEST
    guard(app.server, token)
    app.layout = partial(page, model, library)
    tabs: Tabs[Entry, Outcome] = Tabs()
    _add_writing(app, model, library, turns, tabs, model_name)
    _add_looking(app, library, tabs)
    _add_choosing(app, model, library, tabs)
    return app


def _shelf(library: Shelf, tab: Tab[Entry, Outcome]) -> Shelf:
    return {**library, **tab.own}


def _trial(
    vector: str,
    layers: Sequence[Any],
    strength: Any,
    rule: str,
    ids: Sequence[dict[str, str]],
    at: Sequence[Any],
    above: Sequence[Any],
    **said: Any,
) -> Trial:
    """Settings as they come from the page; None stands where a field is being edited."""
    if None in (vector, strength, *layers, *at, *above, *said.values()):
        raise SteerlensError("a field is empty; give every slider a number")
    cuts = {i["of"]: Cut(a, float(b)) for i, a, b in zip(ids, at, above, strict=True)}
    first, last = map(int, layers)
    return Trial(vector, (first, last), float(strength), rule=rule, cuts=cuts, **said)


def _settings(kind: Any) -> list[Any]:
    """What `_trial` takes, as inputs or as states of a callback."""
    from dash import ALL

    return [
        kind("vector", "value"),
        kind("layers", "value"),
        kind("strength", "value"),
        kind("rule", "value"),
        kind({"cut": "layer", "of": ALL}, "id"),
        kind({"cut": "layer", "of": ALL}, "value"),
        kind({"cut": "above", "of": ALL}, "value"),
    ]


def _add_writing(
    app: Any,
    model: Model,
    library: Shelf,
    turns: Turns,
    tabs: Tabs[Entry, Outcome],
    model_name: str,
) -> None:
    """Send, stop, and the replies as they come."""
    from dash import Input, Output, State

    from steerlens.page import gates, status

    @app.callback(
        Output("asked", "data"),
        Output("error", "children"),
        Input("send", "n_clicks"),
        State("tab", "data"),
        State("prompt", "value"),
        State("length", "value"),
        *_settings(State),
        prevent_initial_call=True,
    )
    def send(clicks: int, key: str, prompt: str, length: int, *settings: Any) -> tuple[int, str]:
        tab = tabs.of(key)
        shelf = _shelf(library, tab)
        if tab.job is not None:
            tab.job.stop()
        try:
            trial = _trial(*settings, prompt=prompt, max_new_tokens=length)
            trial.plan(shelf)
        except SteerlensError as error:
            tab.job = None
            return clicks, str(error)
        tab.job = Job(partial(run, model, trial, shelf))
        turns.ask(tab.job)
        return clicks, ""

    @app.callback(Input("stop", "n_clicks"), State("tab", "data"), prevent_initial_call=True)
    def stop(_: Any, key: str) -> None:
        job = tabs.of(key).job
        if job is not None:
            job.stop()

    @app.callback(
        Output("status", "children"),
        Output("unsteered", "children"),
        Output("steered", "children"),
        Output("gates", "children"),
        Output("code", "children"),
        Output("error", "children", allow_duplicate=True),
        Output("seen", "data"),
        Output("stop", "disabled"),
        Output("clock", "max_intervals"),
        Input("clock", "n_intervals"),
        Input("asked", "data"),
        State("tab", "data"),
        prevent_initial_call=True,
        # one look at a time: Dash drops the answer to a look that the next one overtakes
        running=[(Output("clock", "disabled"), True, False)],
    )
    def look(_: Any, asked: Any, key: str) -> tuple[Any, ...]:
        from dash import no_update

        tab = tabs.of(key)
        job = tab.job
        if job is None:
            return "", "", "", [], "", no_update, None, True, 0
        ended, outcome = job.ended, job.latest  # in this order: what ended grows no more
        unsteered, steered = outcome.replies if outcome and outcome.replies else ("", "")
        code = python(outcome.trial, _shelf(library, tab), model_name) if outcome else ""
        seen = [asked, ended] if outcome else None
        error = job.error or no_update
        told = status(job, turns.ahead_of(job))
        listed = gates(outcome)
        return told, unsteered, steered, listed, code, error, seen, ended, 0 if ended else -1


def _add_looking(app: Any, library: Shelf, tabs: Tabs[Entry, Outcome]) -> None:
    """The last prompt sent, as the vectors and conditions see it; and the rule, as it is typed."""
    from dash import ALL, Input, Output, State

    from steerlens.page import coloured, figure_of, seen_by

    def reading_of(key: str) -> Reading | None:
        job = tabs.of(key).job
        return None if job is None or job.latest is None else job.latest.reading

    @app.callback(
        Output("cosines", "children"),
        Output("tokens", "children"),
        Input("seen", "data"),
        Input("look", "value"),
        State("vector", "value"),
        State("tab", "data"),
    )
    def draw(_: Any, layer: Any, vector: str, key: str) -> tuple[Any, Any]:
        reading = reading_of(key)
        along = None if reading is None else reading.along.get(vector)
        if reading is None or along is None or layer not in along.layers:
            return [], "Send a prompt to see it here."
        return figure_of(reading, vector), list(coloured(reading, vector, layer))

    @app.callback(
        Output({"cut": "seen", "of": ALL}, "children"),
        Input("seen", "data"),
        Input({"cut": "layer", "of": ALL}, "value"),
        Input({"cut": "above", "of": ALL}, "value"),
        State({"cut": "layer", "of": ALL}, "id"),
        State("tab", "data"),
    )
    def judge(
        _: Any, at: list[Any], above: list[Any], ids: list[dict[str, str]], key: str
    ) -> list[str]:
        reading = reading_of(key)
        return [
            "" if cut is None else seen_by(reading, i["of"], layer, float(cut))
            for i, layer, cut in zip(ids, at, above, strict=True)
        ]

    @app.callback(
        Output("check", "children"),
        Output("check", "className"),
        State("tab", "data"),
        *_settings(Input),
    )
    def check(key: str, *settings: Any) -> tuple[str, str]:
        try:
            plan = _trial(*settings).plan(_shelf(library, tabs.of(key)))
        except SteerlensError as error:
            return str(error), "wrong"
        return " ".join(map(repr, plan)), "right"


def _add_choosing(app: Any, model: Model, library: Shelf, tabs: Tabs[Entry, Outcome]) -> None:
    """Another vector, or a file."""
    from dash import Input, Output, Patch, State, no_update

    from steerlens.page import (
        condition_row,
        layer_slider,
        look_slider,
        options,
        strength_label,
        strength_slider,
    )

    @app.callback(
        Output("layers-place", "children"),
        Output("strength-place", "children"),
        Output("strength-label", "children"),
        Output("look-place", "children"),
        Input("vector", "value"),
        State("tab", "data"),
        prevent_initial_call=True,
    )
    def choose(vector: str, key: str) -> tuple[Any, ...]:
        entry = _shelf(library, tabs.of(key)).get(vector)
        if entry is None:
            return no_update, no_update, no_update, no_update
        parts = layer_slider, strength_slider, strength_label, look_slider
        return tuple(part(entry) for part in parts)

    @app.callback(
        Output("vector", "options"),
        Output("vector", "value"),
        Output("conditions", "children"),
        Output("uploaded", "children"),
        Input("upload", "contents"),
        State("upload", "filename"),
        State("tab", "data"),
        prevent_initial_call=True,
    )
    def upload(contents: str, filename: str, key: str) -> tuple[Any, ...]:
        tab = tabs.of(key)
        try:
            if len(tab.own) >= MOST_UPLOADS:
                raise SteerlensError(
                    f"this page holds {MOST_UPLOADS} uploaded vectors; reload it to begin anew"
                )
            content = base64.b64decode(contents.partition(",")[2])
            entry, warning = uploaded(model, filename, content, _shelf(library, tab))
        except (SteerlensError, ValueError) as error:
            return no_update, no_update, no_update, str(error)
        tab.own[entry.name] = entry
        rows = Patch()
        rows.append(condition_row(entry))
        return options(_shelf(library, tab)), entry.name, rows, warning
