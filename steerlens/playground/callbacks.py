"""What the page does when it is used."""

import base64
from collections.abc import Sequence
from functools import partial
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.playground.jobs import Job, Tab, Tabs, Turns
from steerlens.playground.library import MOST_UPLOADS, Cut, Entry, Shelf, uploaded
from steerlens.playground.request import Outcome, Trial, python, run
from steerlens.playground.token_view import Reading


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


def add_writing(
    app: Any,
    model: Model,
    library: Shelf,
    turns: Turns,
    tabs: Tabs[Entry, Outcome],
    model_name: str,
) -> None:
    """Send, stop, and the replies as they come."""
    from dash import Input, Output, State

    from steerlens.playground.layout import gates, status

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


def add_looking(app: Any, library: Shelf, tabs: Tabs[Entry, Outcome]) -> None:
    """The last prompt sent, as the vectors and conditions see it; and the rule, as it is typed."""
    from dash import ALL, Input, Output, State

    from steerlens.playground.layout import coloured, figure_of, seen_by

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


def add_choosing(app: Any, model: Model, library: Shelf, tabs: Tabs[Entry, Outcome]) -> None:
    """Another vector, or a file."""
    from dash import Input, Output, Patch, State, no_update

    from steerlens.playground.layout import (
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
