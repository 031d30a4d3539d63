"""Boolean combinations, `&`, `|` and `~`, of conditions or of any other leaves; and their text."""

import ast
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import and_, invert, or_
from typing import Any

from steerlens.errors import SteerlensError


class Predicate(ABC):
    """Something that is true or false of a prompt.

    >>> str(Named("harmful") & ~Named("legal"))
    'harmful and not legal'
    """

    def __and__(self, other: "Predicate") -> "Predicate":
        return AllOf((*_parts(self, AllOf), *_parts(other, AllOf)))

    def __or__(self, other: "Predicate") -> "Predicate":
        return AnyOf((*_parts(self, AnyOf), *_parts(other, AnyOf)))

    def __invert__(self) -> "Predicate":
        return self.part if isinstance(self, Not) else Not(self)

    @abstractmethod
    def leaves(self) -> Iterator["Predicate"]:
        """The leaves of the combination, from left to right, with repeats."""

    @abstractmethod
    def truth(self, of: Callable[[Any], Any]) -> Any:
        """The truth of the combination.

        Args:
            of: Gives the truth of a leaf: anything with `&`, `|` and `~`, such as a Boolean tensor.
        """

    @abstractmethod
    def bound(self, to: Callable[[Any], "Predicate"]) -> "Predicate":
        """The same combination of other leaves.

        Args:
            to: Gives the predicate that replaces a leaf.
        """


class Leaf(Predicate):
    """A predicate that is not a combination."""

    def leaves(self) -> Iterator[Predicate]:
        yield self

    def truth(self, of: Callable[[Any], Any]) -> Any:
        return of(self)

    def bound(self, to: Callable[[Any], Predicate]) -> Predicate:
        return to(self)


@dataclass(frozen=True)
class Named(Leaf):
    """The name of a condition, as rules have it, to be bound to a condition later."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Not(Predicate):
    """True where its part is false."""

    part: Predicate

    def leaves(self) -> Iterator[Predicate]:
        return self.part.leaves()

    def truth(self, of: Callable[[Any], Any]) -> Any:
        return invert(self.part.truth(of))

    def bound(self, to: Callable[[Any], Predicate]) -> Predicate:
        return ~self.part.bound(to)

    def __str__(self) -> str:
        return f"not ({self.part})" if isinstance(self.part, _Several) else f"not {self.part}"


@dataclass(frozen=True)
class _Several(Predicate):
    parts: tuple[Predicate, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise SteerlensError(
                "got a combination of no conditions; expected at least one: leave it out"
            )

    def leaves(self) -> Iterator[Predicate]:
        for part in self.parts:
            yield from part.leaves()


@dataclass(frozen=True)
class AllOf(_Several):
    """True where all parts are true."""

    def truth(self, of: Callable[[Any], Any]) -> Any:
        return reduce(and_, (part.truth(of) for part in self.parts))

    def bound(self, to: Callable[[Any], Predicate]) -> Predicate:
        return AllOf(tuple(part.bound(to) for part in self.parts))

    def __str__(self) -> str:
        return " and ".join(
            f"({part})" if isinstance(part, AnyOf) else str(part) for part in self.parts
        )


@dataclass(frozen=True)
class AnyOf(_Several):
    """True where at least one part is true."""

    def truth(self, of: Callable[[Any], Any]) -> Any:
        return reduce(or_, (part.truth(of) for part in self.parts))

    def bound(self, to: Callable[[Any], Predicate]) -> Predicate:
        return AnyOf(tuple(part.bound(to) for part in self.parts))

    def __str__(self) -> str:
        return " or ".join(map(str, self.parts))


def _parts(predicate: Predicate, kind: type[_Several]) -> tuple[Predicate, ...]:
    """The parts to join: `a & (b & c)` and `(a & b) & c` become the same flat combination."""
    return predicate.parts if isinstance(predicate, kind) else (predicate,)


def parse_predicate(
    text: str, leaf: Callable[[ast.expr], Predicate | None], what: str, leaves: str
) -> Predicate:
    """Read a combination made of leaves, `and`, `or`, `not` and parentheses; evaluates nothing.

    Args:
        text: The combination.
        leaf: What a piece of syntax means as a leaf; None: it is none.
        what: What is read, for messages.
        leaves: What leaves are, for messages.

    Raises:
        SteerlensError: Text that is no such combination.

    >>> def name(node):
    ...     return Named(node.id) if isinstance(node, ast.Name) else None
    >>> str(parse_predicate("harmful and not (legal or health)", name, "the rule", "names"))
    'harmful and not (legal or health)'
    """
    source = text.strip()
    expected = f"expected {leaves}, 'and', 'or', 'not' and parentheses"

    def meaning(node: ast.expr) -> Predicate:
        match node:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~meaning(operand)
            case ast.BoolOp(op=operator, values=values):
                return reduce(and_ if isinstance(operator, ast.And) else or_, map(meaning, values))
        found = leaf(node)
        if found is None:  # not by `unparse`, which fails on deep trees
            piece = ast.get_source_segment(source, node)
            raise SteerlensError(f"got {what} with {piece!r}; {expected}")
        return found

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about code that is refused below
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise SteerlensError(
            f"got {what}, whose condition cannot be read: {error}; {expected}"
        ) from error
    return meaning(tree.body)
