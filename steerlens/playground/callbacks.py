"""The page's callbacks."""

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dash import ALL, Input, Output, Patch, State, ctx, no_update, set_props

from steerlens.errors import SteerlensError, short_repr
from steerlens.playground.jobs import Job, Tab, Tabs
from steerlens.playground.layout import (
    coloured,
    condition_row,
    figure_of,
    gates,
    layer_slider,
    look_slider,
    make_buttons,
    options,
    seen_by,
    status,
    strength_label,
    strength_slider,
)
from steerlens.playground.library import MOST_UPLOADS, Cut, Entry, Library, uploaded
from steerlens.playground.request import Outcome, Trial, python, run
from steerlens.playground.shelf import Shelf
from steerlens.playground.token_view import Reading


@dataclass(frozen=True, eq=False)
class Page:
    """What all callbacks share."""

    shelf: Shelf
    tabs: Tabs[Entry, Outcome]
    model_name: str

    def available(self, tab: Tab[Entry, Outcome]) -> Library:
        """The vectors that are ready, and those uploaded in this tab."""
        return {**self.shelf, **tab.own}

    def offered(self, tab: Tab[Entry, Outcome]) -> list[dict[str, str]]:
        """The options of the vector dropdown."""
        return options(self.available(tab), self.shelf.pending)

    def require_made(self, vector: str) -> None:
        """Refuse a vector that is not ready yet."""
        if vector in self.shelf.pending:
            raise SteerlensError(f"{vector} is not made yet; wait, or choose another vector")

    def reading(self, key: str) -> Reading | None:
        """The last prompt of a tab, projected on the vectors."""
        job = self.tabs.get(key).job
        return None if job is None or job.latest is None else job.latest.reading


def send(
    page: Page, clicks: int, key: str, prompt: str, length: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Queue a prompt, and stop the tab's previous job."""
    tab = page.tabs.get(key)
    library = page.available(tab)
    if tab.job is not None:
        tab.job.stop()
    try:
        page.require_made(settings["vector"])
        trial = _trial(**settings, prompt=prompt, max_new_tokens=length)
        trial.with_rule(library)
    except SteerlensError as error:
        tab.job = None
        return {"asked": clicks, "error": str(error)}
    tab.job = Job(partial(run, page.shelf.model, trial, library))
    page.shelf.queue.submit(tab.job)
    return {"asked": clicks, "error": ""}


def stop(page: Page, clicks: Any, key: str) -> None:
    """Stop a tab's job."""
    job = page.tabs.get(key).job
    if job is not None:
        job.stop()


def show_progress(page: Page, tick: Any, asked: Any, key: str) -> dict[str, Any]:
    """The replies generated so far."""
    tab = page.tabs.get(key)
    job = tab.job
    if job is None:
        return {
            "status": "", "unsteered": "", "steered": "", "gates": [], "code": "",
            "error": no_update, "seen": None, "stop": True, "ticks": 0,
        }  # fmt: skip
    ended, outcome = job.ended, job.latest  # in this order: an ended job has its final result
    unsteered, steered = outcome.replies if outcome and outcome.replies else ("", "")
    code = python(outcome.trial, page.available(tab), page.model_name) if outcome else ""
    return {
        "status": status(job, page.shelf.queue.position(job)),
        "unsteered": unsteered,
        "steered": steered,
        "gates": gates(outcome),
        "code": code,
        "error": job.error or no_update,
        "seen": [asked, ended] if outcome else None,
        "stop": ended,
        "ticks": 0 if ended else -1,
    }


def draw(page: Page, seen: Any, layer: Any, vector: str, key: str) -> dict[str, Any]:
    """The prompt's cosines by layer, and its tokens coloured at one layer."""
    reading = page.reading(key)
    measured = None if reading is None else reading.by_vector.get(vector)
    if reading is None or measured is None or layer not in measured.layers:
        return {"cosines": [], "tokens": "Send a prompt to see it here."}
    return {
        "cosines": figure_of(reading, vector),
        "tokens": list(coloured(reading, vector, layer)),
    }


def show_conditions(
    page: Page, seen: Any, at: list[Any], above: list[Any], ids: list[dict[str, str]], key: str
) -> list[str]:
    """Each condition's similarity to the prompt, and whether it fires at its current threshold."""
    reading = page.reading(key)
    return [
        "" if cut is None else seen_by(reading, i["of"], layer, float(cut))
        for i, layer, cut in zip(ids, at, above, strict=True)
    ]


def check_rule(page: Page, key: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """The steering that the typed rule gives, or what is wrong with the rule."""
    try:
        page.require_made(settings["vector"])
        steerings = _trial(**settings).with_rule(page.available(page.tabs.get(key)))
    except SteerlensError as error:
        return {"message": str(error), "kind": "wrong"}
    return {"message": " ".join(map(repr, steerings)), "kind": "right"}


def choose(
    page: Page, tick: Any, vector: str, clicks: Any, shown: Any, ids: list[dict[str, str]], key: str
) -> dict[str, Any]:
    """Make what was asked for, and show what has become ready: sliders, conditions, buttons.

    Args:
        shown: The vector of the sliders, and whether its strength was known.
        ids: The conditions on the page.
    """
    asked = ctx.triggered_id
    if isinstance(asked, dict) and any(clicks):
        page.shelf.ask(asked["make"])
    page.shelf.ask(vector)
    library = page.available(page.tabs.get(key))
    entry = library.get(vector)
    strength = None if entry is None else page.shelf.strength_of(entry)
    now = shown if entry is None else [vector, strength is not None]
    names = ("layers", "strength", "label", "look")
    changed = dict.fromkeys(names, no_update)
    if entry is not None and now != shown:
        changed |= {
            "strength": strength_slider(entry, strength),
            "label": strength_label(entry, strength),
        }
        if shown is None or shown[0] != vector:
            changed |= {"layers": layer_slider(entry), "look": look_slider(entry)}
    rows, on_page = Patch(), {one["of"] for one in ids}
    new = [one for name, one in page.shelf.items() if one.cut and name not in on_page]
    for one in new:
        rows.append(condition_row(one))
    return changed | {
        "shown": now,
        "conditions": rows if new else no_update,
        "buttons": make_buttons(page.shelf.pending),
        "news": page.shelf.news,
        "idle": not page.shelf.busy,
    }


def upload(page: Page, contents: Any, filename: Any, key: str) -> dict[str, Any]:
    """Add an uploaded vector, and a condition on it, to its tab."""
    tab = page.tabs.get(key)
    try:
        if not isinstance(contents, str) or not isinstance(filename, str):
            raise SteerlensError(f"got {short_repr(filename)} as a file name; drop one vector file")
        if len(tab.own) >= MOST_UPLOADS:
            raise SteerlensError(
                f"this page holds {MOST_UPLOADS} uploaded vectors; reload it to start over"
            )
        content = base64.b64decode(contents.partition(",")[2])
        entry, warning = uploaded(page.shelf.model, filename, content, page.available(tab))
    except (SteerlensError, ValueError) as error:
        return {
            "options": no_update, "vector": no_update, "conditions": no_update,
            "message": str(error),
        }  # fmt: skip
    tab.own[entry.name] = entry
    rows = Patch()
    rows.append(condition_row(entry))
    return {
        "options": page.offered(tab), "vector": entry.name, "conditions": rows,
        "message": warning,
    }  # fmt: skip


def show_error(error: Exception) -> None:
    """Show a callback's exception on the page; log it unless the request was at fault."""
    if isinstance(error, SteerlensError):
        message = str(error)
    else:
        logging.getLogger(__name__).error("a callback of the playground failed", exc_info=error)
        message = f"this page sent an invalid request ({type(error).__name__}); reload it"
    set_props("error", {"children": message})


def add_callbacks(app: Any, page: Page) -> None:
    """Register the callbacks: their inputs and outputs on the page."""
    _add_result_callbacks(app, page)
    _add_setting_callbacks(app, page)


def _add_result_callbacks(app: Any, page: Page) -> None:
    """Sending a prompt, and showing its replies, tokens and conditions."""
    tab = State("tab", "data")
    app.callback(
        output={"asked": Output("asked", "data"), "error": Output("error", "children")},
        inputs={"clicks": Input("send", "n_clicks")},
        state={
            "key": tab,
            "prompt": State("prompt", "value"),
            "length": State("length", "value"),
            "settings": _settings(State),
        },
        prevent_initial_call=True,
    )(partial(send, page))
    app.callback(inputs={"clicks": Input("stop", "n_clicks")}, state={"key": tab},
                 prevent_initial_call=True)(partial(stop, page))  # fmt: skip
    app.callback(
        output={
            "status": Output("status", "children"),
            "unsteered": Output("unsteered", "children"),
            "steered": Output("steered", "children"),
            "gates": Output("gates", "children"),
            "code": Output("code", "children"),
            "error": Output("error", "children", allow_duplicate=True),
            "seen": Output("seen", "data"),
            "stop": Output("stop", "disabled"),
            "ticks": Output("clock", "max_intervals"),
        },
        inputs={"tick": Input("clock", "n_intervals"), "asked": Input("asked", "data")},
        state={"key": tab},
        prevent_initial_call=True,
        # one query at a time: Dash drops an answer that a later one overtakes
        running=[(Output("clock", "disabled"), True, False)],
    )(partial(show_progress, page))
    app.callback(
        output={"cosines": Output("cosines", "children"), "tokens": Output("tokens", "children")},
        inputs={"seen": Input("seen", "data"), "layer": Input("look", "value")},
        state={"vector": State("vector", "value"), "key": tab},
    )(partial(draw, page))
    app.callback(
        output=Output({"cut": "seen", "of": ALL}, "children"),
        inputs={
            "seen": Input("seen", "data"),
            "at": Input({"cut": "layer", "of": ALL}, "value"),
            "above": Input({"cut": "above", "of": ALL}, "value"),
        },
        state={"ids": State({"cut": "layer", "of": ALL}, "id"), "key": tab},
    )(partial(show_conditions, page))


def _add_setting_callbacks(app: Any, page: Page) -> None:
    """Checking the rule, choosing a vector and uploading one."""
    tab = State("tab", "data")
    app.callback(
        output={"message": Output("check", "children"), "kind": Output("check", "className")},
        inputs={"settings": _settings(Input)},
        state={"key": tab},
    )(partial(check_rule, page))
    app.callback(
        output={
            "layers": Output("layers-place", "children"),
            "strength": Output("strength-place", "children"),
            "label": Output("strength-label", "children"),
            "look": Output("look-place", "children"),
            "shown": Output("shown", "data"),
            "conditions": Output("conditions", "children", allow_duplicate=True),
            "buttons": Output("make-place", "children"),
            "news": Output("news", "children"),
            "idle": Output("follow", "disabled"),
        },
        inputs={
            "tick": Input("follow", "n_intervals"),
            "vector": Input("vector", "value"),
            "clicks": Input({"make": ALL}, "n_clicks"),
        },
        state={
            "shown": State("shown", "data"),
            "ids": State({"cut": "layer", "of": ALL}, "id"),
            "key": tab,
        },
        prevent_initial_call="initial_duplicate",
    )(partial(choose, page))
    app.callback(
        output={
            "options": Output("vector", "options"),
            "vector": Output("vector", "value"),
            "conditions": Output("conditions", "children"),
            "message": Output("uploaded", "children"),
        },
        inputs={"contents": Input("upload", "contents")},
        state={"filename": State("upload", "filename"), "key": tab},
        prevent_initial_call=True,
    )(partial(upload, page))


def _settings(kind: Any) -> dict[str, Any]:
    """The arguments of `_trial`, as inputs or states of a callback."""
    return {
        "vector": kind("vector", "value"),
        "layers": kind("layers", "value"),
        "strength": kind("strength", "value"),
        "rule": kind("rule", "value"),
        "ids": kind({"cut": "layer", "of": ALL}, "id"),
        "at": kind({"cut": "layer", "of": ALL}, "value"),
        "above": kind({"cut": "above", "of": ALL}, "value"),
    }


def _trial(
    vector: str,
    layers: Sequence[Any],
    strength: Any,
    rule: str,
    ids: Sequence[dict[str, str]],
    at: Sequence[Any],
    above: Sequence[Any],
    **others: Any,
) -> Trial:
    """Settings from the page's fields; None means that a field is being edited."""
    if None in (vector, strength, *layers, *at, *above, *others.values()):
        raise SteerlensError("a field is empty; give every slider a number")
    cuts = {
        field["of"]: Cut(layer, float(cut))
        for field, layer, cut in zip(ids, at, above, strict=True)
    }
    first, last = map(int, layers)
    return Trial(vector, (first, last), float(strength), rule=rule, cuts=cuts, **others)
