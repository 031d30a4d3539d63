"""Boolean combinations, `&`, `|` and `~`, of conditions or of any other leaves."""

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
