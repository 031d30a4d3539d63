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
from steerlens.models.token_text import decoded
from steerlens.models.tokenizing import Readable, as_prompts, tokenize
from steerlens.steering.batch_plans import stacked
from steerlens.steering.generation import generate
from steerlens.steering.steering import Steering

N_HARMLESS = 40
"""Prompts that `harmless_prompts` returns."""


def measure_side_effects(
    model: Model,
    steering: Steering | Mapping[str, Steering],
    *,
    texts: Sequence[Readable] | None = None,
    harmless: Sequence[Readable] | None = None,
    on_prompts: Collection[str] | None = None,
    max_new_tokens: int = 40,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> pd.DataFrame:
    """Effects of a steering, or of each of several alternatives, where there should be none.

    One row per steering and measure, with its 95 % interval and n: the measures of `text_effects`
    and of `prompt_effects`.

    Args:
        steering: One, or several by name.
        texts: Neutral texts, chats, passages or token ids; default: `neutral_texts()`.
        harmless: Prompts to reply to, likewise; default: `harmless_prompts()`.
        on_prompts: Names of the steerings to measure on prompts, which needs replies; default: all.
        max_new_tokens: Length of those replies.
        seed: Of the bootstrap intervals.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    >>> table = measure_side_effects(model, steering, texts=prompts, harmless=prompts)
    >>> bool(table.set_index("measure").value["kl_mean"] > 0)
    True
    """
    named = {"steered": steering} if isinstance(steering, Steering) else steering
    replying = named if on_prompts is None else {name: named[name] for name in on_prompts}
    of_text = text_effects(model, named, texts, seed=seed, **run)
    of_prompts = prompt_effects(
        model, replying, harmless, max_new_tokens=max_new_tokens, seed=seed, **run
    )
    return pd.concat([of_text, of_prompts], ignore_index=True)


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
    steerings: Mapping[str, Steering],
    prompts: Sequence[Readable] | None = None,
    *,
    max_new_tokens: int = 40,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> pd.DataFrame:
    """Side effects on harmless prompts: drift, refusals and the length of replies.

    `drift_mean` and `drift_p95`: KL(unsteered ‖ steered) of the first reply token, in nats;
    `drift_closed`: its maximum where the steering's condition did not fire, which should be 0.
    `open`: share of prompts it fires on. `refusal`: share of refusals. `reply_tokens`: mean length.
    A steering of generated tokens only has no drift, by construction.

    Args:
        steerings: By name.
        prompts: Texts, chats, passages or token ids; default: `harmless_prompts()`.
        max_new_tokens: Length of the replies.
        seed: Of the bootstrap.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    >>> table = prompt_effects(model, {"half": steering}, prompts, max_new_tokens=8)
    >>> table.query("steering == 'unsteered'").measure.tolist()
    ['refusal', 'reply_tokens']
    """
    prompts = as_prompts(harmless_prompts() if prompts is None else prompts)
    rows = tokenize(model, prompts)
    forced = teacher_forced(model, rows, list(steerings.values()), **run)
    drift = np.array([prompt.kl[:, -1] for prompt in forced])  # [prompt, steering]
    is_open = np.array([prompt.open for prompt in forced])
    drift_means = means(drift, seed=seed)
    cells = [None, *steerings.values()]
    replies = generate(
        model,
        prompts * len(cells),
        stacked(cells, len(prompts)),
        max_new_tokens=max_new_tokens,
        **run,
    )
    lengths = np.array([len(reply) for reply in replies.tokens], float).reshape(len(cells), -1)
    reply_tokens = means(lengths.T, seed=seed)
    refusals = np.array([refused(text) for text in replies]).reshape(len(cells), -1)
    table = _Table(len(rows), "prompts")
    for index, name in enumerate([UNSTEERED, *steerings]):
        table.note(name, "refusal", rate(int(refusals[index].sum()), len(rows)))
        table.note(name, "reply_tokens", reply_tokens[index])
    for index, name in enumerate(steerings):
        table.note(name, "drift_mean", drift_means[index])
        table.note(name, "drift_p95", _point(percentile(drift[:, index])))
        closed = drift[~is_open[:, index], index]
        if len(closed):
            table.note(name, "drift_closed", _point(closed.max()), len(closed))
        table.note(name, "open", rate(int(is_open[:, index].sum()), len(rows)))
    return pd.DataFrame(table.rows)


def neutral_texts() -> list[str]:
    """The neutral passages that ship with steerlens: facts, stories and instructions in turn.

    >>> len(neutral_texts()) >= 24
    True
    """
    kinds = load_prompts(demo_file("neutral.json")).values()
    return [text for row in zip_longest(*kinds) for text in row if text is not None]


def harmless_prompts() -> list[str]:
    """Everyday requests that ship with steerlens, from the test part: no choice depends on them.

    >>> len(harmless_prompts())
    40
    """
    return list(load_prompts(demo_file("questions.json"))["test"][:N_HARMLESS])


def _point(value: float) -> Interval:
    return Interval(float(value), float("nan"), float("nan"))


@dataclass
class _Table:
    """Rows of a tidy table about `n` texts or prompts."""

    n: int
    of: str
    """ "texts" or "prompts"."""
    rows: list[dict[str, object]] = field(default_factory=list)

    def note(self, steering: str, measure: str, value: Interval, n: int | None = None) -> None:
        n = self.n if n is None else n
        row = {"steering": steering, "measure": measure, **asdict(value), "n": n, "of": self.of}
        self.rows.append(row)
