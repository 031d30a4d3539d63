"""Replies in OpenAI's form: whole and in pieces, of chats and of completions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from steerlens.models.token_text import decoded
from steerlens.serving.plans import Dose
from steerlens.serving.requests import TokenScore
from steerlens.steering.steering import Steering
from steerlens.steering.transcripts import Replies

Json = dict[str, Any]
Scores = Sequence[TokenScore] | None
"""Of the tokens of a reply; None: not asked for."""
_REPORT = "steering"
"""The field of a reply that OpenAI's form does not have."""


@dataclass(frozen=True)
class Form:
    """How the replies of one kind of request look."""

    kind: str
    chunk_kind: str
    prefix: str
    """What the ids of replies begin with."""
    whole: Callable[[str], Json]
    """A choice's text, as the choice has it."""
    part: Callable[[str], Json]
    """The same in a stream."""
    opening: Json | None
    """What each choice of a stream begins with."""
    logprobs: Callable[[Any, Sequence[TokenScore]], Json]
    """Log-probabilities of some tokens, given the tokenizer."""

    def choice(self, index: int, text: Json, scores: Json | None, finish: str | None) -> Json:
        """One choice of a reply, or of a piece of one."""
        return {"index": index, **text, "logprobs": scores, "finish_reason": finish}


def chat_logprobs(tokenizer: Any, scores: Sequence[TokenScore]) -> Json:
    """Log-probabilities as chats have them."""
    return {
        "content": [
            {
                **_told(tokenizer, score.token, score.logprob),
                "top_logprobs": [_told(tokenizer, *likely) for likely in score.likeliest],
            }
            for score in scores
        ]
    }


def completion_logprobs(tokenizer: Any, scores: Sequence[TokenScore]) -> Json:
    """Log-probabilities as completions have them."""
    texts = [decoded(tokenizer, [score.token]) for score in scores]
    return {
        "tokens": texts,
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [
            {decoded(tokenizer, [token]): logprob for token, logprob in score.likeliest}
            for score in scores
        ],
        "text_offset": list(accumulate(map(len, texts), initial=0))[:-1],
    }


def _told(tokenizer: Any, token: int, logprob: float) -> Json:
    text = decoded(tokenizer, [token])
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


CHAT = Form(
    "chat.completion",
    "chat.completion.chunk",
    "chatcmpl-",
    lambda text: {"message": {"role": "assistant", "content": text}},
    lambda text: {"delta": {"content": text} if text else {}},
    {"delta": {"role": "assistant", "content": ""}},
    chat_logprobs,
)
COMPLETION = Form(
    "text_completion",
    "text_completion",
    "cmpl-",
    lambda text: {"text": text},
    lambda text: {"text": text},
    None,
    completion_logprobs,
)


def usage(prompt_tokens: int, replies: Sequence[Replies]) -> Json:
    """How many tokens were read and written."""
    written = sum(len(tokens) for one in replies for tokens in one.tokens)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }


def steering_report(
    doses: Sequence[Dose],
    steerings: Sequence[Steering],
    seed: int,
    told: Sequence[str],
    replies: Sequence[Replies],
) -> Json:
    """What a reply was steered with, and what each gate saw: the extension of OpenAI's form.

    Args:
        doses: The plans that were asked for.
        steerings: What they are.
        seed: Of the random numbers.
        told: Warnings about the prompts.
        replies: Of each prompt.
    """
    return {
        _REPORT: {
            "plans": [dose._asdict() for dose in doses],
            "steerings": list(map(repr, steerings)),
            "seed": seed,
            "warnings": list(told),
            "choices": [_seen(one, row) for one in replies for row in range(len(one))],
        }
    }


def _seen(replies: Replies, row: int) -> Json:
    """What gates saw of one reply and its prompt."""
    lines = [(gate, gate.timelines[row]) for gate in replies.token_gates]
    return {
        "gates": [
            {
                "condition": str(gate.condition),
                "fired": bool(gate.open[row]),
                "similarity": _numbers(gate.compared[row].tolist()),
                "threshold": gate.condition.threshold,
            }
            for gate in replies.gates
        ],
        "token_gates": [
            {
                "condition": str(gate.condition),
                "tokens": list(line.tokens),
                "fired": line.open.tolist(),
                "similarity": [
                    _numbers(one) for one in gate.condition.compared(line.similarity).tolist()
                ],
                "threshold": gate.condition.threshold,
                "prompt_tokens": line.n_prompt,
            }
            for gate, line in lines
        ],
    }


def _numbers(values: Sequence[Any]) -> list[Any]:
    """Numbers for JSON, which has no NaN: nothing was measured there."""
    return [
        _numbers(one) if isinstance(one, list) else None if math.isnan(one) else one
        for one in values
    ]
