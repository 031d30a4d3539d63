"""Rules in words: `if harmful and not legal then refuse`."""

import ast
import keyword
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_, or_

from steerlens.errors import SteerlensError, short_repr
from steerlens.steering.predicates import Named, Predicate
from steerlens.steering.steering import Steering

_FORM = re.compile(r"\s*if\b(?P<when>.+)\bthen\b(?P<steering>.+)", re.DOTALL)
MAX_LENGTH = 1000


@dataclass(frozen=True)
class Rule:
    """Do a steering when a predicate over named conditions holds."""

    when: Predicate
    steering: str

    def __str__(self) -> str:
        return f"if {self.when} then {self.steering}"


def parse_rules(rules: str | Iterable[str]) -> tuple[Rule, ...]:
    """Read rules, one a line (or an item): `and`, `or`, `not` and parentheses, over names.

    >>> rules = parse_rules("if harmful and not (legal or health) then refuse")
    >>> str(rules[0])
    'if harmful and not (legal or health) then refuse'
    """
    lines = rules.splitlines() if isinstance(rules, str) else rules
    if not isinstance(lines, Iterable) or isinstance(lines, bytes):
        raise SteerlensError(f"rules={short_repr(rules)} came; needed are rules as text")
    lines = list(lines)
    for line in lines:
        if not isinstance(line, str):
            raise SteerlensError(f"the rule {short_repr(line)} is no text")
    parsed = tuple(_parse(line) for line in lines if line.strip())
    if not parsed:
        raise SteerlensError('no rule came; a rule reads "if harmful and not legal then refuse"')
    return parsed


def apply_rules(
    rules: str | Iterable[str],
    conditions: Mapping[str, Predicate],
    steerings: Mapping[str, Steering],
) -> tuple[Steering, ...]:
    """The steerings that rules call for, each with the `when` that its rules add up to.

    Several rules for one steering mean `or`: it acts once however many of them hold. A steering
    that has a `when` of its own keeps it as a further requirement.
    """
    whens: dict[str, Predicate] = {}
    for rule in parse_rules(rules):
        _require_known(rule.steering, steerings, "steering", rule)
        for leaf in rule.when.leaves():
            _require_known(str(leaf), conditions, "condition", rule)
        when = rule.when.bound(lambda leaf: conditions[str(leaf)])
        earlier = whens.get(rule.steering)
        whens[rule.steering] = when if earlier is None else earlier | when
    return tuple(
        replace(steering, when=when if steering.when is None else steering.when & when, name=name)
        for name, when in whens.items()
        for steering in [steerings[name]]
    )


def _require_known(name: str, known: Mapping[str, object], kind: str, rule: Rule) -> None:
    if name not in known:
        raise SteerlensError(
            f"the rule {str(rule)!r} names the {kind} {name!r}, which is unknown; "
            f"the {kind}s are {', '.join(map(repr, known)) or 'none'}"
        )


def _parse(line: str) -> Rule:
    if len(line) > MAX_LENGTH:
        raise SteerlensError(
            f"a rule of {len(line)} characters came; at most {MAX_LENGTH} are read"
        )
    form = _FORM.fullmatch(line)
    if form is None:
        raise SteerlensError(
            f"the rule {line!r} does not have the form 'if CONDITION then STEERING'"
        )
    steering = form["steering"].strip()
    if not steering.isidentifier() or keyword.iskeyword(steering):
        raise SteerlensError(f"the rule {line!r} must end with one name after 'then'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of what is refused below
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(form["when"].strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise SteerlensError(
            f"the condition of the rule {line!r} cannot be read: {error}; "
            "use names, 'and', 'or', 'not' and parentheses"
        ) from error
    return Rule(_predicate(tree.body, line, form["when"].strip()), steering)


def _predicate(node: ast.expr, line: str, source: str) -> Predicate:
    match node:
        case ast.Name(id=name):
            return Named(name)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_predicate(operand, line, source)
        case ast.BoolOp(op=operator, values=values):
            parts = [_predicate(value, line, source) for value in values]
            return reduce(and_ if isinstance(operator, ast.And) else or_, parts)
    raise SteerlensError(  # not by `unparse`, which fails on deep trees
        f"the rule {line!r} holds {ast.get_source_segment(source, node)!r}; "
        "a condition is made of names, 'and', 'or', 'not' and parentheses only"
    )
