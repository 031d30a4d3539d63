"""Paper figures: their size, their data, their scripts; with a browser and without."""

import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from studies_made import made_search, make_study
from typer.testing import CliRunner

import steerlens as sl
from steerlens.cli.options import app
from steerlens.dashboards import rates, similarities_by_layer, threshold_sweep, vector_cosines
from steerlens.studies import paper
from steerlens.studies.paper import (
    LatexTable,
    NoBrowserWarning,
    Plate,
    drawn_data,
    for_paper,
    latex,
)

FIGURES = Path(__file__).parents[2] / "figures"

SCRIPT = """
from steerlens.dashboards import threshold_sweep
from steerlens.studies.paper import Plate

def make(study):
    return Plate(threshold_sweep(study.searches["planted"]), "double")
"""
TABLE = """
import pandas as pd
from steerlens.studies.paper import LatexTable

def make(study):
    return LatexTable(pd.DataFrame(study.results["results"]["rows"]))
"""


@pytest.fixture
def scripts(tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "sweep.py").write_text(SCRIPT)
    (folder / "cells.py").write_text(TABLE)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


def test_a_plate_has_its_size_in_print_and_shows_what_is_visible():
    search = made_search()
    figure = for_paper(Plate(threshold_sweep(search), "double", 2.5))
    assert (figure.layout.width, figure.layout.height) == (6.75 * 96, 2.5 * 96)
    assert figure.layout.font.size == pytest.approx(8 / 72 * 96)
    assert figure.layout.title.text is None
    assert not figure.layout.sliders
    assert [t.name for t in figure.data] == ["F1", "precision", "recall", "chosen", "ROC"]
    with pytest.raises(sl.SteerlensError, match="got width='triple'"):
        Plate(figure, "triple")


def test_the_data_are_what_the_figure_shows():
    search = made_search()
    data = drawn_data(threshold_sweep(search))
    best = search.candidates[0]
    curve = search.curve(best.layers[0], best.side)
    f1 = data[data["trace"] == "F1"]
    np.testing.assert_allclose(f1["x"], curve.thresholds)
    np.testing.assert_allclose(f1["y"], curve.f1)
    [chosen] = data[data["trace"] == "chosen"].to_dict("records")
    assert (chosen["x"], chosen["y"], chosen["panel"]) == (best.threshold, best.f1, "1")
    assert set(data[data["trace"] == "ROC"]["panel"]) == {"2"}
    spread = drawn_data(similarities_by_layer(search))
    assert len(spread) == (30 + 40 + 20 + 25) * 3


def test_intervals_and_heatmaps_are_in_the_data():
    rows = [("I", "all", "refused", 0.5, 0.4, 0.7, 20)]
    columns = ["part", "group", "measure", "value", "low", "high", "n"]
    [bar] = drawn_data(rates(pd.DataFrame(rows, columns=columns))).to_dict("records")
    assert (bar["x"], bar["y"]) == ("I", 0.5)
    assert (bar["low"], bar["high"]) == (pytest.approx(0.4), pytest.approx(0.7))
    vector = made_search().vector
    assert drawn_data(vector_cosines({"a": vector, "b": -vector}, "a"))["y"].tolist() == [-1] * 3


def test_text_in_a_table_is_escaped():
    table = pd.DataFrame({"50 % & more_": ["{a}~b\\c"], "value": [np.nan], "n": [7]})
    text = latex(LatexTable(table, r"Costs \$5, of $x_1$", "tab:x"))
    assert r"50 \% \& more\_ & value & n \\" in text
    assert r"\{a\}\textasciitilde b\textbackslash c & -- & 7 \\" in text
    assert r"\caption{Costs \$5, of $x_1$}" in text
    assert r"\begin{tabular}{lrr}" in text
    assert r"\label{tab:x}" in text


@pytest.mark.parametrize("caption", ["50 % of it", "Run #1", "A & B"])
def test_a_caption_that_latex_would_cut_is_refused(caption):
    with pytest.raises(sl.SteerlensError, match="expected LaTeX"):
        LatexTable(pd.DataFrame(), caption)


def test_without_a_browser_pages_are_written_and_it_is_said(scripts, study, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "find_browser", lambda: None)
    with pytest.warns(NoBrowserWarning, match="BROWSER_PATH"):
        written = paper.regenerate(scripts, study, tmp_path / "out")
    assert {path.name for path in written} == {"sweep.csv", "sweep.html", "cells.csv", "cells.tex"}
    assert all(path.stat().st_size > 100 for path in written)
    done = CliRunner().invoke(
        app, ["figures", str(study), "--scripts", str(scripts), "--out", str(tmp_path / "again")]
    )
    assert done.exit_code == 0, done.output
    assert "no Chromium" in " ".join(done.output.split())


def test_a_browser_is_found_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/opt/chrome")
    assert paper.find_browser() == "/opt/chrome"
    monkeypatch.delenv("BROWSER_PATH")
    monkeypatch.setenv("PATH", "")
    assert paper.find_browser() is None


def test_scripts_that_make_nothing_are_refused(study, tmp_path):
    with pytest.raises(sl.SteerlensError, match="holds no figure script"):
        paper.regenerate(tmp_path, study, tmp_path)
    (tmp_path / "a.py").write_text("")
    with pytest.raises(sl.SteerlensError, match="without a function make"):
        paper.regenerate(tmp_path, study, tmp_path)
    (tmp_path / "a.py").write_text("make = lambda study: 3")
    with pytest.raises(sl.SteerlensError, match="got int from make"):
        paper.regenerate(tmp_path, study, tmp_path)
    with pytest.raises(sl.SteerlensError, match="expected some of svg, pdf, png"):
        paper.regenerate(tmp_path, study, tmp_path, ["gif"])


def test_the_figures_of_this_repository_are_what_their_scripts_make(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "find_browser", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoBrowserWarning)
        written = paper.regenerate(FIGURES, FIGURES / "study", tmp_path)
    texts = [path for path in written if path.suffix in (".csv", ".tex")]
    assert {path.stem for path in texts} == {path.stem for path in FIGURES.glob("*.py")}
    for path in texts:
        assert path.read_text() == (FIGURES / path.name).read_text(), path.name
    for script in FIGURES.glob("*.py"):
        if f"{script.stem}.tex" not in {path.name for path in texts}:
            assert (FIGURES / f"{script.stem}.svg").is_file(), script.name


@pytest.mark.slow
def test_pictures_have_the_size_that_was_asked_for(scripts, study, tmp_path):
    if paper.find_browser() is None:
        pytest.skip("no Chromium on this machine: install it, or set BROWSER_PATH")
    paper.regenerate(scripts, study, tmp_path, ["svg", "pdf", "png"])
    svg = (tmp_path / "sweep.svg").read_text()
    paper.regenerate(scripts, study, tmp_path / "again")
    assert (tmp_path / "again" / "sweep.svg").read_text() == svg
    assert re.search(r'<svg[^>]*width="648"[^>]*height="230', svg)
    assert "precision" in svg
    pdf = (tmp_path / "sweep.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    [box] = re.findall(rb"/MediaBox ?\[([^\]]*)\]", pdf)
    assert float(box.split()[2]) == pytest.approx(6.75 * 72, abs=1)
    png = (tmp_path / "sweep.png").read_bytes()
    assert int.from_bytes(png[16:20]) == 648 * 3
    assert not list(tmp_path.glob(".*.*"))
