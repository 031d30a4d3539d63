"""Continuous batching: rows join the running batch when their prompt has been read, and leave it.

One thread runs the model; any number of threads submit requests and cancel them.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from threading import Condition, Event, Thread
from typing import NamedTuple

from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.serving.batch import RunningBatch
from steerlens.serving.requests import Piece, Request, RequestRows
from steerlens.steering.transcripts import Replies


class BusyError(SteerlensError):
    """No room in the queue; later there will be."""


class ClosedError(SteerlensError):
    """The engine is stopping."""


@dataclass(frozen=True)
class Limits:
    """How much is taken at once.

    Args:
        rows: Most rows in the running batch.
        queue: Most requests that wait to join it.
        prompt_tokens: Prompts are read until so many tokens are reached between two decoding
            steps, and at least one; what is written waits meanwhile.
    """

    rows: int = 32
    queue: int = 64
    prompt_tokens: int = 1024


Outcome = Piece | Replies | Exception
"""What a request's listener gets: pieces, and at last its replies, or what went wrong."""


@dataclass(eq=False)
class Ticket:
    """A submitted request; what comes of it is given to its listener, in the engine's thread."""

    rows: RequestRows
    listener: Callable[[Outcome], None]
    submitted: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    _gone: Event = field(default_factory=Event)

    def cancel(self) -> None:
        """Free the request's rows before the next step; its listener hears no more."""
        self._gone.set()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the replies any more."""
        return self._gone.is_set()

    def tell(self, event: Outcome) -> None:
        """Give an event to the listener; one that raises is gone."""
        if self.cancelled:
            return
        try:
            self.listener(event)
        except Exception:
            logging.getLogger(__name__).exception("a listener failed; its request is cancelled")
            self.cancel()


@dataclass
class Counts:
    """What an engine has done since it began."""

    requests: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    """Decoding steps: forward passes of the running batch."""
    first_tokens: int = 0
    first_token_seconds: float = 0.0
    """From submission to the first token, summed over `first_tokens` requests."""


class Load(NamedTuple):
    """How busy an engine is."""

    running_rows: int
    waiting_requests: int


class Engine:
    """Replies to requests in one running batch.

    Every reply is that of `generate` with the request's prompt, steerings and sampling alone.

    Args:
        model: The model; of a HookedTransformer only.
        limits: How much is taken at once.

    >>> from steerlens.models.tokenizing import tokenize
    >>> engine, seen = Engine(model), []
    >>> [row] = tokenize(model, ["How do I bake bread?"])
    >>> ticket = engine.submit(Request(row, max_new_tokens=5), seen.append)
    >>> while engine.step():
    ...     pass
    >>> seen[-1][0]
    'Here is what I know'
    """

    def __init__(self, model: Model, limits: Limits = Limits()) -> None:
        self.model, self.limits, self.counts = model, limits, Counts()
        self._batch = RunningBatch(model)
        self._running: dict[RequestRows, Ticket] = {}
        self._waiting: deque[Ticket] = deque()
        self._changed = Condition()
        self._closing = self._stopped = False
        self._thread: Thread | None = None

    @property
    def load(self) -> Load:
        """How many rows are decoded, and how many requests wait."""
        with self._changed:
            return Load(sum(map(len, self._running)), len(self._waiting))

    def submit(self, request: Request, listener: Callable[[Outcome], None]) -> Ticket:
        """Put a request into the queue.

        Args:
            request: What is asked for.
            listener: Called with every piece, and at last with the `Replies` or an exception.

        Raises:
            BusyError: The queue is full.
            ClosedError: The engine is stopping.
            SteerlensError: The request cannot be replied to: see `RequestRows`.
        """
        [ticket] = self.submit_all([request], listener=lambda _, event: listener(event))
        return ticket

    def submit_all(
        self, requests: Iterable[Request], listener: Callable[[int, Outcome], None]
    ) -> list[Ticket]:
        """Put several requests into the queue: all of them, or none.

        Args:
            requests: What is asked for.
            listener: Called with the number of a request, and what comes of it.

        Raises:
            SteerlensError: As in `submit`.
        """
        requests = list(requests)
        if len(requests) > self.limits.queue:
            raise SteerlensError(
                f"got {len(requests)} prompts; expected at most {self.limits.queue}, which the "
                "queue holds: ask several times"
            )
        tickets = []
        for index, request in enumerate(requests):
            if request.n > self.limits.rows:
                raise SteerlensError(
                    f"got n={request.n} replies; expected at most {self.limits.rows}, which the "
                    "running batch holds: ask several times"
                )
            rows = RequestRows(self.model, request)
            tickets.append(Ticket(rows, partial(listener, index)))
        with self._changed:
            if self._closing:
                raise ClosedError("got a request while the server stops; send it again later")
            if len(self._waiting) + len(tickets) > self.limits.queue:
                raise BusyError(
                    f"got {len(tickets)} requests while {len(self._waiting)} wait; expected at "
                    f"most {self.limits.queue} in the queue: send it again later"
                )
            self._waiting.extend(tickets)
            self.counts.requests += len(tickets)
            self._changed.notify_all()
        return tickets

    def step(self) -> bool:
        """Drop what is cancelled, read prompts for which there are rows, write one token of each.

        Returns whether anything is left to do.
        """
        self._drop_cancelled()
        for ticket in self._admitted():
            self._begin(ticket)
        if self._batch.members:
            self._decode()
        with self._changed:
            return bool(self._running or self._waiting)

    def start(self) -> None:
        """Run steps in a thread of its own, until `close`."""
        self._thread = Thread(target=self._run, name="steerlens-engine", daemon=True)
        self._thread.start()

    def close(self, patience: float = 0.0) -> None:
        """Take no more requests; cancel those that have not ended in time, and stop the thread.

        Args:
            patience: Seconds that requests get to end by themselves.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._running or self._waiting), patience)
            unfinished = [*self._running.values(), *self._waiting]
            self._stopped = True
            self._changed.notify_all()
        for ticket in unfinished:
            ticket.tell(ClosedError("got no time to end the reply: the server stops"))
            ticket.cancel()
        if self._thread is not None:
            self._thread.join()
        self._drop_cancelled()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._running or self._waiting)
                if self._stopped:
                    return
            try:
                self.step()
            except Exception as error:  # not expected; whoever waits must hear of it
                for rows in list(self._running):
                    self._fail(rows, error)

    def _drop_cancelled(self) -> None:
        for rows, ticket in list(self._running.items()):
            if ticket.cancelled:
                self._leave(rows)
                self.counts.cancelled += 1
        with self._changed:
            kept = [ticket for ticket in self._waiting if not ticket.cancelled]
            self.counts.cancelled += len(self._waiting) - len(kept)
            self._waiting = deque(kept)

    def _admitted(self) -> list[Ticket]:
        """The requests that join now: first come, first served."""
        admitted: list[Ticket] = []
        tokens = 0
        with self._changed:
            free = self.limits.rows - sum(map(len, self._running))
            while self._waiting and tokens < self.limits.prompt_tokens:
                request = self._waiting[0].rows.request
                if request.n > free:
                    break
                free -= request.n
                tokens += len(request.row.ids)
                admitted.append(self._waiting.popleft())
            self._running |= {ticket.rows: ticket for ticket in admitted}
        return admitted

    def _begin(self, ticket: Ticket) -> None:
        rows = ticket.rows
        try:
            pieces = rows.begin(self._batch.fast)
        except Exception as error:
            self._fail(rows, error)
            return
        now = time.monotonic()
        self.counts.first_tokens += 1
        self.counts.first_token_seconds += now - ticket.submitted
        self.counts.prompt_tokens += len(rows.request.row.ids)
        if len(rows):
            self._batch.members.append(rows)
        self._tell(rows, pieces)

    def _decode(self) -> None:
        members = list(self._batch.members)
        try:
            written = self._batch.decode()
        except Exception as error:  # such as memory running out: none of them can go on
            for rows in members:
                rows.error = error
        else:
            self.counts.steps += 1
            for rows, pieces in written:
                self._tell(rows, pieces)
        for rows in members:
            if rows.error is not None:
                self._fail(rows, rows.error)

    def _tell(self, rows: RequestRows, pieces: list[Piece]) -> None:
        """Give pieces to the listener, and the replies once all have ended."""
        ticket = self._running[rows]
        self.counts.generated_tokens += len(pieces)
        for piece in pieces:
            ticket.tell(piece)
        if not len(rows):
            replies = rows.replies()
            self._leave(rows)
            self.counts.finished += 1
            ticket.tell(replies)

    def _fail(self, rows: RequestRows, error: Exception) -> None:
        ticket = self._leave(rows)
        self.counts.failed += 1
        if not isinstance(error, SteerlensError):
            logging.getLogger(__name__).error("a request failed", exc_info=error)
        ticket.tell(error)

    def _leave(self, rows: RequestRows) -> Ticket:
        self._batch.members = [one for one in self._batch.members if one is not rows]
        with self._changed:
            ticket = self._running.pop(rows)
            self._changed.notify_all()
        return ticket
