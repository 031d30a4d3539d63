"""Prompts → token rows: chat template, one BOS, and where suffixes and replies begin."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.prompts import Passage, Prompt, as_texts, require_prompt
from steerlens.errors import SteerlensError, short_repr
from steerlens.files import LONE_SURROGATE
from steerlens.models.chat_templates import Template, Text
from steerlens.models.host import Model
from steerlens.models.token_ids import ids_of, require_no_padding, rows_of, unpadded
from steerlens.shapes import TokenIds, TokenMask


class TokenRow(NamedTuple):
    """One prompt as token ids, without padding."""

    ids: tuple[int, ...]
    suffix_start: int | None = None
    """Where the prompt's suffix begins, if it has one."""
    reply_start: int | None = None
    """Where the user's words end, if a chat template was applied."""
    user_start: int | None = None
    """Where the user's last words begin; None for token ids, and templates that do not show it."""

    @property
    def parts(self) -> dict[str, slice | None]:
        """Where the user's words, the suffix and the reply are, as far as it has them.

        >>> TokenRow((1, 7, 8, 9), reply_start=3, user_start=1).parts["user"]
        slice(1, 3, None)
        """
        words, suffix, reply = self.user_start, self.suffix_start, self.reply_start
        end = suffix if reply is None else reply
        return {
            "user": None if words is None else slice(words, end),
            "suffix": None if suffix is None else slice(suffix, None),
            "reply": None if reply is None else slice(reply, None),
        }


Readable = Prompt | Passage | TokenRow | Sequence[int] | Int[Tensor, " pos"]
"""A prompt as text, chat messages, one side of a contrast, or token ids."""

Sides = ContrastiveDataset | tuple[Sequence[Readable], Sequence[Readable]]
"""A dataset, or two lists: positive and negative prompts."""


def tokenize(
    model: Model,
    prompts: Sequence[Readable] | Int[Tensor, "prompt pos"] | Mapping[str, Any],
    *,
    chat: bool | None = None,
    generation_prompt: bool = True,
) -> list[TokenRow]:
    """Token rows of prompts: with the chat template, one BOS, and the start of suffixes.

    Args:
        model: The model whose tokenizer is used.
        prompts: Texts, chats, sides of a contrast or token ids; or a tokenizer's batch with
            `input_ids` and `attention_mask`, whose padding is removed.
        chat: Whether texts get the chat template; None if the tokenizer has one.
        generation_prompt: Whether a templated prompt ends with the opening of the reply.

    >>> tokenize(load_model(), ["Hi."], chat=False)[0].ids
    (1, 1466, 19)
    """
    listed = as_prompts(prompts)
    if not listed:
        raise SteerlensError("got an empty list of prompts; expected at least one prompt")
    tokenizer = _tokenizer_of(model)
    templated = tokenizer.chat_template is not None if chat is None else chat
    if templated and tokenizer.chat_template is None:
        raise SteerlensError(
            f"{model.cfg.model_name}'s tokenizer has no chat template; pass chat=False"
        )

    options = getattr(model, "template_options", {})
    template = Template(tokenizer, options, generation_prompt) if tokenizer.chat_template else None
    rows: list[TokenRow | None] = []
    texts: list[Text] = []
    for index, prompt in enumerate(listed):
        ids = None if isinstance(prompt, TokenRow) else ids_of(prompt, f"prompt {index}")
        row = prompt if isinstance(prompt, TokenRow) else None if ids is None else TokenRow(ids)
        rows.append(row)
        if row is not None:
            _require_fit(model, row.ids, f"prompt {index}")
            continue
        passage = prompt if isinstance(prompt, Passage) else Passage(prompt)
        require_prompt(passage.prompt, f"prompt {index}")
        texts.append(_text(template, passage, templated, f"prompt {index}"))
    given = [
        row.ids
        for row, prompt in zip(rows, listed, strict=True)
        if row is not None and not isinstance(prompt, TokenRow)
    ]
    require_no_padding(given, pad_token(model))
    encoded = _encode(model, tokenizer, texts)
    return [next(encoded) if row is None else row for row in rows]


def as_prompts(prompts: Any) -> list[Any]:
    """The list of prompts in what a user passed; a tokenizer's batch loses its padding.

    >>> as_prompts({"input_ids": [[5, 6, 0]], "attention_mask": [[1, 1, 0]]})[0].ids
    (5, 6)
    """
    if isinstance(prompts, Mapping) and "input_ids" in prompts:
        return [TokenRow(ids) for ids in unpadded(prompts)]
    if isinstance(prompts, Tensor | np.ndarray):
        return rows_of(prompts)
    return list(as_texts(prompts))


def _text(template: Template | None, passage: Passage, templated: bool, where: str) -> Text:
    """One prompt as the model reads it."""
    prompt, suffix, system = passage
    if not isinstance(prompt, str) and template is None:
        raise SteerlensError(
            f"{where} is a chat, but the tokenizer has no chat template; pass text"
        )
    if template is None or (isinstance(prompt, str) and not templated):
        assert isinstance(prompt, str)
        before = f"{system}\n" if system else ""
        text = before + prompt
        start = len(text) if suffix else None
        return Text(text + suffix, suffix_start=start, words=(len(before), None))
    applied = template.applied(prompt) if isinstance(prompt, str) else None
    if applied is not None:
        warnings.warn(
            f"{where} ({short_repr(prompt)}) is in the model's chat template already, and is read "
            "without applying it again; pass chat=False to confirm",
            stacklevel=4,
        )
        return Text(applied + suffix, True, suffix_start=len(applied) if suffix else None)
    other = template.other_mark(prompt) if isinstance(prompt, str) else None
    if other is not None:
        warnings.warn(
            f"{where} ({short_repr(prompt)}) holds {other!r}, as other models' chat templates "
            "write it: this model reads it as the user's words; pass chats as lists of messages",
            stacklevel=4,
        )
    return template.apply(prompt, suffix, system)


def tokenize_sides(model: Model, data: Sides) -> tuple[list[TokenRow], list[TokenRow]]:
    """Token rows of the positive and the negative side.

    Args:
        model: The model whose tokenizer is used.
        data: A dataset, or two lists (positive, negative) of texts, chats or token ids.

    >>> positive, negative = tokenize_sides(load_model(), (["I love you."], ["I hate you."]))
    >>> len(positive), len(negative)
    (1, 1)
    """
    if isinstance(data, ContrastiveDataset):
        positive, negative = (
            tokenize(model, side, chat=data.chat, generation_prompt=data.generation_prompt)
            for side in (data.positive, data.negative)
        )
        return positive, negative
    if not isinstance(data, tuple) or len(data) != 2:  # two pairs in a list would look alike
        raise SteerlensError(
            f"got {short_repr(data)}; expected two lists of prompts, as the tuple (positive, "
            "negative), or pairs as ContrastiveDataset(pairs)"
        )
    return tokenize(model, data[0]), tokenize(model, data[1])


def right_padded(
    rows: Sequence[Sequence[int]], pad: int, device: Any = None
) -> tuple[TokenIds, TokenMask]:
    """Token ids padded on the right, and the mask of text tokens.

    >>> right_padded([[5, 6], [7]], pad=0)[0]
    tensor([[5, 6],
            [7, 0]])
    """
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), pad)
    mask = torch.arange(tokens.shape[1])[None] < lengths[:, None]
    tokens[mask] = torch.tensor([token for row in rows for token in row])
    return tokens.to(device), mask.to(device)


def left_padded(
    rows: Sequence[Sequence[int]], pad: int, device: Any = None
) -> tuple[TokenIds, TokenMask]:
    """Token ids padded on the left, as generation needs them, and the mask of text tokens.

    >>> left_padded([[5, 6], [7]], pad=0)[0]
    tensor([[5, 6],
            [0, 7]])
    """
    tokens, mask = right_padded([row[::-1] for row in rows], pad, device)
    return tokens.flip(1), mask.flip(1)


def pad_token(model: Model) -> int:
    """The id to pad with; which tokens are padding is known by masks, never by this id."""
    return int(_tokenizer_of(model).pad_token_id or 0)


def own_prefix(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that a tokenizer puts before every text: usually a BOS, or none."""
    probe = "a"
    plain = tokenizer(probe, add_special_tokens=False)["input_ids"]
    whole = tokenizer(probe)["input_ids"]
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), len(whole))
    return tuple(whole[:start])


def special_ids(model: Model, text: str) -> tuple[int, ...]:
    """The tokens of a piece of text, with nothing before or after it; special tokens as such.

    >>> special_ids(load_model(), "<|end|>")
    (5,)
    """
    ids = tuple(_tokenizer_of(model)(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise SteerlensError(f"got {text!r}, which is no token; expected some text")
    return ids


def _tokenizer_of(model: Model) -> Any:
    if not hasattr(model, "tokenizer") or not hasattr(model, "cfg"):
        raise SteerlensError(
            f"got {short_repr(model)} as the model; expected what load_model() returns, or another "
            "HookedTransformer or TransformerBridge"
        )
    if model.tokenizer is None:
        raise SteerlensError(f"{model.cfg.model_name} has no tokenizer; set model.tokenizer")
    return model.tokenizer


def _encode(model: Model, tokenizer: Any, texts: Sequence[Text]) -> Iterator[TokenRow]:
    if not texts:
        return
    plain = [text.text for text in texts]
    broken = [text for text in plain if LONE_SURROGATE.search(text)]
    if broken:
        raise SteerlensError(
            f"got a prompt with half a character (a lone surrogate): {short_repr(broken[0])}; "
            "expected Unicode text: decode the file that it is from as UTF-8 or UTF-16"
        )
    encoding = tokenizer(
        plain, add_special_tokens=False, return_offsets_mapping=bool(tokenizer.is_fast)
    )
    offset_mapping = encoding["offset_mapping"] if tokenizer.is_fast else [None] * len(texts)
    prefix = _prefix(model, tokenizer)
    for text, ids, offsets in zip(texts, encoding["input_ids"], offset_mapping, strict=True):
        # Templates write their own BOS, and some texts begin with one.
        front = prefix if not text.templated and tuple(ids[: len(prefix)]) != prefix else ()
        if offsets is None and not text.templated and text.suffix_start is None:
            text = text._replace(words=(None, None))
        elif offsets is None:
            raise SteerlensError(
                f"the tokenizer of {model.cfg.model_name} ({type(tokenizer).__name__}) gives no "
                "offsets, by which replies and suffixes are found; pass chat=False and no "
                "suffixes, or use a model with a fast tokenizer"
            )
        suffix_start, reply_start, user_start = (
            None if place is None else len(front) + _first_token_past(place, offsets or [])
            for place in (text.suffix_start, text.words[1], text.words[0])
        )
        bos = tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            warnings.warn(
                f"the prompt {short_repr(text.text)} begins with two of the BOS {bos}, which the "
                "model has not seen; leave the one in the text out",
                stacklevel=4,
            )
        whole = _require_fit(model, (*front, *ids), f"the prompt {text.text[:40]!r}")
        yield TokenRow(whole, suffix_start, reply_start, user_start)


def _first_token_past(place: int, offsets: Sequence[tuple[int, int]]) -> int:
    """The first token that ends after a position in the text, even if it begins before it."""
    return next((index for index, (_, end) in enumerate(offsets) if end > place), len(offsets))


def _prefix(model: Model, tokenizer: Any) -> tuple[int, ...]:
    """The tokens before a text: the tokenizer's own, or a BOS if the host is set to add one."""
    if not model.cfg.default_prepend_bos:
        return ()
    bos = tokenizer.bos_token_id
    return own_prefix(tokenizer) or (() if bos is None else (int(bos),))


def _require_fit(model: Model, ids: tuple[int, ...], which: str) -> tuple[int, ...]:
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


def end_tokens(model: Model) -> frozenset[int]:
    """All end tokens: those that the model declares, and its tokenizer's.

    >>> end_tokens(load_model())
    frozenset({5})
    """
    eos = _tokenizer_of(model).eos_token_id
    declared = getattr(model, "end_tokens", ())
    return frozenset(int(token) for token in (*declared, eos) if token is not None)


def reply_starts(rows: Sequence[TokenRow]) -> Int[Tensor, " row"] | None:
    """Where each reply begins; None unless it is known for all rows."""
    starts = [row.reply_start for row in rows]
    known = [start for start in starts if start is not None]
    return torch.tensor(known) if len(known) == len(starts) else None


def user_words(rows: Sequence[TokenRow]) -> Int[Tensor, "row 2"] | None:
    """Where each user's words begin and end, if that is known of all rows."""
    words = [row.parts["user"] for row in rows]
    ends = [
        part.indices(len(row.ids))[:2]
        for part, row in zip(words, rows, strict=True)
        if part is not None
    ]
    return torch.tensor(ends) if len(ends) == len(rows) else None
