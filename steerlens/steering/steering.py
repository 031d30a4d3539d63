"""A steering says where, how strongly and when a vector acts; a run makes the hooks for it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from threading import get_ident
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlens.display import card
from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike
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
from steerlens.shapes import Direction, PerLayer, TokenMask
from steerlens.steering.arguments import checked_strength, require_edit_arguments, require_kinds
from steerlens.steering.clocks import Clock, DecodingClock, PassTokens, PlainHooksClock
from steerlens.steering.conditions import Condition, Gate
from steerlens.steering.evidence import no_evidence
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
from steerlens.steering.plan_format import read_plan, write_plan
from steerlens.steering.positions import Place, Positions, describe, require_positions
from steerlens.steering.predicates import Predicate
from steerlens.steering.schedules import Schedule
from steerlens.steering.soft_gates import SoftGate
from steerlens.steering.token_choice import ChosenTokens, Gates, choose_tokens, has_factor
from steerlens.steering.token_gates import TokenGate
from steerlens.vectors.vector import SteeringVector

Number = TypeVar("Number", float, Tensor)
_Placed = tuple[str, int, Callable[..., Any]]


@dataclass(frozen=True, eq=False)
class Steering:
    """What to do with a vector: at which layers, how strongly, where, and under which condition.

    A steering is a specification and can be used any number of times: pass it to `generate`, or
    its `hooks()` to `model.hooks(fwd_hooks=...)`.

    Args:
        vector: The vector.
        layers: The layers to steer; None: all layers of the vector.
        strength: The steering coefficient, which multiplies the vector. One number is the whole
            push: steered layers share it equally where the edit adds up (`add_direction`), so
            that more layers add no force; other edits set something, and do so with this number
            at every layer. A sequence is each layer's own strength, in increasing order.
        when: A condition on the prompt, or a combination of conditions (`&`, `|`, `~`), or a
            `SoftGate`; None: always.
        when_token: The same, but read at every token, of the prompt and of the reply, and deciding
            about that token. Places (`steerlens.steering.places`) may be part of it.
        edit: What is done to the stream: a function of `steerlens.hooks`, or any function
            `(resid, direction, strength) -> resid`.
        positions: Which tokens are steered: "all", "prompt", "generated", "last" (the prompt's last
            token, and what follows), "reply" (all after the user's message: the template's tokens,
            and what follows), a slice, a list of indices, a Boolean mask over the prompt's tokens,
            or a combination of places. Negative indices count from the prompt's end.
        schedule: A function of how many tokens of the reply there are so far (0 in the prompt),
            by which strengths are multiplied: `Decay`, `Ramp` or your own.
        skip_bos: Do not steer the first token (BOS), which acts as an attention sink.
        keep_norm: True rescales every edited token to its norm before the edit; or a function
            `(before, after) -> after` that does.
        relative: Take strengths as fractions of the layer's mean activation norm, along the
            unit direction.
        site: Where the stream is edited, such as "resid_post"; None: where the vector was read.
        reference: A second vector, for edits with a fourth argument: see `hooks.affine_direction`.
        name: A short name for messages and reports.

    Raises:
        SteerlensError: What could not work: layers that the vector lacks, positions that select
            nothing, a condition that is read after the stream has been steered.

    >>> v = SteeringVector(torch.eye(4), layers=(0, 1, 2, 3))
    >>> Steering(v, layers=[2, 3], strength=1.5)
    Steering(add_direction 1.5 (0.75 each) × 'vector' at resid_post layers 2, 3, all positions)
    >>> Steering(v, layers=[2, 3], strength=[1.5, 1.5]).strengths
    (1.5, 1.5)
    """

    vector: SteeringVector
    layers: Iterable[int] | None = None
    strength: float | Sequence[float] | PerLayer = 1.0
    when: Predicate | SoftGate | None = None
    when_token: Predicate | SoftGate | None = None
    edit: Callable[..., Any] = add_direction
    positions: Positions = "all"
    schedule: Schedule | None = None
    skip_bos: bool = False
    keep_norm: bool | KeepNorm = False
    relative: bool = False
    site: str | None = None
    reference: SteeringVector | None = None
    name: str = ""
    evidence: Mapping[str, Any] = no_evidence()
    """What was measured of it, if anything was, such as an evaluation's verdict."""

    def __post_init__(self) -> None:
        require_kinds(self)
        layers = self.vector.layers if self.layers is None else self.layers
        set_ = partial(object.__setattr__, self)
        set_("layers", self.vector.at(layers).layers)
        set_("edit", self.edit if hasattr(self.edit, "edit") else steering_hook(self.edit))
        require_edit_arguments(self.edit, self.reference)
        if self.reference is not None:
            self.reference.at(self.layers_steered)
            if self.reference.width != self.vector.width:
                raise SteerlensError(
                    f"got a reference of width {self.reference.width}; expected "
                    f"{self.vector.width}, the vector's: both must be of one model and site"
                )
        require_positions(self.positions)
        require_site(self.site_written)
        set_("strength", checked_strength(self.strength, len(self.layers_steered)))
        if self.relative and self.vector.norms is None:
            raise SteerlensError(
                "got relative=True and a vector without norms; expected one with the activation "
                "norms that extract() records: extract it again, or set an absolute strength"
            )
        _require_readable_conditions([self])

    @property
    def layers_steered(self) -> tuple[int, ...]:
        """`layers` as a sorted tuple."""
        assert isinstance(self.layers, tuple)
        return self.layers

    @property
    def strengths(self) -> tuple[float, ...]:
        """The strength at each steered layer: what is applied there."""
        if isinstance(self.strength, int | float):
            return (float(self.at_each_layer(self.strength)),) * len(self.layers_steered)
        return tuple(map(float, self.strength))

    def at_each_layer(self, strength: Number) -> Number:
        """What one number as strength is at each steered layer: an equal share if edits add up.

        >>> v = SteeringVector(torch.eye(4), layers=(0, 1, 2, 3))
        >>> adding, clamping = Steering(v), Steering(v, edit=hooks.clamp_direction)
        >>> adding.at_each_layer(2.0), clamping.at_each_layer(2.0)
        (0.5, 2.0)
        """
        return strength / len(self.layers_steered) if self.adds_up else strength

    @property
    def adds_up(self) -> bool:
        """Whether edits at several layers add up; see `hooks.steering_hook`."""
        return getattr(self.edit, "adds_up", False)

    @property
    def site_written(self) -> str:
        """The site whose activations are edited."""
        return self.site or self.vector.site

    @property
    def norm_keeper(self) -> KeepNorm | None:
        """`keep_norm` as a function; None: norms may change."""
        if callable(self.keep_norm):
            return self.keep_norm
        return restore_norm if self.keep_norm else None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions in `when`, each listed once."""
        leaves = () if self.when is None else self.when.leaves()
        return tuple(_require_condition(leaf) for leaf in dict.fromkeys(leaves))

    @property
    def token_conditions(self) -> tuple[Condition, ...]:
        """The conditions in `when_token`, each listed once."""
        leaves = () if self.when_token is None else self.when_token.leaves()
        conditions = (leaf for leaf in dict.fromkeys(leaves) if not isinstance(leaf, Place))
        return tuple(map(_require_condition, conditions))

    @property
    def everywhere(self) -> bool:
        """Whether every token of every text is steered, regardless of padding."""
        by_name = isinstance(self.positions, str) and self.positions == "all"
        gated = self.when is not None or self.when_token is not None
        return by_name and not (self.skip_bos or gated or self.schedule is not None)

    def direction(self, layer: int) -> Direction:
        """The vector added at a layer whose own strength is 1.

        >>> v = SteeringVector(torch.eye(2), layers=(0, 1), norms=torch.tensor([2.0, 3.0]))
        >>> Steering(v, relative=True).direction(1)
        tensor([0., 3.])
        """
        direction = self.vector[layer]
        if not self.relative:
            return direction
        assert self.vector.norms is not None
        return unit(direction) * self.vector.norms[self.vector.row(layer)]

    def hooks(
        self, prompt_mask: TokenMask | None = None, model: Model | None = None
    ) -> list[NamedHook]:
        """Fresh hooks for `model.hooks(fwd_hooks=...)`, with gates of their own.

        Args:
            prompt_mask: True at real tokens; needed for a padded batch if there is a condition, or
                if positions or BOS have to be found.
            model: Needed at sites that differ between architectures: a norm's output, the heads'
                `z`, or `resid_mid` to edit.

        >>> with model.hooks(fwd_hooks=steering.hooks()):
        ...     steered = model(torch.tensor([[1, 2, 3]]))
        >>> steered.shape
        torch.Size([1, 3, 3072])
        """
        return steering_hooks(self, prompt_mask=prompt_mask, model=model)

    def attach(self, model: Model, prompt_mask: TokenMask | None = None) -> Attachment:
        """Steer `model` from now on, until `remove()` is called on the result.

        Args:
            model: The model to steer.
            prompt_mask: As in `hooks`.

        >>> attachment = steering.attach(model)
        >>> attachment.remove()
        """
        hooks = Run([(self, None)], PlainHooksClock(prompt_mask), model).hooks()
        attachment = Attachment()
        try:
            attachment.attach(model, hooks)
        except BaseException:
            attachment.remove()
            raise
        return attachment

    def save(self, path: PathLike) -> None:
        """Write the steering with all that it needs, conditions included, to one `.steer` file.

        Functions of your own (an edit, a similarity) are written by name only. For several
        steerings, see `save_plan`.

        >>> steering.save("refuse.steer")
        """
        write_plan(path, [self])

    @classmethod
    def load(
        cls, path: PathLike, functions: Mapping[str, Callable[..., Any]] | None = None
    ) -> "Steering":
        """Read the steering of a file that `save` wrote.

        Args:
            path: The `.steer` file.
            functions: Your own functions that it names, by name.

        Raises:
            SteerlensError: No such file; one that is broken; or one of several steerings.

        >>> steering.save("refuse.steer")
        >>> Steering.load("refuse.steer").strengths == steering.strengths
        True
        """
        steps = read_plan(path, cls, functions or {})
        if len(steps) > 1:
            raise SteerlensError(
                f"{str(path)!r} holds {len(steps)} steerings; expected one: read them all with "
                "load_plan"
            )
        return steps[0]

    def _repr_html_(self) -> str:
        """For notebooks: what is done, where, how strongly and when."""
        unit = "mean activation norms" if self.relative else "times the vector"
        return card(
            f"Steering {self.name or self.vector.provenance.get('name', 'vector')}",
            {
                "edit": self.edit.__name__,
                "strength": f"{self.strength_in_words}, in {unit}",
                "site": self.site_written,
                "layers": ", ".join(map(str, self.layers_steered)),
                "tokens": describe(self.positions).removeprefix("positions "),
                "BOS": "skipped" if self.skip_bos else None,
                "norm": "kept" if self.keep_norm else None,
                "when": "always" if self.when is None else str(self.when),
                "at tokens where": None if self.when_token is None else str(self.when_token),
                "schedule": None if self.schedule is None else short_repr(self.schedule),
                "vector": repr(self.vector),
                "reference": None if self.reference is None else repr(self.reference),
            },
            *(
                f"{condition.name or 'condition'}: {condition!r}"
                for condition in dict.fromkeys((*self.conditions, *self.token_conditions))
            ),
        )

    @property
    def strength_in_words(self) -> str:
        """The strength, and what it is at each layer.

        >>> v = SteeringVector(torch.eye(4), layers=(0, 1, 2, 3))
        >>> Steering(v, strength=2).strength_in_words
        '2 over 4 layers: 0.5 each'
        """
        n_layers, each = len(self.layers_steered), self.strengths[0]
        if len(set(self.strengths)) > 1:
            return f"{', '.join(f'{one:g}' for one in self.strengths)} by layer"
        if n_layers == 1:
            return f"{each:g}"
        if isinstance(self.strength, int | float) and self.adds_up:
            return f"{self.strength:g} over {n_layers} layers: {each:g} each"
        return f"{each:g} at each of {n_layers} layers"

    def __repr__(self) -> str:
        relative = " relative" if self.relative else ""
        if not isinstance(self.strength, int | float):
            each = ", ".join(f"{one:g}" for one in self.strengths)
            strength = f"by-layer strengths ({each}){relative}"
        elif self.strengths[0] != self.strength:
            strength = f"{self.strength:g}{relative} ({self.strengths[0]:g} each)"
        else:
            strength = f"{self.strength:g}{relative}"
        return (
            f"Steering({self.edit.__name__} {strength} × "
            f"{self.name or self.vector.provenance.get('name', 'vector')!r} at {self.site_written} "
            f"layers {', '.join(map(str, self.layers_steered))}, "
            f"{describe(self.positions)}"
            f"{', BOS skipped' if self.skip_bos else ''}{', norm kept' if self.keep_norm else ''}"
            f"{f', {self.schedule!r}' if self.schedule is not None else ''}"
            f"{f', when {self.when}' if self.when is not None else ''}"
            f"{f', where {self.when_token}' if self.when_token is not None else ''})"
        )


def require_steering(steering: object) -> None:
    """Refuse what is not a `Steering`, such as a bare vector.

    >>> require_steering(Steering(vector))
    """
    if not isinstance(steering, Steering):
        raise SteerlensError(
            f"got {short_repr(steering)} as a steering; expected a Steering, such as "
            "Steering(vector, layers=[2, 3], strength=1.0)"
        )


def steering_hooks(
    *steerings: Steering,
    prompt_mask: TokenMask | None = None,
    model: Model | None = None,
) -> list[NamedHook]:
    """Fresh hooks for several steerings at once; conditions they share are read once.

    Args:
        *steerings: All act in every forward pass, in the order given where sites are the same.
        prompt_mask: True at real tokens; see `Steering.hooks`.
        model: The model that is to run; see `Steering.hooks`.

    Raises:
        SteerlensError: A condition that would be read after the first steered site: conditions
            are judged on the unsteered stream.

    >>> [function.func.__name__ for point, function in steering_hooks(steering)]
    ['follow_text', 'follow_keys', 'add_direction', 'add_direction']
    """
    clock = PlainHooksClock(prompt_mask, get_ident())
    return Run([(steering, None) for steering in steerings], clock, model).hooks()


class RowSettings(NamedTuple):
    """The settings of one steering that differ between the rows of a batch."""

    strength: Float[Tensor, "batch layer"]
    acts: Bool[Tensor, "batch layer"]
    """At which layers a row is edited at all."""
    where: Bool[Tensor, "batch place"] | None
    """Each row's own positions mask; None: the steering's positions."""


@dataclass(eq=False)
class Run:
    """The state of one use of steerings: clock and gates. Made for each use, never reset."""

    parts: Sequence[tuple[Steering, RowSettings | None]]
    clock: Clock
    model: Model | None = None
    """Needed at sites that differ between architectures; sites it lacks are refused."""
    gates: dict[Condition, Gate] = field(init=False)
    """Of conditions on the prompt."""
    token_gates: dict[Condition, TokenGate] = field(init=False)
    """Of conditions that are read at every token."""

    def __post_init__(self) -> None:
        steerings = [steering for steering, _ in self.parts]
        _require_readable_conditions(steerings)
        for steering in steerings:
            require_writable(self.model, steering.site_written)
        of_prompts = chain.from_iterable(steering.conditions for steering in steerings)
        of_tokens = chain.from_iterable(steering.token_conditions for steering in steerings)
        self.gates = {one: Gate(one, self.clock) for one in dict.fromkeys(of_prompts)}
        self.token_gates = {one: TokenGate(one, self.clock) for one in dict.fromkeys(of_tokens)}
        if isinstance(self.clock, PlainHooksClock):
            self.clock.on_prompt = self._forget

    def hooks(self) -> list[NamedHook]:
        """Hooks of clock, gates and edits, in the order of the forward pass."""
        reads: list[_Placed] = [
            (condition.site_read, layer, partial(read_condition, gate=gate, layer=layer))
            for gate in self._all_gates
            for condition in [gate.condition]
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
        # A pass computes a block's input once, but a norm's output three times.
        begin = self._name("resid_pre", first), partial(follow_text, clock=self.clock)
        scores = attention_scores(self.model, first)
        keys = [(scores, partial(follow_keys, clock=self.clock))] if scores else []
        return [begin, *keys, *named]

    def keep_rows(self, rows: Int[Tensor, " kept"]) -> None:
        """Continue with these rows of the batch only, in this order."""
        assert isinstance(self.clock, DecodingClock)
        self.clock.keep_rows(rows)
        for gate in self._all_gates:
            gate.keep_rows(rows)

    @property
    def _all_gates(self) -> list[Gate | TokenGate]:
        return [*self.gates.values(), *self.token_gates.values()]

    _found: dict[int, tuple[PassTokens, ChosenTokens]] = field(default_factory=dict)
    """By index of the part: what was found out for a pass, shared by all layers."""

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
        varies = rows is not None or has_factor(steering)
        return partial(
            steering.edit,
            direction=steering.direction(layer),
            strength=(
                partial(self._strength, index, column) if varies else steering.strengths[column]
            ),
            where=partial(self._where, index, column),
            keep_norm=steering.norm_keeper,
            reference=None if steering.reference is None else steering.reference[layer],
        )

    def _strength(self, index: int, column: int) -> Float[Tensor, "#batch #pos"]:
        steering, rows = self.parts[index]
        if rows is None:
            strength = torch.tensor([[steering.strengths[column]]])
        else:
            of_rows = self.clock.current.rows.of_rows(rows.strength[:, column], "strength")
            strength = of_rows[:, None]
        factor = self._tokens(index).factor
        return strength if factor is None else strength * factor.to(strength)

    def _where(self, index: int, column: int) -> Bool[Tensor, "#batch #pos"] | None:
        steering, rows = self.parts[index]
        if steering.everywhere and rows is None:
            return None
        chosen = self._tokens(index).edited
        if rows is None:
            return chosen
        acts = self.clock.current.rows.of_rows(rows.acts[:, column], "strength")[:, None]
        return acts if chosen is None else chosen & acts

    def _tokens(self, index: int) -> ChosenTokens:
        tokens = self.clock.current
        found_for, found = self._found.get(index, (None, None))
        if found is None or found_for is not tokens:
            found = self._find(index, tokens)
            self._found[index] = tokens, found
        return found

    def _find(self, index: int, tokens: PassTokens) -> ChosenTokens:
        steering, rows = self.parts[index]
        row_masks = None if rows is None else rows.where
        return choose_tokens(steering, tokens, row_masks, Gates(self.gates, self.token_gates))

    def _forget(self) -> None:
        for gate in self._all_gates:
            gate.forget()


def _require_condition(leaf: Predicate) -> Condition:
    if not isinstance(leaf, Condition):
        raise SteerlensError(
            f"got the name {str(leaf)!r} in when=; expected a condition: apply_rules binds names "
            "to conditions"
        )
    return leaf


def _require_readable_conditions(steerings: Sequence[Steering]) -> None:
    """Refuse conditions that would be read after the stream has been steered."""
    steered = [
        (steering.site_written, layer)
        for steering in steerings
        for layer in steering.layers_steered
    ]
    if not steered:
        return
    site, layer = min(steered, key=lambda place: forward_order(*place))
    for steering in steerings:
        for condition in (*steering.conditions, *steering.token_conditions):
            last = condition.layers_read[-1]
            if forward_order(condition.site_read, last) > forward_order(site, layer):
                raise SteerlensError(
                    f"the condition {condition} reads layer {last} ({condition.site_read}), but "
                    f"steering starts at layer {layer} ({site}): a gate must be read before the "
                    "stream is steered; condition on an earlier layer (search_conditions(..., "
                    f"layers=range({layer + 1}))) or steer later ones"
                )
