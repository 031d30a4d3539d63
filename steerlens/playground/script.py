"""The Python that reproduces a steered reply of the page."""

from steerlens.playground.library import Library
from steerlens.playground.request import Push, Trial
from steerlens.steering.conditions import Condition
from steerlens.steering.places import parse_positions
from steerlens.steering.steering import Steering


def python(trial: Trial, library: Library, model_name: str) -> str:
    """A script that reproduces the steered reply of a trial whose strengths are known."""
    conditions = trial.conditions(library)
    names = dict.fromkeys([*(push.vector for push in trial.pushes), *conditions])
    used = {name: library[name] for name in names}
    sources = dict.fromkeys(entry.source.rstrip() for entry in used.values() if entry.source)
    lines = [
        "import steerlens as sl",
        *(line for source in sources for line in ("", "", source)),
        *(["", ""] if sources else [""]),
        f"model = sl.load_model({model_name!r})",
        "vectors = {",
        *(f"    {name!r}: {entry.code}," for name, entry in used.items()),
        "}",
        "steerings = {",
        *(_steering(push, trial.steering(push, library), trial) for push in trial.pushes),
        "}",
    ]
    plans = "list(steerings.values())"
    if conditions:
        rules = [str(rule) for rule in trial.rules]
        lines += [
            "conditions = {",
            *(_condition(one, library[name].condition_code) for name, one in conditions.items()),
            "}",
            f"rules = {rules!r}",
        ]
        named = {rule.steering for rule in trial.rules}
        always = [push.vector for push in trial.pushes if push.vector not in named]
        plans = ", ".join(
            ["*sl.apply_rules(rules, conditions, steerings)"]
            + [f"steerings[{name!r}]" for name in always]
        )
        plans = f"[{plans}]"
    return "\n".join([*lines, *_generation(trial, plans)])


def _steering(push: Push, steering: Steering, trial: Trial) -> str:
    settings = [
        f"layers={list(steering.layers_steered)}",
        f"strength={push.strength!r}",
        f"relative={steering.relative}",
        *([f"edit=sl.hooks.{trial.edit}"] if trial.edit != "add_direction" else []),
        *([f"positions={_positions(trial)}"] if trial.positions != "all" else []),
        *(["keep_norm=True"] if trial.keep_norm else []),
    ]
    arguments = ", ".join([f"vectors[{push.vector!r}]", *settings])
    return f"    {push.vector!r}: sl.Steering(\n        {arguments},\n    ),"


def _positions(trial: Trial) -> str:
    parsed = parse_positions(trial.positions)
    text = repr(trial.positions)
    return text if isinstance(parsed, str) else f"sl.places.parse_positions({text})"


def _condition(condition: Condition, code: str) -> str:
    if code:
        return f"    {condition.name!r}: {code},"
    [layer] = condition.layers_read
    return (
        f"    {condition.name!r}: sl.Condition(\n"
        f"        vectors[{condition.name!r}], {layer}, above={condition.threshold!r},\n"
        f"        similarity=sl.similarities.cosine, tokens={condition.tokens!r}, "
        f"name={condition.name!r},\n"
        "    ),"
    )


def _generation(trial: Trial, plans: str) -> list[str]:
    settings = f"max_new_tokens={trial.max_new_tokens}"
    if not trial.sampling.temperature:
        return [
            f"[reply] = sl.generate(model, [{trial.prompt!r}], {plans}, {settings})",
            "print(reply)",
        ]
    chosen = ", ".join(
        f"{name}={getattr(trial.sampling, name)!r}" for name in ("temperature", "top_p", "seed")
    )
    return [
        "# Random numbers are each row's own; the page steers the second row.",
        f"sampling = sl.Sampling({chosen})",
        f"_, reply = sl.generate(\n    model, [{trial.prompt!r}] * 2, {plans}, {settings},"
        "\n    sampling=sampling,\n)",
        "print(reply)",
    ]
