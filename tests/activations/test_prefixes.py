"""Groups of rows that begin alike: true, disjoint, and the best there are."""

from hypothesis import given
from hypothesis import strategies as st

from steerlens.activations import prefixes
from steerlens.activations.prefixes import WORTH_ROWS, WORTH_SHARE, shared_prefixes

ROWS = st.lists(st.lists(st.integers(0, 1), max_size=6).map(tuple), min_size=1, max_size=9)


def groups_of(rows, shared):
    groups = {}
    for row, length in zip(rows, shared, strict=True):
        groups.setdefault((length, row[:length]), []).append(row)
    return {key: members for key, members in groups.items() if key[0]}


def saved(groups):
    return sum((len(members) - 1) * length for (length, _), members in groups.items())


def best(rows, widths):
    """By trying each prefix as a group of all rows that begin with it, or not."""

    def of(members, depth):
        if len(members) < WORTH_ROWS:
            return 0
        within = sum(
            of([row for row in members if rows[row][: depth + 1] == start], depth + 1)
            for start in {rows[row][: depth + 1] for row in members if len(rows[row]) > depth}
        )
        rest = sum(widths[row] for row in members) - depth * len(members)
        worth = depth * len(members) >= WORTH_SHARE * rest
        return max(within, (len(members) - 1) * depth if worth else 0)

    return of(list(range(len(rows))), 0)


@given(ROWS, st.integers(1, 30))
def test_groups_are_the_best_there_are(rows, more):
    widths = [len(row) + more for row in rows]
    shared = shared_prefixes(rows, widths)
    groups = groups_of(rows, shared)
    assert all(length <= len(row) for row, length in zip(rows, shared, strict=True))
    assert all(len(members) >= WORTH_ROWS for members in groups.values())
    assert saved(groups) == best(rows, widths)


def test_a_grid_of_questions_and_suffixes_is_cut_where_suffixes_begin():
    rows = [(1, q, q, q) for q in range(5) for _ in range(6)]
    assert shared_prefixes(rows, [7] * 30) == [4] * 30


def test_a_grid_of_system_messages_and_questions_is_cut_after_the_message():
    rows = [(1, 2, system, system, 3, question) for system in (7, 8) for question in range(10, 20)]
    assert shared_prefixes(rows, [9] * 20) == [5] * 20


def test_what_is_short_beside_the_rest_is_not_worth_a_pass():
    assert shared_prefixes([(1, 2)] * 8, [40] * 8) == [0] * 8


def test_a_long_chain_of_ever_longer_rows_is_no_trouble():
    rows = [tuple([1] * length) for length in range(1, 1500)]
    shared = prefixes.shared_prefixes(rows, [len(row) + 1 for row in rows])
    assert max(shared) > 0
