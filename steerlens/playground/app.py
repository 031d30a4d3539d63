"""`steerlens playground`: a page to steer a model by hand, served to this machine only."""

import logging
import secrets
import threading
import webbrowser
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from steerlens.access import is_loopback
from steerlens.errors import SteerlensError, import_extra
from steerlens.playground.access import (
    LARGEST_REQUEST,
    guard,
    refuse_unknown_updates,
)
from steerlens.playground.waiting import Waiting, waiting_page

if TYPE_CHECKING:
    from steerlens.playground.jobs import JobQueue
    from steerlens.playground.library import Entry, Shelf

TINY_CHAT = "tiny-chat"


class Start(NamedTuple):
    """What a page begins with."""

    model_name: str = TINY_CHAT
    """What `load_model` takes."""
    vectors: Sequence[Path] = ()
    """Vector files and plans, offered before those of the demo data."""
    conditions: Sequence[tuple[Path, Path]] = ()
    """Searches, each with its vector, offered as conditions."""
    rule: str = ""


def serve(
    start: Start = Start(),  # noqa: B008 - frozen
    *,
    host: str = "127.0.0.1",
    port: int = 8050,
    open_browser: bool = False,
    console: Console | None = None,
) -> None:
    """Serve the page until interrupted: at first one that says how far the loading model is.

    Args:
        start: The model, and what the page begins with.
        host: the address to listen on. Other than loopback, the address printed holds a token, and
            requests without it are refused.
        port: 0 takes any free one.
        open_browser: open the page in a browser.
        console: where the address is printed; the terminal if None.

    Raises:
        SteerlensError: if Dash is missing, the port is taken, or the model cannot be loaded.
    """
    require_dash()
    console = console or Console()
    token = None if is_loopback(host) else secrets.token_urlsafe()
    waiting = Waiting(f"Importing libraries to load {start.model_name}")
    with listen(waiting_page(waiting, token), host, port) as server:
        url_host = f"[{host}]" if ":" in host else host
        address = f"http://{url_host}:{server.server_port}/" + (f"?token={token}" if token else "")
        notice = f"The playground is at {address} (Ctrl-C ends it)"
        console.print(notice, markup=False, soft_wrap=True)
        if open_browser:
            webbrowser.open(address)
        loading = _Loading(partial(_load, start, token, waiting, server), server.shutdown)
        loading.start()
        try:
            server.serve_forever()  # until Ctrl-C
        finally:
            loading.close()


class _Loading(threading.Thread):
    """Replaces the waiting page; where that fails, the server ends with the reason."""

    def __init__(self, load: Callable[[], "JobQueue"], end: Callable[[], None]) -> None:
        super().__init__(daemon=True, name="loading")
        self._load, self._end = load, end
        self._queue: JobQueue | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._queue = self._load()
        except BaseException as error:  # raised again in the main thread
            self._error = error
            self._end()

    def close(self) -> None:
        """Stop the jobs; raise what loading raised."""
        if self._queue is not None:
            self._queue.close()
        if self._error is not None:
            raise self._error


def _load(start: Start, token: str | None, waiting: Waiting, server: Any) -> "JobQueue":
    """Load the model, and let the server show the page; returns the queue of its jobs."""
    from steerlens.models.loading import load_model
    from steerlens.playground.jobs import JobQueue
    from steerlens.playground.library import RECIPES, Shelf
    from steerlens.playground.vector_files import (
        entries_of_plan,
        entry_of_file,
        entry_of_search,
    )
    from steerlens.steering.plan_format import PLAN_ENDING

    waiting.stage = f"Loading {start.model_name}"
    model = load_model(start.model_name)
    waiting.stage = "Preparing the page"
    entries: list[Entry] = []
    taken = {recipe.name for recipe in RECIPES}
    rules = [start.rule]
    for path in start.vectors:
        if path.suffix.lower() == PLAN_ENDING:
            offered, rule = entries_of_plan(model, path, taken)
            rules.append(rule)
        else:
            offered = [entry_of_file(model, path, taken)]
        entries += offered
        taken |= {entry.name for entry in offered}
    for search, vector in start.conditions:
        entries.append(entry_of_search(model, search, vector, taken))
        taken.add(entries[-1].name)
    queue = JobQueue()
    rule = "\n".join(filter(None, rules))
    app = make_app(Shelf(model, RECIPES, entries), queue, start.model_name, token, rule)
    server.app = app.server
    return queue


def require_dash() -> None:
    """Raise if the extra that the page needs is not installed."""
    for module in ("dash", "flask", "cachetools"):
        import_extra(module, "playground", "the playground")


def listen(application: Any, host: str, port: int) -> Any:
    """A threaded server on this address; port 0 takes any free one."""
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line per request
    try:
        return make_server(host, port, application, threaded=True)
    except (OSError, SystemExit) as error:  # werkzeug exits if the port is taken
        raise SteerlensError(
            f"cannot listen on {host}, port {port}: the port is taken, or the address is not this "
            "machine's; choose another with --port or --host"
        ) from error


def make_app(
    shelf: "Shelf",
    queue: "JobQueue",
    model_name: str = TINY_CHAT,
    token: str | None = None,
    rule: str = "",
) -> Any:
    """The page and its callbacks as a Dash app; its `.server` is a Flask server.

    Args:
        shelf: the model that all tabs share, and its vectors.
        queue: runs the tabs' jobs one at a time.
        model_name: what the generated Python passes to `load_model`.
        token: see `guard`.
        rule: the rules that a page begins with.
    """
    from dash import Dash

    from steerlens.playground.callbacks import Page, show_error
    from steerlens.playground.jobs import Tabs
    from steerlens.playground.layout import page
    from steerlens.playground.wiring import add_callbacks

    app = Dash(
        "steerlens",
        title="steerlens playground",
        update_title=None,
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
        suppress_callback_exceptions=True,  # thresholds appear when their conditions are made
        on_error=show_error,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    app.server.config["MAX_CONTENT_LENGTH"] = LARGEST_REQUEST
    guard(app.server, token)
    cfg = shelf.model.cfg
    name = f"{cfg.model_name}: {cfg.n_layers} layers, {cfg.d_model} wide"
    app.layout = lambda: page(name, shelf.offers({}), shelf.made, rule)
    add_callbacks(app, Page(shelf, queue, Tabs(), model_name))
    refuse_unknown_updates(app.server, app.callback_map)
    return app
