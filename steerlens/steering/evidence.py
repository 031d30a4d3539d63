"""What was measured of a condition or a steering; it goes into files with it.

`dataclasses.replace` drops it, since its fields are not of the constructor: of what has been
changed, nothing was measured.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import field
from typing import Any, TypeVar

Measured = TypeVar("Measured")


def no_evidence() -> Any:
    """The default of a dataclass's field `evidence`."""
    return field(default_factory=dict, init=False)


def with_evidence(measured: Measured, evidence: Mapping[str, Any]) -> Measured:
    """The same condition or steering with what was measured of it.

    Args:
        measured: A `Condition` or a `Steering`.
        evidence: What JSON can hold, such as scores on held-out prompts and a verdict.

    >>> from dataclasses import replace
    >>> checked = with_evidence(steering, {"verdict": ["raises refusal by 0.6"]})
    >>> checked.evidence, replace(checked, strength=2.0).evidence
    ({'verdict': ['raises refusal by 0.6']}, {})
    """
    same = copy(measured)
    object.__setattr__(same, "evidence", dict(evidence))
    return same
