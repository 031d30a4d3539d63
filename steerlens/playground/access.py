"""Who may talk to a page's server: this machine's own browser, or who has the token."""

import hmac
import ipaddress
from typing import Any
from urllib.parse import urlsplit

COOKIE = "steerlens-token"
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Nothing from elsewhere, and no page elsewhere around this one. Dash and Plotly need `unsafe`."""


def is_loopback(host: str | None) -> bool:
    """Whether a name or address stands for this machine alone.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def guard(server: Any, token: str | None = None) -> None:
    """Make a Flask server answer 403 to whom it does not serve.

    Without a token, the `Host` asked for must be a loopback name: a page elsewhere can point a
    name of its own at 127.0.0.1. With one, the request must bring it: `?token=` once, then a
    cookie. Pages of another origin are refused either way.
    """
    from flask import abort, redirect, request

    @server.before_request
    def check() -> Any:
        asked = urlsplit(f"//{request.host}")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            abort(403, f"a page of {origin!r} may not use this server")
        if token is None:
            if not is_loopback(asked.hostname):
                abort(403, f"this server is not {request.host!r}; open http://127.0.0.1")
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
    return hmac.compare_digest(given.encode(), token.encode())
