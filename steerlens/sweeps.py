"""Layers × strengths × vectors × positions × prompts, as the rows of one generation."""

import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from steerlens.engines import HERE, Engine
from steerlens.errors import SteerlensError
from steerlens.extraction import LIBRARIES, check_provenance
from steerlens.files import PathLike, digest
from steerlens.generation import Sampling, generate
from steerlens.hooks import KeepNorm, add_direction
from steerlens.judges import Judge, reason, try_judge
from steerlens.ledger import (
    COLUMNS,
    UNSTEERED,
    Cell,
    Failure,
    Sweep,
    open_directory,
    schema,
    write_part,
)
from steerlens.models import Model, fingerprint, resolve_layers
from steerlens.positions import Positions, can_select, describe
from steerlens.predicates import Predicate
from steerlens.steering import Steering
from steerlens.tokens import Readable, TokenRow, tokenize
from steerlens.vector import SteeringVector

BATCH_TOKENS = 16_384
"""Tokens of prompts and replies, padding included, in one batch to begin with."""


def sweep(
    model: Model,
    vectors: SteeringVector | Mapping[str, SteeringVector],
    prompts: Sequence[Readable],
    *,
    layers: Iterable[int | Iterable[int]] | None = None,
    strengths: Iterable[float] = (1.0,),
    positions: Sequence[Positions] = ("all",),
    judges: Sequence[Judge] = (),
    out: PathLike | None = None,
    resume: bool = False,
    when: Predicate | None = None,
    edit: Callable[..., Any] = add_direction,
    relative: bool = False,
    keep_norm: bool | KeepNorm = False,
    skip_bos: bool = False,
    site: str | None = None,
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    chat: bool | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
    engine: Engine = HERE,
) -> Sweep:
    """Reply to every prompt in every cell and unsteered, with the tokens `generate` would give.

    Each of `layers` is a layer or a window of them (None: every layer of the vectors by itself).
    Finished batches are kept in the directory `out`; `resume=True` goes on with what stands there
    and refuses another plan. Batches halve when memory runs out. An `engine` such as
    `distributed.Ray` replies elsewhere; judges run here, as batches come.

    >>> v = extract(load_model(), (["I love you."], ["I hate you."]))
    >>> sweep(load_model(), v, ["How do I bake bread?"], layers=[2, (2, 3)], strengths=[-1, 1])
    Sweep(5 of 5 rows, 5 cells, judged by nobody, 0 failures)
    """
    named = {"vector": vectors} if isinstance(vectors, SteeringVector) else dict(vectors)
    steer = {"when": when, "edit": edit, "relative": relative, "keep_norm": keep_norm,
             "skip_bos": skip_bos, "site": site}  # fmt: skip
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    windows = windows_of(model, named, layers)
    plan = _Plan(
        model,
        named,
        tuple(dict.fromkeys(windows)),
        tuple(dict.fromkeys(map(float, strengths))),
        {_position_text(one): one for one in positions},
        tuple(prompts),
        tokenize(model, prompts, chat=chat),
        tuple(judges),
        steer,
        {"max_new_tokens": max_new_tokens, "chat": chat, **sampling.__dict__},
    )
    if out is None:
        with tempfile.TemporaryDirectory() as scratch:
            return _run(plan, Path(scratch), True, batch_tokens, progress, engine)
    return _run(plan, Path(out), resume, batch_tokens, progress, engine)


class _Question(NamedTuple):
    """A batch to reply to."""

    prompts: Sequence[TokenRow]
    steerings: Sequence[Steering]
    draws: Sequence[int]


class _Answer(NamedTuple):
    """What a batch leaves in the table."""

    texts: Sequence[str]
    n_tokens: Sequence[int]
    finished: Sequence[bool]
    gates: Sequence[Sequence[bool]]


@dataclass(frozen=True, eq=False)
class _Plan:
    """A sweep that has been found possible."""

    model: Model
    vectors: Mapping[str, SteeringVector]
    windows: tuple[tuple[int, ...], ...]
    strengths: tuple[float, ...]
    positions: Mapping[str, Positions]
    prompts: tuple[Readable, ...]
    tokens: Sequence[TokenRow]
    judges: tuple[Judge, ...]
    steer: Mapping[str, Any]
    """What all steerings have in common."""
    reply: Mapping[str, Any]
    """What `generate` is told."""

    def __post_init__(self) -> None:
        if not (self.vectors and self.windows and self.strengths and self.positions):
            raise SteerlensError(
                f"{len(self.vectors)} vectors, {len(self.windows)} layers, {len(self.strengths)} "
                f"strengths and {len(self.positions)} positions came; a sweep needs one of each"
            )
        if not np.isfinite(self.strengths).all():
            raise SteerlensError(f"strengths {self.strengths} are not all finite")
        names = [*COLUMNS, *self.judged, *self.gates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or UNSTEERED.vector in self.vectors:
            raise SteerlensError(
                f"the names {twice or [UNSTEERED.vector]} stand for two things; "
                "give judges, conditions and vectors names of their own"
            )
        n_new, n_ctx = self.reply["max_new_tokens"], self.model.cfg.n_ctx
        if n_new < 1 or self.width > n_ctx:
            raise SteerlensError(
                f"the longest prompt has {self.width - n_new} tokens and {n_new} new ones were "
                f"asked for; needed is at least 1, and {self.model.cfg.model_name}'s context "
                f"holds {n_ctx} in all"
            )
        for steering in self.templates.values():
            uses = [(steering.vector, steering.site_written, steering.layers_steered)]
            uses += [(c.vector, c.site_read, c.layers_read) for c in steering.conditions]
            for use in uses:
                check_provenance(self.model, *use)
            for index, row in enumerate(self.tokens):
                touched = can_select(
                    steering.positions, steering.skip_bos, len(row.ids), n_new, row.reply_start
                )
                if not touched:
                    raise SteerlensError(
                        f"{describe(steering.positions)} lie nowhere in prompt {index} "
                        f"({len(row.ids)} tokens) and {n_new} new ones; change positions="
                    )

    @cached_property
    def templates(self) -> dict[tuple[str, str], Steering]:
        """For each vector and positions, the steering whose strengths the cells set."""
        every = {layer for window in self.windows for layer in window}
        return {
            (name, where): Steering(vector, every, positions=position, **self.steer)
            for (name, vector), (where, position) in product(
                self.vectors.items(), self.positions.items()
            )
        }

    @cached_property
    def cells(self) -> dict[Cell, tuple[int, ...]]:
        """The layers of each cell; equal cells are one."""
        steered = {
            Cell(name, span(window), strength, where): window
            for (name, where), window, strength in product(
                self.templates, self.windows, self.strengths
            )
            if strength
        }
        return {UNSTEERED: (), **steered}

    @property
    def n_rows(self) -> int:
        return len(self.cells) * len(self.prompts)

    @property
    def width(self) -> int:
        """Tokens of the longest prompt and reply."""
        return max(len(row.ids) for row in self.tokens) + int(self.reply["max_new_tokens"])

    @property
    def judged(self) -> list[str]:
        return [judge.name for judge in self.judges]

    @property
    def gates(self) -> list[str]:
        conditions = next(iter(self.templates.values())).conditions
        return [f"gate: {condition}" for condition in conditions]

    def manifest(self) -> dict[str, Any]:
        """All that decides what the rows hold, as JSON."""
        steering = next(iter(self.templates.values()))
        plan = {
            "rows": self.n_rows,
            "cells": len(self.cells),
            "judges": {judge.name: judge.version for judge in self.judges},
            "gates": self.gates,
            "model": self.model.cfg.model_name,
            "weights": fingerprint(self.model),
            "dtype": str(self.model.cfg.dtype),
            "vectors": {name: _hash_of_vector(vector) for name, vector in self.vectors.items()},
            "prompts": digest(json.dumps(self.tokens).encode()),
            "layers": [span(window) for window in self.windows],
            "strengths": self.strengths,
            "positions": list(self.positions),
            "steering": {key: _told(value) for key, value in self.steer.items()},
            "conditions": [
                f"{condition!r} of {_hash_of_vector(condition.vector)}"
                for condition in steering.conditions
            ],
            "reply": self.reply,
            "versions": {library: version(library) for library in LIBRARIES},
        }
        return json.loads(json.dumps(plan))

    def question(self, rows: range) -> _Question:
        """What is asked in some of the rows, as one batch."""
        asked = self._asked(rows)
        prompts = [self.tokens[index] for index in asked]
        return _Question(prompts, self._steerings(self._cells_of(rows)), asked)

    def table(self, rows: range, answer: _Answer) -> pa.Table:
        """Judge the replies of these rows, and put them beside what was asked."""
        asked = self._asked(rows)
        scores, failures = [], []
        for judge in self.judges:
            found, error = try_judge(judge, answer.texts)
            scores.append(found)
            if error:
                failures.append(Failure(judge.name, rows[0], rows[-1], reason(error)))
        columns = [
            rows,
            *zip(*self._cells_of(rows), strict=True),
            asked,
            [self._text(index) for index in asked],
            answer.texts,
            answer.n_tokens,
            answer.finished,
            *scores,
            *answer.gates,
        ]
        fields = schema(self.judged, self.gates)
        arrays = [
            pa.array(list(column), field.type)
            for column, field in zip(columns, fields, strict=True)
        ]
        return pa.table(arrays, schema=fields.with_metadata({"failures": json.dumps(failures)}))

    def _cells_of(self, rows: range) -> list[Cell]:
        cells = list(self.cells)
        return [cells[row // len(self.prompts)] for row in rows]

    def _asked(self, rows: range) -> list[int]:
        return [row % len(self.prompts) for row in rows]

    def _steerings(self, cells: Sequence[Cell]) -> list[Steering]:
        """One steering per vector and positions, with a strength for each row and layer."""
        made = []
        for key, template in self.templates.items():
            own = {
                row: self.cells[cell]
                for row, cell in enumerate(cells)
                if (cell.vector, cell.positions) == key
            }
            if not own and not template.conditions:  # a gate is read of unsteered rows too
                continue
            layers = sorted({layer for window in own.values() for layer in window})
            layers = layers or [template.layers_steered[-1]]
            strength = torch.zeros(len(cells), len(layers))
            for row, window in own.items():
                strength[row, [layers.index(layer) for layer in window]] = cells[row].strength
            made.append(replace(template, layers=layers, strength=strength))
        return made

    def _text(self, index: int) -> str:
        prompt = self.prompts[index]
        ids = self.tokens[index].ids
        return prompt if isinstance(prompt, str) else str(self.model.tokenizer.decode(ids))


def _run(
    plan: _Plan, out: Path, resume: bool, batch_tokens: int, progress: bool, engine: Engine
) -> Sweep:
    done = open_directory(out, plan.manifest(), resume)
    most = max(1, batch_tokens // plan.width)
    waiting = deque(
        piece
        for chunk in _pieces(range(plan.n_rows), most)
        for piece in _runs([row for row in chunk if row not in done])
    )
    work = partial(_answer, reply=plan.reply)
    with tqdm(
        total=plan.n_rows,
        initial=len(done),
        unit="row",
        desc="sweeping",
        disable=None if progress else True,
    ) as bar:
        while waiting:  # again, where the last of them did not fit into memory
            questions = ((rows, plan.question(rows)) for rows in _taken(waiting))
            for rows, answer in engine.run(plan.model, work, questions):
                if answer is None:
                    most = max(1, len(rows) // 2)
                    smaller = [
                        piece for batch in (rows, *waiting) for piece in _pieces(batch, most)
                    ]
                    waiting.clear()
                    waiting.extend(smaller)
                    continue
                write_part(out, rows, plan.table(rows, answer))
                bar.update(len(rows))
    return Sweep.load(out)


def _answer(model: Model, question: _Question, reply: Mapping[str, Any]) -> _Answer | None:
    """None where memory does not hold so many rows at once."""
    n_rows = len(question.prompts)
    try:
        replies = generate(
            model,
            question.prompts,
            question.steerings,
            draws=question.draws,
            batch_size=n_rows,
            progress=False,
            **reply,
        )
        opened = [gate.open.tolist() for gate in replies.gates]
        return _Answer(replies.texts, [*map(len, replies.tokens)], replies.finished, opened)
    except torch.OutOfMemoryError:
        if n_rows == 1:
            raise
    torch.cuda.empty_cache()  # only out here is the memory of the failed batch free
    return None


def _taken(waiting: deque[range]) -> Iterator[range]:
    while waiting:
        yield waiting.popleft()


def windows_of(
    model: Model,
    vectors: Mapping[str, SteeringVector],
    layers: Iterable[int | Iterable[int]] | None,
) -> Iterator[tuple[int, ...]]:
    """Each entry as the layers that it stands for; None: the vectors' layers, one by one."""
    if layers is None:
        layers = sorted(set.intersection(*(set(vector.layers) for vector in vectors.values())))
    for window in layers:
        yield resolve_layers(model, [window] if isinstance(window, int) else window)


def _pieces(rows: range, most: int) -> list[range]:
    return [rows[start : start + most] for start in range(0, len(rows), most)]


def _position_text(positions: Positions) -> str:
    if isinstance(positions, str):
        return positions
    if isinstance(positions, Tensor):
        raise SteerlensError(
            "a mask of positions came; a sweep takes names, slices and lists of indices"
        )
    return describe(positions).removeprefix("positions ")


def _hash_of_vector(vector: SteeringVector) -> str:
    norms = b"" if vector.norms is None else vector.norms.numpy().tobytes()
    return digest(
        f"{vector.site} {vector.layers}".encode(), vector.directions.numpy().tobytes(), norms
    )


def _told(value: Any) -> Any:
    plain = value is None or isinstance(value, bool | str)
    return value if plain else getattr(value, "__qualname__", str(value))


def span(layers: Sequence[int]) -> str:
    """Layers as people write them."""
    runs = _runs(layers)
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _runs(numbers: Sequence[int]) -> list[range]:
    """Increasing numbers as the unbroken runs that they consist of."""
    runs: list[range] = []
    for number in numbers:
        if runs and number == runs[-1].stop:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs
