"""`steerlens playground`: a page to steer a model by hand, served to this machine only."""

import logging
import secrets
import webbrowser
from collections.abc import Generator
from contextlib import closing
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from steerlens.errors import SteerlensError, import_extra
from steerlens.models.loading import TINY_CHAT, load_model
from steerlens.playground.access import guard, is_loopback, refuse_unknown_updates
from steerlens.playground.library import LARGEST_UPLOAD, RECIPES

if TYPE_CHECKING:
    from steerlens.playground.jobs import Job, JobQueue
    from steerlens.playground.shelf import Shelf

LARGEST_REQUEST = 6 * LARGEST_UPLOAD
"""Bytes: uploads are sent as base64, and those a little too large still get an explanation."""


def serve(
    model_name: str = TINY_CHAT,
    *,
    host: str = "127.0.0.1",
    port: int = 8050,
    open_browser: bool = False,
    console: Console | None = None,
) -> None:
    """Serve the page at once, while the model is loaded, until interrupted.

    Until the first vector is there, the page says how far that is. Others are made when they are
    first asked for, and kept on disk.

    Args:
        model_name: what `load_model` takes.
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
    from steerlens.playground.jobs import Job, JobQueue

    queue = JobQueue()
    with listen(None, host, port) as server, closing(queue):  # fails before the work if it must
        start: Job[str] = Job(partial(_starting, server, queue, model_name, token, console))
        server.app = _waiting_page(start, token)
        queue.submit(start)
        url_host = f"[{host}]" if ":" in host else host
        address = f"http://{url_host}:{server.server_port}/" + (f"?token={token}" if token else "")
        notice = f"The playground is at {address} (Ctrl-C ends it)"
        console.print(notice, markup=False, soft_wrap=True)
        if open_browser:
            webbrowser.open(address)
        server.serve_forever()  # until Ctrl-C, or until the start has failed
        if start.error:
            raise SteerlensError(start.error)


def _starting(
    server: Any, queue: "JobQueue", model_name: str, token: str | None, console: Console
) -> Generator[str, None, None]:
    """Load the model, make the first vector, and serve the page; yields what is done next."""
    from steerlens.playground.shelf import Shelf

    try:
        yield f"Loading {model_name}"
        shelf = Shelf(load_model(model_name), queue)
        for stage in shelf.making(RECIPES[0].name):
            console.print(f"{stage} …", markup=False)
            yield stage
        server.app = make_app(shelf, model_name, token).server
        console.print("The page is ready.")
    except Exception:
        server.shutdown()
        raise


def _waiting_page(start: "Job[str]", token: str | None) -> Any:
    """A page that says what is being done, and asks again every second."""
    from flask import Flask

    waiting = Flask("steerlens")
    guard(waiting, token)

    @waiting.route("/", defaults={"path": ""})
    @waiting.route("/<path:path>")
    def wait(path: str) -> str:
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" '
            'content="1"><title>steerlens playground</title><style>:root{color-scheme:light dark}'
            "body{font:16px/1.45 Helvetica,Arial,sans-serif;margin:15vh auto;max-width:40em;"
            'padding:0 16px}</style><h1>steerlens playground</h1><p role="status">'
            f"{escape(start.latest or 'Starting')} …</p><p>The first start on a model takes a "
            "minute or two; what is made is kept for the next.</p></html>"
        )

    return waiting


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


def make_app(shelf: "Shelf", model_name: str = TINY_CHAT, token: str | None = None) -> Any:
    """The page and its callbacks as a Dash app; its `.server` is a Flask server.

    Args:
        shelf: the vectors offered, one of them ready; its model and queue are those of all tabs.
        model_name: what the generated Python passes to `load_model`.
        token: see `guard`.
    """
    from dash import Dash

    from steerlens.playground.callbacks import Page, add_callbacks, show_error
    from steerlens.playground.jobs import Tabs
    from steerlens.playground.layout import page

    app = Dash(
        "steerlens",
        title="steerlens playground",
        update_title=None,
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
        on_error=show_error,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    app.server.config["MAX_CONTENT_LENGTH"] = LARGEST_REQUEST
    guard(app.server, token)
    app.layout = lambda: page(shelf.model, shelf, shelf.pending)
    add_callbacks(app, Page(shelf, Tabs(), model_name))
    refuse_unknown_updates(app.server, app.callback_map)
    return app
