"""Every notebook runs from top to bottom, and is stored with its outputs."""

import nbformat
import pytest
from nbclient import NotebookClient
from places import ROOT

from steerlens.models.loading import installed_smollm2

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    if not installed_smollm2():
        model = notebook.cells[1]
        model.source = model.source.replace('MODEL = "smollm2"', 'MODEL = "tiny-chat"')
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_stored_as_it_ran(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]
    assert cells[0].source.startswith("MODEL = ")
