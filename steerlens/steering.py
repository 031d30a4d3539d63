"""A vector put to work: where, how much, when; and the hooks that do it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlens.conditions import Condition, Gate
from steerlens.errors import SteerlensError
from steerlens.hooks import (
    KeepNorm,
    add_direction,
    follow_text,
    read_condition,
    restore_norm,
    steering_hook,
)
from steerlens.models import SITES, forward_order
from steerlens.positions import Clock, Positions, require_positions
from steerlens.predicates import Predicate
from steerlens.vector import SteeringVector

NamedHook = tuple[str, Callable[..., Any]]
_Placed = tuple[str, int, Callable[..., Any]]


@dataclass(frozen=True, eq=False)
class Steering:
    """A plan: this vector, at these layers, this strongly, when that condition holds.

    Refuses when built what could not work: layers that the vector lacks, a condition read after
    the stream it judges has been steered, positions that select nothing.

    >>> v = SteeringVector(torch.eye(4), layers=range(4))
    >>> Steering(v, layers=[2, 3], strength=1.5)
    Steering(add_direction 1.5 × 'vector' at resid_post layers 2, 3, all positions)
    """

    vector: SteeringVector
    layers: Iterable[int] | None = None
    """None: all layers of the vector."""
    strength: float | Float[Tensor, "row layer"] = 1.0
    """Multiplies the direction as it is; a matrix steers each row of a batch by its own."""
    when: Predicate | None = None
    edit: Callable[..., Any] = add_direction
    positions: Positions = "all"
    skip_bos: bool = False
    """Leave each row's first token, an attention sink, as it is."""
    keep_norm: bool | KeepNorm = False
    """True scales every edited token back to the length that it had; or a function that does."""
    relative: bool = False
    """Strength is a fraction of the layer's mean activation norm, along the unit direction."""
    site: str | None = None
    """Where it is written; None means where the vector was read."""
    name: str = ""

    def __post_init__(self) -> None:
        layers = self.vector.layers if self.layers is None else self.layers
        set_ = partial(object.__setattr__, self)
        set_("layers", self.vector.at(layers).layers)
        set_("edit", self.edit if hasattr(self.edit, "edit") else steering_hook(self.edit))
        require_positions(self.positions)
        if self.site_written not in SITES:
            raise SteerlensError(
                f"site {self.site_written!r} is unknown; the sites are {', '.join(SITES)}"
            )
        strength = torch.as_tensor(self.strength)
        if not strength.isfinite().all():
            raise SteerlensError(f"strength {self.strength} is not finite")
        if strength.ndim not in (0, 2) or (
            strength.ndim == 2 and strength.shape[1] != len(self.layers_steered)
        ):
            raise SteerlensError(
                f"strength of shape {tuple(strength.shape)} came; needed is one number, or a "
                f"matrix [row, layer] for the {len(self.layers_steered)} steered layers"
            )
        if self.relative and self.vector.norms is None:
            raise SteerlensError(
                "relative=True needs the activation norms that extract() records, "
                "but this vector has none; extract it again or set an absolute strength"
            )
        _require_readable_conditions([self])

    @property
    def layers_steered(self) -> tuple[int, ...]:
        """`layers` as the tuple it is kept as."""
        assert isinstance(self.layers, tuple)
        return self.layers

    @property
    def site_written(self) -> str:
        """Where it is written."""
        return self.site or self.vector.site

    @property
    def norm_keeper(self) -> KeepNorm | None:
        """The function that `keep_norm` stands for."""
        if callable(self.keep_norm):
            return self.keep_norm
        return restore_norm if self.keep_norm else None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions in `when`, each once."""
        leaves = () if self.when is None else self.when.leaves()
        return tuple(_require_condition(leaf) for leaf in dict.fromkeys(leaves))

    def direction(self, layer: int) -> Float[Tensor, " d_model"]:
        """What strength 1 stands for at a layer."""
        direction = self.vector[layer]
        if not self.relative:
            return direction
        assert self.vector.norms is not None
        length = direction.norm()
        unit = direction / length.where(length > 0, 1.0)
        return unit * self.vector.norms[self.vector.row(layer)]

    def hooks(self, prompt_mask: Bool[Tensor, "row pos"] | None = None) -> list[NamedHook]:
        """Fresh hooks for `model.hooks(fwd_hooks=...)`; what they see, no other run does.

        `prompt_mask` (True at real tokens) is needed for a padded batch if the plan has to know
        where the padding is.
        """
        return steering_hooks(self, prompt_mask=prompt_mask)

    def __repr__(self) -> str:
        strength = f"{self.strength:g}" if isinstance(self.strength, int | float) else "per-row"
        where = self.positions if isinstance(self.positions, str) else repr(self.positions)
        return (
            f"Steering({self.edit.__name__} {strength}{' relative' if self.relative else ''} × "
            f"{self.name or self.vector.provenance.get('name', 'vector')!r} at {self.site_written} "
            f"layers {', '.join(map(str, self.layers_steered))}, {where} positions"
            f"{', BOS skipped' if self.skip_bos else ''}{', norm kept' if self.keep_norm else ''}"
            f"{f', when {self.when}' if self.when is not None else ''})"
        )


def steering_hooks(
    *steerings: Steering, prompt_mask: Bool[Tensor, "row pos"] | None = None
) -> list[NamedHook]:
    """Fresh hooks for several steerings at once; conditions they share are read once.

    All conditions are read on the unsteered stream, so none may lie after the first steered site.
    """
    return Run(steerings, prompt_mask).hooks()


@dataclass(eq=False)
class Run:
    """The state of one use of a plan: its clock and its gates. Made afresh, never reset."""

    steerings: Sequence[Steering]
    prompt_mask: Bool[Tensor, "row pos"] | None = None
    clock: Clock = field(init=False)
    gates: dict[Condition, Gate] = field(init=False)

    def __post_init__(self) -> None:
        _require_readable_conditions(self.steerings)
        conditions = dict.fromkeys(
            condition for steering in self.steerings for condition in steering.conditions
        )
        self.clock = Clock(self.prompt_mask, on_prompt=self._forget)
        self.gates = {condition: Gate(condition, self.clock) for condition in conditions}

    def hooks(self) -> list[NamedHook]:
        """Clock first, then what reads, then what edits, in the order of the forward pass."""
        reads: list[_Placed] = [
            (condition.site_read, layer, partial(read_condition, gate=gate, layer=layer))
            for condition, gate in self.gates.items()
            for layer in condition.layers_read
        ]
        edits: list[_Placed] = [
            (steering.site_written, layer, self._edit(steering, column, layer))
            for steering in self.steerings
            for column, layer in enumerate(steering.layers_steered)
        ]
        placed = sorted([*reads, *edits], key=lambda hook: forward_order(hook[0], hook[1]))
        if not placed:
            return []
        first_site, first_layer, _ = placed[0]
        placed.insert(0, (first_site, first_layer, partial(follow_text, clock=self.clock)))
        return [(SITES[site].format(layer=layer), function) for site, layer, function in placed]

    def keep_rows(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with these rows of the batch only, in this order."""
        self.clock.keep_rows(rows)
        for gate in self.gates.values():
            gate.keep_rows(rows)
        self._rows = rows if self._rows is None else self._rows[rows]
        self._chosen.clear()

    _rows: Tensor | None = None
    """The rows that are left, as numbered at the prompt; None: all of them."""
    _chosen: dict[Steering, tuple[int, Tensor | None]] = field(default_factory=dict)
    """What `_where` found in the pass of that number: its layers share it."""

    def _edit(self, steering: Steering, column: int, layer: int) -> Callable[..., Any]:
        strength = torch.as_tensor(steering.strength)
        per_row = partial(self._strength, strength[:, column]) if strength.ndim else None
        return partial(
            steering.edit,
            direction=steering.direction(layer),
            strength=per_row or float(strength),
            where=partial(self._where, steering),
            keep_norm=steering.norm_keeper,
        )

    def _strength(self, per_row: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        rows = per_row if self._rows is None else per_row[self._rows]
        if len(rows) != self.clock.n_rows:
            raise SteerlensError(
                f"the strength has {len(rows)} rows, but the batch {self.clock.n_rows}; "
                "a strength matrix needs one row for each prompt"
            )
        return rows

    def _where(self, steering: Steering) -> Bool[Tensor, "#row #pos"] | None:
        found_in, chosen = self._chosen.get(steering, (-1, None))
        if found_in != self.clock.passes:
            chosen = self._find(steering)
            self._chosen[steering] = self.clock.passes, chosen
        return chosen

    def _find(self, steering: Steering) -> Bool[Tensor, "#row #pos"] | None:
        tokens = self.clock.steered(steering.positions, steering.skip_bos)
        if steering.when is None:
            return tokens
        rows = steering.when.truth(lambda condition: self.gates[condition].open)[:, None]
        return rows if tokens is None else rows & tokens

    def _forget(self) -> None:
        for gate in self.gates.values():
            gate.forget()


def _require_condition(leaf: Predicate) -> Condition:
    if not isinstance(leaf, Condition):
        raise SteerlensError(
            f"{str(leaf)!r} is a name, not a condition; bind the rules to conditions first"
        )
    return leaf


def _require_readable_conditions(steerings: Sequence[Steering]) -> None:
    """A gate must be read before the stream is steered, and so before it is used."""
    steered = [
        (steering.site_written, layer)
        for steering in steerings
        for layer in steering.layers_steered
    ]
    if not steered:
        return
    site, layer = min(steered, key=lambda place: forward_order(*place))
    for steering in steerings:
        for condition in steering.conditions:
            last = condition.layers_read[-1]
            if forward_order(condition.site_read, last) > forward_order(site, layer):
                raise SteerlensError(
                    f"the condition {condition} reads layer {last} ({condition.site_read}), but "
                    f"steering starts at layer {layer} ({site}): a gate must be read before the "
                    "stream is steered; condition on an earlier layer or steer later ones"
                )
