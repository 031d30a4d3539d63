"""Texts scored token by token, with and without a steering."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
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
from steerlens.steering.places import positions_as_text
from steerlens.steering.positions import can_select
from steerlens.steering.schedules import AsText
from steerlens.steering.steering import Run, Steering

BATCH_TOKENS = 4096
"""Token budget of one forward pass, padding and all steerings included (logits dominate memory)."""


class Forced(NamedTuple):
    """Next-token statistics of one text under each steering."""

    kl: Float[np.ndarray, "steering pos"]
    """KL(unsteered ‖ steered) of the token after each position, in nats; infinite where the steered
    logits are not finite."""
    surprise: Float[np.ndarray, "unsteered_and_steering next_pos"]
    """−ln p of each token but the first; row 0 is unsteered."""
    open: Bool[np.ndarray, " steering"]
    """Whether the steering's condition fired, with the whole text as its prompt."""


def teacher_forced(
    model: Model,
    rows: Sequence[TokenRow],
    steerings: Sequence[Steering],
    *,
    batch_tokens: int = BATCH_TOKENS,
    **run: Unpack[RunOptions],
) -> list[Forced]:
    """Score texts token by token, unsteered and under each steering, as rows of one batch.

    A result does not depend on what else is in its batch.

    Args:
        rows: The texts, tokenised.
        batch_tokens: Token budget of one forward pass.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    Raises:
        SteerlensError: If a steering would touch no token of any text.
    """
    options = run_settings(**run)
    for steering in steerings:
        positions, skip_bos = steering.positions, steering.skip_bos
        if not any(can_select(positions, skip_bos, row.ids, 1, row.reply_start) for row in rows):
            raise SteerlensError(
                f"got {steering}, which would touch no token of these {len(rows)} texts; change "
                "positions="
            )
    parts: list[list[Forced]] = [[] for _ in rows]
    lengths = [len(row.ids) for row in rows]
    per_group = max(1, batch_tokens // max(lengths) - 1)
    if options.batch_size is not None:
        per_group = max(1, min(per_group, options.batch_size - 1))
    groups = _groups(steerings, per_group)
    with progress_bar(len(groups) * len(rows), "text", options.progress) as bar:
        for indices in groups:
            group = [steerings[index] for index in indices]
            copies = 1 + len(group)
            n_texts = None if options.batch_size is None else max(1, options.batch_size // copies)
            batches = by_length(lengths, rows=n_texts, tokens=batch_tokens // copies)
            shards = ((batch, [rows[index] for index in batch]) for batch in batches)
            work = partial(_forced, steerings=group)
            for batch, forced_batch in options.engine.run(model, work, shards):
                for index, forced in zip(batch, forced_batch, strict=True):
                    parts[index].append(forced)
                bar.update(len(batch))
    order = np.argsort([index for indices in groups for index in indices])
    return [_joined(part, order) for part in parts]


WORTH_A_PASS = 6
"""Steerings from one layer up that are run by themselves: they share all layers below."""


def _groups(steerings: Sequence[Steering], most: int) -> list[list[int]]:
    """Indices of the steerings of each pass: from the same layer up where there are enough."""
    lowest = [min(steering.layers_steered) for steering in steerings]
    groups: list[list[int]] = [[]]
    for index in sorted(range(len(steerings)), key=lowest.__getitem__):
        last = groups[-1]
        higher = bool(last) and lowest[index] > lowest[last[-1]]
        if len(last) == most or (higher and len(last) >= WORTH_A_PASS):
            groups.append([])
        groups[-1].append(index)
    return groups


def kl_percentiles(forced: Sequence[Forced]) -> Float[np.ndarray, " steering"]:
    """The 95th percentile of KL over the tokens of all texts, for each steering, in nats."""
    kls = np.concatenate([text.kl for text in forced], axis=1)
    return np.array([percentile(tokens) for tokens in kls])


def as_text(steering: Steering) -> Steering:
    """The steering for a text read in one forward pass, as though the model had written it.

    The whole text is the prompt, except for positions that begin where a prompt ends ("generated",
    "reply", "last"): these begin at the text instead, otherwise the selection would be empty.

    Schedules count from there, too.

    >>> as_text(Steering(vector, positions="generated")).positions
    slice(1, None, None)
    """
    schedule = None if steering.schedule is None else AsText(steering.schedule)
    return replace(steering, positions=positions_as_text(steering.positions), schedule=schedule)


@torch.no_grad()
def _forced(model: Model, rows: Sequence[TokenRow], steerings: Sequence[Steering]) -> list[Forced]:
    device, copies = torch.device(model.cfg.device), 1 + len(steerings)
    tokens, mask = right_padded([row.ids for row in rows], pad_token(model), device)
    plans = stacked([None, *steerings], len(rows))
    run = decoding_run(plans, rows, mask, model, copies=copies)
    assert isinstance(run.clock, DecodingClock)
    run.clock.show(0, tokens.shape[1], tokens.repeat(copies, 1))
    # no attention mask is needed: causal attention never sees padding on the right
    # conditions read the layers below, too, in every copy
    gated = any(steering.conditions or steering.token_conditions for steering in steerings)
    below = 0 if gated else min((min(one.layers_steered) for one in steerings), default=0)
    work = partial(all_logits, model, tokens, copies, below)
    logits = forward_pass(model, work, placed(model, run.hooks()))
    logits = logits.unflatten(0, (copies, len(rows)))
    gates = [_open_rows(one, run, 1 + i, len(rows)) for i, one in enumerate(steerings)]
    dtype = torch.float32 if device.type == "mps" else torch.float64
    forced = []
    for index, row in enumerate(rows):
        ids = torch.tensor(row.ids, device=device)
        log_p = logits[:, index, : len(ids)].to(dtype).log_softmax(dim=-1)
        of_text = log_p[:, :-1].gather(2, ids[1:].expand(copies, -1)[..., None])[..., 0]
        is_open = np.array([gate[index] for gate in gates], dtype=bool)
        kl = _kl(log_p[0], log_p[1:])
        forced.append(Forced(kl.cpu().numpy(), -of_text.cpu().numpy(), is_open))
    return forced


def _kl(
    unsteered: Float[Tensor, "pos d_vocab"], steered: Float[Tensor, "steering pos d_vocab"]
) -> Float[Tensor, "steering pos"]:
    """KL from log-probabilities: a token of probability 0 adds nothing, NaN counts as infinite."""
    likely = unsteered.exp()
    terms = torch.where(likely > 0, likely * (unsteered - steered), 0.0)
    return terms.sum(dim=-1).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _open_rows(steering: Steering, run: Run, index: int, n_rows: int) -> list[bool]:
    """On which texts the condition of the steering at this index of the batch fired."""
    if steering.when is None or not run.gates:
        return [steering.when is None] * n_rows
    truth = steering.when.truth(lambda condition: run.gates[condition].open)
    return truth[index * n_rows : (index + 1) * n_rows].tolist()


def _joined(parts: Sequence[Forced], order: Int[np.ndarray, " steering"]) -> Forced:
    """One text under all steerings in order, from groups that have the unsteered row first."""
    steered = np.concatenate([part.surprise[1:] for part in parts])[order]
    return Forced(
        np.concatenate([part.kl for part in parts])[order],
        np.concatenate([parts[0].surprise[:1], steered]),
        np.concatenate([part.open for part in parts])[order],
    )


def percentile(values: Float[np.ndarray, " token"]) -> float:
    """The 95th percentile; infinite if it falls on an infinite value."""
    with np.errstate(invalid="ignore"):
        return float(np.nan_to_num(np.quantile(values, 0.95), nan=np.inf, posinf=np.inf))
