"""A conversation whose turns are steered, and which keeps keys and values between them."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import KW_ONLY, dataclass, field, replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.growing_texts import ReadText, read_on
from steerlens.data.prompts import Message
from steerlens.display import MOST_ROWS, Rows, card
from steerlens.errors import SteerlensError, short_repr
from steerlens.models.host import Model
from steerlens.models.token_text import decoded
from steerlens.models.tokenizing import TokenRow, tokenize
from steerlens.numerics import require_count
from steerlens.steering.batch_plans import as_plans, decoding_run
from steerlens.steering.clocks import DecodingClock
from steerlens.steering.conditions import Condition
from steerlens.steering.fitting import require_fit
from steerlens.steering.generation import Task, Writing, write_by_steps
from steerlens.steering.kept_texts import Continuing, KeptText
from steerlens.steering.sampling import Sampling
from steerlens.steering.soft_gates import SoftGate
from steerlens.steering.steering import Steering
from steerlens.steering.transcripts import GateReport, GrowingText
from steerlens.steering.turns import Turn, projections_of
from steerlens.vectors.vector import SteeringVector

Similarities = dict[Condition, Float[Tensor, "1 layer ..."]]
"""What each condition saw of the one prompt."""
EVERY_TURN, FIRST_TURN = "every turn", "first turn"


@dataclass(eq=False)
class Chat:
    """A conversation: `say` something, read the reply, change the steering, say the next thing.

    A turn depends on the messages so far and on the steering of this turn alone: it is what
    `generate(model, [chat.messages + [the user's message]], steering)` replies. What was kept of
    earlier turns saves time and changes nothing.

    Args:
        model: The model that replies; its tokenizer needs a chat template.
        steering: One steering, several at once, or None. May be replaced between turns.
        system: A system message.
        history: Messages of earlier turns.
        max_new_tokens: Most tokens of a reply. It and what follows may be replaced, too.
        sampling: How tokens are chosen; turn n draws from the n-th stream of random numbers.
        conditions: When conditions are read: "every turn" anew; or in the "first turn" that has
            them, whose decision all later ones keep.
        use_cache: Whether keys and values are kept: within a reply, and from turn to turn.

    Raises:
        SteerlensError: A tokenizer without a chat template, or a template without system messages.

    >>> chat = Chat(model, max_new_tokens=5)
    >>> print(chat.say("How do I bake bread?"))
    Here is what I know
    >>> [message["role"] for message in chat.messages]
    ['user', 'assistant']
    """

    model: Model
    steering: Steering | Sequence[Steering] | None = None
    _: KW_ONLY
    system: str | None = None
    history: Sequence[Message] = ()
    max_new_tokens: int = 50
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    conditions: str = EVERY_TURN
    use_cache: bool = True
    turns: tuple[Turn, ...] = field(default=(), init=False)
    """The turns so far."""
    _kept: KeptText | None = field(default=None, init=False)
    _read: ReadText | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if getattr(self.model, "tokenizer", None) and self.model.tokenizer.chat_template is None:
            raise SteerlensError(
                f"{self.model.cfg.model_name}'s tokenizer has no chat template; expected one: set "
                "model.tokenizer.chat_template, or continue texts by generate(..., chat=False)"
            )
        tokenize(self.model, [[*self.messages, {"role": "user", "content": "Hi."}]])
        self._settings()

    @property
    def messages(self) -> list[Message]:
        """All messages so far."""
        first: list[Message] = (
            [] if self.system is None else [{"role": "system", "content": self.system}]
        )
        said = [message for turn in self.turns for message in turn.messages]
        return [*first, *self.history, *said]

    def say(self, words: str, *, prefill: str = "") -> Turn:
        """The model's reply to the user's next message.

        Args:
            words: The user's message.
            prefill: How the reply begins; it is a part of the reply's text.

        Raises:
            SteerlensError: Before anything runs: what `generate` would refuse.

        >>> str(Chat(model, max_new_tokens=3).say("Hi.", prefill="Sure, I"))
        'Sure, I would to help'
        """
        *_, turn = self.stream(words, prefill=prefill)
        return turn

    def stream(self, words: str, *, prefill: str = "") -> Generator[Turn, None, None]:
        """`say`, yielding the unfinished turn after every decoding step.

        The conversation goes on with the turn once the iterator has come to its end; where it is
        dropped before, or fails, the conversation is as it was.

        Args:
            words: The user's message.
            prefill: How the reply begins.

        >>> [str(turn) for turn in Chat(model, max_new_tokens=2).stream("How do I bake bread?")]
        ['Here', 'Here is']
        """
        model, before = self.model, self.turns
        plans, writing = self._settings()
        [row] = tokenize(model, [[*self.messages, *_asked(words, prefill)]])
        require_fit(model, plans, [row], writing.max_new_tokens)
        similarities, read = self._similarities(row, plans)
        gates = tuple(
            GateReport(condition, seen, condition.fires(seen))
            for condition, seen in similarities.items()
        )
        acted, decided = _acting(plans, gates)
        begin = Continuing(self._kept if self.use_cache else None)
        task = Task([row], decided, [len(before)], writing)
        lead = row.ids[-1:] if prefill else ()  # tokenizers drop a text's first space
        growing, n_lead = GrowingText(model.tokenizer), len(decoded(model.tokenizer, lead))
        with closing(write_by_steps(model, task, begin)) as steps:
            for transcript in steps:
                tokens, finished = tuple(transcript.tokens[0]), transcript.finished[0]
                ended = finished or len(tokens) == writing.max_new_tokens
                text = prefill + growing.of((*lead, *tokens), ended)[n_lead:]
                turn = Turn(words, text, row, tokens, finished, acted, gates, begin.n_kept)
                yield turn
        if self.turns is not before:
            raise SteerlensError(
                "got another turn of this conversation while a reply was streamed; expected one "
                "at a time: finish or drop the stream first, or stream from a branch()"
            )
        was_run = tokens if finished else tokens[:-1]
        self.turns, self._read = (*before, turn), read
        self._kept = begin.kept(model, row, was_run, decided)

    def undo(self, n_turns: int = 1) -> None:
        """Take back the last turns.

        Args:
            n_turns: How many.

        >>> chat = Chat(model, max_new_tokens=3)
        >>> _ = chat.say("Hi.")
        >>> chat.undo()
        >>> chat.messages
        []
        """
        require_count("n_turns", n_turns)
        if n_turns > len(self.turns):
            raise SteerlensError(
                f"got undo({n_turns}) in a conversation of {len(self.turns)} turns; expected at "
                "most as many"
            )
        self.turns = self.turns[: len(self.turns) - n_turns]

    def branch(self) -> "Chat":
        """Another conversation that goes on from here; what this one has kept serves both.

        >>> chat = Chat(model, max_new_tokens=3)
        >>> _ = chat.say("Hi.")
        >>> other = chat.branch()
        >>> _ = other.say("Why?")
        >>> len(chat.turns), len(other.turns)
        (1, 2)
        """
        return copy(self)

    def projections(
        self, vector: SteeringVector, layers: Sequence[int] | None = None, site: str | None = None
    ) -> pd.DataFrame:
        """How far each token that was said lies along a vector: the drift of the conversation.

        The model reads the conversation unsteered, so that what is measured is the text.

        Args:
            vector: The vector to project on.
            layers: Which of its layers; None: all.
            site: Where to read; None: where the vector was.

        Returns:
            A row for each turn, layer and token; `dashboards.drift` draws it.

        >>> chat = Chat(model, max_new_tokens=5)
        >>> _ = chat.say("Hi.")
        >>> list(chat.projections(vector, layers=[3]).columns)
        ['turn', 'role', 'layer', 'place', 'token', 'projection']
        """
        return projections_of(self.model, self.turns, vector, layers, site)

    def __repr__(self) -> str:
        turns = "".join(f"\n  {turn!r}" for turn in self.turns)
        return f"Chat({len(self.turns)} turns, steered by {self.steering!r}){turns}"

    def _repr_html_(self) -> str:
        """For notebooks: the turns, which conditions fired, and which replies are degenerate."""
        rows = (
            (
                number,
                turn.words,
                turn.text,
                turn.seen,
                "steered" if turn.acted else "",
                "degenerate" if turn.degenerate else "" if turn.finished else "cut off",
            )
            for number, turn in list(enumerate(self.turns, start=1))[-MOST_ROWS:]
        )
        n_shown = min(MOST_ROWS, len(self.turns))
        cut = f"the last {n_shown} of {len(self.turns)} turns" * (n_shown < len(self.turns))
        columns = ("turn", "user", "assistant", "conditions", "steered", "notes")
        facts = {"steering": self.steering and repr(self.steering), "system": self.system}
        return card("Chat", facts, Rows(columns, rows, n_shown, cut))

    def _settings(self) -> tuple[list[Steering], Writing]:
        """The settings of the next turn, checked."""
        plans = as_plans(self.steering)
        steerings = [plan for plan in plans if isinstance(plan, Steering)]
        if len(steerings) < len(plans):
            raise SteerlensError(
                "got a BatchPlan to steer a conversation; expected a Steering, or a list of them: "
                "a conversation has no batch"
            )
        if self.conditions not in (EVERY_TURN, FIRST_TURN):
            raise SteerlensError(
                f"got conditions={self.conditions!r}; expected {EVERY_TURN!r} or {FIRST_TURN!r}"
            )
        require_count("max_new_tokens", self.max_new_tokens)
        return steerings, Writing(self.max_new_tokens, self.sampling, self.use_cache)

    def _similarities(
        self, row: TokenRow, plans: Sequence[Steering]
    ) -> tuple[Similarities, ReadText | None]:
        """What the conditions see of a prompt, and all that was read for it."""
        known: Similarities = {}
        if self.conditions == FIRST_TURN:
            reports = [gate for turn in reversed(self.turns) for gate in turn.gates]
            known = {gate.condition: gate.similarity for gate in reports}
        real = torch.ones(1, len(row.ids), dtype=torch.bool)
        run = decoding_run(plans, [row], real, self.model)
        assert isinstance(run.clock, DecodingClock)
        run.clock.show(0, len(row.ids))
        new = {one: gate for one, gate in run.gates.items() if one not in known}
        read = self._read if self.use_cache else None
        if new:
            places = [(one.site_read, layer) for one in new for layer in one.layers_read]
            read = read_on(self.model, row.ids, places, read)
            for condition, gate in new.items():
                for layer in condition.layers_read:
                    gate.read(read.activations[condition.site_read, layer][None], layer)
        known |= {condition: gate.similarity for condition, gate in new.items()}
        return {condition: known[condition] for condition in run.gates}, read


def _asked(words: str, prefill: str) -> list[Message]:
    """The messages of a turn before its reply."""
    if not isinstance(words, str) or not words.strip():
        raise SteerlensError(f"got {short_repr(words)} as the user's message; expected some text")
    begun: list[Message] = [{"role": "assistant", "content": prefill}] if prefill else []
    return [{"role": "user", "content": words}, *begun]


def _acting(
    plans: Sequence[Steering], gates: Sequence[GateReport]
) -> tuple[tuple[Steering, ...], list[Steering]]:
    """The steerings that act on a prompt; and the same, with what their gates said of it."""
    seen = {gate.condition: gate for gate in gates}
    acting = []
    for plan in plans:
        factor = _factor(plan, seen)
        if factor:
            strength = [factor * one for one in plan.strengths] if factor != 1 else plan.strength
            acting.append((plan, replace(plan, when=None, strength=strength)))
    return tuple(plan for plan, _ in acting), [decided for _, decided in acting]


def _factor(plan: Steering, seen: Mapping[Condition, GateReport]) -> float:
    """How far a plan's gate is open on the one prompt: 0 or 1, or between for a soft one."""
    if isinstance(plan.when, SoftGate):
        return float(plan.when.factor(seen[plan.when.condition].similarity))
    if plan.when is None:
        return 1.0
    return float(plan.when.truth(lambda condition: seen[condition].open))
