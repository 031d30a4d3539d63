"""Side effects: what a steering does to neutral text and to harmless prompts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Unpack

import numpy as np
import pandas as pd

from steerlens.data.prompt_files import load_prompts
from steerlens.evaluation.effects import UNSTEERED
from steerlens.evaluation.teacher_forcing import as_text, kl_percentiles, percentile, teacher_forced
from steerlens.files import demo_file
from steerlens.intervals import Interval, means, rate, ratios
from steerlens.judges.refusals import refused
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.tokenizing import Readable, tokenize
from steerlens.steering.batch_plans import stacked
from steerlens.steering.generation import generate
from steerlens.steering.steering import Steering

N_HARMLESS = 40


def measure_side_effects(
    model: Model,
    plans: Steering | Mapping[str, Steering],
    *,
    texts: Sequence[Readable] | None = None,
    harmless: Sequence[Readable] | None = None,
    on_prompts: Collection[str] | None = None,
    max_new_tokens: int = 40,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> pd.DataFrame:
    """Effects of one plan, or of each of several alternatives, where there should be none.

    One row per plan and measure, with its 95 % interval and n: those of `text_effects` and those
    of `prompt_effects`, which need replies: of all plans, or of those named in `on_prompts`.
    Without texts and prompts of your own, on those that ship with steerlens.

    >>> table = measure_side_effects(model, steering, texts=prompts, harmless=prompts)
    >>> bool(table.set_index("measure").value["kl_mean"] > 0)
    True
    """
    named = {"steered": plans} if isinstance(plans, Steering) else plans
    replying = named if on_prompts is None else {name: named[name] for name in on_prompts}
    of_text = text_effects(model, named, texts, seed=seed, **run)
    of_prompts = prompt_effects(
        model, replying, harmless, max_new_tokens=max_new_tokens, seed=seed, **run
    )
    return pd.concat([of_text, of_prompts], ignore_index=True)


def text_effects(
    model: Model,
    plans: Mapping[str, Steering],
    texts: Sequence[Readable] | None = None,
    *,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> pd.DataFrame:
    """Teacher-forced on neutral text, which is read without chat template.

    `kl_mean` and `kl_p95`: KL(unsteered ‖ steered) per token, in nats. `perplexity_ratio`: steered
    over unsteered. `bits_per_character` and its `_change`. `open`: share of texts that the plan's
    condition fires on. Intervals resample texts, not tokens.
    """
    rows = tokenize(model, neutral_texts() if texts is None else texts, chat=False)
    forced = teacher_forced(model, rows, [as_text(plan) for plan in plans.values()], **run)
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
        table.note(name, "perplexity_ratio", Interval(*np.exp(tuple(logs[index + 1])).tolist()))
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
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> pd.DataFrame:
    """On prompts that should be left as they are: drift, refusals and the length of replies.

    `drift_mean` and `drift_p95`: KL(unsteered ‖ steered) of the first reply token, in nats;
    `drift_closed`: the largest where the plan's condition did not fire, which should be 0.
    `open`: share of prompts it fires on. `refusal`: share of refusals. `reply_tokens`: mean length.
    A plan that steers only generated tokens has no drift, by construction.
    """
    prompts = harmless_prompts() if prompts is None else prompts
    rows = tokenize(model, prompts)
    forced = teacher_forced(model, rows, list(plans.values()), **run)
    drift = np.array([prompt.kl[:, -1] for prompt in forced])  # [prompt, plan]
    opened = np.array([prompt.open for prompt in forced])
    drift_means = means(drift, seed=seed)
    cells = [None, *plans.values()]
    replies = generate(
        model,
        [prompt for _ in cells for prompt in prompts],
        stacked(cells, len(prompts)),
        max_new_tokens=max_new_tokens,
        **run,
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
        table.note(name, "drift_p95", _point(percentile(drift[:, index])))
        closed = drift[~opened[:, index], index]
        if len(closed):
            table.note(name, "drift_closed", _point(closed.max()), len(closed))
        table.note(name, "open", rate(int(opened[:, index].sum()), len(rows)))
    return pd.DataFrame(table.rows)


def neutral_texts() -> list[str]:
    """The passages that ship with steerlens: facts, stories and instructions in turn."""
    kinds = load_prompts(demo_file("neutral.json")).values()
    return [text for row in zip_longest(*kinds) for text in row if text is not None]


def harmless_prompts() -> list[str]:
    """Everyday requests that ship with steerlens, from the part that nothing is chosen on."""
    return list(load_prompts(demo_file("questions.json"))["test"][:N_HARMLESS])


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
        row = {"plan": plan, "measure": measure, **asdict(value), "n": n, "of": self.of}
        self.rows.append(row)
