"""Functions stay short and take few arguments; complexity is ruff's (C901, in pyproject.toml)."""

import ast
from pathlib import Path

import pytest

import steerlens

PACKAGE = Path(steerlens.__file__).parent
MOST_LINES = 60
"""Most lines of a function, without its docstring."""
MOST_PARAMETERS = 12
"""Most named parameters; a command's options are not counted."""
LONGER: dict[str, str] = {}
"""Functions that may be longer, as "folder/module.py function", each with its reason."""
MORE_PARAMETERS: dict[str, str] = {}
"""Functions that may take more arguments, each with its reason."""


def functions():
    """Each function's syntax tree, with the path of its module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path.relative_to(PACKAGE).as_posix(), node


def lines_of(node):
    first = node.body[0].lineno if is_command(node) else node.lineno  # its options are its help
    lines = node.end_lineno - first + 1
    if ast.get_docstring(node) is None:
        return lines
    docstring = node.body[0]
    return lines - (docstring.end_lineno - docstring.lineno + 1)


def parameters_of(node):
    return len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])


def is_command(node):
    """A command's options are its parameters, as many as its users need."""
    return any("command" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize(
    ("measure", "most", "exceptions"),
    [(lines_of, MOST_LINES, LONGER), (parameters_of, MOST_PARAMETERS, MORE_PARAMETERS)],
    ids=["lines", "parameters"],
)
def test_functions_are_small(measure, most, exceptions):
    sizes = {
        f"{path} {node.name}": measure(node)
        for path, node in functions()
        if not (measure is parameters_of and is_command(node))
    }
    large = {name: size for name, size in sizes.items() if size > most}
    differing = large.keys() ^ exceptions.keys()
    assert not differing, {name: large.get(name, "needs no exception") for name in differing}


def test_the_measures_count_what_they_say():
    source = 'def f(a, /, b, *c, d=1, **e):\n    """Two\n    lines."""\n    return a\n'
    [node] = ast.parse(source).body
    assert (lines_of(node), parameters_of(node)) == (2, 3)
    [node] = ast.parse("@app.command('x')\ndef f():\n    pass\n").body
    assert is_command(node)
