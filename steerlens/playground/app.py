"""`steerlens playground`: a page to steer a model by hand, served to this machine only."""

import logging
import secrets
import webbrowser
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from tqdm import tqdm

from steerlens.errors import SteerlensError, import_extra
from steerlens.models.host import Model
from steerlens.models.loading import TINY_CHAT, load_model
from steerlens.playground.access import guard, is_loopback, refuse_unknown_updates
from steerlens.playground.library import LARGEST_UPLOAD, RECIPES, Library, make_entry

if TYPE_CHECKING:
    from steerlens.playground.jobs import JobQueue

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
    """Load the model, extract the library's vectors, and serve the page until interrupted.

    Args:
        model_name: what `load_model` takes.
        host: the address to listen on. Other than loopback, the address printed holds a token, and
            requests without it are refused.
        port: 0 takes any free one.
        open_browser: open the page in a browser.
        console: where the address is printed; the terminal if None.

    Raises:
        SteerlensError: if Dash is missing or the port is taken.
    """
    require_dash()
    console = console or Console()
    token = None if is_loopback(host) else secrets.token_urlsafe()
    from steerlens.playground.jobs import JobQueue

    queue = JobQueue()
    with listen(None, host, port) as server, closing(queue):  # fails before the work if it must
        model = load_model(model_name)
        recipes = tqdm(RECIPES, desc="vectors from the demo data", unit="vector")
        library = {recipe.name: make_entry(model, recipe) for recipe in recipes}
        app = make_app(model, library, queue, model_name, token)
        app.layout()  # calibrates the first vector, so that nobody waits for the page
        server.app = app.server
        url_host = f"[{host}]" if ":" in host else host
        address = f"http://{url_host}:{server.server_port}/" + (f"?token={token}" if token else "")
        notice = f"The playground is at {address} (Ctrl-C ends it)"
        console.print(notice, markup=False, soft_wrap=True)
        if open_browser:
            webbrowser.open(address)
        server.serve_forever()  # until Ctrl-C


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
    model: Model,
    library: Library,
    queue: "JobQueue",
    model_name: str = TINY_CHAT,
    token: str | None = None,
) -> Any:
    """The page and its callbacks as a Dash app; its `.server` is a Flask server.

    Args:
        model: the model that all tabs share.
        library: the vectors offered.
        queue: runs the tabs' jobs one at a time.
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
    state = Page(model, library, queue, Tabs(), model_name)
    app.layout = partial(page, model, library, state.strength_of)
    add_callbacks(app, state)
    refuse_unknown_updates(app.server, app.callback_map)
    return app
