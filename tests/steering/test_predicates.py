from itertools import product

from hypothesis import given, settings
from random_predicates import NAMES, built, combinations

from steerlens.steering.predicates import AllOf, AnyOf, Named, Not

law = settings(max_examples=60, deadline=None)
EVERY_WORLD = [dict(zip(NAMES, values, strict=True)) for values in product([0, 1], repeat=3)]
a, b, c = map(Named, NAMES)


def truth(predicate, world):
    """`~` of an int is not its negation, so the truth is over sets of one element."""
    return bool(predicate.truth(lambda leaf: Truth(world[str(leaf)])).value)


class Truth:
    def __init__(self, value):
        self.value = bool(value)

    def __and__(self, other):
        return Truth(self.value and other.value)

    def __or__(self, other):
        return Truth(self.value or other.value)

    def __invert__(self):
        return Truth(not self.value)


@given(combinations)
@law
def test_a_predicate_means_what_it_prints(combination):
    predicate = built(combination)
    for world in EVERY_WORLD:
        assert truth(predicate, world) == bool(eval(str(predicate), {}, world))


@given(combinations, combinations)
@law
def test_de_morgan(one, other):
    p, q = built(one), built(other)
    for world in EVERY_WORLD:
        assert truth(~(p & q), world) == truth(~p | ~q, world)
        assert truth(~(p | q), world) == truth(~p & ~q, world)


@given(combinations)
@law
def test_binding_other_leaves_keeps_the_combination(combination):
    predicate = built(combination)
    other = dict(zip(map(str, NAMES), (b & c, ~a, a | c), strict=True))
    bound = predicate.bound(lambda leaf: other[str(leaf)])
    for world in EVERY_WORLD:
        renamed = {name: truth(p, world) for name, p in other.items()}
        assert truth(bound, world) == truth(predicate, renamed)


def test_combinations_are_flat():
    assert (a & b) & c == a & (b & c) == AllOf((a, b, c))
    assert (a | b) | c == a | (b | c) == AnyOf((a, b, c))
    assert ~~a == a
    assert ~a == Not(a)


def test_leaves_come_from_left_to_right_with_repeats():
    assert list((a & ~(b | a)).leaves()) == [a, b, a]


def test_printing_uses_no_needless_parentheses():
    assert str(a & b | ~c) == "harmful and legal or not crime"
    assert str((a | b) & ~(b | c)) == "(harmful or legal) and not (legal or crime)"
