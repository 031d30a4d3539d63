"""What clients send: the bodies of requests in OpenAI's form, and the extension `steering`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from steerlens.schemas import Declared
from steerlens.serving.plans import Dose
from steerlens.steering.sampling import Sampling

MOST_CHOICES = 16
"""Replies to one prompt."""
LOWEST = 0.001
"""The lowest temperature that is not 0."""


class PlanChoice(Declared):
    """A plan that a request steers with."""

    plan: str
    strength: float | None = None

    @property
    def dose(self) -> Dose:
        """The same as a value."""
        return Dose(self.plan, self.strength)


class StreamOptions(Declared):
    """What a stream holds beside its pieces."""

    include_usage: bool = False


def _greedy_or_warm(temperature: float) -> float:
    """Below this, logits would overflow: what is meant is 0."""
    if 0 < temperature < LOWEST:
        raise ValueError(f"0, which is greedy, or at least {LOWEST}")
    return temperature


Temperature = Annotated[float, Field(ge=0, le=2), AfterValidator(_greedy_or_warm)]
Stops = Annotated[str, Field(min_length=1, max_length=200)]


class Body(Declared):
    """What completions and chats have in common.

    Penalties and biases that are not implemented are taken only where they would do nothing.
    """

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Temperature | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = 1.0
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = 1
    stop: Stops | Annotated[list[Stops], Field(max_length=4)] | None = None
    seed: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = 0.0
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = None
    steering: PlanChoice | Annotated[list[PlanChoice], Field(max_length=8)] | None = None

    @property
    def choices(self) -> int:
        """How many replies each prompt gets."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def doses(self) -> tuple[Dose, ...]:
        """The plans that `steering` asks for."""
        chosen = self.steering if isinstance(self.steering, list) else [self.steering]
        return tuple(one.dose for one in chosen if one is not None)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, seed: int) -> Sampling:
        """How tokens are chosen.

        Args:
            seed: The seed, if the request has none.
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(
            float(temperature),
            self.top_k,
            None if self.top_p in (None, 1) else self.top_p,
            1.0 if self.repetition_penalty is None else self.repetition_penalty,
            seed if self.seed is None else self.seed,
        )


class TextPart(Declared):
    """A part of a message: of those that OpenAI has, only text."""

    type: Literal["text"]
    text: str


class Message(Declared):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def as_said(self) -> dict[str, str]:
        """The message as chat templates take it."""
        parts = [self.content] if isinstance(self.content, str) else [p.text for p in self.content]
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "".join(parts)}


class ChatBody(Body):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def longest(self) -> int | None:
        """Most new tokens; None: not said."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are asked for; None: no probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def prompts(self) -> list[Any]:
        """What is replied to."""
        return [[message.as_said for message in self.messages]]


Tokens = Annotated[list[int], Field(min_length=1)]


class CompletionBody(Body):
    """The body of `/v1/completions`."""

    prompt: (
        str | Annotated[list[str] | Tokens | list[Tokens], Field(min_length=1, max_length=100_000)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def longest(self) -> int:
        """Most new tokens: 16, as OpenAI has it, where not said."""
        return self.max_tokens or 16

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are asked for; None: no probabilities."""
        return self.logprobs

    @property
    def prompts(self) -> list[Any]:
        """What is continued: texts, or token ids."""
        alone = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if alone else list(self.prompt)


class PlanBody(Declared):
    """The body of a POST to `/v1/steering`."""

    path: str
    name: str | None = None
    layers: list[int] | None = None
    strength: float | None = None
    relative: bool = False
