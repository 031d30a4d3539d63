"""What a start loads: nothing heavy, until a command line has been found to make sense.

Counted in modules, for seconds depend on the machine.
"""

import subprocess
import sys

import pytest

import steerlens as sl

HEAVY = {
    "torch", "transformer_lens", "transformers", "numpy", "pandas", "plotly", "sklearn", "scipy",
    "pyarrow", "dash", "ray", "openai", "safetensors",
}  # fmt: skip
PROBE = """
import sys
sys.argv = ["steerlens", *sys.argv[1:]]
code = 0
try:
    from steerlens.cli import app
    app()
except SystemExit as end:
    code = end.code
loaded = {name.partition(".")[0] for name in sys.modules}
print(code, *sorted(loaded), len(sys.modules), sep="\\n")
"""


def started(*arguments, cwd=None):
    """The exit status, the packages loaded, and the number of modules, of one command line."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, arguments)],
        capture_output=True, text=True, check=True, cwd=cwd,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    first = max(index for index, line in enumerate(lines) if line in ("0", "1", "2", "130"))
    code, *packages, n = lines[first:]
    return int(code), set(packages), int(n)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["sweep", "--help"], ["models", "--names"]],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(arguments):
    code, packages, n = started(*arguments)
    assert code == 0
    assert not packages & HEAVY
    assert n < 600


@pytest.mark.parametrize(
    "arguments",
    [
        ["extrakt"],
        ["generate", "nowhere.safetensors", "Hi."],
        ["generate", "v.safetensors"],
        ["generate", "v.safetensors", "Hi.", "--model", "no/such/directory"],
        ["generate", "v.safetensors", "Hi.", "--model", "gtp2"],
        ["generate", "v.safetensors", "Hi.", "--layers", "five"],
        ["generate", "v.safetensors", "--file", "empty.txt"],
        ["extract", "data.json", "--out", "v.docx"],
        ["extract", "data.json", "--out", "v.svec", "--estimator", "magic"],
        ["extract", "data.json", "--out", "v.svec", "--site", "stream"],
        ["extract", "data.json", "--out", "v.svec", "--part", "dev"],
        ["extract", "empty.txt", "--out", "v.svec"],
        ["search", "v.safetensors", "data.json", "--out", "s.json", "--similarity", "x"],
        ["evaluate", "v.safetensors", "empty.txt", "--out", "e"],
        ["evaluate", "v.safetensors", "data.json", "--out", "e", "--judges", "mood"],
        ["sweep", "v.safetensors", "--prompts", "data.json", "--out", "s", "--strengths", "1;2"],
        ["choices", "empty.txt", "--vector", "v.safetensors"],
        ["report", "nowhere"],
        ["figures", "nowhere"],
        ["export", "v.safetensors", "--out", "x", "--to", "onnx"],
        ["cast-table", "--sizes", "many"],
        ["inspect", "nowhere"],
        ["serve", "nowhere.safetensors"],
        ["serve", "data.json"],
        ["serve", "v.safetensors", "--plans-from", "nowhere"],
    ],
    ids=" ".join,
)
def test_wrong_command_lines_are_answered_before_anything_heavy_is_loaded(tmp_path, arguments):
    sl.ContrastiveDataset([("Up.", "Down.")]).save(tmp_path / "data.json")
    (tmp_path / "v.safetensors").touch()
    (tmp_path / "empty.txt").touch()
    code, packages, _ = started(*arguments, cwd=tmp_path)
    assert code == 2
    assert not packages & HEAVY


def test_inspecting_loads_torch_for_vectors_only(tmp_path):
    code, packages, _ = started("inspect", sl.demo_file("harmful.json"), sl.demo_file("tiny-chat"))
    assert code == 0
    assert not packages & HEAVY


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert sl.__version__ == version("steerlens")
    assert "__version__" not in dir(sl)
    with pytest.raises(AttributeError, match="nonsense"):
        sl.nonsense  # noqa: B018


def test_the_package_runs_as_a_module():
    for arguments in (["--version"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "steerlens", *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "steerlens" in done.stdout
