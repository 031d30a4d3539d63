"""Access control of the page: loopback host check, token, security headers."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field

from steerlens.access import LOOPBACK, same_secret
from steerlens.errors import SteerlensError, short_repr
from steerlens.schemas import Declared, check

COOKIE = "steerlens-token"
LARGEST_UPLOAD = 8 * 2**20
"""Bytes of a vector file; 80 layers of width 8,192 take a third of it."""
LARGEST_REQUEST = 6 * LARGEST_UPLOAD
"""Bytes: uploads are sent as base64, and those a little too large still get an explanation."""
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Load nothing from other hosts, be framed by no other page. Dash and Plotly need `unsafe`."""


def guard(server: Any, token: str | None = None) -> None:
    """Make a Flask server refuse requests from other machines and other pages.

    Requests of another origin are always refused.

    Args:
        server: the Flask server; it is changed in place.
        token: None: the `Host` header must be a loopback name, since a foreign page can point its
            own name at 127.0.0.1. Otherwise a request must carry this token, once as `?token=` and
            then as a cookie.
    """
    from flask import abort, redirect, request

    if token is None:
        server.config["TRUSTED_HOSTS"] = list(LOOPBACK)

    @server.before_request
    def check_sender() -> Any:
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            abort(403, f"got a request from a page of {origin!r}; open {request.host_url} itself")
        if token is None:
            return None
        token_sent = request.args.get("token")
        if not same_secret(token_sent or request.cookies.get(COOKIE, ""), token):
            abort(403, "got no valid token; open the address that the terminal shows")
        if token_sent is None:
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


class _Update(Declared):
    """A callback request, as Dash's browser side sends it."""

    model_config = ConfigDict(extra="ignore")

    output: str
    outputs: dict[str, Any] | list[Any] = Field(default=[])
    """Not sent for a callback without outputs, such as that of the stop button."""
    inputs: list[Any]
    state: list[Any] = Field(default=[])
    changedPropIds: list[str]  # noqa: N815


def refuse_unknown_updates(server: Any, callbacks: Mapping[str, Any]) -> None:
    """Answer 400 to posts that the page itself never makes.

    Args:
        server: the Flask server; it is changed in place.
        callbacks: by output, each with its `inputs` and `state`, as Dash keeps them.
    """
    from flask import abort, request

    @server.before_request
    def check_update() -> None:
        if request.method != "POST":
            return
        try:
            update = check(_Update, request.get_json(), "the request")
        except SteerlensError as error:
            abort(400, str(error))
        if update.output not in callbacks:
            abort(
                400, f"got {short_repr(update.output)}, which is no output of this page; reload it"
            )
        callback = callbacks[update.output]
        for name, given, declared in (
            ("inputs", update.inputs, callback["inputs"]),
            ("state", update.state, callback["state"]),
            ("outputs", *_outputs(update, callback["no_output"])),
        ):
            if not _fits(given, declared):
                abort(400, f"got other {name} than this page sends: {short_repr(given)}; reload it")


def _outputs(update: _Update, no_output: bool) -> tuple[list[Any], list[dict[str, str]]]:
    """The outputs that a request names, and those that its callback has."""
    several = update.output.startswith("..")
    names = update.output[2:-2].split("...") if several else [update.output]
    parts = [name.rpartition(".") for name in names]
    declared = [{"id": part[0], "property": part[2].partition("@")[0]} for part in parts]
    given = update.outputs if several or not update.outputs else [update.outputs]
    return list(given), [] if no_output else declared


def _fits(given: Sequence[Any], declared: Sequence[Mapping[str, str]]) -> bool:
    """Whether these are the values of the declared parts; one by pattern is a list of parts."""
    if len(given) != len(declared):
        return False
    for part, known in zip(given, declared, strict=True):
        by_pattern = known["id"].startswith("{")
        keys = json.loads(known["id"]).keys() if by_pattern else ()
        parts = part if by_pattern else [part]
        if not isinstance(parts, list) or not all(
            isinstance(one, dict)
            and str(one.get("property")).partition("@")[0] == known["property"]
            and (_has_keys(one.get("id"), keys) if by_pattern else one.get("id") == known["id"])
            for one in parts
        ):
            return False
    return True


def _has_keys(identity: Any, keys: Collection[str]) -> bool:
    return isinstance(identity, dict) and identity.keys() == keys
