"""The public surface: sorted, importable, and documented."""

import inspect
import types

import pytest

import steerlens


def public_members():
    """Functions and classes of the top level, and of the modules that are part of it."""
    for name in steerlens.__all__:
        member = getattr(steerlens, name)
        yield name, member
        if isinstance(member, types.ModuleType):
            for inner, value in vars(member).items():
                own = getattr(value, "__module__", None) == member.__name__
                if own and callable(value) and not inner.startswith("_"):
                    yield f"{name}.{inner}", value


def test_names_are_sorted_and_unique():
    assert sorted(set(steerlens.__all__)) == list(steerlens.__all__)


def test_a_star_import_gives_every_name():
    namespace = {}
    exec("from steerlens import *", namespace)
    assert set(steerlens.__all__) <= set(namespace)


@pytest.mark.parametrize("name", list(dict(public_members())))
def test_every_public_name_says_what_it_is(name):
    member = dict(public_members())[name]
    if inspect.isclass(member) or inspect.isroutine(member) or inspect.ismodule(member):
        assert (member.__doc__ or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("name", [n for n in steerlens.__all__ if n[0].isupper()])
def test_public_methods_say_what_they_do(name):
    members = vars(getattr(steerlens, name)).items()
    methods = [member for key, member in members if not key.startswith("_")]
    for method in methods:
        if inspect.isfunction(method):
            assert (method.__doc__ or "").strip(), f"{name}.{method.__name__} has no docstring"
