"""Random combinations of named conditions."""

from hypothesis import strategies as st

from steerlens.steering.predicates import Named

NAMES = ("harmful", "legal", "crime")


def combinations_of(names, max_leaves=8):
    """Nested tuples, to be `built`: predicates themselves are made by code that is checked."""
    return st.recursive(
        st.sampled_from(names),
        lambda parts: (
            st.tuples(st.just("not"), parts)
            | st.tuples(st.sampled_from(["and", "or"]), parts, parts)
        ),
        max_leaves=max_leaves,
    )


combinations = combinations_of(NAMES)


def built(combination):
    match combination:
        case str(name):
            return Named(name)
        case ("not", part):
            return ~built(part)
        case ("and", one, other):
            return built(one) & built(other)
        case ("or", one, other):
            return built(one) | built(other)
