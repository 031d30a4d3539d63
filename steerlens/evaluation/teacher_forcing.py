"""Texts scored token by token, with and without a steering."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlens.activations.batching import by_length
from steerlens.errors import SteerlensError
from steerlens.models.engine import RunOptions, run_settings
from steerlens.models.fast_forward import forward_pass
from steerlens.models.hooking import placed
from steerlens.models.host import Model, all_logits
from steerlens.models.progress import progress_bar
from steerlens.models.tokenizing import TokenRow, pad_token, right_padded
from steerlens.steering.batch_plans import decoding_run, stacked
from steerlens.steering.clocks import DecodingClock
from steerlens.steering.positions import can_select
from steerlens.steering.steering import Run, Steering

BATCH_TOKENS = 4096
"""Tokens of one forward pass, padding and plans included; each holds a row of logits."""


class Forced(NamedTuple):
    """What the model thought of one text under each plan."""

    kl: Float[np.ndarray, "plan pos"]
    """KL(unsteered ‖ steered) of the token after each position, in nats; infinite where steering
    broke the numbers."""
    surprise: Float[np.ndarray, "unsteered_and_plan pos_1"]
    """−ln p of each token but the first; row 0 is unsteered."""
    open: Bool[np.ndarray, " plan"]
    """Whether the plan's condition fired, with the whole text as its prompt."""


def teacher_forced(
    model: Model,
    rows: Sequence[TokenRow],
    plans: Sequence[Steering],
    *,
    batch_tokens: int = BATCH_TOKENS,
    **run: Unpack[RunOptions],
) -> list[Forced]:
    """Read texts under each plan, all plans side by side as rows of one batch.

    A result does not depend on what else is in its batch. Raises if a plan would touch no token.
    """
    options = run_settings(**run)
    for plan in plans:
        if not any(
            can_select(plan.positions, plan.skip_bos, len(row.ids), 1, row.reply_start)
            for row in rows
        ):
            raise SteerlensError(
                f"{plan} would touch no token of these {len(rows)} texts; change positions="
            )
    parts: list[list[Forced]] = [[] for _ in rows]
    lengths = [len(row.ids) for row in rows]
    at_once = max(1, batch_tokens // max(lengths) - 1)
    if options.batch_size is not None:
        at_once = max(1, min(at_once, options.batch_size - 1))
    groups = [plans[start : start + at_once] for start in range(0, len(plans), at_once)] or [plans]
    with progress_bar(len(groups) * len(rows), "text", options.progress) as bar:
        for group in groups:
            many = 1 + len(group)
            at_most = None if options.batch_size is None else max(1, options.batch_size // many)
            batches = by_length(lengths, rows=at_most, tokens=batch_tokens // many)
            shards = ((batch, [rows[index] for index in batch]) for batch in batches)
            for batch, found in options.engine.run(model, partial(_forced, plans=group), shards):
                for index, forced in zip(batch, found, strict=True):
                    parts[index].append(forced)
                bar.update(len(batch))
    return [_side_by_side(part) for part in parts]


def kl_percentiles(forced: Sequence[Forced]) -> Float[np.ndarray, " plan"]:
    """The 95th percentile over all tokens, for each plan, in nats per token."""
    tokens = np.concatenate([text.kl for text in forced], axis=1)
    return np.array([percentile(plan) for plan in tokens])


def as_text(plan: Steering) -> Steering:
    """The plan for a text read in one go, as though the model had said it.

    The whole text is the prompt, but for positions that begin where the prompt ends: these begin
    after the text's first token, otherwise the selection would be empty.
    """
    begin = {"generated": slice(1, None), "reply": slice(1, None), "last": slice(0, None)}
    if isinstance(plan.positions, str) and plan.positions in begin:
        return replace(plan, positions=begin[plan.positions])
    return plan


@torch.no_grad()
def _forced(model: Model, rows: Sequence[TokenRow], plans: Sequence[Steering]) -> list[Forced]:
    device, many = torch.device(model.cfg.device), 1 + len(plans)
    tokens, mask = right_padded([row.ids for row in rows], pad_token(model), device)
    run = decoding_run(stacked([None, *plans], len(rows)), rows, mask, model, copies=many)
    assert isinstance(run.clock, DecodingClock)
    run.clock.show(0, tokens.shape[1])
    # No attention mask is needed: causal attention never looks at what pads the right.
    work = partial(all_logits, model, tokens.repeat(many, 1))
    logits = forward_pass(model, work, placed(model, run.hooks()))
    logits = logits.unflatten(0, (many, len(rows)))
    opened = [_opened(plan, run, 1 + i, len(rows)) for i, plan in enumerate(plans)]
    wide = torch.float32 if device.type == "mps" else torch.float64
    found = []
    for place, row in enumerate(rows):
        ids = torch.tensor(row.ids, device=device)
        logs = logits[:, place, : len(ids)].to(wide).log_softmax(dim=-1)
        said = logs[:, :-1].gather(2, ids[1:].expand(many, -1)[..., None])[..., 0]
        opens = np.array([rows_open[place] for rows_open in opened], dtype=bool)
        found.append(Forced(_kl(logs[0], logs[1:]).cpu().numpy(), -said.cpu().numpy(), opens))
    return found


def _kl(
    unsteered: Float[Tensor, "pos d_vocab"], steered: Float[Tensor, "plan pos d_vocab"]
) -> Float[Tensor, "plan pos"]:
    """Of log-probabilities; a token that cannot come adds nothing, and NaN counts as infinite."""
    likely = unsteered.exp()
    terms = torch.where(likely > 0, likely * (unsteered - steered), 0.0)
    return terms.sum(dim=-1).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _opened(plan: Steering, run: Run, index: int, n_rows: int) -> list[bool]:
    """On which rows the condition of the plan at this index of the batch fired."""
    if plan.when is None or not run.gates:
        return [plan.when is None] * n_rows
    truth = plan.when.truth(lambda condition: run.gates[condition].open)
    return truth[index * n_rows : (index + 1) * n_rows].tolist()


def _side_by_side(parts: Sequence[Forced]) -> Forced:
    """One text under groups of plans, each with the unsteered row first."""
    return Forced(
        np.concatenate([part.kl for part in parts]),
        np.concatenate([parts[0].surprise[:1], *(part.surprise[1:] for part in parts)]),
        np.concatenate([part.open for part in parts]),
    )


def percentile(values: Float[np.ndarray, " token"]) -> float:
    """The 95th; infinite from where a value is."""
    with np.errstate(invalid="ignore"):
        return float(np.nan_to_num(np.quantile(values, 0.95), nan=np.inf, posinf=np.inf))
