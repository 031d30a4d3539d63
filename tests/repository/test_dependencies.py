"""What the package imports is declared, and the core works where no extra is installed."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import steerlens

PACKAGE = Path(steerlens.__file__).parent
PROJECT = PACKAGE.parent / "pyproject.toml"
SOURCES = sorted(PACKAGE.rglob("*.py"))
OWNERS = packages_distributions()


def plain(requirement):
    """The name of a distribution as PEP 503 has it, without versions and extras."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


@pytest.fixture(scope="module")
def declared():
    """The core's distributions under None, and those of each extra."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    return {None: set(map(plain, project["dependencies"]))} | {
        name: set(map(plain, requirements)) for name, requirements in extras.items()
    }


def imported(nodes):
    """Third-party modules that statements import, by their first name."""
    for node in nodes:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in {name.partition(".")[0] for name in names}:
            if name not in sys.stdlib_module_names and name != "steerlens":
                yield name


def at_import_time(tree):
    """The statements that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import_time(node)


def owners(module):
    return set(map(plain, OWNERS.get(module, [module])))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_import_is_declared(source, declared):
    tree = ast.parse(source.read_text())
    every = set.union(*declared.values())
    for module in imported(ast.walk(tree)):
        assert owners(module) & every, f"{module} is not in pyproject.toml"
    if source.parent.name != "playground":
        for module in imported(at_import_time(tree)):
            assert owners(module) & declared[None], f"{module} is of an extra"


def test_every_extra_is_asked_for_under_its_own_name(declared):
    asked = 0
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "import_extra":
                module, extra = node.args[:2]
                asked += 1
                assert isinstance(extra, ast.Constant)
                if isinstance(module, ast.Constant):
                    assert owners(module.value.partition(".")[0]) & declared[extra.value]
    assert asked >= 6


CORE_ALONE = """
import importlib, importlib.abc, pkgutil, sys, tempfile
from pathlib import Path

EXTRAS = {"vaderSentiment", "openai", "dash", "flask", "werkzeug", "cachetools", "gguf", "kaleido",
          "ray", "starlette", "uvicorn"}

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ImportError(f"{name} is of an extra")

sys.meta_path.insert(0, Missing())
import transformer_lens  # needs pyarrow itself, by way of datasets
for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
    del sys.modules[name]
EXTRAS.add("pyarrow")
import steerlens as sl
modules = [info.name for info in pkgutil.walk_packages(sl.__path__, "steerlens.")]
core = [name for name in modules if ".playground" not in name and "__main__" not in name]
for name in core:
    importlib.import_module(name)

model = sl.load_model("tiny-chat")
data = sl.ContrastiveDataset([("I love you.", "I hate you."), ("How nice!", "How bad!")])
vector = sl.extract(model, data, tokens="all", progress=False)
steering = sl.Steering(vector, [2])
[reply] = sl.generate(model, ["Hi."], steering, max_new_tokens=2, progress=False)
folder = Path(tempfile.mkdtemp())
vector.save(folder / "v.safetensors")
assert sl.SteeringVector.load(folder / "v.safetensors").layers == vector.layers

from steerlens.files import read_parquet, write_parquet
from steerlens.playground import app
from steerlens.serving.app import make_app
from steerlens.studies import paper
paper.find_browser = lambda: "chromium"
(folder / "c.gguf").write_bytes(b"GGUF")
needs = {
    "exchange": [lambda: vector.at([1]).save(folder / "v.gguf"),
                 lambda: sl.SteeringVector.load(folder / "c.gguf")],
    "figures": [lambda: paper.export({"x": None}, folder, ["svg"])],
    "judges": [lambda: sl.judges.sentiment(["Hi."]),
               lambda: sl.judges.endpoint("http://localhost:1/v1", "m", "?")],
    "playground": [app.serve],
    "ray": [lambda: sl.Ray("tiny-chat")],
    "serve": [lambda: make_app(None)],
    "sweeps": [lambda: write_parquet(folder / "t.parquet", None),
               lambda: read_parquet(folder / "t.parquet")],
}
for extra, uses in needs.items():
    for use in uses:
        try:
            use()
        except sl.SteerlensError as error:
            assert f"pip install 'steerlens[{extra}]'" in str(error), str(error)
        else:
            raise AssertionError(extra)
print(len(core), "modules,", len(needs), "extras")
"""


def test_the_core_works_without_any_extra():
    command = [sys.executable, "-W", "ignore", "-c", CORE_ALONE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    n_modules, n_extras = map(int, re.findall(r"\d+", done.stdout.splitlines()[-1]))
    assert n_modules > 90
    assert n_extras == 7
