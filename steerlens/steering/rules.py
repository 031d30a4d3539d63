"""Rules as text: `if harmful and not legal then refuse`."""

import ast
import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from steerlens.errors import SteerlensError, short_repr
from steerlens.steering.predicates import Named, Predicate, parse_predicate
from steerlens.steering.soft_gates import SoftGate
from steerlens.steering.steering import Steering

_FORM = re.compile(
    r"\s*if\b(?P<when>.+)\bthen\b(?P<steering>.+?)(?:\bwhere\b(?P<where>.+))?", re.DOTALL
)
MAX_LENGTH = 1000
"""Most characters of a rule."""


@dataclass(frozen=True)
class Rule:
    """Apply a named steering where a predicate over named conditions is true."""

    when: Predicate
    """Of the prompt."""
    steering: str
    where: Predicate | None = None
    """Of each token; None: all of them."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of its conditions."""
        where = () if self.where is None else self.where.leaves()
        return tuple(dict.fromkeys(map(str, (*self.when.leaves(), *where))))

    def __str__(self) -> str:
        where = "" if self.where is None else f" where {self.where}"
        return f"if {self.when} then {self.steering}{where}"


def parse_rules(rules: str | Iterable[str]) -> tuple[Rule, ...]:
    """Parse rules of the form "if CONDITION then STEERING", or "… then STEERING where CONDITION".

    The condition after "if" is one on the prompt; the one after "where" is read at every token. A
    condition is made of names, `and`, `or`, `not` and parentheses; nothing is evaluated.

    Args:
        rules: Text with one rule per line, or an iterable of rules.

    Raises:
        SteerlensError: No rule, or one that cannot be read; the message says which and why.

    >>> rules = parse_rules("if harmful and not (legal or health) then refuse")
    >>> str(rules[0])
    'if harmful and not (legal or health) then refuse'
    """
    lines = rules.splitlines() if isinstance(rules, str) else rules
    if not isinstance(lines, Iterable) or isinstance(lines, bytes):
        raise SteerlensError(f"got rules={short_repr(rules)}; expected rules as text")
    lines = list(lines)
    for line in lines:
        if not isinstance(line, str):
            raise SteerlensError(f"got the rule {short_repr(line)}; expected text")
    parsed = tuple(_parse(line) for line in lines if line.strip())
    if not parsed:
        raise SteerlensError(
            'got no rule; expected at least one, such as "if harmful and not legal then refuse"'
        )
    return parsed


def apply_rules(
    rules: str | Iterable[str],
    conditions: Mapping[str, Predicate],
    steerings: Mapping[str, Steering],
) -> tuple[Steering, ...]:
    """The steerings named by rules, each with its rules' conditions as its `when`.

    What stands after "where" becomes its `when_token`. Several rules for one steering are joined by
    `or`: it acts once even where several are true. A `when` that a steering has already must be
    true as well.

    Args:
        rules: As in `parse_rules`.
        conditions: The conditions (or combinations of them) by the names that rules use.
        steerings: The steerings by the names that rules use; those without a rule are left out.

    Raises:
        SteerlensError: A rule that cannot be read, or that uses an unknown name; rules for one
            steering that differ in "where"; a steering with a `SoftGate` where a rule adds to it.

    >>> harmful = Condition(vector, layers=2, above=0.1, name="harmful")
    >>> refuse = Steering(vector, layers=[3])
    >>> [ruled] = apply_rules("if harmful then refuse", {"harmful": harmful}, {"refuse": refuse})
    >>> print(ruled.name, "when", ruled.when)
    refuse when harmful
    """
    joined: dict[str, Rule] = {}
    for rule in parse_rules(rules):
        _require_known(rule.steering, steerings, "steering", rule)
        for name in rule.conditions:
            _require_known(name, conditions, "condition", rule)
        earlier = joined.get(rule.steering)
        if earlier is not None and earlier.where != rule.where:
            raise SteerlensError(
                f"got the rules {str(earlier)!r} and {str(rule)!r}; expected the same tokens after "
                "'where' for one steering: give the second a steering of another name"
            )
        when = rule.when if earlier is None else earlier.when | rule.when
        joined[rule.steering] = replace(rule, when=when)
    return tuple(_ruled(steerings[name], rule, conditions) for name, rule in joined.items())


def _ruled(steering: Steering, rule: Rule, conditions: Mapping[str, Predicate]) -> Steering:
    """A steering under a rule, and under the conditions that it has already."""
    when = _joined(steering.when, rule.when.bound(lambda leaf: conditions[str(leaf)]), rule)
    where = steering.when_token
    if rule.where is not None:
        where = _joined(where, rule.where.bound(lambda leaf: conditions[str(leaf)]), rule)
    return replace(steering, when=when, when_token=where, name=rule.steering)


def _joined(own: Predicate | SoftGate | None, added: Predicate, rule: Rule) -> Predicate:
    if isinstance(own, SoftGate):
        raise SteerlensError(
            f"got the rule {str(rule)!r} for a steering that opens by degrees already ({own}); "
            "expected one without a SoftGate there"
        )
    return added if own is None else own & added


def _require_known(name: str, known: Mapping[str, object], kind: str, rule: Rule) -> None:
    if name not in known:
        raise SteerlensError(
            f"got the rule {str(rule)!r} with the unknown {kind} {name!r}; expected "
            f"{kind}s among {', '.join(map(repr, known)) or 'none'}"
        )


def _parse(line: str) -> Rule:
    if len(line) > MAX_LENGTH:
        raise SteerlensError(f"got a rule of {len(line)} characters; expected at most {MAX_LENGTH}")
    form = _FORM.fullmatch(line)
    if form is None:
        raise SteerlensError(
            f"got the rule {line!r}; expected the form 'if CONDITION then STEERING', with or "
            "without 'where CONDITION' after it"
        )
    steering = form["steering"].strip()
    if not steering.isidentifier() or keyword.iskeyword(steering):
        raise SteerlensError(f"got the rule {line!r}; expected one name after 'then'")
    where = form["where"]
    return Rule(
        _condition(form["when"], line), steering, None if where is None else _condition(where, line)
    )


def _condition(text: str, line: str) -> Predicate:
    """The combination of names that a part of a rule is."""
    return parse_predicate(text, _name, f"the rule {line!r}", "names")


def _name(node: ast.expr) -> Predicate | None:
    return Named(node.id) if isinstance(node, ast.Name) else None
