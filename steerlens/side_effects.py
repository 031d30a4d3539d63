"""What a steering does where it should do nothing: to neutral text and to harmless prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from steerlens.contrast import load_prompts
from steerlens.effects import UNSTEERED
from steerlens.engines import HERE, Engine
from steerlens.errors import SteerlensError
from steerlens.files import embedded
from steerlens.generation import generate
from steerlens.intervals import Interval, means, rate, ratios
from steerlens.judges import refused
from steerlens.lean import lean
from steerlens.models import Model, all_logits
from steerlens.positions import can_select
from steerlens.steering import Run, Steering, stacked
from steerlens.tokens import Readable, TokenRow, pad_token, right_padded, tokenize

BATCH_TOKENS = 4096
"""Tokens of one forward pass, padding and plans included; each holds a row of logits."""
N_HARMLESS = 40


def measure_side_effects(
    model: Model,
    plans: Steering | Mapping[str, Steering],
    *,
    texts: Sequence[Readable] | None = None,
    harmless: Sequence[Readable] | None = None,
    max_new_tokens: int = 40,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    engine: Engine = HERE,
) -> pd.DataFrame:
    """Effects of one plan, or of each of several alternatives, where there should be none.

    One row per plan and measure, with its 95 % interval and n: those of `text_effects` and those
    of `prompt_effects`. Without texts and prompts of your own, on those that ship with steerlens.

    >>> measure_side_effects(load_model(), steering).query("measure == 'kl_mean'")
    """
    named = {"steered": plans} if isinstance(plans, Steering) else plans
    on_text = text_effects(model, named, texts, seed=seed, progress=progress, engine=engine)
    on_prompts = prompt_effects(
        model,
        named,
        harmless,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        engine=engine,
    )
    return pd.concat([on_text, on_prompts], ignore_index=True)


def text_effects(
    model: Model,
    plans: Mapping[str, Steering],
    texts: Sequence[Readable] | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
    engine: Engine = HERE,
) -> pd.DataFrame:
    """Teacher-forced on neutral text, which is read without chat template.

    `kl_mean` and `kl_p95`: KL(unsteered ‖ steered) per token, in nats. `perplexity_ratio`: steered
    over unsteered. `bits_per_character` and its `_change`. `open`: share of texts that the plan's
    condition fires on. Intervals resample texts, not tokens.
    """
    rows = tokenize(model, neutral_texts() if texts is None else texts, chat=False)
    forced = teacher_forced(
        model, rows, [as_text(p) for p in plans.values()], progress=progress, engine=engine
    )
    counts = np.array([[text.surprise.shape[1]] for text in forced], dtype=float)
    bits = np.array([text.surprise.sum(axis=1) for text in forced]) / np.log(2)  # [text, plan]
    characters = [[len(model.tokenizer.decode(list(row.ids[1:])))] for row in rows]
    n_characters = np.broadcast_to(np.array(characters, dtype=float), bits.shape)
    changes = bits - bits[:, :1]
    logs = ratios(changes * np.log(2), np.broadcast_to(counts, bits.shape), seed=seed)
    per_character = ratios(bits, n_characters, seed=seed)
    more_per_character = ratios(changes, n_characters, seed=seed)
    kl = np.array([text.kl.sum(axis=1) for text in forced])
    lengths = np.array([[text.kl.shape[1]] for text in forced], dtype=float)
    kl_means = ratios(kl, np.broadcast_to(lengths, kl.shape), seed=seed)
    p95 = kl_percentiles(forced)
    table = _Table(len(rows), "texts")
    table.note(UNSTEERED, "bits_per_character", per_character[0])
    for index, name in enumerate(plans):
        table.note(name, "kl_mean", kl_means[index])
        table.note(name, "kl_p95", _point(p95[index]))
        table.note(name, "perplexity_ratio", Interval(*np.exp(logs[index + 1]).tolist()))
        table.note(name, "bits_per_character", per_character[index + 1])
        table.note(name, "bits_per_character_change", more_per_character[index + 1])
        table.note(name, "open", rate(sum(bool(text.open[index]) for text in forced), len(rows)))
    return pd.DataFrame(table.rows)


def prompt_effects(
    model: Model,
    plans: Mapping[str, Steering],
    prompts: Sequence[Readable] | None = None,
    *,
    max_new_tokens: int = 40,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    engine: Engine = HERE,
) -> pd.DataFrame:
    """On prompts that should be left as they are: drift, refusals and the length of replies.

    `drift_mean` and `drift_p95`: KL(unsteered ‖ steered) of the first reply token, in nats;
    `drift_closed`: the largest where the plan's condition did not fire, which should be 0.
    `open`: share of prompts it fires on. `refusal`: share of refusals. `reply_tokens`: mean length.
    A plan that steers only generated tokens has no drift, by construction.
    """
    prompts = harmless_prompts() if prompts is None else prompts
    rows = tokenize(model, prompts)
    forced = teacher_forced(model, rows, list(plans.values()), progress=progress, engine=engine)
    drift = np.array([prompt.kl[:, -1] for prompt in forced])  # [prompt, plan]
    opened = np.array([prompt.open for prompt in forced])
    drift_means = means(drift, seed=seed)
    cells = [None, *plans.values()]
    replies = generate(
        model,
        [prompt for _ in cells for prompt in prompts],
        stacked(cells, len(prompts)),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
        engine=engine,
    )
    lengths = np.array([len(reply) for reply in replies.tokens], float).reshape(len(cells), -1)
    reply_tokens = means(lengths.T, seed=seed)
    refusals = np.array([refused(text) for text in replies]).reshape(len(cells), -1)
    table = _Table(len(rows), "prompts")
    for index, name in enumerate([UNSTEERED, *plans]):
        table.note(name, "refusal", rate(int(refusals[index].sum()), len(rows)))
        table.note(name, "reply_tokens", reply_tokens[index])
    for index, name in enumerate(plans):
        table.note(name, "drift_mean", drift_means[index])
        table.note(name, "drift_p95", _point(_percentile(drift[:, index])))
        closed = drift[~opened[:, index], index]
        if len(closed):
            table.note(name, "drift_closed", _point(closed.max()), len(closed))
        table.note(name, "open", rate(int(opened[:, index].sum()), len(rows)))
    return pd.DataFrame(table.rows)


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
    progress: bool = True,
    engine: Engine = HERE,
) -> list[Forced]:
    """Read texts under each plan, all plans side by side as rows of one batch.

    A result does not depend on what else is in its batch. Raises if a plan would touch no token.
    """
    for plan in plans:
        if not any(
            can_select(plan.positions, plan.skip_bos, len(row.ids), 1, row.reply_start)
            for row in rows
        ):
            raise SteerlensError(
                f"{plan} would touch no token of these {len(rows)} texts; change positions="
            )
    parts: list[list[Forced]] = [[] for _ in rows]
    longest = max(len(row.ids) for row in rows)
    at_once = max(1, batch_tokens // longest - 1)
    groups = [plans[start : start + at_once] for start in range(0, len(plans), at_once)] or [plans]
    with tqdm(
        total=len(groups) * len(rows), unit="text", disable=None if progress else True
    ) as bar:
        for group in groups:
            batches = _batches(rows, batch_tokens // (1 + len(group)))
            shards = ((batch, [rows[index] for index in batch]) for batch in batches)
            for batch, found in engine.run(model, partial(_forced, plans=group), shards):
                for index, forced in zip(batch, found, strict=True):
                    parts[index].append(forced)
                bar.update(len(batch))
    return [_side_by_side(part) for part in parts]


def kl_percentiles(forced: Sequence[Forced]) -> Float[np.ndarray, " plan"]:
    """The 95th percentile over all tokens, for each plan, in nats per token."""
    tokens = np.concatenate([text.kl for text in forced], axis=1)
    return np.array([_percentile(plan) for plan in tokens])


def as_text(plan: Steering) -> Steering:
    """The plan for a text read in one go, as though the model had said it.

    The whole text is the prompt, but for positions that begin where the prompt ends: these begin
    after the text's first token, for otherwise they would select nothing.
    """
    begin = {"generated": slice(1, None), "reply": slice(1, None), "last": slice(0, None)}
    if isinstance(plan.positions, str) and plan.positions in begin:
        return replace(plan, positions=begin[plan.positions])
    return plan


def neutral_texts() -> list[str]:
    """The passages that ship with steerlens: facts, stories and instructions in turn."""
    kinds = load_prompts(embedded("neutral.json")).values()
    return [text for row in zip_longest(*kinds) for text in row if text is not None]


def harmless_prompts() -> list[str]:
    """Everyday requests that ship with steerlens, from the part that nothing is chosen on."""
    return list(load_prompts(embedded("questions.json"))["test"][:N_HARMLESS])


def _batches(rows: Sequence[TokenRow], batch_tokens: int) -> Iterator[list[int]]:
    """Neighbours in length, up to `batch_tokens` with their padding, at least one."""
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index].ids)):
        if batch and len(rows[index].ids) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    yield batch


@torch.no_grad()
def _forced(model: Model, rows: Sequence[TokenRow], plans: Sequence[Steering]) -> list[Forced]:
    device, many = torch.device(model.cfg.device), 1 + len(plans)
    tokens, mask = right_padded([row.ids for row in rows], pad_token(model), device)
    known = [row.reply_start for row in rows if row.reply_start is not None]
    reply_start = torch.tensor(known).repeat(many) if len(known) == len(rows) else None
    steerings = stacked([None, *plans], len(rows))
    run = Run(steerings, mask.repeat(many, 1), model, reply_start)
    with lean(model), model.hooks(fwd_hooks=run.hooks()):
        # No attention mask is needed: causal attention never looks at what pads the right.
        logits = all_logits(model, tokens.repeat(many, 1))
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


def _percentile(values: Float[np.ndarray, " token"]) -> float:
    """The 95th; infinite from where a value is."""
    with np.errstate(invalid="ignore"):
        return float(np.nan_to_num(np.quantile(values, 0.95), nan=np.inf, posinf=np.inf))


def _point(value: float) -> Interval:
    return Interval(float(value), float("nan"), float("nan"))


@dataclass
class _Table:
    """Rows of a tidy table, as they come."""

    n: int
    of: str
    rows: list[dict[str, object]] = field(default_factory=list)

    def note(self, plan: str, measure: str, value: Interval, n: int | None = None) -> None:
        n = self.n if n is None else n
        row = {"plan": plan, "measure": measure, **value._asdict(), "n": n, "of": self.of}
        self.rows.append(row)
