"""Each module imports only from modules that stand above it in this list."""

import ast
from pathlib import Path

import pytest

import steerlens

ORDER = [
    "errors", "files", "contrast", "eigenvectors", "directions", "moments", "exchange", "formats",
    "vector", "positions", "predicates", "models", "engines", "layout", "loading", "lean",
    "weights", "tokens", "prefixes", "residual", "extraction", "forecasts", "hooks", "conditions",
    "steering", "marking", "rules", "biases", "checkpoints", "serving", "decoding", "generation",
    "intervals", "search", "judges", "model_judges", "endpoints", "choices", "effects",
    "side_effects", "controls", "verdicts", "evaluation", "calibration", "ledger", "sweeps",
    "sentiment", "cast_table", "explaining", "themes", "tables", "condition_figures",
    "vector_figures", "effect_figures", "dashboards", "studies", "pages", "report", "paper",
    "demo", "distributed", "shelf", "readings", "trials", "turns", "door", "page", "playground",
    "cli_options", "cli_steer", "cli_measure", "cli_show", "cli",
]  # fmt: skip
PACKAGE = Path(steerlens.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imported_by(source):
    """Names of the steerlens modules that a source imports, functions' own imports included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if "steerlens." in name.name)
        elif isinstance(node, ast.ImportFrom) and node.module == "steerlens":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("steerlens."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_upward(module):
    assert module in ORDER, f"give the new module {module!r} a place in ORDER"
    above = ORDER[: ORDER.index(module)]
    # the package itself, as in `import steerlens as sl`, is no module of the list
    wrong = [name for name in imported_by((PACKAGE / f"{module}.py").read_text())
             if name not in above]  # fmt: skip
    assert not wrong


def test_every_form_of_import_is_seen():
    source = "import steerlens.rules\nfrom steerlens import hooks\nfrom steerlens.vector import V\n"
    assert list(imported_by(source)) == ["rules", "hooks", "vector"]
    assert list(imported_by("def f():\n    from steerlens.demo import run\n")) == ["demo"]
    assert list(imported_by("from . import errors")) == ["a relative import"]
