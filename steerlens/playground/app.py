"""`steerlens playground`: a page to steer a model by hand, served to this machine alone."""

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
from steerlens.playground.access import guard, is_loopback, refuse_odd_updates
from steerlens.playground.library import LARGEST_UPLOAD, LIBRARY, Shelf, make_entry

if TYPE_CHECKING:
    from steerlens.playground.jobs import Turns

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
    from steerlens.playground.jobs import Turns

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
    for module in ("dash", "flask", "cachetools"):
        import_extra(module, "playground", "the playground")


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
    turns: "Turns",
    model_name: str = TINY_CHAT,
    token: str | None = None,
) -> Any:
    """The page and its callbacks as a Dash app; `.server` is the Flask server behind it."""
    from dash import Dash

    from steerlens.playground.callbacks import Page, add_callbacks, tell
    from steerlens.playground.jobs import Tabs
    from steerlens.playground.layout import page

    app = Dash(
        "steerlens",
        title="steerlens playground",
        update_title=None,
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
        on_error=tell,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    app.server.config["MAX_CONTENT_LENGTH"] = LARGEST_REQUEST
    guard(app.server, token)
    app.layout = partial(page, model, library)
    add_callbacks(app, Page(model, library, turns, Tabs(), model_name))
    refuse_odd_updates(app.server, app.callback_map)
    return app
