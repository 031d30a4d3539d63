"""A sweep's cells and rows: which steering is applied to which prompt."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.evaluation.sweep_store import COLUMNS, UNSTEERED, Cell, JudgeFailure
from steerlens.files import digest
from steerlens.judges.judging import Judge, reason, try_judge
from steerlens.layer_text import layers_as_text
from steerlens.models.fingerprint import LIBRARIES, fingerprint
from steerlens.models.host import Model
from steerlens.models.sites import resolve_layers
from steerlens.steering.batch_plans import BatchPlan
from steerlens.steering.conditions import Condition
from steerlens.steering.positions import Positions, describe
from steerlens.steering.steering import Steering
from steerlens.steering.transcripts import Replies
from steerlens.vectors.vector import SteeringVector


@dataclass(frozen=True, eq=False)
class SweepPlan:
    """The cells (template × window × strength, and unsteered), and their rows, one per prompt."""

    templates: Mapping[str, Steering]
    """Steerings by name, each at all layers of all windows; a cell sets layers and strength."""
    windows: tuple[tuple[int, ...], ...]
    """Layers that are steered together."""
    strengths: tuple[float, ...] | None
    """None: each template's own strength."""
    n_prompts: int

    def __post_init__(self) -> None:
        n_strengths = 1 if self.strengths is None else len(self.strengths)
        if not (self.templates and self.windows and n_strengths):
            raise SteerlensError(
                f"got {len(self.templates)} steerings, {len(self.windows)} layers and "
                f"{n_strengths} strengths; expected at least one of each"
            )
        for name in self.templates:
            strengths = self.strengths_of(name)
            if not np.isfinite(strengths).all():
                raise SteerlensError(f"got strengths {strengths}; expected finite numbers")
        if UNSTEERED.vector in self.templates:
            raise SteerlensError(
                f"got a steering named {UNSTEERED.vector!r}, the name of the unsteered cell; give "
                "it another name"
            )

    def strengths_of(self, name: str) -> tuple[float, ...]:
        """The strengths that a template is swept over."""
        if self.strengths is not None:
            return self.strengths
        strength = self.templates[name].strength
        if not isinstance(strength, int | float):
            raise SteerlensError(
                f"got {self.templates[name]} with strengths by layer; expected one number, since a "
                "sweep sets the strength of each cell: give strengths="
            )
        return (float(strength),)

    @cached_property
    def positions(self) -> dict[str, str]:
        """The positions that each template steers, in words."""
        return {name: _position_text(one.positions) for name, one in self.templates.items()}

    @cached_property
    def cells(self) -> dict[Cell, tuple[int, ...]]:
        """The layers of each cell; equal cells are one."""
        steered = {
            Cell(name, layers_as_text(window), strength, self.positions[name]): window
            for name in self.templates
            for window, strength in product(self.windows, self.strengths_of(name))
            if strength
        }
        return {UNSTEERED: (), **steered}

    @property
    def n_rows(self) -> int:
        """Cells × prompts."""
        return len(self.cells) * self.n_prompts

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions of all templates; they are evaluated on every row, steered or not."""
        return tuple(dict.fromkeys(c for one in self.templates.values() for c in one.conditions))

    @property
    def all_conditions(self) -> tuple[Condition, ...]:
        """Those on prompts, and those on tokens."""
        of_tokens = (c for one in self.templates.values() for c in one.token_conditions)
        return tuple(dict.fromkeys((*self.conditions, *of_tokens)))

    @property
    def gates(self) -> list[str]:
        """Column names of the conditions."""
        return [f"gate: {condition}" for condition in self.conditions]

    def cells_of(self, rows: range) -> list[Cell]:
        """The cell of each of these rows."""
        cells = list(self.cells)
        return [cells[row // self.n_prompts] for row in rows]

    def prompts_of(self, rows: range) -> list[int]:
        """Index of each row's prompt."""
        return [row % self.n_prompts for row in rows]

    def steerings(self, rows: range) -> list[BatchPlan]:
        """One batch plan per template, with a strength for each row and layer."""
        cells = self.cells_of(rows)
        plans = []
        for name, template in self.templates.items():
            windows = {i: self.cells[cell] for i, cell in enumerate(cells) if cell.vector == name}
            if not windows and not template.conditions:  # gates are read on unsteered rows too
                continue
            layers = sorted({layer for window in windows.values() for layer in window})
            layers = layers or [template.layers_steered[-1]]
            strength = torch.zeros(len(cells), len(layers))
            for i, window in windows.items():
                columns = [layers.index(layer) for layer in window]
                cell = replace(template, layers=window, strength=cells[i].strength)
                strength[i, columns] = torch.tensor(cell.strengths)
            plans.append(BatchPlan(replace(template, layers=layers, strength=1.0), strength))
        return plans


def judged_table(
    plan: SweepPlan,
    rows: range,
    replies: Replies,
    judges: Sequence[Judge],
) -> tuple[pd.DataFrame, list[JudgeFailure]]:
    """The table of these rows (cell, prompt, reply, scores, gates), and the judges that failed."""
    scores, failures = {}, []
    for judge in judges:
        scores[judge.name], error = try_judge(judge, replies.texts)
        if error:
            failures.append(JudgeFailure(judge.name, rows[0], rows[-1], reason(error)))
    columns = [
        rows,
        *zip(*plan.cells_of(rows), strict=True),
        plan.prompts_of(rows),
        replies.prompts,
        replies.texts,
        [*map(len, replies.tokens)],
        replies.finished,
    ]
    gates = dict(zip(plan.gates, (gate.open.tolist() for gate in replies.gates), strict=True))
    table = pd.DataFrame(dict(zip(COLUMNS, map(list, columns), strict=True)) | scores | gates)
    return table, failures


def windows_of(
    model: Model,
    templates: Mapping[str, Steering],
    layers: Iterable[int | Iterable[int]] | None,
) -> Iterator[tuple[int, ...]]:
    """Each entry of `layers` as a window; None: every layer that all templates share, alone."""
    if layers is None:
        steered = (set(template.layers_steered) for template in templates.values())
        layers = sorted(set.intersection(*steered)) if templates else []
    for window in layers:
        yield resolve_layers(model, [window] if isinstance(window, int) else window)


def manifest_of(
    plan: SweepPlan, model: Model, judges: Sequence[Judge], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that determines the rows, as JSON; `asked` holds what all rows share."""
    templates = plan.templates.items()
    manifest = {
        "rows": plan.n_rows,
        "cells": len(plan.cells),
        "judges": {judge.name: judge.version for judge in judges},
        "gates": plan.gates,
        "model": model.cfg.model_name,
        "weights": fingerprint(model),
        "dtype": str(model.cfg.dtype),
        "vectors": {name: _hash_of(template.vector) for name, template in templates},
        "layers": [layers_as_text(window) for window in plan.windows],
        "strengths": {name: plan.strengths_of(name) for name in plan.templates},
        "positions": plan.positions,
        "steering": {name: _settings_of(template) for name, template in templates},
        "conditions": [f"{one!r} of {_hash_of(one.vector)}" for one in plan.all_conditions],
        **asked,
        "versions": {library: version(library) for library in LIBRARIES},
    }
    return json.loads(json.dumps(manifest))


def _settings_of(template: Steering) -> dict[str, Any]:
    """A template's settings other than its vector, layers, strength and positions."""
    reference = template.reference
    return {
        "edit": _name_of(template.edit),
        "adds_up": template.adds_up,
        "relative": template.relative,
        "keep_norm": _name_of(template.keep_norm),
        "skip_bos": template.skip_bos,
        "site": template.site_written,
        "when": None if template.when is None else str(template.when),
        "when_token": None if template.when_token is None else str(template.when_token),
        "schedule": None if template.schedule is None else repr(template.schedule),
        "reference": None if reference is None else _hash_of(reference),
    }


def _hash_of(vector: SteeringVector) -> str:
    norms = b"" if vector.norms is None else vector.norms.numpy().tobytes()
    return digest(
        f"{vector.site} {vector.layers}".encode(), vector.directions.numpy().tobytes(), norms
    )


def _name_of(value: Any) -> Any:
    return value if isinstance(value, bool) else getattr(value, "__qualname__", str(value))


def _position_text(positions: Positions) -> str:
    if isinstance(positions, str):
        return positions
    if isinstance(positions, Tensor):
        raise SteerlensError(
            "got a mask of positions; expected a name, a slice or a list of indices, which a "
            "sweep's table can show in words"
        )
    return describe(positions).removeprefix("positions ")
