"""Random combinations of named conditions."""

from hypothesis import strategies as st

from steerlens.steering.predicates import Named

NAMES = ("harmful", "legal", "crime")
combinations = st.recursive(
    st.sampled_from(NAMES),
    lambda parts: (
        st.tuples(st.just("not"), parts) | st.tuples(st.sampled_from(["and", "or"]), parts, parts)
    ),
    max_leaves=8,
)


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
