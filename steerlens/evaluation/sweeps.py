"""Sweeps: layers × strengths × steerings × prompts, as the rows of one generation."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
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
from steerlens.files import PathLike, digest, require_writable, writing_alone
from steerlens.judges.judging import Judge, require_judges
from steerlens.layer_text import consecutive
from steerlens.models.engine import RunOptions, RunSettings, run_settings
from steerlens.models.host import Model
from steerlens.models.progress import progress_bar
from steerlens.models.token_text import decoded
from steerlens.models.tokenizing import Readable, TokenRow, as_prompts, tokenize
from steerlens.numerics import require_count
from steerlens.steering.fitting import require_fit, touches
from steerlens.steering.generation import Task, Writing, write
from steerlens.steering.positions import describe
from steerlens.steering.sampling import Sampling
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

BATCH_TOKENS = 16_384
"""Token budget of one batch (prompts, replies and padding) unless `batch_size` is given."""

Swept = Steering | SteeringVector
SaveBatch = Callable[[range, pd.DataFrame, list[JudgeFailure]], object]


class _Job(NamedTuple):
    """A sweep's plan, with the tokens, judges and sampling to run it."""

    plan: SweepPlan
    rows: Sequence[TokenRow]
    """The prompts, tokenised."""
    prompts: Sequence[str]
    """The prompts as text, for the table."""
    judges: Sequence[Judge]
    writing: Writing

    def task(self, rows: range) -> Task:
        """The generation task of some of the sweep's rows."""
        prompts = self.plan.prompts_of(rows)
        plans = self.plan.steerings(rows)
        return Task([self.rows[index] for index in prompts], plans, prompts, self.writing)

    @property
    def width(self) -> int:
        """Tokens of the longest prompt and its reply."""
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
    """Reply to every prompt in every cell (layers × strength × steering) and unsteered.

    The replies are those of `generate`. With `out`, a batch is saved as soon as it is judged, and
    an interrupted sweep continues from there.

    Args:
        steering: The template: each cell sets its layers and strength. A vector is short for
            `Steering(vector)`; several templates by name compare vectors, positions, edits ….
        prompts: Texts, chats, passages or token ids.
        layers: Layers and windows of layers, such as `[2, (2, 3)]`; default: each layer of the
            templates alone.
        strengths: Steering coefficients, each shared by the layers of a window as `Steering`
            shares it; default: each template's own.
        judges: Each adds a column of scores. If one fails, the replies are kept.
        sampling: How replies are sampled; greedy unless given.
        chat: Whether prompts go through the chat template; default: if the model has one.
        out: Directory to save finished batches in.
        resume: Continue the sweep in `out`; if it is another sweep, raise.
        run: `batch_size`, `progress`, and an `engine` such as `Ray` that generates elsewhere
            (judges run here).

    Raises:
        SteerlensError: Before anything runs, if a cell cannot run or would do nothing.

    >>> v = extract(load_model(), (["I love you."], ["I hate you."]))
    >>> sweep(load_model(), v, ["How do I bake bread?"], layers=[2, (2, 3)], strengths=[-1, 1])
    Sweep(5 of 5 rows, 5 cells, judges: none, 0 failures)
    """
    options, judges = run_settings(**run), require_judges(judges)
    named = {"vector": steering} if isinstance(steering, Swept) else dict(steering)
    templates = {
        name: Steering(template) if isinstance(template, SteeringVector) else template
        for name, template in named.items()
    }
    windows = tuple(dict.fromkeys(windows_of(model, templates, layers)))
    prompts = as_prompts(prompts)
    rows = tokenize(model, prompts, chat=chat)
    plan = SweepPlan(
        {name: _at_all_layers(template, windows) for name, template in templates.items()},
        windows,
        None if strengths is None else tuple(dict.fromkeys(map(float, strengths))),
        len(rows),
    )
    texts = [_text_of(model, prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
    job = _Job(plan, rows, texts, judges, Writing(max_new_tokens, sampling))
    _require_possible(model, job)
    asked = {
        "prompts": digest(repr(rows).encode()),
        "reply": {"max_new_tokens": max_new_tokens, "chat": chat, **asdict(sampling)},
    }
    manifest = manifest_of(plan, model, judges, asked)
    if out is None:
        frames: list[pd.DataFrame] = []
        failures: list[JudgeFailure] = []

        def collect(_: range, table: pd.DataFrame, failed: list[JudgeFailure]) -> None:
            frames.append(table)
            failures.extend(failed)

        _run(model, job, set(), collect, options)
        table = pd.concat(frames).sort_values("row", ignore_index=True)
        return Sweep(table, manifest, tuple(failures))
    directory = require_writable(out)
    with writing_alone(directory):
        done = open_directory(directory, manifest, resume)
        _run(model, job, done, partial(write_part, directory, manifest), options)
    return Sweep.load(directory)


def _run(model: Model, job: _Job, done: set[int], save: SaveBatch, options: RunSettings) -> None:
    """Generate and judge the rows that are not done yet, batch by batch."""
    plan = job.plan
    batch_size = options.batch_size or max(1, BATCH_TOKENS // job.width)
    all_rows = range(plan.n_rows)
    batches = (all_rows[start : start + batch_size] for start in all_rows[::batch_size])
    missing = (consecutive([row for row in batch if row not in done]) for batch in batches)
    tasks = ((rows, job.task(rows)) for spans in missing for rows in spans)
    with progress_bar(plan.n_rows, "row", options.progress, what="sweeping", done=len(done)) as bar:
        for rows, transcript in options.engine.run(model, write, tasks):
            prompts = [job.prompts[index] for index in plan.prompts_of(rows)]
            texts = [
                decoded(model.tokenizer, tokens, skip_special_tokens=True)
                for tokens in transcript.tokens
            ]
            replies = transcript.replies(prompts, texts, model.tokenizer)
            save(rows, *judged_table(plan, rows, replies, job.judges))
            bar.update(len(rows))


def _at_all_layers(template: Steering, windows: Sequence[tuple[int, ...]]) -> Steering:
    """Raises if the vector lacks a layer, or the condition reads a later layer."""
    layers = {layer for window in windows for layer in window}
    return replace(template, layers=layers) if layers else template


def _require_possible(model: Model, job: _Job) -> None:
    """Refuse, before any work, ambiguous columns and cells that would do nothing."""
    plan, n_new = job.plan, job.writing.max_new_tokens
    names = [*COLUMNS, *(judge.name for judge in job.judges), *plan.gates]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SteerlensError(
            f"got the column names {twice} more than once; expected judges and conditions with "
            "different names"
        )
    require_count("max_new_tokens", n_new)
    templates = [*plan.templates.values()]
    require_fit(model, templates, job.rows, n_new)
    for template in templates:
        for index, row in enumerate(job.rows):
            if not touches(template, row, index, n_new):
                raise SteerlensError(
                    f"got {describe(template.positions)}, which select no token of prompt {index} "
                    f"({len(row.ids)} tokens) and its reply ({n_new}); change positions="
                )


def _text_of(model: Model, prompt: Readable, row: TokenRow) -> str:
    return prompt if isinstance(prompt, str) else decoded(model.tokenizer, row.ids)
