"""Who is served: this machine only, or whoever sends the token; and errors in OpenAI's form."""

from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from steerlens.access import LOOPBACK, same_secret
from steerlens.serving.answering import as_json
from steerlens.serving.forms import Json

OPEN_PATHS = ("/health",)
"""What is answered without a token, for those who watch whether the server lives."""


def error_body(message: str, kind: str, code: str | None = None) -> Json:
    """An error as OpenAI's clients read it.

    >>> error_body("no such model", "invalid_request_error", "model_not_found")["error"]["code"]
    'model_not_found'
    """
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class Guard:
    """ASGI middleware: refuses other machines, foreign pages and wrong tokens; counts answers.

    Args:
        app: The application behind it.
        token: What clients must send as a bearer token; None: the name under which the server is
            asked for must be a loopback one, since a foreign page can point its own name at
            127.0.0.1.
        answered: Counts answers by status.
    """

    def __init__(self, app: Any, token: str | None, answered: Counter[int]) -> None:
        self._app, self._token, self._answered = app, token, answered

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._answered[message["status"]] += 1
            await send(message)

        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        refusal = self._refusal(scope["path"], headers)
        if refusal is None:
            await self._app(scope, receive, counting)
            return
        status, error = refusal
        content = [(b"content-type", b"application/json"), (b"connection", b"close")]
        if status == 401:
            content.append((b"www-authenticate", b"Bearer"))
        await counting({"type": "http.response.start", "status": status, "headers": content})
        await counting({"type": "http.response.body", "body": as_json(error)})

    def _refusal(self, path: str, headers: dict[str, str]) -> tuple[int, Json] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, error_body(
                f"got a request from a page of {origin[:100]!r}; pages of other servers are not "
                "served",
                "permission_error",
            )
        if self._token is None:
            if _name_of(host) in LOOPBACK:
                return None
            return 403, error_body(
                f"got a request for the host {host[:100]!r}; expected {' or '.join(LOOPBACK)}: "
                "serve others with --host and a token",
                "permission_error",
            )
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        if path in OPEN_PATHS or (
            scheme.lower() == "bearer" and same_secret(sent.strip(), self._token)
        ):
            return None
        message = "got no valid token; send the one that the server was started with as api_key"
        return 401, error_body(message, "authentication_error", "invalid_api_key")


def _name_of(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
