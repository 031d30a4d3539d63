"""`steerlens serve`: the application on a port, until it is interrupted."""

import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from steerlens.access import is_loopback
from steerlens.errors import SteerlensError, import_extra
from steerlens.models.host import Model
from steerlens.serving.answering import Service
from steerlens.serving.app import make_app
from steerlens.serving.engine import Engine, Limits
from steerlens.serving.plans import Plan, Shelf


def make_service(
    model: Model,
    plans: Sequence[Plan] = (),
    *,
    name: str,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    longest: int = 512,
    folder: Path | None = None,
    token: str | None = None,
) -> Service:
    """A model with its plans, ready to be served.

    Args:
        model: The model.
        plans: The plans that it begins with.
        name: The model's name for clients.
        limits: How much is taken at once.
        longest: Most new tokens of a reply.
        folder: From where clients may load plans; None: from nowhere.
        token: What clients must send; None: only this machine is served.

    Raises:
        SteerlensError: A plan that does not fit the model, or a name that no client could use.

    >>> make_service(model, [Plan("refuse", (steering,), "refuse.safetensors")], name="tiny").name
    'tiny'
    """
    if not name or "+" in name:
        raise SteerlensError(
            f"got {name!r} as the name of the model; expected one without '+', which separates "
            "plans: give another with --name"
        )
    return Service(Engine(model, limits), Shelf(model, plans), name, longest, folder, token)


def token_for(host: str, token: str | None) -> str | None:
    """The token that clients must send: the given one, or a new one beyond this machine.

    >>> token_for("127.0.0.1", None) is None, token_for("0.0.0.0", "a long secret")
    (True, 'a long secret')
    """
    if token is not None and len(token) < 8:
        raise SteerlensError("got a token of fewer than 8 characters; expected a longer one")
    return secrets.token_urlsafe() if token is None and not is_loopback(host) else token


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; port 0 takes any free one."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        raise SteerlensError(
            f"cannot listen on {host}, port {port}: the port is taken, or the address is not this "
            "machine's; choose another with --port or --host"
        ) from error


def serve(service: Service, listening: socket.socket, *, patience: int = 10) -> None:
    """Serve until interrupted; then no request is taken, and those that run get time to end.

    Args:
        service: What is served.
        listening: Where; see `bound`.
        patience: Seconds for requests to end; after that, their rows are freed.
    """
    with listening:
        _server(service, patience).run(sockets=[listening])


@contextmanager
def in_background(
    service: Service, host: str = "127.0.0.1", port: int = 0, *, patience: int = 10
) -> Iterator[str]:
    """Serve in a thread, from a notebook for example, until the block ends; gives the address.

    Args:
        service: What is served.
        host: The address to listen on.
        port: 0 takes any free one.
        patience: As in `serve`.

    Raises:
        SteerlensError: The address cannot be listened on.

    >>> from urllib.request import urlopen
    >>> with in_background(make_service(model, name="tiny")) as address:
    ...     urlopen(f"{address}/health").status
    200
    """
    server = _server(service, patience)
    with bound(host, port) as listening:
        thread = Thread(target=server.run, args=([listening],), name="steerlens-server")
        thread.start()
        try:
            while thread.is_alive() and not server.started:
                thread.join(0.01)
            if not server.started:
                raise SteerlensError("the server has not begun; the log says why")
            yield address_of(listening)
        finally:
            server.should_exit = True
            thread.join()


def address_of(listening: socket.socket) -> str:
    """The URL of a server on this socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _server(service: Service, patience: int) -> Any:
    uvicorn = import_extra("uvicorn", "serve", "the server")
    config = uvicorn.Config(
        make_app(service),
        log_level="error",
        access_log=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=patience,
    )
    return uvicorn.Server(config)
