"""The server's addresses: an ASGI application in OpenAI's form, with plans beside it."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from steerlens.errors import SteerlensError, import_extra
from steerlens.files import decode_text, parse_json
from steerlens.schemas import check
from steerlens.serving.answering import (
    Answer,
    GoneError,
    Outcomes,
    Service,
    UnknownModelError,
    as_json,
    asked,
    unless_gone,
)
from steerlens.serving.bodies import ChatBody, CompletionBody, PlanBody
from steerlens.serving.engine import BusyError, ClosedError
from steerlens.serving.forms import CHAT, COMPLETION, Form, Json
from steerlens.serving.guard import Guard, error_body
from steerlens.serving.metrics import metrics
from steerlens.serving.plans import Plan, UnknownPlanError, read_plan

LARGEST_BODY = 2**20
"""Bytes: a context of 100,000 tokens takes half of it."""
RETRY_AFTER = "1"
"""Seconds after which a client may ask a full queue again."""
CLIENT_GONE = 499
"""The status in the counts for clients that have gone."""
_BODY = "the request body"


class TooLargeError(SteerlensError):
    """A body beyond `LARGEST_BODY`."""


class ForbiddenError(SteerlensError):
    """Something that this server was not started to allow."""


ERRORS: dict[type[SteerlensError], tuple[int, str, str | None]] = {
    UnknownModelError: (404, "invalid_request_error", "model_not_found"),
    UnknownPlanError: (404, "invalid_request_error", "plan_not_found"),
    TooLargeError: (413, "invalid_request_error", "body_too_large"),
    ForbiddenError: (403, "permission_error", None),
    BusyError: (429, "rate_limit_error", "queue_full"),
    ClosedError: (503, "server_error", "stopping"),
    SteerlensError: (400, "invalid_request_error", None),
}
"""Status, type and code of each kind of error."""


def make_app(service: Service, answered: Counter[int] | None = None) -> Any:
    """The application; while it runs, so does the service's engine.

    Args:
        service: What is served.
        answered: Counts answers by status.

    Raises:
        SteerlensError: Starlette is missing.
    """
    import_extra("starlette", "serve", "the server")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    counted = Counter[int]() if answered is None else answered

    @asynccontextmanager
    async def running(_: Any) -> AsyncIterator[None]:
        service.engine.start()
        try:
            yield
        finally:
            service.engine.close()

    def route(path: str, answer: Callable[..., Any], *methods: str) -> Any:
        return Route(path, partial(answer, service), methods=methods or ["GET"])

    return Starlette(
        routes=[
            route("/v1/models", _models),
            route("/v1/models/{name:path}", _model),
            route("/v1/chat/completions", partial(_reply, CHAT, ChatBody), "POST"),
            route("/v1/completions", partial(_reply, COMPLETION, CompletionBody), "POST"),
            route("/v1/steering", _plans),
            route("/v1/steering", _load, "POST"),
            route("/v1/steering/{name:path}", _unload, "DELETE"),
            route("/health", _health),
            route("/metrics", partial(_metrics, counted)),
        ],
        middleware=[Middleware(Guard, token=service.token, answered=counted)],
        exception_handlers={
            SteerlensError: _told,
            HTTPException: _told_by_router,
            Exception: _unexpected,
        },
        lifespan=running,
    )


async def _reply(form: Form, kind: type[Any], service: Service, request: Any) -> Any:
    """Reply to a chat or a completion, whole or as a stream."""
    from starlette.concurrency import run_in_threadpool

    body = await _body_of(request, kind)
    outcomes = Outcomes()

    def submitted() -> Answer:
        what = asked(service, body)
        tickets = service.engine.submit_all(what.requests, outcomes.put)
        return Answer(service, form, body, what, outcomes, tickets)

    answer = await run_in_threadpool(submitted)
    if body.stream:
        return _EventStream(answer)
    try:
        return _json(await unless_gone(request.receive, answer.whole()))
    except GoneError:
        return _json({}, CLIENT_GONE)
    finally:
        answer.close()


class _EventStream:
    """An answer as server-sent events; its rows are freed when the client goes."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await unless_gone(receive, self._send(send))
        except GoneError:
            pass
        finally:
            self._answer.close()

    async def _send(self, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for chunk in self._answer.chunks():
                await self._send_event(send, as_json(chunk))
        except Exception as error:  # the status has been sent: the error is an event
            await self._send_event(send, as_json(_error_of(error)[1]))
        await self._send_event(send, b"[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_event(self, send: Any, data: bytes) -> None:
        event = b"data: " + data + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})


async def _body_of(request: Any, kind: type[Any]) -> Any:
    """The body of a request, checked against its schema."""
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > LARGEST_BODY:
            raise TooLargeError(f"got more than {LARGEST_BODY:,} bytes; expected a smaller body")
    return check(kind, parse_json(decode_text(bytes(content), _BODY), _BODY), _BODY)


# Models and plans


async def _models(service: Service, _: Any) -> Any:
    """The model, and the model with each plan."""
    plans = [f"{service.name}+{plan.name}" for plan in service.shelf.plans]
    names = [service.name, *plans]
    return _json({"object": "list", "data": [_described(service, name) for name in names]})


async def _model(service: Service, request: Any) -> Any:
    """One of these."""
    name = request.path_params["name"]
    known = [service.name, *(f"{service.name}+{plan.name}" for plan in service.shelf.plans)]
    if name not in known:
        raise UnknownModelError(f"got the model {name!r}; expected one of {', '.join(known)}")
    return _json(_described(service, name))


def _described(service: Service, name: str) -> Json:
    return {"id": name, "object": "model", "created": service.began, "owned_by": "steerlens"}


async def _plans(service: Service, _: Any) -> Any:
    """The plans, in words."""
    return _json({"object": "list", "data": list(map(_plan_in_words, service.shelf.plans))})


def _plan_in_words(plan: Plan) -> Json:
    return {"name": plan.name, "file": plan.file, "steerings": list(map(repr, plan.steerings))}


async def _load(service: Service, request: Any) -> Any:
    """Load a plan from the allowed directory."""
    from starlette.concurrency import run_in_threadpool

    body: PlanBody = await _body_of(request, PlanBody)
    folder = _folder_of(service)

    def load() -> Plan:
        path = _within(folder, body.path)
        plan = read_plan(
            path, body.name, layers=body.layers, strength=body.strength, relative=body.relative
        )
        service.shelf.add(plan)
        return plan

    return _json(_plan_in_words(await run_in_threadpool(load)), 201)


async def _unload(service: Service, request: Any) -> Any:
    """Offer a plan no more."""
    _folder_of(service)
    name = request.path_params["name"]
    service.shelf.remove(name)
    return _json({"name": name, "deleted": True})


def _folder_of(service: Service) -> Path:
    if service.folder is None:
        raise ForbiddenError(
            "this server's plans are those that it was started with; to let clients change them, "
            "start it with --plans-from DIRECTORY"
        )
    return service.folder.resolve()


def _within(folder: Path, path: str) -> Path:
    """A path within the allowed directory, links followed."""
    try:
        resolved = (folder / path).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise SteerlensError(f"got {path[:200]!r}, which is no path; expected a file") from error
    if not resolved.is_relative_to(folder):
        raise ForbiddenError(
            f"got {path[:200]!r}; expected a file in the directory that plans may be loaded from"
        )
    return resolved


# How it is


async def _health(service: Service, _: Any) -> Any:
    """Whether the server lives, and how busy it is."""
    return _json({"status": "ok", **service.engine.load._asdict()})


async def _metrics(answered: Counter[int], service: Service, _: Any) -> Any:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(
        metrics(service.engine, answered), media_type="text/plain; version=0.0.4"
    )


# Answers


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    from starlette.responses import Response

    return Response(as_json(value), status, headers, "application/json")


def _error_of(error: Exception) -> tuple[int, Json]:
    """Status and body of an error."""
    for kind, (status, name, code) in ERRORS.items():
        if isinstance(error, kind):
            return status, error_body(str(error), name, code)
    return 500, error_body("the server failed; its log says why", "server_error")


def _told(_: Any, error: Exception) -> Any:
    status, body = _error_of(error)
    return _json(body, status, {"Retry-After": RETRY_AFTER} if status in (429, 503) else None)


def _told_by_router(request: Any, error: Any) -> Any:
    phrase = HTTPStatus(error.status_code).phrase.lower()
    message = f"got {request.method} {request.url.path[:200]!r}: {phrase}"
    return _json(error_body(message, "invalid_request_error"), error.status_code, error.headers)


def _unexpected(_: Any, error: Exception) -> Any:
    return _json(_error_of(error)[1], 500)
