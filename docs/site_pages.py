"""Pages of the site that are not written by hand: the API, folder by folder, and the notebooks.

MkDocs calls the functions named `on_…`; see `hooks` in mkdocs.yml.
"""

import ast
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "steerlens"


@event_priority(100)  # before the plugin that renders notebooks looks for them
def on_files(files: Files, config: Any) -> Files:
    """Add the notebooks, and one page of the API for every folder."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        place = f"notebooks/{path.name}"
        files.append(File(place, str(ROOT), config.site_dir, config.use_directory_urls))
    for place, text in api_pages().items():
        files.append(File.generated(config, f"api/{place}.md", content=text))
    return files


def api_pages() -> dict[str, str]:
    """The Markdown of each page of the API by its name; mkdocstrings fills in the rest."""
    folders = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
    pages = {folder.name: api_page(folder) for folder in folders}
    roots = [path.stem for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"]
    pages["root"] = "# Root modules\n\nWhat every folder may use.\n\n" + entries(
        [f"steerlens.{name}" for name in roots if name != "__main__"]
    )
    pages["index"] = index()
    return pages


def api_page(folder: Path) -> str:
    """A folder's purpose, then each of its modules."""
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    names = [f"steerlens.{folder.name}.{module}" for module in modules]
    return f"# steerlens.{folder.name}\n\n{purpose(folder / '__init__.py')}\n\n{entries(names)}"


def entries(names: list[str]) -> str:
    """Directives that mkdocstrings replaces with the documentation of these modules."""
    return "\n\n".join(f"::: {name}" for name in names) + "\n"


def purpose(path: Path) -> str:
    """The docstring of a module."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def index() -> str:
    """The public names in the order of the work, each with a link to its documentation."""
    rows = []
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    sources = {
        alias.name: f"steerlens.{node.module}" if node.module else "steerlens"
        for node in ast.walk(stub)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for name in public_names():
        place = f"{sources[name]}.{name}"
        folder = place.split(".")[1]
        page = folder if (PACKAGE / folder).is_dir() else "root"
        link = f"{page}.md" if place.count(".") == 1 else f"{page}.md#{place}"
        rows.append(f"| [`sl.{name}`]({link}) | `{sources[name]}` |")
    return (
        "# API\n\nThe names of `import steerlens as sl`, in the order of the work. Everything else "
        "is imported from its folder: `from steerlens.export import edited_biases`.\n\n"
        "| name | from |\n|---|---|\n" + "\n".join(rows) + "\n"
    )


def public_names() -> list[str]:
    """What `steerlens.__all__` lists."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []
