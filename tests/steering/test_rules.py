import pytest
import torch
from hypothesis import given, settings
from random_predicates import built, combinations

import steerlens as sl
from steerlens.steering.predicates import Named
from steerlens.steering.rules import Rule, parse_rules

VECTOR = sl.SteeringVector(torch.eye(4), (0, 1, 2, 3))
HARMFUL, LEGAL = (sl.Condition(VECTOR, 0, above=0.5, name=name) for name in ("harmful", "legal"))
CONDITIONS = {"harmful": HARMFUL, "legal": LEGAL}
REFUSE = sl.Steering(VECTOR, layers=[2])


def applied(rules, **steerings):
    return sl.apply_rules(rules, CONDITIONS, steerings or {"refuse": REFUSE})


@given(combinations)
@settings(max_examples=100, deadline=None)
def test_parsing_what_was_printed_gives_the_same_rule(combination):
    rule = Rule(built(combination), "refuse")
    (parsed,) = parse_rules(str(rule))
    assert parsed == rule


def test_rules_come_one_a_line_or_one_an_item():
    text = "if harmful then refuse\n\n  if not legal then cheer\n"
    rules = parse_rules(text)
    assert [str(rule) for rule in rules] == ["if harmful then refuse", "if not legal then cheer"]
    assert parse_rules(text.splitlines()) == rules


def test_and_binds_tighter_than_or_and_not_tightest():
    (rule,) = parse_rules("if a or b and not c then d")
    assert rule.when == Named("a") | (Named("b") & ~Named("c"))


def test_rules_become_the_conditions_of_steerings():
    (steering,) = applied("if harmful and not legal then refuse")
    assert steering.when == HARMFUL & ~LEGAL
    assert steering.name == "refuse"
    assert REFUSE.when is None


def test_several_rules_for_one_steering_mean_or():
    (steering,) = applied(["if harmful then refuse", "if not legal then refuse"])
    assert steering.when == HARMFUL | ~LEGAL


def test_a_condition_of_its_own_stays_a_requirement():
    own = sl.Condition(VECTOR, 1, below=0)
    (steering,) = applied("if harmful then shy", shy=sl.Steering(VECTOR, layers=[3], when=own))
    assert steering.when == own & HARMFUL


def test_steerings_without_a_rule_are_left_out():
    names = [s.name for s in applied("if legal then b", a=REFUSE, b=REFUSE)]
    assert names == ["b"]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("if harmfull then refuse", "unknown condition 'harmfull'; .*'harmful', 'legal'"),
        ("if harmful then refus", "unknown steering 'refus'; .*'refuse'"),
    ],
)
def test_unknown_names_are_refused(rule, told):
    with pytest.raises(sl.SteerlensError, match=told):
        applied(rule)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("harmful then refuse", "expected the form"),
        ("if harmful", "expected the form"),
        ("if then refuse", "cannot be read"),
        ("if harmful then", "expected the form"),
        ("if harmful then refuse politely", "one name after 'then'"),
        ("if harmful then not", "one name after 'then'"),
        ("if harmful legal then refuse", "cannot be read"),
        ("if harmful and then refuse", "cannot be read"),
        ("if (harmful then refuse", "cannot be read"),
        ("if harmful & legal then refuse", "with 'harmful & legal'"),
        ("if harmful > 3 then refuse", "with 'harmful > 3'"),
        ("if open('x') then refuse", r"with \"open\('x'\)\""),
        ("if True then refuse", "with 'True'"),
        ("if harmful then legal then refuse", "cannot be read"),
        ("if " + "(" * 400 + "a" + ")" * 400 + " then refuse", "cannot be read"),
        ("if a\0b then refuse", "cannot be read"),
        ("if " + "a or " * 300 + "a then refuse", "expected at most 1000"),
        ("\n \n", "got no rule"),
    ],
)
def test_what_is_no_rule_is_refused(rule, told):
    with pytest.raises(sl.SteerlensError, match=f"(?s){told}"):
        parse_rules(rule)
