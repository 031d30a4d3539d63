"""Prompts → token rows → pooled activations, read by `run_with_cache`."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from steerlens.contrast import Message, Passage, Prompt, require_prompt
from steerlens.directions import at_least_float32
from steerlens.errors import SteerlensError
from steerlens.models import Model, hook_name, resolve_layers
from steerlens.positions import Tokens, read_positions

Readable = Prompt | Passage | Sequence[int] | Int[Tensor, " pos"]
"""A prompt as text, as chat messages, as one side of a contrast, or as ready token ids."""

BATCH_TOKENS = 8192
"""Tokens, padding included, in one forward pass of a read."""


class TokenRow(NamedTuple):
    """One prompt as token ids, without padding."""

    ids: tuple[int, ...]
    suffix_start: int | None = None
    """Where the prompt's suffix begins, if it has one."""


class Reading(NamedTuple):
    """What was read of each prompt."""

    pooled: Float[Tensor, "prompt layer d_model"]
    """Mean activation over the tokens read."""
    norms: Float[Tensor, "prompt layer"]
    """Mean length of these tokens' activations; position 0, an attention sink, is left out."""


def read_residual(
    model: Model,
    prompts: Sequence[Readable],
    layers: Sequence[int] | range | None = None,
    *,
    tokens: Tokens = "last",
    site: str = "resid_post",
    chat: bool | None = None,
    generation_prompt: bool = True,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> Float[Tensor, "prompt layer d_model"]:
    """The residual stream of each prompt at each layer, averaged over the chosen tokens.

    Float32 (or wider) on the CPU, in the order of the prompts. `chat=None` applies the chat
    template if the tokenizer has one; token ids are taken as they are.

    >>> read_residual(load_model(), ["Hi there.", "How do I bake bread?"], layers=[2, 3]).shape
    torch.Size([2, 2, 192])
    """
    rows = tokenize(model, prompts, chat=chat, generation_prompt=generation_prompt)
    return read_rows(
        model, rows, layers, tokens=tokens, site=site, batch_tokens=batch_tokens, progress=progress
    ).pooled


def read_rows(
    model: Model,
    rows: Sequence[TokenRow],
    layers: Sequence[int] | range | None = None,
    *,
    tokens: Tokens = "last",
    site: str = "resid_post",
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> Reading:
    """`read_residual` for prompts that are tokens already; equal rows are run once."""
    numbers = resolve_layers(model, layers)
    names = [hook_name(model, site, layer) for layer in numbers]
    distinct = {row: index for index, row in enumerate(dict.fromkeys(rows))}
    jobs = [(row, _positions_of(model, row, tokens)) for row in distinct]
    order = sorted(range(len(jobs)), key=lambda index: len(jobs[index][0].ids))
    pooled: Tensor | None = None
    norms = torch.zeros(len(jobs), len(numbers))
    total = sum(len(row.ids) for row in distinct)
    with tqdm(total=total, unit="tok", desc="reading", disable=None if progress else True) as bar:
        for indices in _batches(order, jobs, batch_tokens):
            read = _read_batch(model, [jobs[index] for index in indices], names, numbers[-1])
            if pooled is None:
                pooled = read.pooled.new_zeros(len(jobs), *read.pooled.shape[1:])
            pooled[indices], norms[indices] = read.pooled, read.norms
            bar.update(sum(len(jobs[index][0].ids) for index in indices))
    if pooled is None:
        raise SteerlensError("there is nothing to read: the list of prompts is empty")
    place = [distinct[row] for row in rows]
    return Reading(pooled[place], norms[place])


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
    def rendered(prompt: str, system: str | None) -> str:
        messages = [*_system_message(tokenizer, system), _message(tokenizer, "user", prompt)]
        return _render(tokenizer, messages, generation_prompt)

    rows: list[TokenRow | None] = []
    texts: list[tuple[str, int | None, bool]] = []
    for index, prompt in enumerate(prompts):
        ids = _ready_ids(prompt)
        if ids is not None:
            rows.append(TokenRow(_within(model, ids, f"prompt {index}")))
            continue
        passage = prompt if isinstance(prompt, Passage) else Passage(prompt)
        require_prompt(passage.prompt, f"prompt {index}")
        if not isinstance(passage.prompt, str):
            messages = [
                *_system_message(tokenizer, passage.system),
                *(_message(tokenizer, m["role"], m["content"]) for m in passage.prompt),
            ]
            text, is_chat = _render(tokenizer, messages, generation_prompt), True
        elif templated:
            text, is_chat = rendered(passage.prompt, passage.system), True
        else:
            opening = f"{passage.system}\n" if passage.system else ""
            text, is_chat = opening + passage.prompt, False
        ending = _neutral(tokenizer, passage.suffix) if is_chat else passage.suffix
        texts.append((text + ending, len(text) if ending else None, is_chat))
        rows.append(None)
    encoded = iter(_encode(model, tokenizer, texts))
    return [
        row if row is not None else TokenRow(*_checked(model, next(encoded), index))
        for index, row in enumerate(rows)
    ]


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


def _tokenizer_of(model: Model) -> Any:
    if model.tokenizer is None:
        raise SteerlensError(f"{model.cfg.model_name} has no tokenizer; set one on the model")
    return model.tokenizer


def _positions_of(model: Model, row: TokenRow, tokens: Tokens) -> list[int]:
    def str_tokens() -> list[str]:
        return [model.tokenizer.decode([token]) for token in row.ids]

    return read_positions(tokens, len(row.ids), row.suffix_start, str_tokens)


def _batches(
    order: Sequence[int], jobs: Sequence[tuple[TokenRow, list[int]]], batch_tokens: int
) -> Iterator[list[int]]:
    """Neighbours in length, up to `batch_tokens` together with their padding."""
    batch: list[int] = []
    for index in order:
        width = len(jobs[index][0].ids)  # the longest so far
        if batch and width * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.no_grad()
def _read_batch(
    model: Model, jobs: Sequence[tuple[TokenRow, list[int]]], names: Sequence[str], last_layer: int
) -> Reading:
    try:
        return _read_at_once(model, jobs, names, last_layer)
    except torch.OutOfMemoryError:
        if len(jobs) == 1:
            raise
        torch.cuda.empty_cache()
    half = len(jobs) // 2
    halves = [_read_batch(model, part, names, last_layer) for part in (jobs[:half], jobs[half:])]
    return Reading(*(torch.cat(parts) for parts in zip(*halves, strict=True)))


def _read_at_once(
    model: Model, jobs: Sequence[tuple[TokenRow, list[int]]], names: Sequence[str], last_layer: int
) -> Reading:
    tokens, _ = right_padded([row.ids for row, _ in jobs], pad_token(model), model.cfg.device)
    _, cache = model.run_with_cache(
        tokens,
        names_filter=list(names),
        stop_at_layer=last_layer + 1,
        return_type=None,
        padding_side="right",  # causal attention never looks at what pads the right
        return_cache_object=False,
    )
    counts = torch.tensor([len(positions) for _, positions in jobs])
    row = torch.arange(len(jobs)).repeat_interleave(counts).to(tokens.device)
    place = torch.tensor([place for _, positions in jobs for place in positions]).to(row.device)
    weight = (1 / counts.to(row.device))[row]
    off_sink = ((place > 0) | (counts.to(row.device)[row] == 1)).float()
    pooled, norms = [], []
    for name in names:
        activations = at_least_float32(cache.pop(name)[row, place])
        sums = activations.new_zeros(len(jobs), activations.shape[1])
        pooled.append(sums.index_add_(0, row, activations * weight[:, None].to(activations)))
        lengths = activations.norm(dim=1).float() * off_sink
        total = lengths.new_zeros(2, len(jobs))
        total[0].index_add_(0, row, lengths)
        total[1].index_add_(0, row, off_sink)
        norms.append(total[0] / total[1].clamp_min(1))
    return Reading(
        torch.stack(pooled, dim=1).cpu(), rearrange(norms, "layer prompt -> prompt layer").cpu()
    )


def _ready_ids(prompt: Readable) -> tuple[int, ...] | None:
    if isinstance(prompt, Tensor):
        return tuple(int(token) for token in prompt.reshape(-1).tolist())
    if isinstance(prompt, str | Passage) or not len(prompt):
        return None
    ids = tuple(token for token in prompt if isinstance(token, int))
    return ids if len(ids) == len(prompt) else None


def _encode(
    model: Model, tokenizer: Any, texts: Sequence[tuple[str, int | None, bool]]
) -> Iterator[tuple[tuple[int, ...], int | None]]:
    if not texts:
        return
    encoding = tokenizer(
        [text for text, _, _ in texts], add_special_tokens=False, return_offsets_mapping=True
    )
    for (_, boundary, is_chat), ids, offsets in zip(
        texts, encoding["input_ids"], encoding["offset_mapping"], strict=True
    ):
        start = None
        if boundary is not None:  # a token that straddles the boundary counts to the suffix
            start = next(index for index, (_, end) in enumerate(offsets) if end > boundary)
        if not is_chat and model.cfg.default_prepend_bos and tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id, *ids]  # a template writes its own BOS
            start = None if start is None else start + 1
        yield tuple(ids), start


def _checked(
    model: Model, encoded: tuple[tuple[int, ...], int | None], index: int
) -> tuple[tuple[int, ...], int | None]:
    ids, start = encoded
    return _within(model, ids, f"prompt {index}"), start


def _within(model: Model, ids: tuple[int, ...], which: str) -> tuple[int, ...]:
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


def _render(tokenizer: Any, messages: Sequence[Message], generation_prompt: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation_prompt
        )
    except Exception as error:  # jinja's and the template's own errors have no common type
        raise SteerlensError(
            f"the chat template refused the roles {[m['role'] for m in messages]}: {error}"
        ) from error
    return str(text)


def _message(tokenizer: Any, role: str, content: str) -> Message:
    return {"role": role, "content": _neutral(tokenizer, content)}


def _system_message(tokenizer: Any, system: str | None) -> list[Message]:
    return [_message(tokenizer, "system", system)] if system is not None else []


def _neutral(tokenizer: Any, text: str) -> str:
    """Special tokens spelt out in a user's text, broken so that they stay text."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and len(token.content) > 1:
            text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
    return text
