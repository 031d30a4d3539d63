"""The public surface: in the order of the work, importable, and documented."""

import inspect
import subprocess
import sys
import types

import pytest

import steerlens

NAMES = [
    "load_model",
    "ContrastiveDataset", "load_prompts", "demo_file",
    "extract", "learn", "Training", "SteeringVector",
    "search_conditions", "extract_topics", "Condition", "projections",
    "Steering", "steering_hooks", "apply_rules", "save_plan", "load_plan",
    "generate", "stream", "Chat", "Sampling", "Replies",
    "evaluate", "calibrate_strength", "suggest", "sweep",
    "export_model",
    "Ray",
    "SteerlensError",
]  # fmt: skip
NAMESPACES = [
    "estimators", "objectives", "hooks", "similarities", "soft_gates", "places", "schedules",
    "judges", "interpret", "dashboards", "studies",
]  # fmt: skip


def public_members():
    """Functions and classes of the top level, and of the modules that are part of it."""
    for name in steerlens.__all__:
        member = getattr(steerlens, name)
        yield name, member
        if isinstance(member, types.ModuleType):
            own = getattr(member, "__all__", None) or [
                inner
                for inner, value in vars(member).items()
                if getattr(value, "__module__", None) == member.__name__ and inner[0] != "_"
            ]
            yield from ((f"{name}.{inner}", getattr(member, inner)) for inner in own)


def test_the_names_are_these_in_the_order_of_the_work():
    assert steerlens.__all__ == NAMES + NAMESPACES
    assert dir(steerlens) == sorted(steerlens.__all__)


def test_the_stub_says_where_each_name_comes_from():
    assert set(steerlens._) == set(steerlens.__all__)


def test_a_star_import_gives_every_name():
    namespace = {}
    exec("from steerlens import *", namespace)
    assert set(steerlens.__all__) <= set(namespace)


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, steerlens; heavy = {'torch', 'transformer_lens', 'numpy', 'pandas', 'plotly'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
