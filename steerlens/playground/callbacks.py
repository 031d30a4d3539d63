"""The page's callbacks."""

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dash import Patch, ctx, no_update, set_props
from dash.exceptions import PreventUpdate

from steerlens.errors import SteerlensError, short_repr
from steerlens.playground.jobs import Job, JobQueue, Tab, Tabs
from steerlens.playground.layout import (
    LONGEST_LIST,
    condition_controls,
    condition_row,
    look_slider,
    options,
    push_row,
)
from steerlens.playground.library import MOST_UPLOADS, Entry, Library, Lists, Offer, Shelf
from steerlens.playground.request import Outcome, Push, Trial, run
from steerlens.playground.script import python
from steerlens.playground.settings import PRESETS, from_link, link_to, trial_of
from steerlens.playground.token_view import Reading
from steerlens.playground.vector_files import uploaded
from steerlens.playground.views import coloured, figure_of, gates, rungs, seen_by, status


@dataclass(frozen=True, eq=False)
class Page:
    """What all callbacks share."""

    shelf: Shelf
    queue: JobQueue
    tabs: Tabs[Entry, Outcome]
    model_name: str

    def available(self, tab: Tab[Entry, Outcome]) -> Library:
        """The vectors that are made, and those uploaded in this tab."""
        return {**self.shelf.made, **tab.own}

    def offers(self, tab: Tab[Entry, Outcome]) -> Mapping[str, Offer]:
        """All vectors that this tab can choose."""
        return self.shelf.offers(tab.own, tab.lists)

    def reading(self, key: str) -> Reading | None:
        """The last prompt of a tab, projected on the vectors."""
        job = self.tabs.get(key).job
        return None if job is None or job.latest is None else job.latest.reading


def send(page: Page, clicks: int, key: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Queue a prompt, and stop the tab's previous job."""
    tab = page.tabs.get(key)
    if tab.job is not None:
        tab.job.stop()
    try:
        trial = _with_cuts(trial_of(**settings), tab)
        _require_workable(page, tab, trial)
    except SteerlensError as error:
        tab.job = None
        return {"asked": clicks, "error": str(error)}
    tab.job = Job(partial(run, page.shelf, trial, tab.own, dict(tab.lists)))
    page.queue.submit(tab.job)
    return {"asked": clicks, "error": ""}


def _with_cuts(trial: Trial, tab: Tab[Entry, Outcome]) -> Trial:
    """With the thresholds of a link, for conditions that have no controls yet."""
    return replace(trial, cuts={**tab.cuts, **trial.cuts})


def _require_workable(page: Page, tab: Tab[Entry, Outcome], trial: Trial) -> tuple[str, ...]:
    """The vectors that are yet to be made; raises as far as can be told before."""
    available = page.available(tab)
    missing = tuple(name for name in trial.needs(page.offers(tab)) if name not in available)
    if not missing:
        trial.with_rule(available)
    return missing


def stop(page: Page, clicks: Any, key: str) -> None:
    """Stop a tab's job."""
    job = page.tabs.get(key).job
    if job is not None:
        job.stop()


def show_progress(page: Page, tick: Any, asked: Any, key: str, told: Any) -> dict[str, Any]:
    """The replies generated so far."""
    tab = page.tabs.get(key)
    job = tab.job
    if job is None:
        return {
            "status": "", "unsteered": "", "steered": "", "gates": [], "rungs": [], "code": "",
            "error": no_update, "seen": None, "made": no_update, "stop": True, "ticks": 0,
        }  # fmt: skip
    ended, outcome = job.ended, job.latest  # in this order: an ended job has its final result
    replies = outcome.replies if outcome else None
    unsteered, steered = replies.texts[:2] if replies else ("", "")
    read = outcome is not None and outcome.reading is not None
    library = page.available(tab)
    made = [asked, sorted(library), _strengths(outcome)]
    return {
        "status": status(job, page.queue.position(job)),
        "unsteered": unsteered,
        "steered": steered,
        "gates": gates(outcome),
        "rungs": rungs(outcome),
        "code": python(outcome.trial, library, page.model_name) if outcome and read else "",
        "error": job.error or no_update,
        "seen": [asked, ended] if read else None,
        "made": made if made != told else no_update,
        "stop": ended,
        "ticks": 0 if ended else -1,
    }


def _strengths(outcome: Outcome | None) -> dict[str, float]:
    pushes = () if outcome is None else outcome.trial.pushes
    return {push.vector: push.strength for push in pushes if push.strength is not None}


def settle(
    page: Page,
    made: Any,
    key: str,
    auto: Sequence[Any],
    pushes: Sequence[dict[str, str]],
    places: Sequence[dict[str, str]],
    cuts: Sequence[dict[str, str]],
) -> dict[str, Any]:
    """Put what a job has made into the controls: strengths, and the thresholds of conditions."""
    strengths: dict[str, float] = made[2] if made else {}
    found = [
        strengths.get(i["of"]) if ticked else None for i, ticked in zip(pushes, auto, strict=True)
    ]
    tab = page.tabs.get(key)
    shown, library = {i["of"] for i in cuts}, page.available(tab)
    return {
        "strengths": [no_update if one is None else one for one in found],
        "auto": [no_update if one is None else [] for one in found],
        "places": [
            no_update
            if name in shown or name not in library
            else condition_controls(library[name], tab.cuts.get(name))
            for name in (i["of"] for i in places)
        ],
    }


def lock(auto: Sequence[Any]) -> list[bool]:
    """A strength that is yet to be found cannot be set meanwhile."""
    return [bool(ticked) for ticked in auto]


def draw(page: Page, seen: Any, layer: Any, vector: Any, key: str) -> dict[str, Any]:
    """The prompt's cosines by layer, and its tokens coloured at one layer."""
    reading = page.reading(key)
    measured = None if reading is None else reading.by_vector.get(str(vector))
    if reading is None or measured is None or layer not in measured.layers:
        return {"cosines": [], "tokens": "Send a prompt to see it here."}
    return {
        "cosines": figure_of(reading, vector),
        "tokens": list(coloured(reading, vector, layer)),
    }


def show_conditions(
    page: Page,
    seen: Any,
    at: list[Any],
    above: list[Any],
    shown: list[dict[str, str]],
    ids: list[dict[str, str]],
    key: str,
) -> list[str]:
    """Each condition's similarity to the prompt, and whether it fires at its current threshold."""
    reading = page.reading(key)
    said = {
        i["of"]: "" if cut is None else seen_by(reading, i["of"], layer, float(cut))
        for i, layer, cut in zip(ids, at, above, strict=True)
    }
    return [said.get(i["of"], "") for i in shown]


def check(page: Page, key: str, seen: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The steering that the settings give, or what is wrong with them; whether replies are old."""
    tab = page.tabs.get(key)
    latest = tab.job.latest if tab.job is not None else None
    try:
        trial = _with_cuts(trial_of(**settings), tab)
        missing = _require_workable(page, tab, trial)
    except SteerlensError as error:
        return {"message": str(error), "kind": "wrong", "fresh": latest is None, "link": ""}
    library = page.available(tab)
    fresh = latest is None or trial.same_as(latest.trial, library)
    words = (
        f"Sending makes {', '.join(missing)} first, once." if missing else _in_words(trial, library)
    )
    return {"message": words, "kind": "right", "fresh": fresh, "link": link_to(settings)}


def _in_words(trial: Trial, library: Library) -> str:
    """What steers when the trial is sent."""
    unknown = [push.vector for push in trial.pushes if push.strength is None]
    found = f" Sending finds the strength of {', '.join(unknown)} first." if unknown else ""
    return " ".join(map(repr, trial.with_rule(library))) + found


def restore(page: Page, link: Any, preset: Any, key: str) -> dict[str, Any]:
    """The controls as a link or a preset has them; the latest change of the two decides."""
    tab = page.tabs.get(key)
    offers = page.offers(tab)
    if ctx.triggered_id == "preset" and preset is not None:
        chosen = next(one for one in PRESETS if one.about == preset)
        pushes = tuple(Push(name, offers[name].first_layers) for name in chosen.vectors)
        trial = Trial(pushes, chosen.prompt, chosen.rule)
    elif link:
        trial = from_link(str(link))
    else:
        raise PreventUpdate
    trial.needs(offers)
    tab.cuts = dict(trial.cuts)
    library = page.available(tab)
    return {
        "vector": [push.vector for push in trial.pushes],
        "rows": [push_row(offers[push.vector], push) for push in trial.pushes],
        "conditions": [
            condition_row(name, library.get(name), tab.cuts.get(name))
            for name, offer in offers.items()
            if offer.condition
        ],
        "controls": {
            "rule": trial.rule,
            "prompt": trial.prompt,
            "length": trial.max_new_tokens,
            "temperature": trial.sampling.temperature,
            "top-p": trial.sampling.top_p or 1,
            "seed": trial.sampling.seed,
            "edit": trial.edit,
            "positions": trial.positions,
            "keep-norm": ["yes"] if trial.keep_norm else [],
            "ladder": ["yes"] if trial.ladder else [],
        },
        "error": "",
    }


def choose(
    page: Page, vectors: Any, key: str, rows: Sequence[dict[str, str]], along: Any
) -> dict[str, Any]:
    """Rows for the chosen vectors; those that were there keep their settings."""
    offers = page.offers(page.tabs.get(key))
    chosen = [name for name in vectors or () if name in offers]
    there = [row["of"] for row in rows]
    changes = Patch()
    for index in reversed(range(len(there))):
        if there[index] not in chosen:
            del changes[index]
    changes.extend([push_row(offers[name]) for name in chosen if name not in there])
    return {
        "rows": changes if set(there) != set(chosen) else no_update,
        "options": chosen,
        "along": along if along in chosen else next(iter(chosen), None),
    }


def look(page: Page, along: Any, key: str) -> Any:
    """The layers at which tokens can be coloured."""
    offer = page.offers(page.tabs.get(key)).get(str(along))
    return no_update if offer is None else look_slider(offer)


def upload(page: Page, contents: Any, filename: Any, key: str, chosen: Any) -> dict[str, Any]:
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
        entry, warning = uploaded(page.shelf.model, filename, content, page.offers(tab))
    except (SteerlensError, ValueError) as error:
        return {
            "options": no_update, "vector": no_update, "conditions": no_update,
            "message": str(error),
        }  # fmt: skip
    tab.own[entry.name] = entry
    rows = Patch()
    rows.append(condition_row(entry.name, entry))
    return {
        "options": options(page.offers(tab)), "vector": [entry.name], "conditions": rows,
        "message": warning,
    }  # fmt: skip


def add_lists(
    page: Page, clicks: Any, name: Any, positive: Any, negative: Any, key: str
) -> dict[str, Any]:
    """Offer a condition from two lists of prompts to its tab."""
    tab = page.tabs.get(key)
    try:
        if len(tab.lists) >= MOST_UPLOADS:
            raise SteerlensError(
                f"this page holds {MOST_UPLOADS} conditions of its own; reload it to start over"
            )
        yes, no = str(positive or ""), str(negative or "")
        if max(len(yes), len(no)) > LONGEST_LIST:
            raise SteerlensError(f"got a list of over {LONGEST_LIST:,} characters; shorten it")
        lists = Lists.of(str(name or "mine"), yes, no, page.offers(tab))
    except SteerlensError as error:
        return {"conditions": no_update, "options": no_update, "message": str(error)}
    tab.lists[lists.name] = lists
    rows = Patch()
    rows.append(condition_row(lists.name, None))
    return {
        "conditions": rows,
        "options": options(page.offers(tab)),
        "message": f"Rules can name {lists.name!r} now.",
    }


def show_error(error: Exception) -> None:
    """Show a callback's exception on the page; log it unless the request was at fault."""
    if isinstance(error, SteerlensError):
        message = str(error)
    else:
        logging.getLogger(__name__).error("a callback of the playground failed", exc_info=error)
        message = f"this page sent an invalid request ({type(error).__name__}); reload it"
    set_props("error", {"children": message})
