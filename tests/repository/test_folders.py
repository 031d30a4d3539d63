"""The architecture: a folder imports only from what stands above it in this list."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import steerlens

ORDER = [
    "errors", "files", "schemas", "intervals", "numerics", "shapes",  # for everybody
    "layer_text", "display", "access",
    "data",         # contrasting prompts: what goes in
    "vectors",      # directions as values: estimators, files
    "models",       # the loaded host: everything that knows TransformerLens
    "activations",  # reading the stream, extraction
    "judges",       # texts → scores
    "steering",     # edits, conditions, plans, rules, generation
    "export",       # the same edits folded into weights and checkpoints
    "interpret",    # what a vector means
    "evaluation",   # effects, controls, side effects, calibration, sweeps
    "learning",     # vectors learned by gradient, through the steering itself
    "dashboards",   # results → figures
    "studies",      # experiments that write a directory
    "playground",   # the local page
    "serving",      # an OpenAI-compatible server
    "cli",          # arguments → calls
    "__main__",     # the same, as python -m steerlens
]  # fmt: skip
PACKAGE = Path(steerlens.__file__).parent
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.parent != PACKAGE or path.stem != "__init__"
)


def imported_by(source):
    """Paths below steerlens of all that a source imports, functions' own imports included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
            yield from (name.partition(".")[2] for name in names if name.startswith("steerlens."))
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import"
        elif isinstance(node, ast.ImportFrom) and node.module == "steerlens":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("steerlens."):
            path = node.module.partition(".")[2]
            inner = [f"{path}.{name.name}" for name in node.names]
            yield from (name if name in MODULES else path for name in inner)


def source_of(module):
    path = PACKAGE / module.replace(".", "/")
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def test_folders_hold_modules_and_no_folders():
    assert {module.split(".")[0] for module in MODULES} == set(ORDER)
    assert max(module.count(".") for module in MODULES) == 1


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_upward(module):
    floor = module.partition(".")[0]
    above = ORDER[: ORDER.index(floor)]
    for name in imported_by(source_of(module)):
        folder, _, inner = name.partition(".")
        same = folder == floor and inner  # its neighbours, but not through the folder's face
        assert folder in above or same, f"{module} imports {name}"


def test_no_modules_import_each_other():
    graph = {
        module: [name for name in imported_by(source_of(module)) if name != module]
        for module in MODULES
    }
    list(TopologicalSorter(graph).static_order())


def test_no_folder_shows_a_name_that_one_of_its_modules_has():
    """Otherwise what `from steerlens.folder import name` gives depends on what ran before."""
    for folder in {module.partition(".")[0] for module in MODULES if "." in module}:
        modules = {
            module.partition(".")[2] for module in MODULES if module.startswith(f"{folder}.")
        }
        shown = {
            alias.name
            for node in ast.walk(ast.parse(source_of(folder)))
            if isinstance(node, ast.ImportFrom) and node.module != f"steerlens.{folder}"
            for alias in node.names
        }
        assert not shown & modules, folder


def test_every_form_of_import_is_seen():
    source = "import steerlens.errors\nfrom steerlens.steering import hooks\n"
    assert list(imported_by(source)) == ["errors", "steering.hooks"]
    assert list(imported_by("from steerlens.vectors.vector import V\n")) == ["vectors.vector"]
    assert list(imported_by("def f():\n    from steerlens.cli import app\n")) == ["cli"]
    assert list(imported_by("from . import errors")) == ["a relative import"]
