"""Who may talk to a page's server: this machine's own browser, or who has the token."""

import hmac
from collections.abc import Container
from typing import Any

from pydantic import ConfigDict, Field

from steerlens.errors import SteerlensError, short_repr
from steerlens.schemas import Declared, check

COOKIE = "steerlens-token"
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Nothing from elsewhere, and no page elsewhere around this one. Dash and Plotly need `unsafe`."""


LOOPBACK = ("localhost", "127.0.0.1")
"""Names of this machine that no other can have. Flask's TRUSTED_HOSTS knows no IPv6 address."""


def is_loopback(host: str | None) -> bool:
    """Whether a page can be served under this name without a token.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    return host in LOOPBACK


def guard(server: Any, token: str | None = None) -> None:
    """Make a Flask server refuse whom it does not serve.

    Without a token, the `Host` asked for must be a loopback name: a page elsewhere can point a
    name of its own at 127.0.0.1. With one, the request must bring it: `?token=` once, then a
    cookie. Pages of another origin are refused either way, and so is what is no request of Dash.
    """
    from flask import abort, redirect, request

    if token is None:
        server.config["TRUSTED_HOSTS"] = list(LOOPBACK)

    @server.before_request
    def check_sender() -> Any:
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            abort(403, f"a page of {origin!r} may not use this server")
        if token is None:
            return None
        given = request.args.get("token")
        if not _same(given or request.cookies.get(COOKIE, ""), token):
            abort(403, "the token is missing or wrong; open the address that the terminal shows")
        if given is None:
            return None
        response = redirect(request.path)  # the token need not stay in the address bar
        response.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
        return response

    @server.after_request
    def harden(response: Any) -> Any:
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


class _Update(Declared):
    """What Dash's side in the browser sends where something was changed."""

    model_config = ConfigDict(extra="ignore")

    output: str
    outputs: dict[str, Any] | list[Any]
    inputs: list[Any]
    state: list[Any] = Field(default=[])
    changedPropIds: list[str]  # noqa: N815


def refuse_odd_updates(server: Any, known: Container[str]) -> None:
    """Answer 400 to what is no change of a page, or of an output that is not `known`."""
    from flask import abort, request

    @server.before_request
    def check_update() -> None:
        if request.method != "POST":
            return
        try:
            update = check(_Update, request.get_json(), "the request")
        except SteerlensError as error:
            abort(400, str(error))
        if update.output not in known:
            abort(400, f"got a change of {short_repr(update.output)}, which is not on the page")
