"""Prompts with wanted and unwanted replies → token rows that know where the reply stands."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.prompts import Passage, Prompt
from steerlens.errors import SteerlensError, short_repr
from steerlens.models.host import Model
from steerlens.models.tokenizing import TokenRow, end_tokens, right_padded, tokenize
from steerlens.steering.positions import NO_TOKEN, Positions, Seen, selected

Lesson = tuple[Prompt, str] | tuple[Prompt, str, str]
"""A prompt, the reply that is wanted, and perhaps one that is not."""

SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")
CLOSING = "\"'”’)]»* "


class ReplyText(NamedTuple):
    """A prompt and a reply to it, as tokens."""

    ids: tuple[int, ...]
    start: int
    """Where the reply begins."""
    end: int
    """Where it ends; what follows is how the unsteered model goes on."""
    words_end: int | None = None
    """Where the user's words have ended, if a chat template was applied."""

    @property
    def reply(self) -> tuple[int, ...]:
        """The reply's own tokens."""
        return self.ids[self.start : self.end]


class ReplyPair(NamedTuple):
    """One prompt's wanted reply, and perhaps the unwanted one."""

    wanted: ReplyText
    unwanted: ReplyText | None = None
    whole: bool = True
    """Whether the wanted reply is complete; otherwise it is a beginning."""


def is_whole(reply: str) -> bool:
    """Whether a reply ends as a sentence does; a beginning does not.

    >>> is_whole("I can't help with that."), is_whole("I'm sorry, but I")
    (True, False)
    """
    return reply.rstrip(CLOSING + "\n").endswith(SENTENCE_ENDS)


def reply_pairs(model: Model, data: ContrastiveDataset | Sequence[Lesson]) -> list[list[ReplyPair]]:
    """For each prompt, its replies; a whole one ends with the token that ends a turn."""
    chat, opened = None, True
    if isinstance(data, ContrastiveDataset):
        chat, opened = data.chat, data.generation_prompt
        lessons = list(_of_dataset(data))
    else:
        lessons = [_checked(index, lesson) for index, lesson in enumerate(data)]
    if not lessons:
        raise SteerlensError("got no prompts to learn from; expected at least one with its reply")
    texts = [passage for lesson in lessons for passage in lesson if passage is not None]
    rows = iter(tokenize(model, texts, chat=chat, generation_prompt=opened))
    end = end_of_turn(model, chat)
    grouped: dict[str, list[ReplyPair]] = {}
    for wanted, unwanted in lessons:
        pair = ReplyPair(
            _reply_text(model, next(rows), wanted, end),
            None if unwanted is None else _reply_text(model, next(rows), unwanted, end),
            is_whole(wanted.suffix),
        )
        pairs = grouped.setdefault(repr((wanted.prompt, wanted.system)), [])
        if pair not in pairs:
            pairs.append(pair)
    return list(grouped.values())


def replies_by_side(lessons: Sequence[Lesson]) -> tuple[list[Passage], list[Passage]]:
    """All wanted and all unwanted replies behind their prompts, as `extract` reads two sides.

    >>> wanted, unwanted = replies_by_side([("Hi.", "Bonjour.", "Hello.")])
    >>> wanted
    [Passage(prompt='Hi.', suffix='Bonjour.', system=None)]
    """
    wanted, unwanted = [], []
    for index, lesson in enumerate(lessons):
        first, second = _checked(index, lesson)
        if second is None:
            raise SteerlensError(
                f"lesson {index} is {short_repr(lesson)}, without an unwanted reply to compare "
                "with; expected (prompt, wanted reply, unwanted reply)"
            )
        wanted.append(first)
        unwanted.append(second)
    return wanted, unwanted


def end_of_turn(model: Model, chat: bool | None = None) -> int | None:
    """The token that the template writes after a reply, if `generate` stops there; or the end of
    text."""
    tokenizer, ends = model.tokenizer, end_tokens(model)
    if tokenizer.chat_template is not None and chat is not False:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        written = [token for token in ids if token in ends]
        if written:
            return int(written[-1])
    return None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)


def _of_dataset(data: ContrastiveDataset) -> Iterator[tuple[Passage, Passage | None]]:
    """The positive suffix is wanted and the negative one is not, as replies to one prompt."""
    if not data.suffixes or isinstance(data.suffixes[0], str):
        raise SteerlensError(
            f"{data!r} has no contrasting suffixes, so no reply is wanted; learn needs (positive, "
            "negative) suffixes, or tuples (prompt, wanted reply, unwanted reply)"
        )
    for positive, negative in data:
        yield positive, positive._replace(suffix=negative.suffix)


def _checked(index: int, lesson: Lesson) -> tuple[Passage, Passage | None]:
    is_tuple = isinstance(lesson, tuple) and len(lesson) in (2, 3)
    if not is_tuple or not all(isinstance(reply, str) and reply.strip() for reply in lesson[1:]):
        raise SteerlensError(
            f"lesson {index} is {short_repr(lesson)}; expected (prompt, wanted reply) or (prompt, "
            "wanted reply, unwanted reply), replies being text"
        )
    prompt, *replies = lesson
    wanted, *unwanted = (Passage(prompt, str(reply)) for reply in replies)
    return wanted, unwanted[0] if unwanted else None


def _reply_text(model: Model, row: TokenRow, passage: Passage, end: int | None) -> ReplyText:
    assert row.suffix_start is not None
    stop = (end,) if end is not None and is_whole(passage.suffix) else ()
    ids = (*row.ids, *stop)
    if row.suffix_start >= len(ids) or not row.suffix_start:
        raise SteerlensError(
            f"the reply {passage.suffix!r} has no token of its own after the prompt "
            f"{short_repr(passage.prompt)}; expected at least one of each"
        )
    if len(ids) > model.cfg.n_ctx:
        raise SteerlensError(
            f"the reply {short_repr(passage.suffix)} makes a text of {len(ids)} tokens, but "
            f"{model.cfg.model_name} reads at most {model.cfg.n_ctx}; shorten it"
        )
    return ReplyText(ids, row.suffix_start, len(ids), row.reply_start)


def shared_beginning(texts: Iterable[ReplyText]) -> int:
    """How many tokens all texts begin with alike, none of which the reply is predicted from."""
    all_texts = list(texts)
    most = min(text.start for text in all_texts) - 1
    first = all_texts[0].ids
    return next(
        (
            place
            for place in range(most)
            if any(text.ids[place] != first[place] for text in all_texts)
        ),
        max(0, most),
    )


def steered_places(
    texts: Sequence[ReplyText], positions: Positions, skip_bos: bool
) -> Bool[Tensor, "text place"]:
    """Which tokens `generate` would steer if these replies were what it writes."""
    ids, _ = right_padded([text.ids for text in texts], NO_TOKEN)
    place = torch.arange(ids.shape[1])[None].expand(len(texts), -1)
    length = torch.tensor([[text.start] for text in texts])
    words = [text.words_end for text in texts if text.words_end is not None]
    known = torch.tensor(words)[:, None] if len(words) == len(texts) else None
    chosen = selected(positions, Seen(place, length, known, ids))
    return chosen & (place > 0) if skip_bos else chosen
