"""From the body of a request to its answer: checked, submitted, and collected or streamed."""

import asyncio
import json
import secrets
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from steerlens.errors import SteerlensError, short_repr
from steerlens.models.tokenizing import tokenize
from steerlens.serving.bodies import ChatBody, CompletionBody
from steerlens.serving.engine import Engine, Outcome, Ticket
from steerlens.serving.forms import Form, Json, steering_report, usage
from steerlens.serving.plans import Dose, Shelf, parse_model
from steerlens.serving.requests import Piece, Request, TokenScore
from steerlens.steering.sampling import LARGEST_SEED
from steerlens.steering.steering import Steering
from steerlens.steering.transcripts import Replies

Result = TypeVar("Result")
Body = ChatBody | CompletionBody


class UnknownModelError(SteerlensError):
    """The request is for another model."""


class GoneError(Exception):
    """The client has closed the connection."""


@dataclass(frozen=True, eq=False)
class Service:
    """What a server serves.

    Args:
        engine: Writes the replies.
        shelf: The plans by name.
        name: The model's name for clients.
        longest: Most new tokens of a reply.
        folder: From where clients may load plans; None: from nowhere.
        token: What clients must send; None: only this machine is served.
    """

    engine: Engine
    shelf: Shelf
    name: str
    longest: int = 512
    folder: Path | None = None
    token: str | None = None
    began: int = field(default_factory=lambda: int(time.time()))
    tokenizing: Lock = field(default_factory=Lock)
    """Tokenizers are not made for several threads at once."""


class Asked(NamedTuple):
    """What the body of a request asks for."""

    requests: list[Request]
    doses: tuple[Dose, ...]
    steerings: tuple[Steering, ...]
    seed: int
    told: list[str]
    """Warnings about its prompts."""


def asked(service: Service, body: Body) -> Asked:
    """What a body asks for, tokenised.

    Raises:
        SteerlensError: Another model, an unknown plan, an impossible setting or prompt.
    """
    base, doses = parse_model(body.model)
    if base != service.name:
        raise UnknownModelError(
            f"got the model {short_repr(body.model)}; expected {service.name!r}, or with plans "
            f"'{service.name}+PLAN@STRENGTH'; GET /v1/models lists them"
        )
    if doses and body.doses:
        raise SteerlensError(
            "got plans in the model's name and in 'steering'; expected one of both: leave one out"
        )
    doses = doses or body.doses
    steerings = service.shelf.steerings(doses)
    sampling = body.sampling(seed=secrets.randbelow(LARGEST_SEED))
    model = service.engine.model
    with service.tokenizing, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = tokenize(model, body.prompts, chat=isinstance(body, ChatBody))
    longest = service.longest if body.longest is None else body.longest
    if longest > service.longest:
        raise SteerlensError(
            f"got {longest} as the most new tokens; this server writes at most {service.longest}"
        )
    requests = []
    for row in rows:
        room = max(1, model.cfg.n_ctx - len(row.ids))
        most = longest if body.longest is not None else min(longest, room)
        requests.append(
            Request(row, steerings, sampling, most, body.choices, body.stops, body.likeliest)
        )
    return Asked(requests, doses, steerings, sampling.seed, [str(one.message) for one in caught])


class Outcomes:
    """What comes of some requests, from the engine's thread into this event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Outcome]] = asyncio.Queue()

    def put(self, index: int, outcome: Outcome) -> None:
        """Take what came of a request; called in any thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, outcome))

    async def until_all_end(self, n: int) -> AsyncIterator[tuple[int, Piece | Replies]]:
        """What comes of n requests, each with its number, until all have their replies.

        Raises:
            Exception: What went wrong with one of them.
        """
        while n:
            index, outcome = await self._queue.get()
            if isinstance(outcome, Exception):
                raise outcome
            n -= isinstance(outcome, Replies)
            yield index, outcome


class Answer:
    """The answer to one body, whole or as a stream.

    Args:
        service: What is served.
        form: How replies look.
        body: What was sent.
        what: What it asks for.
        outcomes: Where the engine puts what comes of it.
        tickets: Of its requests, cancelled by `close`.
    """

    def __init__(
        self,
        service: Service,
        form: Form,
        body: Body,
        what: Asked,
        outcomes: Outcomes,
        tickets: Sequence[Ticket],
    ) -> None:
        self._tokenizer = service.engine.model.tokenizer
        self._form, self._body, self._what = form, body, what
        self._outcomes, self._tickets = outcomes, tickets
        self._head = {
            "id": form.prefix + secrets.token_hex(12),
            "created": int(time.time()),
            "model": body.model,
        }

    def close(self) -> None:
        """Free the rows that have not ended."""
        for ticket in self._tickets:
            ticket.cancel()

    async def whole(self) -> Json:
        """The finished answer."""
        n = len(self._what.requests) * self._body.choices
        finish: list[str | None] = [None] * n
        scores: list[list[TokenScore]] = [[] for _ in range(n)]
        replies: dict[int, Replies] = {}
        async for index, outcome in self._coming():
            if isinstance(outcome, Replies):
                replies[index] = outcome
                continue
            place = index * self._body.choices + outcome.choice
            finish[place] = outcome.finish or finish[place]
            scores[place] += [] if outcome.score is None else [outcome.score]
        in_order = [replies[index] for index in sorted(replies)]
        texts = [text for one in in_order for text in one]
        choices = [
            self._form.choice(i, self._form.whole(text), self._logprobs(scores[i]), finish[i])
            for i, text in enumerate(texts)
        ]
        end = {"choices": choices, "usage": self._usage(in_order), **self._report(in_order)}
        return {**self._head, "object": self._form.kind, **end}

    async def chunks(self) -> AsyncIterator[Json]:
        """The answer in pieces: the last that ends a reply says what gates saw."""
        n = len(self._what.requests) * self._body.choices
        if self._form.opening is not None:
            for place in range(n):
                yield self._chunk([self._form.choice(place, self._form.opening, None, None)])
        replies: dict[int, Replies] = {}
        last: Json = {}  # the latest chunk that ended a reply
        async for index, outcome in self._coming():
            if isinstance(outcome, Replies):
                replies[index] = outcome
                continue
            if not (outcome.text or outcome.score or outcome.finish):
                continue
            place = index * self._body.choices + outcome.choice
            scores = self._logprobs([] if outcome.score is None else [outcome.score])
            text = self._form.part(outcome.text)
            chunk = self._chunk([self._form.choice(place, text, scores, outcome.finish)])
            if outcome.finish is not None:
                chunk, last = last, chunk
            if chunk:
                yield chunk
        in_order = [replies[index] for index in sorted(replies)]
        yield last | self._report(in_order)
        if self._body.with_usage:
            yield self._chunk([]) | {"usage": self._usage(in_order)}

    def _coming(self) -> AsyncIterator[tuple[int, Piece | Replies]]:
        return self._outcomes.until_all_end(len(self._tickets))

    def _chunk(self, choices: list[Json]) -> Json:
        return {**self._head, "object": self._form.chunk_kind, "choices": choices}

    def _logprobs(self, scores: Sequence[TokenScore]) -> Json | None:
        if self._body.likeliest is None:
            return None
        return self._form.logprobs(self._tokenizer, scores)

    def _usage(self, replies: Sequence[Replies]) -> Json:
        return usage(sum(len(one.row.ids) for one in self._what.requests), replies)

    def _report(self, replies: Sequence[Replies]) -> Json:
        what = self._what
        return steering_report(what.doses, what.steerings, what.seed, what.told, replies)


async def unless_gone(
    receive: Callable[[], Coroutine[Any, Any, Any]], work: Coroutine[Any, Any, Result]
) -> Result:
    """The result of some work, which is given up when the client closes the connection.

    Args:
        receive: ASGI's, after the body has been read.
        work: What to do meanwhile.

    Raises:
        GoneError: The client has gone.
    """

    async def closed() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(closed())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GoneError
        return working.result()
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


def as_json(value: Any) -> bytes:
    """JSON in ASCII, so that every text can be sent."""
    return json.dumps(value, allow_nan=False).encode()
