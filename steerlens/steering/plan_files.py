"""Several steerings as one `.steer` file."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.files import PathLike
from steerlens.steering.plan_format import read_plan, write_plan
from steerlens.steering.steering import Steering, require_steering


def save_plan(plan: Steering | Sequence[Steering], path: PathLike) -> None:
    """Write steerings with all that they need, their conditions included, to one file.

    Nothing of it is code: functions of your own (an edit, a similarity, a rule for norms) are
    written by name only.

    Args:
        plan: One steering, or several such as `apply_rules` gives.
        path: The file, which ends in `.steer`.

    >>> harmful = Condition(vector, layers=2, above=0.1, name="harmful")
    >>> rule = "if harmful then refuse"
    >>> plan = apply_rules(rule, {"harmful": harmful}, {"refuse": Steering(vector, [3])})
    >>> save_plan(plan, "refuse.steer")
    >>> [step] = load_plan("refuse.steer")
    >>> print(step.name, "when", step.when)
    refuse when harmful
    """
    steps = list(plan) if isinstance(plan, Sequence) else [plan]
    for step in steps:
        require_steering(step)
    if not steps:
        raise SteerlensError("got no steering to save; expected at least one")
    write_plan(path, steps)


def load_plan(
    path: PathLike, functions: Mapping[str, Callable[..., Any]] | None = None
) -> tuple[Steering, ...]:
    """Read the steerings of a file that `save_plan` or `Steering.save` wrote, for `generate`.

    Saved again, they give the same bytes. That the vectors are of a model is checked where they
    are used with it.

    Args:
        path: The `.steer` file.
        functions: Your own functions that it names, by name.

    Raises:
        SteerlensError: No such file, or one that is broken, hostile, of a newer steerlens, or
            names a function that is not given.

    >>> steering.save("refuse.steer")
    >>> len(generate(model, ["How do I bake bread?"], load_plan("refuse.steer"), max_new_tokens=2))
    1
    """
    return read_plan(path, Steering, functions or {})
