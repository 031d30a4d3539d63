"""What the page does when it is used."""

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dash import ALL, Input, Output, Patch, State, no_update, set_props

from steerlens.errors import SteerlensError, short_repr
from steerlens.models.host import Model
from steerlens.playground.jobs import Job, Tab, Tabs, Turns
from steerlens.playground.layout import (
    coloured,
    condition_row,
    figure_of,
    gates,
    layer_slider,
    look_slider,
    options,
    seen_by,
    status,
    strength_label,
    strength_slider,
)
from steerlens.playground.library import MOST_UPLOADS, Cut, Entry, Shelf, uploaded
from steerlens.playground.request import Outcome, Trial, python, run
from steerlens.playground.token_view import Reading


@dataclass(frozen=True, eq=False)
class Page:
    """What all callbacks work on."""

    model: Model
    library: Shelf
    turns: Turns
    tabs: Tabs[Entry, Outcome]
    model_name: str

    def shelf(self, tab: Tab[Entry, Outcome]) -> Shelf:
        """The library, and what was uploaded in this tab."""
        return {**self.library, **tab.own}

    def reading(self, key: str) -> Reading | None:
        """The prompt that a tab sent last, as the vectors see it."""
        job = self.tabs.of(key).job
        return None if job is None or job.latest is None else job.latest.reading


def send(
    page: Page, clicks: int, key: str, prompt: str, length: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Put a prompt in the line, and stop what its tab sent before."""
    tab = page.tabs.of(key)
    shelf = page.shelf(tab)
    if tab.job is not None:
        tab.job.stop()
    try:
        trial = _trial(**settings, prompt=prompt, max_new_tokens=length)
        trial.plan(shelf)
    except SteerlensError as error:
        tab.job = None
        return {"asked": clicks, "error": str(error)}
    tab.job = Job(partial(run, page.model, trial, shelf))
    page.turns.ask(tab.job)
    return {"asked": clicks, "error": ""}


def stop(page: Page, clicks: Any, key: str) -> None:
    """End a tab's job."""
    job = page.tabs.of(key).job
    if job is not None:
        job.stop()


def look(page: Page, tick: Any, asked: Any, key: str) -> dict[str, Any]:
    """The replies, as far as they have come."""
    tab = page.tabs.of(key)
    job = tab.job
    if job is None:
        return {
            "status": "", "unsteered": "", "steered": "", "gates": [], "code": "",
            "error": no_update, "seen": None, "stop": True, "ticks": 0,
        }  # fmt: skip
    ended, outcome = job.ended, job.latest  # in this order: what ended grows no more
    unsteered, steered = outcome.replies if outcome and outcome.replies else ("", "")
    code = python(outcome.trial, page.shelf(tab), page.model_name) if outcome else ""
    return {
        "status": status(job, page.turns.ahead_of(job)),
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
    """The prompt's cosines by layer, and its tokens coloured at one."""
    reading = page.reading(key)
    along = None if reading is None else reading.along.get(vector)
    if reading is None or along is None or layer not in along.layers:
        return {"cosines": [], "tokens": "Send a prompt to see it here."}
    return {
        "cosines": figure_of(reading, vector),
        "tokens": list(coloured(reading, vector, layer)),
    }


def judge(
    page: Page, seen: Any, at: list[Any], above: list[Any], ids: list[dict[str, str]], key: str
) -> list[str]:
    """What each condition sees of the prompt, at the threshold set now."""
    reading = page.reading(key)
    return [
        "" if cut is None else seen_by(reading, i["of"], layer, float(cut))
        for i, layer, cut in zip(ids, at, above, strict=True)
    ]


def check(page: Page, key: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """The rule as it is typed: what it was understood as, or what is wrong with it."""
    try:
        plan = _trial(**settings).plan(page.shelf(page.tabs.of(key)))
    except SteerlensError as error:
        return {"told": str(error), "kind": "wrong"}
    return {"told": " ".join(map(repr, plan)), "kind": "right"}


def choose(page: Page, vector: str, key: str) -> dict[str, Any]:
    """Another vector: sliders for its layers and strengths."""
    entry = page.shelf(page.tabs.of(key)).get(vector)
    parts = {
        "layers": layer_slider, "strength": strength_slider, "label": strength_label,
        "look": look_slider,
    }  # fmt: skip
    return {name: no_update if entry is None else part(entry) for name, part in parts.items()}


def upload(page: Page, contents: Any, filename: Any, key: str) -> dict[str, Any]:
    """A file that was dropped: a vector of this tab's own, and a condition on it."""
    tab = page.tabs.of(key)
    try:
        if not isinstance(contents, str) or not isinstance(filename, str):
            raise SteerlensError(
                f"got {short_repr(filename)} as the name of a file; drop one vector file"
            )
        if len(tab.own) >= MOST_UPLOADS:
            raise SteerlensError(
                f"this page holds {MOST_UPLOADS} uploaded vectors; reload it to begin again"
            )
        content = base64.b64decode(contents.partition(",")[2])
        entry, warning = uploaded(page.model, filename, content, page.shelf(tab))
    except (SteerlensError, ValueError) as error:
        return {
            "options": no_update, "vector": no_update, "conditions": no_update, "told": str(error),
        }  # fmt: skip
    tab.own[entry.name] = entry
    rows = Patch()
    rows.append(condition_row(entry))
    return {
        "options": options(page.shelf(tab)), "vector": entry.name, "conditions": rows,
        "told": warning,
    }  # fmt: skip


def tell(error: Exception) -> None:
    """What a callback raised, on the page; only what is no fault of the request is logged."""
    if isinstance(error, SteerlensError):
        told = str(error)
    else:
        logging.getLogger(__name__).error("a callback of the playground failed", exc_info=error)
        told = f"this page sent what cannot be used ({type(error).__name__}); reload it"
    set_props("error", {"children": told})


def add_callbacks(app: Any, page: Page) -> None:
    """Tell Dash what calls which function, and where its results go."""
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
        # one look at a time: Dash drops the answer to a look that the next one overtakes
        running=[(Output("clock", "disabled"), True, False)],
    )(partial(look, page))
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
    )(partial(judge, page))
    app.callback(
        output={"told": Output("check", "children"), "kind": Output("check", "className")},
        inputs={"settings": _settings(Input)},
        state={"key": tab},
    )(partial(check, page))
    app.callback(
        output={
            "layers": Output("layers-place", "children"),
            "strength": Output("strength-place", "children"),
            "label": Output("strength-label", "children"),
            "look": Output("look-place", "children"),
        },
        inputs={"vector": Input("vector", "value")},
        state={"key": tab},
        prevent_initial_call=True,
    )(partial(choose, page))
    app.callback(
        output={
            "options": Output("vector", "options"),
            "vector": Output("vector", "value"),
            "conditions": Output("conditions", "children"),
            "told": Output("uploaded", "children"),
        },
        inputs={"contents": Input("upload", "contents")},
        state={"filename": State("upload", "filename"), "key": tab},
        prevent_initial_call=True,
    )(partial(upload, page))


def _settings(kind: Any) -> dict[str, Any]:
    """What `_trial` takes, as inputs or as states of a callback."""
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
    **said: Any,
) -> Trial:
    """Settings as they come from the page; None stands where a field is being edited."""
    if None in (vector, strength, *layers, *at, *above, *said.values()):
        raise SteerlensError("a field is empty; give every slider a number")
    cuts = {i["of"]: Cut(a, float(b)) for i, a, b in zip(ids, at, above, strict=True)}
    first, last = map(int, layers)
    return Trial(vector, (first, last), float(strength), rule=rule, cuts=cuts, **said)
