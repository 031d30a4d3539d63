"""Prompts → token rows: the chat template, one BOS, and where suffixes and replies begin."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.prompts import Message, Passage, Prompt, require_prompt
from steerlens.errors import SteerlensError
from steerlens.models.host import Model


class TokenRow(NamedTuple):
    """One prompt as token ids, without padding."""

    ids: tuple[int, ...]
    suffix_start: int | None = None
    """Where the prompt's suffix begins, if it has one."""
    reply_start: int | None = None
    """Where the user's words have ended, if a chat template was applied."""


Readable = Prompt | Passage | TokenRow | Sequence[int] | Int[Tensor, " pos"]
"""A prompt as text, as chat messages, as one side of a contrast, or as tokens."""

Sides = ContrastiveDataset | tuple[Sequence[Readable], Sequence[Readable]]
"""Positives and negatives: a dataset, or two lists."""


class _Text(NamedTuple):
    """A prompt as text, with places counted in characters."""

    text: str
    suffix_start: int | None = None
    words_end: int | None = None
    """None: no template was applied."""


def tokenize(
    model: Model,
    prompts: Sequence[Readable] | Int[Tensor, "prompt pos"],
    *,
    chat: bool | None = None,
    generation_prompt: bool = True,
) -> list[TokenRow]:
    """Token rows of prompts: the chat template applied, one BOS, suffixes marked."""
    if isinstance(prompts, str) or not len(prompts):
        raise SteerlensError(f"prompts={prompts!r} came; needed is a list of at least one prompt")
    tokenizer = _tokenizer_of(model)
    templated = tokenizer.chat_template is not None if chat is None else chat
    if templated and tokenizer.chat_template is None:
        raise SteerlensError(
            f"{model.cfg.model_name}'s tokenizer has no chat template; pass chat=False"
        )

    @lru_cache(maxsize=4096)  # a prompt meets many suffixes
    def rendered(words: str, system: str | None) -> _Text:
        return _rendered(tokenizer, [{"role": "user", "content": words}], system, generation_prompt)

    rows: list[TokenRow | None] = []
    texts: list[_Text] = []
    for index, prompt in enumerate(prompts):
        ready = _ready_row(prompt)
        rows.append(ready)
        if ready is not None:
            _fitting(model, ready.ids, f"prompt {index}")
            continue
        passage = prompt if isinstance(prompt, Passage) else Passage(prompt)
        require_prompt(passage.prompt, f"prompt {index}")
        if not isinstance(passage.prompt, str):
            text = _rendered(tokenizer, passage.prompt, passage.system, generation_prompt)
        elif templated:
            text = rendered(passage.prompt, passage.system)
        else:
            opening = f"{passage.system}\n" if passage.system else ""
            text = _Text(opening + passage.prompt)
        if passage.suffix:
            is_chat = text.words_end is not None
            ending = _neutral(tokenizer, passage.suffix) if is_chat else passage.suffix
            text = text._replace(text=text.text + ending, suffix_start=len(text.text))
        texts.append(text)
    encoded = _encode(model, tokenizer, texts)
    return [next(encoded) if row is None else row for row in rows]


def tokenize_sides(model: Model, data: Sides) -> tuple[list[TokenRow], list[TokenRow]]:
    """Token rows of the positive and of the negative side of a dataset or of two lists."""
    if isinstance(data, ContrastiveDataset):
        positive, negative = (
            tokenize(model, side, chat=data.chat, generation_prompt=data.generation_prompt)
            for side in (data.positive, data.negative)
        )
    else:
        positive, negative = (tokenize(model, side) for side in data)
    return positive, negative


def right_padded(
    rows: Sequence[Sequence[int]], pad: int, device: Any = None
) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    """Token ids flush left, and the mask of real tokens."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), pad)
    mask = torch.arange(tokens.shape[1])[None] < lengths[:, None]
    tokens[mask] = torch.tensor([token for row in rows for token in row])
    return tokens.to(device), mask.to(device)


def left_padded(
    rows: Sequence[Sequence[int]], pad: int, device: Any = None
) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    """Token ids flush right, as generation needs them, and the mask of real tokens."""
    tokens, mask = right_padded([row[::-1] for row in rows], pad, device)
    return tokens.flip(1), mask.flip(1)


def pad_token(model: Model) -> int:
    """The id to pad with; masks, never this id, tell padding from text."""
    return int(_tokenizer_of(model).pad_token_id or 0)


def own_prefix(tokenizer: Any) -> tuple[int, ...]:
    """What a tokenizer itself puts before every text: most often a BOS, or nothing."""
    probe = "a"
    plain = tokenizer(probe, add_special_tokens=False)["input_ids"]
    whole = tokenizer(probe)["input_ids"]
    start = next(
        (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), len(whole)
    )
    return tuple(whole[:start])


def _tokenizer_of(model: Model) -> Any:
    if model.tokenizer is None:
        raise SteerlensError(f"{model.cfg.model_name} has no tokenizer; set one on the model")
    return model.tokenizer


def _ready_row(prompt: Readable) -> TokenRow | None:
    if isinstance(prompt, TokenRow):
        return prompt
    if isinstance(prompt, Tensor):
        return TokenRow(tuple(int(token) for token in prompt.reshape(-1).tolist()))
    if isinstance(prompt, str | Passage) or not len(prompt):
        return None
    ids = tuple(token for token in prompt if isinstance(token, int))
    return TokenRow(ids) if len(ids) == len(prompt) else None


def _encode(model: Model, tokenizer: Any, texts: Sequence[_Text]) -> Iterator[TokenRow]:
    if not texts:
        return
    encoding = tokenizer(
        [text.text for text in texts], add_special_tokens=False, return_offsets_mapping=True
    )
    prefix = _prefix(model, tokenizer)
    for text, ids, offsets in zip(
        texts, encoding["input_ids"], encoding["offset_mapping"], strict=True
    ):
        # A template writes its own BOS.
        front = prefix if text.words_end is None and tuple(ids[: len(prefix)]) != prefix else ()
        suffix_start, reply_start = (
            None if place is None else len(front) + _first_token_past(place, offsets)
            for place in (text.suffix_start, text.words_end)
        )
        whole = _fitting(model, (*front, *ids), f"the prompt {text.text[:40]!r}")
        yield TokenRow(whole, suffix_start, reply_start)


def _prefix(model: Model, tokenizer: Any) -> tuple[int, ...]:
    """What stands before a text: the tokenizer's own, or a BOS where the host is set to add one."""
    if not model.cfg.default_prepend_bos:
        return ()
    bos = tokenizer.bos_token_id
    return own_prefix(tokenizer) or (() if bos is None else (int(bos),))


def _first_token_past(place: int, offsets: Sequence[tuple[int, int]]) -> int:
    """The first token that reaches past a place in the text; one that straddles it counts."""
    return next((index for index, (_, end) in enumerate(offsets) if end > place), len(offsets))


def _rendered(
    tokenizer: Any, messages: Sequence[Message], system: str | None, generation_prompt: bool
) -> _Text:
    """A chat in the template, with special tokens in its messages broken."""
    asked = [] if system is None else [{"role": "system", "content": system}]
    asked += [dict(message) for message in messages]
    for message in asked:
        message["content"] = _neutral(tokenizer, message["content"])
    try:
        text = tokenizer.apply_chat_template(
            asked, tokenize=False, add_generation_prompt=generation_prompt
        )
    except Exception as error:  # jinja's and the template's own errors have no common type
        raise SteerlensError(
            f"the chat template refused the roles {[m['role'] for m in asked]}: {error}"
        ) from error
    words = asked[-1]["content"].strip()  # templates may strip
    return _Text(str(text), words_end=str(text).rfind(words) + len(words))


def _fitting(model: Model, ids: tuple[int, ...], which: str) -> tuple[int, ...]:
    if not ids:
        raise SteerlensError(f"{which} has no tokens; every prompt needs some text")
    if len(ids) > model.cfg.n_ctx:
        raise SteerlensError(
            f"{which} has {len(ids)} tokens, but {model.cfg.model_name} reads at most "
            f"{model.cfg.n_ctx}; shorten it"
        )
    if max(ids) >= model.cfg.d_vocab or min(ids) < 0:
        raise SteerlensError(
            f"{which} has the token id {max(ids) if min(ids) >= 0 else min(ids)}; "
            f"{model.cfg.model_name}'s vocabulary has {model.cfg.d_vocab}"
        )
    return ids


def _neutral(tokenizer: Any, text: str) -> str:
    """Special tokens spelt out in a user's text, broken so that they stay text."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and len(token.content) > 1:
            text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
    return text


def reply_starts(rows: Sequence[TokenRow]) -> Int[Tensor, " row"] | None:
    """Where each reply begins, if that is known of all of them."""
    starts = [row.reply_start for row in rows]
    known = [start for start in starts if start is not None]
    return torch.tensor(known) if len(known) == len(starts) else None


def text_pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token's part of the text; a character made of several tokens stands at the last."""
    pieces: list[str] = []
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        text = tokenizer.decode(waiting)
        complete = not text.endswith("\ufffd") or len(pieces) + 1 == len(ids)
        pieces.append(text if complete else "")
        if complete:
            waiting = []
    return tuple(pieces)
