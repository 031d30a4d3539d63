"""A judge behind an OpenAI-compatible server; without one, no text leaves the machine."""

import hashlib
import math
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import Float

from steerlens.errors import SteerlensError, import_extra
from steerlens.judges.judging import Judge, JudgeError, JudgeWarning

KEY_VARIABLE = "STEERLENS_API_KEY"
"""The environment variable with the API key; never another service's, by accident."""

TEMPLATE = """{question}

<text>
{text}
</text>

Answer with one number from {low:g} to {high:g}, and nothing else."""

_NUMBER = re.compile(
    r"[^\w-]*(?:(?:rating|score|answer)[^\w-]+)?(-?\d+(?:\.\d+)?)"
    r"(?:\W*(?:/|out of)\s*(\d+(?:\.\d+)?))?\W*",
    re.IGNORECASE,
)
"""A number, and the largest one possible if the answer names it ("8 out of 10")."""


def endpoint(
    url: str,
    model: str,
    question: str,
    *,
    name: str = "endpoint",
    scale: tuple[float, float] = (0, 10),
    api_key: str | None = None,
    concurrency: int = 4,
    retries: int = 3,
    timeout: float = 60.0,
    max_tokens: int = 16,
) -> Judge:
    """A judge that asks a chat-completions server to rate each text; needs the `openai` client.

    Scores are kept: after a `JudgeError`, the same judge asks only for the missing ones. An empty
    text scores NaN; so does an answer without exactly one number on the scale, with a warning.

    Args:
        url: The server's address, up to and without `/chat/completions`.
        model: The model's name on the server.
        question: What to ask about a text.
        name: The judge's name.
        scale: The lowest and the highest rating.
        api_key: The server's key; None: the environment variable STEERLENS_API_KEY.
        concurrency: Most requests at the same time.
        retries: How often to ask a busy or failing server again, each time after twice the wait.
        timeout: Seconds to wait for an answer.
        max_tokens: Most tokens of an answer.

    Raises:
        SteerlensError: An impossible setting, or no `openai` client. The judge itself raises
            `JudgeError` if the server cannot be reached or refuses.

    >>> polite = endpoint("http://localhost:8000/v1", "my-model", "How polite is this reply?")
    >>> polite(["Thank you!", "Go away."])  # doctest: +SKIP
    array([9., 1.])
    """
    if not _is_address(url):
        raise SteerlensError(f"got url={url!r}; expected one like 'http://localhost:8000/v1'")
    if not scale[0] < scale[1] or concurrency < 1 or retries < 0 or timeout <= 0:
        raise SteerlensError(
            f"got scale={scale}, concurrency={concurrency}, retries={retries}, timeout={timeout}; "
            "expected an increasing scale, concurrency ≥ 1, retries ≥ 0, timeout > 0"
        )
    _openai()  # refuses here, before any reply is generated, if the client is missing
    key = (os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key).strip()
    if not (key.isascii() and key.isprintable()):
        raise SteerlensError(
            "the API key holds characters that cannot be sent in a header; expected printable "
            f"ASCII: check api_key or the variable {KEY_VARIABLE}"
        )
    asker = _Asker(
        url.removesuffix("/").removesuffix("/chat/completions"),
        model,
        question,
        scale,
        key,
        concurrency,
        retries,
        timeout,
        max_tokens,
    )
    question_hash = hashlib.sha256(f"{TEMPLATE}{question}{scale}{max_tokens}".encode()).hexdigest()[
        :12
    ]
    version = f"{model} at {url}, question {question_hash}, {scale[0]:g} to {scale[1]:g}"
    return Judge(name, asker, version)


def _openai() -> Any:
    return import_extra("openai", "judges", "a judge behind a server")


def _is_address(url: str) -> bool:
    try:
        parsed = urlsplit(url)
        return parsed.scheme in ("http", "https") and bool(parsed.hostname) and parsed.port != 0
    except ValueError:
        return False


@dataclass(frozen=True)
class _Asker:
    url: str
    model: str
    question: str
    scale: tuple[float, float]
    api_key: str = field(repr=False)
    concurrency: int
    retries: int
    timeout: float
    max_tokens: int
    known: dict[str, float] = field(default_factory=dict, repr=False)
    """Ratings so far, by text."""

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        missing = [t for t in dict.fromkeys(texts) if t.strip() and t not in self.known]
        with self._client() as client:
            try:
                unread = self._ask_all(client, missing)
            except SteerlensError as error:
                scores = self._scores(texts)
                judged = int((~np.isnan(scores)).sum())
                raise JudgeError(
                    f"{error}; {judged} of {len(texts)} texts are judged and kept: call again to "
                    "ask for the rest",
                    scores,
                ) from error
        if unread:
            warnings.warn(
                f"{len(unread)} of {len(missing)} answers of {self.model} are not one number from "
                f"{self.scale[0]:g} to {self.scale[1]:g}, such as {unread[0][:80]!r}; they are NaN",
                JudgeWarning,
                stacklevel=2,
            )
        return self._scores(texts)

    def _client(self) -> Any:
        return _openai().OpenAI(
            base_url=self.url,
            api_key=self.api_key or "none",  # otherwise the client takes one from the environment
            max_retries=self.retries,
            timeout=self.timeout,
        )

    def _scores(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        return np.array([self.known.get(text, math.nan) for text in texts], dtype=np.float64)

    def _ask_all(self, client: Any, texts: Sequence[str]) -> list[str]:
        """Ask for several at once, keep the ratings, and return the answers without one."""
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            asked = [pool.submit(self._judge, client, text) for text in texts]
            return [answer for done in as_completed(asked) for answer in done.result()]
        finally:
            pool.shutdown(
                cancel_futures=True
            )  # waits for requests under way, and keeps their ratings

    def _judge(self, client: Any, text: str) -> list[str]:
        answer = self._ask(client, text)
        rating = _NUMBER.fullmatch(answer)
        low, high = self.scale
        if not rating or not low <= float(rating[1]) <= high or float(rating[2] or high) != high:
            return [answer]
        self.known[text] = float(rating[1])
        return []

    def _ask(self, client: Any, text: str) -> str:
        low, high = self.scale
        openai = _openai()
        unsent = [
            "OpenAI-Organization",
            "OpenAI-Project",
        ]  # the client takes these from the environment
        unsent += [] if self.api_key else ["Authorization"]
        content = TEMPLATE.format(question=self.question, text=text, low=low, high=high)
        try:
            raw = client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                temperature=0,
                max_tokens=self.max_tokens,
                extra_headers={name: openai.Omit() for name in unsent},
            )
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            failed = (
                f"cannot be reached ({type(cause).__name__}: {cause}); check that the server runs "
                "and that the address is right"
            )
        except openai.APIStatusError as error:
            failed = f"answered {error.status_code}: {error.response.text[:200]!r}"
        else:
            return self._content(raw.http_response)
        raise SteerlensError(self._without_key(f"the judge at {self.url} {failed}"))

    def _content(self, response: Any) -> str:
        try:
            answer: Any = response.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            text = self._without_key(repr(response.text[:200]))
            raise SteerlensError(
                f"the answer of {self.url} is no chat completion: {text}; check that it is an "
                "OpenAI-compatible server"
            ) from error
        return answer if isinstance(answer, str) else ""

    def _without_key(self, message: str) -> str:
        """The message without the key, which servers and libraries may echo."""
        return message.replace(self.api_key, "…") if self.api_key else message
