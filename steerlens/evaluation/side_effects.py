"""Side effects: what a steering does to neutral text and to prompts it is not meant for."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any, Unpack

import numpy as np
import pandas as pd

from steerlens.data.asking import Asking
from steerlens.data.prompt_files import load_prompts
from steerlens.evaluation.effects import UNSTEERED
from steerlens.evaluation.safety_panel import (
    Safety,
    prompt_sets,
    refusal_overlaps,
    unsteered_replies,
)
from steerlens.evaluation.teacher_forcing import as_text, kl_percentiles, percentile, teacher_forced
from steerlens.files import demo_file
from steerlens.intervals import Interval, means, paired_rates, rate, ratios
from steerlens.judges.fluency import degenerate
from steerlens.judges.refusals import refused
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.token_text import decoded
from steerlens.models.tokenizing import Readable, tokenize
from steerlens.steering.batch_plans import stacked
from steerlens.steering.generation import generate
from steerlens.steering.steering import Steering

Way = Steering | Asking
"""What is measured on prompts: a steering, or a way to ask for the same."""


def measure_side_effects(
    model: Model,
    steering: Steering | Mapping[str, Way],
    *,
    texts: Sequence[Readable] | None = None,
    safety: Safety = None,
    on_prompts: Collection[str] | None = None,
    max_new_tokens: int = 40,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> pd.DataFrame:
    """Effects of a steering, or of each of several alternatives, where there should be none.

    One row per steering and measure, with its 95 % interval and n: the measures of `text_effects`,
    of `prompt_effects` and, with the default prompts, of `refusal_overlaps`.

    Args:
        steering: One, or several by name; among these may be ways to ask for the same, which are
            measured on prompts.
        texts: Neutral texts, chats, passages or token ids; default: `neutral_texts()`.
        safety: Sets of prompts to reply to, by name, or one of harmless prompts; empty: none.
            Default: the safety panel, that is `safety_prompts()` and the refusal direction.
        on_prompts: Names of those to measure on prompts, which needs replies; default: all.
        max_new_tokens: Length of those replies.
        seed: Of the bootstrap intervals.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    >>> table = measure_side_effects(model, steering, texts=prompts, safety=prompts)
    >>> bool(table.set_index("measure").value["kl_mean"] > 0)
    True
    """
    ways = {"steered": steering} if isinstance(steering, Steering) else steering
    steerings = {name: way for name, way in ways.items() if isinstance(way, Steering)}
    replying = ways if on_prompts is None else {name: ways[name] for name in on_prompts}
    tables = [text_effects(model, steerings, texts, seed=seed, **run)] if steerings else []
    tables.append(
        prompt_effects(model, replying, safety, max_new_tokens=max_new_tokens, seed=seed, **run)
    )
    if safety is None and steerings:
        tables.append(refusal_overlaps(model, steerings, **run))
    return pd.concat([table for table in tables if len(table)], ignore_index=True)


def text_effects(
    model: Model,
    steerings: Mapping[str, Steering],
    texts: Sequence[Readable] | None = None,
    *,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> pd.DataFrame:
    """Side effects on neutral text, teacher-forced and read without chat template.

    `kl_mean` and `kl_p95`: KL(unsteered ‖ steered) per token, in nats. `perplexity_ratio`: steered
    over unsteered. `bits_per_character` and its `_change`. `open`: share of texts on which the
    steering's condition fires. Intervals resample texts, not tokens.

    Args:
        steerings: By name.
        texts: Texts, chats, passages or token ids; default: `neutral_texts()`.
        seed: Of the bootstrap.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    >>> table = text_effects(model, {"half": steering}, prompts)
    >>> table.query("steering == 'half'").measure.tolist()[:3]
    ['kl_mean', 'kl_p95', 'perplexity_ratio']
    """
    rows = tokenize(model, neutral_texts() if texts is None else texts, chat=False)
    forced = teacher_forced(model, rows, [as_text(one) for one in steerings.values()], **run)
    counts = np.array([[text.surprise.shape[1]] for text in forced], dtype=float)
    bits = np.array([text.surprise.sum(axis=1) for text in forced]) / np.log(2)  # [text, steering]
    characters = [[len(decoded(model.tokenizer, row.ids[1:]))] for row in rows]
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
    for index, name in enumerate(steerings):
        table.note(name, "kl_mean", kl_means[index])
        table.note(name, "kl_p95", _point(p95[index]))
        table.note(name, "perplexity_ratio", Interval(*np.exp(tuple(logs[index + 1])).tolist()))
        table.note(name, "bits_per_character", per_character[index + 1])
        table.note(name, "bits_per_character_change", more_per_character[index + 1])
        table.note(name, "open", rate(sum(bool(text.open[index]) for text in forced), len(rows)))
    return pd.DataFrame(table.rows)


def prompt_effects(
    model: Model,
    ways: Mapping[str, Way],
    safety: Safety = None,
    *,
    max_new_tokens: int = 40,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> pd.DataFrame:
    """Side effects on sets of prompts: refusals, compliance, broken and long replies, drift.

    `refusal`, `degenerate`: shares of replies. `compliance`: the share of replies that are neither.
    `refusal_change` and `compliance_change`: against the same prompts unsteered. `reply_tokens`:
    mean length. Of steerings also `drift_mean` and `drift_p95`: KL(unsteered ‖ steered) of the
    first reply token, in nats; `drift_closed`: its maximum where the steering's condition did not
    fire, which should be 0; `open`: share of prompts it fires on. A steering of generated tokens
    only has no drift, by construction, and asking has none that means something.

    Args:
        ways: Steerings, and ways to ask, by name.
        safety: Sets of prompts by name, or one of harmless prompts; default: `safety_prompts()`.
        max_new_tokens: Length of the replies.
        seed: Of the bootstrap.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    >>> table = prompt_effects(model, {"half": steering}, prompts, max_new_tokens=8)
    >>> table.query("steering == 'unsteered'").measure.tolist()
    ['refusal', 'degenerate', 'compliance', 'reply_tokens']
    """
    sets = prompt_sets(safety)
    tables = [
        _effects_on(model, ways, prompts, _Table(len(prompts), name), max_new_tokens, seed, **run)
        for name, prompts in sets.items()
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _effects_on(
    model: Model,
    ways: Mapping[str, Way],
    prompts: list[Any],
    table: "_Table",
    max_new_tokens: int,
    seed: int,
    **run: Unpack[RunOptions],
) -> pd.DataFrame:
    steerings = {name: way for name, way in ways.items() if isinstance(way, Steering)}
    asked = [
        way(prompt) if isinstance(way, Asking) else prompt
        for way in ways.values()
        for prompt in prompts
    ]
    cells = [way if isinstance(way, Steering) else None for way in ways.values()]
    before, lengths = unsteered_replies(model, prompts, max_new_tokens, **run)
    replies = generate(
        model, asked, stacked(cells, len(prompts)), max_new_tokens=max_new_tokens, **run
    )
    texts = np.array([*before, *replies]).reshape(-1, len(prompts))
    tokens = np.array([*lengths, *map(len, replies.tokens)], float).reshape(texts.shape)
    judged = {
        "refusal": np.vectorize(refused, [bool])(texts),
        "degenerate": np.vectorize(degenerate, [bool])(texts),
    }
    judged["compliance"] = ~(judged["refusal"] | judged["degenerate"])
    reply_tokens = means(tokens.T, seed=seed)
    for index, name in enumerate([UNSTEERED, *ways]):
        for measure, hits in judged.items():
            table.note(name, measure, rate(int(hits[index].sum()), table.n))
        table.note(name, "reply_tokens", reply_tokens[index])
        if index:
            for measure in ("refusal", "compliance"):
                hits = judged[measure]
                table.note(name, f"{measure}_change", paired_rates(hits[0], hits[index]))
    if steerings:
        _note_drift(model, steerings, prompts, table, seed, **run)
    return pd.DataFrame(table.rows)


def _note_drift(
    model: Model,
    steerings: Mapping[str, Steering],
    prompts: list[Any],
    table: "_Table",
    seed: int,
    **run: Unpack[RunOptions],
) -> None:
    forced = teacher_forced(model, tokenize(model, prompts), list(steerings.values()), **run)
    drift = np.array([prompt.kl[:, -1] for prompt in forced])  # [prompt, steering]
    is_open = np.array([prompt.open for prompt in forced])
    drift_means = means(drift, seed=seed)
    for index, name in enumerate(steerings):
        table.note(name, "drift_mean", drift_means[index])
        table.note(name, "drift_p95", _point(percentile(drift[:, index])))
        closed = drift[~is_open[:, index], index]
        if len(closed):
            table.note(name, "drift_closed", _point(closed.max()), len(closed))
        table.note(name, "open", rate(int(is_open[:, index].sum()), table.n))


def neutral_texts() -> list[str]:
    """The neutral passages that ship with steerlens: facts, stories and instructions in turn.

    >>> len(neutral_texts()) >= 24
    True
    """
    kinds = load_prompts(demo_file("neutral.json")).values()
    return [text for row in zip_longest(*kinds) for text in row if text is not None]


def _point(value: float) -> Interval:
    return Interval(float(value), float("nan"), float("nan"))


@dataclass
class _Table:
    """Rows of a tidy table about `n` texts or prompts."""

    n: int
    of: str
    """ "texts", or the name of a set of prompts."""
    rows: list[dict[str, object]] = field(default_factory=list)

    def note(self, steering: str, measure: str, value: Interval, n: int | None = None) -> None:
        n = self.n if n is None else n
        row = {"steering": steering, "measure": measure, **asdict(value), "n": n, "of": self.of}
        self.rows.append(row)
