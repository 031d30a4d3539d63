"""Prompts → token rows: chat template, one BOS, and where suffixes and replies begin."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.prompts import Passage, Prompt, as_texts, require_prompt
from steerlens.errors import SteerlensError, short_repr
from steerlens.models.chat_templates import Template, Text
from steerlens.models.host import Model
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
    listed: Any = prompts
    if isinstance(prompts, Mapping) and "input_ids" in prompts:
        listed = unpadded(prompts)
    listed = as_texts(listed)
    if not len(listed):
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
        row = _row_of_ids(prompt)
        rows.append(row)
        if row is not None:
            _require_fit(model, row.ids, f"prompt {index}")
            continue
        passage = prompt if isinstance(prompt, Passage) else Passage(prompt)
        require_prompt(passage.prompt, f"prompt {index}")
        texts.append(_text(template, passage, templated, f"prompt {index}"))
    _require_unpadded(pad_token(model), listed, rows)
    encoded = _encode(model, tokenizer, texts)
    return [next(encoded) if row is None else row for row in rows]


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
    if isinstance(prompt, str) and template.is_applied_to(prompt):
        warnings.warn(
            f"{where} ({short_repr(prompt)}) is in the model's chat template already, and is read "
            "without applying it again; pass chat=False to confirm",
            stacklevel=4,
        )
        return Text(prompt + suffix, True, suffix_start=len(prompt) if suffix else None)
    return template.apply(prompt, suffix, system)


def unpadded(batch: Mapping[str, Any]) -> list[TokenRow]:
    """The rows of a tokenizer's batch without padding, by its attention mask.

    >>> unpadded({"input_ids": [[5, 6, 0]], "attention_mask": [[1, 1, 0]]})[0].ids
    (5, 6)
    """
    if not {"input_ids", "attention_mask"} <= set(batch):
        raise SteerlensError(
            f"got a table with {sorted(map(str, batch))} as prompts; expected a list of prompts, "
            "or a tokenizer's batch with input_ids and attention_mask"
        )
    ids, mask = (torch.as_tensor(batch[key]) for key in ("input_ids", "attention_mask"))
    if ids.shape != mask.shape or ids.ndim != 2:
        raise SteerlensError(
            f"got input_ids of shape {tuple(ids.shape)} with an attention_mask of shape "
            f"{tuple(mask.shape)}; expected two tables of one shape, [batch, pos]"
        )
    return [TokenRow(tuple(row[kept.bool()].tolist())) for row, kept in zip(ids, mask, strict=True)]


def _require_unpadded(
    pad: int, prompts: Sequence[Any] | Tensor, rows: Sequence[TokenRow | None]
) -> None:
    """Refuse token ids that a tokenizer may have padded: only its mask shows which are text."""
    ids = [
        row.ids
        for row, prompt in zip(rows, prompts, strict=True)
        if row is not None and not isinstance(prompt, TokenRow)
    ]
    edges = [max(_run(row, pad), _run(row[::-1], pad)) for row in ids]
    same_length = len(ids) > 1 and len({len(row) for row in ids}) == 1
    if any(edge > 1 for edge in edges) or (same_length and len(set(map(bool, edges))) > 1):
        raise SteerlensError(
            f"got token ids that begin or end with the padding token {pad}; expected rows without "
            "padding, which would be read as text: pass the tokenizer's batch with its "
            "attention_mask, or TokenRow(ids) if these tokens are text"
        )


def _run(row: Sequence[int], token: int) -> int:
    """How often a row begins with a token; 0 for a row of nothing else."""
    return next((index for index, other in enumerate(row) if other != token), 0)


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
    else:
        positive, negative = (tokenize(model, side) for side in data)
    return positive, negative


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


def _tokenizer_of(model: Model) -> Any:
    if model.tokenizer is None:
        raise SteerlensError(f"{model.cfg.model_name} has no tokenizer; set model.tokenizer")
    return model.tokenizer


def _row_of_ids(prompt: Readable) -> TokenRow | None:
    if isinstance(prompt, TokenRow):
        return prompt
    if isinstance(prompt, Tensor):
        return TokenRow(tuple(int(token) for token in prompt.reshape(-1).tolist()))
    if isinstance(prompt, str | Passage) or not len(prompt):
        return None
    ids = tuple(token for token in prompt if isinstance(token, int))
    return TokenRow(ids) if len(ids) == len(prompt) else None


def _encode(model: Model, tokenizer: Any, texts: Sequence[Text]) -> Iterator[TokenRow]:
    if not texts:
        return
    plain = [text.text for text in texts]
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


def text_pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token's part of the text; a character of several tokens belongs to the last of them.

    >>> tokenizer = load_model().tokenizer
    >>> text_pieces(tokenizer, tokenizer("Hi.")["input_ids"])
    ('<s>', 'Hi', '.')
    """
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
