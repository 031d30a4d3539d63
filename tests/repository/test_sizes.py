"""Functions stay short and take few arguments; complexity is ruff's (C901, in pyproject.toml)."""

import ast
from pathlib import Path

import pytest

import steerlens

PACKAGE = Path(steerlens.__file__).parent
MOST_LINES = 60
"""Of a function, its docstring apart."""
MOST_PARAMETERS = 12
LONGER: dict[str, str] = {
    "playground/callbacks.py add_writing": "one page's callbacks, that share what they close over",
}
"""Functions that may be longer, as "folder/module.py function", and why."""
MORE_PARAMETERS: dict[str, str] = {}
"""Functions that may take more arguments, and why."""


def functions():
    """Where each function stands, with its node."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path.relative_to(PACKAGE).as_posix(), node


def lines_of(node):
    own = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is None:
        return own
    docstring = node.body[0]
    return own - (docstring.end_lineno - docstring.lineno + 1)


def parameters_of(node):
    return len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])


def is_command(node):
    """A command's options are its parameters; there are as many as people need."""
    return any("command" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize(
    ("measure", "most", "excused"),
    [(lines_of, MOST_LINES, LONGER), (parameters_of, MOST_PARAMETERS, MORE_PARAMETERS)],
    ids=["lines", "parameters"],
)
def test_functions_are_small(measure, most, excused):
    found = {
        f"{path} {node.name}": measure(node)
        for path, node in functions()
        if not (measure is parameters_of and is_command(node))
    }
    large = {name: size for name, size in found.items() if size > most}
    assert large.keys() == excused.keys(), {
        name: large.get(name, "no longer needs an excuse") for name in large.keys() ^ excused.keys()
    }


def test_the_measures_count_what_they_say():
    source = 'def f(a, /, b, *c, d=1, **e):\n    """Two\n    lines."""\n    return a\n'
    [node] = ast.parse(source).body
    assert (lines_of(node), parameters_of(node)) == (2, 3)
    [node] = ast.parse("@app.command('x')\ndef f():\n    pass\n").body
    assert is_command(node)
