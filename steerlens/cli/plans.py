"""What commands steer with: a plan from its file, or a vector and options."""

from pathlib import Path
from typing import Annotated, Any

from steerlens.cli.names import PLAN_ENDING, POSITION_NAMES, VECTOR_ENDINGS
from steerlens.cli.options import argument, existing_file, parse_positions, taking, with_ending
from steerlens.cli.output import say
from steerlens.errors import SteerlensError
from steerlens.files import as_path


def steered_file(text: str) -> Path:
    """The path of an existing vector file or plan."""
    return with_ending(existing_file(text), (*VECTOR_ENDINGS, PLAN_ENDING))


def written_plan(text: str) -> Path:
    """A path with the ending of a plan."""
    return with_ending(as_path(text), (PLAN_ENDING,))


SteeredFile = Annotated[
    Path,
    argument(steered_file, "VECTOR", f"The vector to steer with, or a whole plan ({PLAN_ENDING})."),
]
SteeredFiles = Annotated[
    list[Path],
    argument(steered_file, "VECTORS", f"Vectors or plans ({PLAN_ENDING}), named by their files."),
]
PlanPositions = Annotated[
    Any,
    taking(
        parse_positions,
        "NAMES",
        f"Separated by commas: {', '.join(POSITION_NAMES)}. Default: all, or a plan's own.",
    ),
]
SavePlan = Annotated[
    Path | None,
    taking(written_plan, "FILE", f"Also write what was steered with, as a plan ({PLAN_ENDING})."),
]


def is_plan(path: Path) -> bool:
    """Whether a file is a plan, by its ending."""
    return path.suffix.lower() == PLAN_ENDING


def require_no_settings(path: Path, **given: Any) -> None:
    """Refuse options beside a plan, which says all of that itself.

    Args:
        path: What is steered with.
        **given: The options' values by name; None and False are not given.

    >>> require_no_settings(Path("refuse.steer"), layers=None, relative=False)
    """
    options = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if is_plan(path) and options:
        raise SteerlensError(
            f"got {' and '.join(options)} beside the plan {str(path)!r}, which has its own; leave "
            "them out, or change the plan: dataclasses.replace, in Python"
        )


def plan_of(
    path: Path, layers: Any = None, strength: float | None = None, **more: Any
) -> tuple[Any, ...]:
    """The steerings of a plan's file, or the one of a vector's file and options.

    Args:
        path: A plan or a vector.
        layers: As of `Steering`, and so are the others; not for plans.
        strength: None is 1.
        **more: `when`, `relative`, `positions`.
    """
    from steerlens.steering.plan_files import load_plan
    from steerlens.steering.steering import Steering
    from steerlens.vectors.vector import SteeringVector

    if is_plan(path):
        return load_plan(path)
    one = 1.0 if strength is None else strength
    return (Steering(SteeringVector.load(path), layers, one, **more),)


def at_found_strength(model: Any, plan: tuple[Any, ...], path: Path) -> tuple[Any, ...]:
    """The steering of a vector's file at the strength that the model bears, which is told.

    Args:
        model: The model.
        plan: What `plan_of` gave, without a strength.
        path: The file; a plan has its own strengths, and is left as it is.
    """
    from steerlens.evaluation.default_strength import default_steering

    if is_plan(path):
        return plan
    steering, how = default_steering(model, *plan)
    say(how)
    return (steering,)


def write_plan(plan: Any, path: Path | None, **evidence: Any) -> None:
    """Write what was steered with, if it was asked for.

    Args:
        plan: One steering, or a plan's.
        path: The file; None: none was asked for.
        **evidence: What was measured of the one steering.
    """
    from steerlens.steering.evidence import with_evidence
    from steerlens.steering.plan_files import save_plan

    if path is not None:
        save_plan(with_evidence(plan, evidence) if evidence else plan, path)
        say(f"wrote {path}")


def only_step(plan: tuple[Any, ...], path: Path, what: str) -> Any:
    """The one steering of a plan.

    Args:
        plan: The steerings.
        path: The plan's file, for the message.
        what: What takes one steering.
    """
    if len(plan) != 1:
        raise SteerlensError(
            f"got {str(path)!r}, a plan of {len(plan)} steerings; expected one, as {what} takes "
            "one at a time: save them apart"
        )
    return plan[0]
