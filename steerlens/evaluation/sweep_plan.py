"""A sweep's cells: vectors × layers × strengths × positions."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from steerlens.errors import SteerlensError
from steerlens.evaluation.sweep_store import COLUMNS, UNSTEERED, Cell, JudgeFailure, schema
from steerlens.files import digest
from steerlens.judges.judging import Judge, reason, try_judge
from steerlens.layer_text import layers_as_text
from steerlens.models.fingerprint import LIBRARIES, fingerprint
from steerlens.models.host import Model
from steerlens.models.sites import resolve_layers
from steerlens.models.tokenizing import Readable, TokenRow
from steerlens.steering.batch_plans import BatchPlan
from steerlens.steering.fitting import require_fit
from steerlens.steering.positions import Positions, can_select, describe
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector


class SweepBatch(NamedTuple):
    """A batch to reply to."""

    prompts: Sequence[TokenRow]
    steerings: Sequence[BatchPlan]
    draws: Sequence[int]


class SweepReplies(NamedTuple):
    """What a batch leaves in the table."""

    texts: Sequence[str]
    n_tokens: Sequence[int]
    finished: Sequence[bool]
    gates: Sequence[Sequence[bool]]


@dataclass(frozen=True, eq=False)
class SweepPlan:
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
            require_fit(self.model, steering)
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
            Cell(name, layers_as_text(window), strength, where): window
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
            "layers": [layers_as_text(window) for window in self.windows],
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

    def question(self, rows: range) -> SweepBatch:
        """What is asked in some of the rows, as one batch."""
        asked = self._asked(rows)
        prompts = [self.tokens[index] for index in asked]
        return SweepBatch(prompts, self._steerings(self._cells_of(rows)), asked)

    def table(self, rows: range, answer: SweepReplies) -> pa.Table:
        """Judge the replies of these rows, and put them beside what was asked."""
        asked = self._asked(rows)
        scores, failures = [], []
        for judge in self.judges:
            found, error = try_judge(judge, answer.texts)
            scores.append(found)
            if error:
                failures.append(JudgeFailure(judge.name, rows[0], rows[-1], reason(error)))
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

    def _steerings(self, cells: Sequence[Cell]) -> list[BatchPlan]:
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
            made.append(BatchPlan(replace(template, layers=layers), strength))
        return made

    def _text(self, index: int) -> str:
        prompt = self.prompts[index]
        ids = self.tokens[index].ids
        return prompt if isinstance(prompt, str) else str(self.model.tokenizer.decode(ids))


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


def _hash_of_vector(vector: SteeringVector) -> str:
    norms = b"" if vector.norms is None else vector.norms.numpy().tobytes()
    return digest(
        f"{vector.site} {vector.layers}".encode(), vector.directions.numpy().tobytes(), norms
    )


def _told(value: Any) -> Any:
    plain = value is None or isinstance(value, bool | str)
    return value if plain else getattr(value, "__qualname__", str(value))
