"""A vector put to work: where, how much, when; and the hooks that do it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from threading import get_ident
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlens.display import card
from steerlens.errors import SteerlensError, short_repr
from steerlens.models.hooking import Attachment, NamedHook
from steerlens.models.host import Model
from steerlens.models.sites import (
    FRAMED_SITES,
    SITES,
    attention_scores,
    forward_order,
    hook_name,
    require_site,
    require_writable,
    site_frame,
)
from steerlens.numerics import unit
from steerlens.steering.clocks import Clock, DecodingClock, PlainHooksClock, Shown
from steerlens.steering.conditions import Condition, Gate
from steerlens.steering.hooks import (
    KeepNorm,
    add_direction,
    follow_keys,
    follow_text,
    in_site_frame,
    read_condition,
    restore_norm,
    steering_hook,
)
from steerlens.steering.positions import Positions, describe, require_positions
from steerlens.steering.predicates import Predicate
from steerlens.vectors.vector import SteeringVector

_Placed = tuple[str, int, Callable[..., Any]]


@dataclass(frozen=True, eq=False)
class Steering:
    """A plan: this vector, at these layers, this strongly, when that condition holds.

    Refuses when built what could not work: layers that the vector lacks, a condition read after
    the stream it judges has been steered, positions that select nothing.

    >>> v = SteeringVector(torch.eye(4), layers=(0, 1, 2, 3))
    >>> Steering(v, layers=[2, 3], strength=1.5)
    Steering(add_direction 1.5 × 'vector' at resid_post layers 2, 3, all positions)
    """

    vector: SteeringVector
    layers: Iterable[int] | None = None
    """None: all layers of the vector."""
    strength: float | Sequence[float] | Float[Tensor, " layer"] = 1.0
    """Multiplies the direction as it is; one number, or one for each layer in increasing order.
    (A `BatchPlan` has one for each row of a batch.)"""
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
    reference: SteeringVector | None = None
    """What an edit of four arguments compares with: see `affine_direction`."""
    name: str = ""

    def __post_init__(self) -> None:
        layers = self.vector.layers if self.layers is None else self.layers
        set_ = partial(object.__setattr__, self)
        set_("layers", self.vector.at(layers).layers)
        set_("edit", self.edit if hasattr(self.edit, "edit") else steering_hook(self.edit))
        _require_arguments(self.edit, self.reference)
        if self.reference is not None:
            self.reference.at(self.layers_steered)
            if self.reference.width != self.vector.width:
                raise SteerlensError(
                    f"the reference is {self.reference.width} wide, but the vector "
                    f"{self.vector.width}; both must be of one model and site"
                )
        require_positions(self.positions)
        require_site(self.site_written)
        set_("strength", _checked_strength(self.strength, len(self.layers_steered)))
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
    def strengths(self) -> tuple[float, ...]:
        """One for each steered layer."""
        if isinstance(self.strength, int | float):
            return (float(self.strength),) * len(self.layers_steered)
        return tuple(map(float, self.strength))

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

    @property
    def everywhere(self) -> bool:
        """Whether every token of every text is steered, so that nothing need be known of them."""
        by_name = isinstance(self.positions, str) and self.positions == "all"
        return by_name and not self.skip_bos and self.when is None

    def direction(self, layer: int) -> Float[Tensor, " d_model"]:
        """What strength 1 stands for at a layer."""
        direction = self.vector[layer]
        if not self.relative:
            return direction
        assert self.vector.norms is not None
        return unit(direction) * self.vector.norms[self.vector.row(layer)]

    def hooks(
        self, prompt_mask: Bool[Tensor, "row pos"] | None = None, model: Model | None = None
    ) -> list[NamedHook]:
        """Fresh hooks for `model.hooks(fwd_hooks=...)`; what they see, no other run does.

        `prompt_mask` (True at real tokens) is needed for a padded batch if the plan has to know
        where the padding is; `model`, if it uses a norm's output or the heads' `z`, or edits
        `resid_mid`.
        """
        return steering_hooks(self, prompt_mask=prompt_mask, model=model)

    def attach(
        self, model: Model, prompt_mask: Bool[Tensor, "row pos"] | None = None
    ) -> Attachment:
        """Steer `model` from now on, until `remove()` is called on what is returned."""
        hooks = Run([(self, None)], PlainHooksClock(prompt_mask), model).hooks()
        attachment = Attachment()
        try:
            attachment.attach(model, hooks)
        except BaseException:
            attachment.remove()
            raise
        return attachment

    def _repr_html_(self) -> str:
        """For notebooks: what is done, where, how strongly and when."""
        unit = "mean activation norms" if self.relative else "times the vector"
        one = isinstance(self.strength, int | float)
        n_layers = len(self.layers_steered)
        strength = f"{self.strength:g} {unit}" if one else f"by layer, {unit}"
        return card(
            f"Steering {self.name or self.vector.provenance.get('name', 'vector')}",
            {
                "edit": self.edit.__name__,
                "strength": strength + (f" at each of {n_layers} layers" if n_layers > 1 else ""),
                "site": self.site_written,
                "layers": ", ".join(map(str, self.layers_steered)),
                "tokens": describe(self.positions).removeprefix("positions "),
                "BOS": "skipped" if self.skip_bos else None,
                "norm": "kept" if self.keep_norm else None,
                "when": "always" if self.when is None else str(self.when),
                "vector": repr(self.vector),
                "reference": None if self.reference is None else repr(self.reference),
            },
            *(f"{one.name or 'condition'}: {one!r}" for one in self.conditions),
        )

    def __repr__(self) -> str:
        one = isinstance(self.strength, int | float)
        strength = f"{self.strength:g}" if one else "by-layer strengths"
        return (
            f"Steering({self.edit.__name__} {strength}{' relative' if self.relative else ''} × "
            f"{self.name or self.vector.provenance.get('name', 'vector')!r} at {self.site_written} "
            f"layers {', '.join(map(str, self.layers_steered))}, "
            f"{describe(self.positions)}"
            f"{', BOS skipped' if self.skip_bos else ''}{', norm kept' if self.keep_norm else ''}"
            f"{f', when {self.when}' if self.when is not None else ''})"
        )


def steering_hooks(
    *steerings: Steering,
    prompt_mask: Bool[Tensor, "row pos"] | None = None,
    model: Model | None = None,
) -> list[NamedHook]:
    """Fresh hooks for several steerings at once; conditions they share are read once.

    All conditions are read on the unsteered stream, so none may lie after the first steered site.
    """
    clock = PlainHooksClock(prompt_mask, get_ident())
    return Run([(one, None) for one in steerings], clock, model).hooks()


class RowSettings(NamedTuple):
    """What differs between the rows of a batch that is steered alike otherwise."""

    strength: Float[Tensor, "row layer"]
    acts: Bool[Tensor, "row layer"]
    """Where a row is steered at all; elsewhere it is left alone, whatever the edit."""
    where: Bool[Tensor, "row place"] | None
    """Each row's own positions mask; None: the steering's positions."""


@dataclass(eq=False)
class Run:
    """The state of one use of a plan: its clock and its gates. Made afresh, never reset."""

    parts: Sequence[tuple[Steering, RowSettings | None]]
    clock: Clock
    model: Model | None = None
    """Needed at sites that hosts show in another form than ours; refuses what it lacks."""
    gates: dict[Condition, Gate] = field(init=False)

    def __post_init__(self) -> None:
        steerings = [steering for steering, _ in self.parts]
        _require_readable_conditions(steerings)
        for steering in steerings:
            require_writable(self.model, steering.site_written)
        conditions = dict.fromkeys(
            condition for steering in steerings for condition in steering.conditions
        )
        self.gates = {condition: Gate(condition, self.clock) for condition in conditions}
        if isinstance(self.clock, PlainHooksClock):
            self.clock.on_prompt = self._forget

    def hooks(self) -> list[NamedHook]:
        """Clock first, then what reads, then what edits, in the order of the forward pass."""
        reads: list[_Placed] = [
            (condition.site_read, layer, partial(read_condition, gate=gate, layer=layer))
            for condition, gate in self.gates.items()
            for layer in condition.layers_read
        ]
        edits: list[_Placed] = [
            (steering.site_written, layer, self._edit(index, column))
            for index, (steering, _) in enumerate(self.parts)
            for column, layer in enumerate(steering.layers_steered)
        ]
        placed = sorted([*reads, *edits], key=lambda hook: forward_order(hook[0], hook[1]))
        if not placed:
            return []
        named = [
            (self._name(site, layer), self._framed(site, layer, function))
            for site, layer, function in placed
        ]
        if not isinstance(self.clock, PlainHooksClock):
            return named
        first = placed[0][1]
        # The block input is passed once a pass; a norm's output is, three times.
        begin = self._name("resid_pre", first), partial(follow_text, clock=self.clock)
        scores = attention_scores(self.model, first)
        keys = [(scores, partial(follow_keys, clock=self.clock))] if scores else []
        return [begin, *keys, *named]

    def keep_rows(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with these rows of the batch only, in this order."""
        assert isinstance(self.clock, DecodingClock)
        self.clock.keep_rows(rows)
        for gate in self.gates.values():
            gate.keep_rows(rows)

    _chosen: dict[int, tuple[Shown, Tensor | None]] = field(default_factory=dict)
    """What `_where` found in a pass for the part of that index: its layers share it."""

    def _name(self, site: str, layer: int) -> str:
        if self.model is None:
            return SITES[site].format(layer=layer)
        return hook_name(self.model, site, layer)

    def _framed(self, site: str, layer: int, function: Callable[..., Any]) -> Callable[..., Any]:
        if site not in FRAMED_SITES:
            return function
        if self.model is None:
            raise SteerlensError(
                f"hooks at {site} need to know the model: use hooks(model=model), attach(model) "
                "or steerlens.generate"
            )
        return partial(in_site_frame, inner=function, frame=site_frame(self.model, site, layer))

    def _edit(self, index: int, column: int) -> Callable[..., Any]:
        steering, rows = self.parts[index]
        layer = steering.layers_steered[column]
        strength = partial(self._strength, rows.strength[:, column]) if rows else None
        return partial(
            steering.edit,
            direction=steering.direction(layer),
            strength=strength or steering.strengths[column],
            where=partial(self._where, index, column),
            keep_norm=steering.norm_keeper,
            reference=None if steering.reference is None else steering.reference[layer],
        )

    def _strength(self, per_row: Float[Tensor, " row"]) -> Float[Tensor, " left"]:
        return self.clock.shown.rows.of_rows(per_row, "strength")

    def _where(self, index: int, column: int) -> Bool[Tensor, "#row #pos"] | None:
        steering, rows = self.parts[index]
        if steering.everywhere and rows is None:
            return None
        shown = self.clock.shown
        found_in, chosen = self._chosen.get(index, (None, None))
        if found_in is not shown:
            chosen = self._find(index, shown)
            self._chosen[index] = shown, chosen
        if rows is None:
            return chosen
        acts = shown.rows.of_rows(rows.acts[:, column], "strength")[:, None]
        return acts if chosen is None else chosen & acts

    def _find(self, index: int, shown: Shown) -> Bool[Tensor, "#row #pos"] | None:
        steering, rows = self.parts[index]
        own_places = None if rows is None else rows.where
        tokens = shown.steered(steering.positions, steering.skip_bos, own_places)
        if steering.when is None:
            return tokens
        opened = steering.when.truth(lambda condition: self.gates[condition].open)[:, None]
        return opened if tokens is None else opened & tokens

    def _forget(self) -> None:
        for gate in self.gates.values():
            gate.forget()


def _checked_strength(strength: Any, n_layers: int) -> float | tuple[float, ...]:
    """One finite number, or one for each layer."""
    try:
        numbers = torch.as_tensor(strength)
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(0)
    fits = numbers.ndim == 0 or tuple(numbers.shape) == (n_layers,)
    if not fits or numbers.dtype == torch.bool or numbers.is_complex():
        raise SteerlensError(
            f"got strength={short_repr(strength)}; expected one number, or one for each of the "
            f"{n_layers} steered layers (for one per row of a batch, use a BatchPlan)"
        )
    if not numbers.isfinite().all():
        raise SteerlensError(f"strength {strength} is not finite")
    if numbers.ndim:
        return tuple(map(float, numbers.tolist()))
    return strength if isinstance(strength, int | float) else float(numbers)


def _require_arguments(edit: Any, reference: SteeringVector | None) -> None:
    """An edit takes (resid, direction, strength), and a reference if there is one."""
    needed = ("resid", "direction", "strength", "reference")[: 3 if reference is None else 4]
    try:
        signature(edit.edit).bind(*needed)
    except TypeError as error:
        came = ", ".join(signature(edit.edit).parameters)
        raise SteerlensError(
            f"the edit {edit.__name__}({came}) cannot be called with ({', '.join(needed)}); "
            + (
                "give Steering a reference= if it needs one"
                if reference is None
                else "leave reference= out, or give an edit that takes it"
            )
        ) from error


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
