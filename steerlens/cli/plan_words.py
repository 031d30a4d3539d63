"""A plan as one would say it: what is done to which tokens, and when."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from steerlens.layer_text import display_layers

WHAT = {
    "add_direction": "adds {vector} × {strength}",
    "ablate_direction": "removes the projection on {vector} × {strength}",
    "ablate_then_add": "replaces the projection on {vector} by {vector} × {strength}",
    "clamp_direction": "sets the stream's length along {vector} to {strength}",
    "affine_direction": "makes the projection on {vector} the reference's, plus {strength} × it",
    "rotate_to_direction": "turns the stream from the reference towards {vector} by {strength} rad",
}
"""By the edit's name; others are called by it."""
WHERE = {
    "all": "every token",
    "prompt": "the prompt's tokens",
    "generated": "what is generated",
    "last": "the prompt's last token and what follows",
    "reply": "what follows the user's message",
}
"""By the name of positions; others are described."""


def plan_facts(path: Path) -> dict[str, object]:
    """What `steerlens inspect` tells of a plan.

    Raises:
        SteerlensError: A file that is no plan, or a broken one.
    """
    from steerlens.steering.plan_files import load_plan
    from steerlens.steering.plan_format import stand_ins

    own = stand_ins(path)
    plan = load_plan(path, own)
    conditions = {one: None for step in plan for one in step.conditions}
    vectors = {one: None for part in (plan, conditions) for step in part for one in [step.vector]}
    facts: dict[str, object] = {}
    for number, step in enumerate(plan, 1):
        facts[step.name or f"steering {number}"] = _step(step)
        for name, found in step.evidence.items():
            facts[f"{step.name or f'steering {number}'}, {name}"] = _told(found)
    for number, condition in enumerate(conditions, 1):
        facts[condition.name or f"condition {number}"] = _condition(condition)
    models = [_model(vector.provenance) for vector in vectors]
    facts["made with"] = "; ".join(dict.fromkeys(filter(None, models)))
    facts["needs the functions"] = ", ".join(own)
    return facts


def _step(step: Any) -> str:
    name = repr(str(step.vector.provenance.get("name", "vector")))
    strength = step.strength_in_words + (" mean activation norms" if step.relative else "")
    kind = step.edit.__name__
    what = WHAT.get(kind, f"does {kind} with {{vector}}, strength {{strength}}")
    by_name = isinstance(step.positions, str)
    from steerlens.steering.positions import describe

    where = WHERE[step.positions] if by_name else f"the tokens at {describe(step.positions)}"
    return ", ".join(
        part
        for part in (
            f"{what.format(vector=name, strength=strength)} at {step.site_written} of "
            f"{_layers(step.layers_steered)}",
            f"to {where}{' but the first' * step.skip_bos}",
            "keeping each token's norm" * bool(step.keep_norm),
            "always" if step.when is None else f"if {step.when}",
        )
        if part
    )


def _condition(condition: Any) -> str:
    """What it fires on, and how well that was found to work."""
    sinks = ", attention sinks too" * condition.sinks
    told = (
        f"fires where the {condition.measure_told} at {condition.site_read} of "
        f"{_layers(condition.layers_read)} (tokens: {condition.tokens}{sinks}) is "
        f"{'above' if condition.above is not None else 'below'} {condition.threshold:.4g}"
    )
    return "; ".join([told, *(f"{name} {_told(of)}" for name, of in condition.evidence.items())])


def _told(found: Any) -> str:
    """Evidence in words: an interval, a table of them, lines or a word."""
    if isinstance(found, list) and len(found) == 3 and all(type(n) in (int, float) for n in found):
        return "{:.3f} [{:.3f}, {:.3f}]".format(*found)
    if isinstance(found, Mapping):
        return ", ".join(f"{name} {_told(value)}" for name, value in found.items())
    if isinstance(found, Iterable) and not isinstance(found, str):
        return "; ".join(_told(value) for value in found)
    return f"{found:.3g}" if isinstance(found, float) else str(found)


def _layers(layers: Any) -> str:
    return f"layer{'s' * (len(layers) > 1)} {display_layers(layers)}"


def _model(provenance: Mapping[str, Any]) -> str:
    name, weights = provenance.get("model"), provenance.get("weights")
    return f"{name} (weights {weights})" if name and weights else str(name or "")
