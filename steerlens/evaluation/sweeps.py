"""Layers × strengths × steerings × prompts, as the rows of one generation."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack

import pandas as pd

from steerlens.errors import SteerlensError
from steerlens.evaluation.sweep_plan import SweepPlan, judged_table, manifest_of, windows_of
from steerlens.evaluation.sweep_store import (
    COLUMNS,
    JudgeFailure,
    Sweep,
    open_directory,
    write_part,
)
from steerlens.files import PathLike, digest
from steerlens.judges.judging import Judge
from steerlens.layer_text import consecutive
from steerlens.models.engine import RunOptions, RunSettings, run_settings
from steerlens.models.host import Model
from steerlens.models.progress import progress_bar
from steerlens.models.tokenizing import Readable, TokenRow, tokenize
from steerlens.steering.fitting import require_fit, touches
from steerlens.steering.generation import Task, Writing, write
from steerlens.steering.positions import describe
from steerlens.steering.sampling import Sampling
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

BATCH_TOKENS = 16_384
"""Tokens of prompts and replies, padding included, in one batch unless `batch_size` says else."""

Swept = Steering | SteeringVector
Keep = Callable[[range, pd.DataFrame, list[JudgeFailure]], object]


class _Sweep(NamedTuple):
    """A sweep that has been found possible."""

    plan: SweepPlan
    rows: Sequence[TokenRow]
    prompts: Sequence[str]
    """The rows as they are shown in the table."""
    judges: Sequence[Judge]
    writing: Writing

    def task(self, rows: range) -> Task:
        """Some of its rows, to be written."""
        asked = self.plan.prompts_of(rows)
        plans = self.plan.steerings(rows)
        return Task([self.rows[index] for index in asked], plans, asked, self.writing)

    @property
    def width(self) -> int:
        """Tokens of the longest prompt and reply."""
        return max(len(row.ids) for row in self.rows) + self.writing.max_new_tokens


def sweep(
    model: Model,
    steering: Swept | Mapping[str, Swept],
    prompts: Sequence[Readable],
    *,
    layers: Iterable[int | Iterable[int]] | None = None,
    strengths: Iterable[float] | None = None,
    judges: Sequence[Judge] = (),
    max_new_tokens: int = 50,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    chat: bool | None = None,
    out: PathLike | None = None,
    resume: bool = False,
    **run: Unpack[RunOptions],
) -> Sweep:
    """Reply to every prompt in every cell and unsteered, with the tokens `generate` would give.

    A batch is kept as soon as it is judged: a sweep that was stopped goes on where it was.

    Args:
        steering: The template, of which each cell takes its own layers and strength; a vector
            stands for `Steering(vector)`. Several by name sweep vectors, positions, edits ….
        layers: Each a layer or a window of them; None is every layer of the templates by itself.
        strengths: In place of the templates' own.
        judges: Each becomes a column of scores. Where one fails, the replies are kept.
        out: A directory to keep finished batches in.
        resume: Go on with what stands in `out`; another sweep is refused.
        run: `batch_size`, `progress`, and an `engine` such as `Ray` that replies elsewhere;
            judges run here.

    >>> v = extract(load_model(), (["I love you."], ["I hate you."]))
    >>> sweep(load_model(), v, ["How do I bake bread?"], layers=[2, (2, 3)], strengths=[-1, 1])
    Sweep(5 of 5 rows, 5 cells, judged by nobody, 0 failures)
    """
    options = run_settings(**run)
    named = {"vector": steering} if isinstance(steering, Swept) else dict(steering)
    templates = {
        name: Steering(one) if isinstance(one, SteeringVector) else one
        for name, one in named.items()
    }
    windows = tuple(dict.fromkeys(windows_of(model, templates, layers)))
    rows = tokenize(model, prompts, chat=chat)
    plan = SweepPlan(
        {name: _at_all_layers(template, windows) for name, template in templates.items()},
        windows,
        None if strengths is None else tuple(dict.fromkeys(map(float, strengths))),
        len(rows),
    )
    texts = [_text_of(model, prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
    found = _Sweep(plan, rows, texts, judges, Writing(max_new_tokens, sampling))
    _require_possible(model, found)
    asked = {
        "prompts": digest(repr(rows).encode()),
        "reply": {"max_new_tokens": max_new_tokens, "chat": chat, **asdict(sampling)},
    }
    manifest = manifest_of(plan, model, judges, asked)
    if out is None:
        frames: list[pd.DataFrame] = []
        lost: list[JudgeFailure] = []

        def remember(_: range, table: pd.DataFrame, failures: list[JudgeFailure]) -> None:
            frames.append(table)
            lost.extend(failures)

        _run(model, found, set(), remember, options)
        table = pd.concat(frames).sort_values("row", ignore_index=True)
        return Sweep(table, manifest, tuple(lost))
    done = open_directory(Path(out), manifest, resume)
    _run(model, found, done, partial(write_part, Path(out), manifest), options)
    return Sweep.load(out)


def _run(model: Model, found: _Sweep, done: set[int], keep: Keep, options: RunSettings) -> None:
    """Write and judge the rows that are not done yet, batch by batch."""
    plan = found.plan
    most = options.batch_size or max(1, BATCH_TOKENS // found.width)
    every = range(plan.n_rows)
    cuts = (every[start : start + most] for start in every[::most])
    left = (consecutive([row for row in cut if row not in done]) for cut in cuts)
    tasks = ((rows, found.task(rows)) for runs in left for rows in runs)
    with progress_bar(plan.n_rows, "row", options.progress, what="sweeping", done=len(done)) as bar:
        for rows, transcript in options.engine.run(model, write, tasks):
            prompts = [found.prompts[index] for index in plan.prompts_of(rows)]
            texts = model.tokenizer.batch_decode(transcript.tokens, skip_special_tokens=True)
            replies = transcript.replies(prompts, texts)
            keep(rows, *judged_table(plan, rows, replies, found.judges))
            bar.update(len(rows))


def _at_all_layers(template: Steering, windows: Sequence[tuple[int, ...]]) -> Steering:
    """Refuses layers that its vector lacks, or that lie before what its condition reads."""
    every = {layer for window in windows for layer in window}
    return replace(template, layers=every) if every else template


def _require_possible(model: Model, found: _Sweep) -> None:
    """Refuse, before any work, what could not be told apart or would do nothing."""
    plan, n_new = found.plan, found.writing.max_new_tokens
    names = [*COLUMNS, *(judge.name for judge in found.judges), *plan.gates]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SteerlensError(
            f"got the column names {twice} for two things each; expected judges and conditions "
            "with names of their own"
        )
    if n_new < 1:
        raise SteerlensError(f"got max_new_tokens={n_new}; expected at least 1")
    templates = [*plan.templates.values()]
    require_fit(model, templates, found.rows, n_new)
    for template in templates:
        for index, row in enumerate(found.rows):
            if not touches(template, row, index, n_new):
                raise SteerlensError(
                    f"{describe(template.positions)} lie nowhere in prompt {index} "
                    f"({len(row.ids)} tokens) and {n_new} new ones; change positions="
                )


def _text_of(model: Model, prompt: Readable, row: TokenRow) -> str:
    return prompt if isinstance(prompt, str) else str(model.tokenizer.decode(row.ids))
