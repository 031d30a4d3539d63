"""What one request asks for, and the state of its rows while they are decoded."""

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlens.models.fast_forward import ForwardPasses, decoding_cache
from steerlens.models.hooking import placed
from steerlens.models.host import Model, next_logits
from steerlens.models.joined_cache import Held
from steerlens.models.tokenizing import TokenRow, end_tokens
from steerlens.numerics import require_count
from steerlens.serving.stopping import StoppingText
from steerlens.steering.batch_plans import decoding_run
from steerlens.steering.clocks import DecodingClock
from steerlens.steering.fitting import require_acting, require_room
from steerlens.steering.generation import require_finite
from steerlens.steering.sampling import Sampling, TokenChooser
from steerlens.steering.steering import Steering
from steerlens.steering.transcripts import Replies, Transcript


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt and how to reply to it: a specification, which runs nothing.

    Args:
        row: The prompt.
        steerings: How its replies are steered.
        sampling: How tokens are chosen.
        max_new_tokens: Most tokens of a reply.
        n: How many replies; they sample with the random streams 0 to n − 1.
        stop: Strings at which a reply ends.
        top_logprobs: How many of the likeliest tokens are told at each place, beside the chosen
            one; None: no probabilities at all.
    """

    row: TokenRow
    steerings: tuple[Steering, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 16
    n: int = 1
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


class TokenScore(NamedTuple):
    """A token with its log-probability, before temperature and the like."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens there, each with its log-probability."""


class Piece(NamedTuple):
    """What one decoding step adds to one reply."""

    choice: int
    text: str
    score: TokenScore | None = None
    finish: str | None = None
    """Why the reply has ended: "stop" (by itself, or at a stop string) or "length"."""


class RequestRows:
    """The state of one request: a run of its own, and the rows that have not ended.

    Args:
        model: The model that will reply.
        request: What is asked for.

    Raises:
        SteerlensError: Before anything runs: the prompt and its reply do not fit into the context,
            a steering would touch no token, or a condition would be read too late.
    """

    def __init__(self, model: Model, request: Request) -> None:
        require_count("max_new_tokens", request.max_new_tokens)
        require_count("n", request.n)
        row, n = request.row, request.n
        require_room(model, [row], request.max_new_tokens)
        for steering in request.steerings:
            require_acting(steering, [row], request.max_new_tokens)
        self.request = request
        self.error: Exception | None = None
        """What a hook of this request raised: other requests go on."""
        self.held: Held
        """Where the keys and values of its tokens are, but for the last: set by `begin`."""
        self._model = model
        self._ends = end_tokens(model)
        ids = torch.tensor([row.ids])
        self.run = decoding_run(request.steerings, [row], torch.ones_like(ids).bool(), model)
        self._text = ids.to(model.cfg.device)
        self._choices = torch.zeros(1, dtype=torch.long)
        self._choose = TokenChooser(request.sampling, range(n))
        self._transcript = Transcript.empty([row] * n, request.steerings)
        self._texts = [StoppingText(model.tokenizer, request.stop) for _ in range(n)]
        self._step = 0

    def __len__(self) -> int:
        """How many rows have not ended."""
        return len(self._choices)

    @property
    def newest(self) -> Int[Tensor, "row 1"]:
        """Each row's last token, which the model has not read yet."""
        return self._text[:, -1:]

    @property
    def remaining(self) -> int:
        """How many tokens the replies may still grow."""
        return self.request.max_new_tokens - self._step

    @torch.inference_mode()
    def begin(self, fast: bool) -> list[Piece]:
        """Run the prompt, once for all replies, and give each its first token.

        Args:
            fast: Whether the forward pass skips redundant work.
        """
        length = self._text.shape[1]
        cache = decoding_cache(self._model, 1, length, fast)
        self.announce(length)
        passes = ForwardPasses(self._model, placed(self._model, self.run.hooks()), fast)
        mask = torch.ones_like(self._text, dtype=torch.int)
        logits = passes(partial(next_logits, self._model, self._text, mask, cache))
        for choice in range(self.request.n):
            self._transcript.see(self.run, [choice], torch.ones(1, dtype=torch.bool), length)
        for condition, gate in self.run.gates.items():
            seen = gate.similarity.float().cpu()
            self._transcript.similarities[condition] = seen.repeat_interleave(self.request.n, 0)
        same = torch.zeros(self.request.n, dtype=torch.long)
        self.run.keep_rows(same)
        self.held = Held(cache, same, length)
        self._text = self._text[same]
        self._choices = torch.arange(self.request.n)
        return self._take(logits[same])

    def announce(self, width: int = 1) -> None:
        """Tell the run's clock which tokens the next forward pass contains: the last ones."""
        assert isinstance(self.run.clock, DecodingClock)
        self.run.clock.show(self._text.shape[1] - width, width, self._text)

    @torch.inference_mode()
    def take(self, logits: Float[Tensor, "row d_vocab"], held: Held) -> list[Piece]:
        """Give each row its next token; rows that end are dropped.

        Args:
            logits: Of the pass that was announced.
            held: Where the keys and values of all tokens up to now are.
        """
        self.held = held
        going = torch.ones(len(self), dtype=torch.bool)
        self._transcript.see(self.run, self._choices.tolist(), going, 1)
        return self._take(logits)

    def replies(self) -> Replies:
        """The replies so far, with what each gate has seen."""
        texts = [text.text for text in self._texts]
        prompts = [self.request.row] * len(texts)
        return self._transcript.replies(prompts, texts, self._model.tokenizer)

    def _take(self, logits: Float[Tensor, "row d_vocab"]) -> list[Piece]:
        """Choose tokens, and drop the rows that they end."""
        require_finite(self._model, logits, self._step)
        mask = torch.ones_like(self._text, dtype=torch.bool)
        chosen = self._choose(logits, self._text, mask, self._step, self._choices)
        scores = self._scores(logits, chosen)
        choices, tokens = self._choices.tolist(), chosen.tolist()
        self._transcript.take(choices, tokens, self._ends)
        self._step += 1
        pieces = [
            self._piece(choice, token, score)
            for choice, token, score in zip(choices, tokens, scores, strict=True)
        ]
        kept = torch.tensor([row for row, piece in enumerate(pieces) if piece.finish is None])
        kept = kept.long()
        self._text = torch.cat([self._text, chosen[:, None]], dim=1)
        if len(kept) < len(self):
            self._text, self._choices = self._text[kept.to(chosen.device)], self._choices[kept]
            self.held = self.held._replace(rows=self.held.rows[kept])
            self.run.keep_rows(kept)
        return pieces

    def _piece(self, choice: int, token: int, score: TokenScore | None) -> Piece:
        by_itself = token in self._ends
        last = by_itself or not self.remaining
        text = self._texts[choice]
        new = text.grow(self._transcript.tokens[choice], last)
        if by_itself:
            score = None  # the end token is no part of the reply
        finish = "stop" if by_itself or text.stopped else "length" if last else None
        return Piece(choice, new, score, finish)

    def _scores(
        self, logits: Float[Tensor, "row d_vocab"], chosen: Int[Tensor, " row"]
    ) -> list[TokenScore | None]:
        """Log-probabilities of the chosen tokens, and of the likeliest, if they are asked for."""
        most = self.request.top_logprobs
        if most is None:
            return [None] * len(chosen)
        logprobs = logits.float().log_softmax(dim=1)
        own = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        values, tokens = (part.tolist() for part in logprobs.topk(min(most, logits.shape[1])))
        likeliest = [tuple(zip(*row, strict=True)) for row in zip(tokens, values, strict=True)]
        return list(map(TokenScore, chosen.tolist(), own, likeliest))
