"""One page about a study: everything that is there, nothing that runs, nothing that crashes."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from studies_made import ATTACK, made_search, make_study, sweep_table
from typer.testing import CliRunner

import steerlens as sl
from steerlens.cli.options import app
from steerlens.studies.html import Listing, Section, page
from steerlens.studies.reports import report
from steerlens.studies.study import read_study

MOST_BYTES = 8 * 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def text(folder):
    return report(folder).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Start tags with their attributes, outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def of(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def figures(text):
    specs = re.findall(r'class="spec">(.*?)</script>', text, re.DOTALL)
    return [json.loads(spec) for spec in specs]


def test_each_file_is_read_as_what_it_is(folder):
    study = read_study(folder)
    assert set(study.vectors) == {"planted", "doubled"}
    assert set(study.searches) == {"planted"}
    assert study.searches["planted"].vector.explained is not None  # its own, not the doubled one
    assert set(study.tables) == {"sweep", "scores"}
    assert len(study.tables["sweep"]) == 16
    assert study.manifests["sweep/manifest"]["seed"] == 5
    assert set(study.left_out) == {
        "old.json", "nameless.json", "shapeless.json", "cut.json", "cut.parquet",
        "cut.safetensors", "notes.txt",
    }  # fmt: skip
    assert "steerlens.search/0" in study.left_out["old.json"]
    assert "truncated" in study.left_out["cut.json"]


def test_a_search_without_its_vector_is_said_to_lack_it(tmp_path):
    made_search().save(tmp_path / "alone.json")
    assert "vector it was made with" in read_study(tmp_path).left_out["alone.json"]


def test_of_two_results_of_one_name_none_is_lost_unsaid(tmp_path):
    sweep_table().to_parquet(tmp_path / "sweep.parquet")
    sweep_table().to_csv(tmp_path / "sweep.csv")
    study = read_study(tmp_path)
    assert set(study.tables) == {"sweep"}
    assert "rename it" in study.left_out["sweep.parquet"]


def test_the_page_shows_what_there_is_and_lists_what_it_could_not(text):
    for shown in (
        "Question 0?", "did not fire", "steerlens demo --model tiny-chat --seed 3 --quick",
        "steerlens sweep plan.json", "planted.safetensors"[:7], "What was not understood",
        "cut.parquet", "scores has 1 rows",
    ):  # fmt: skip
        assert shown in text, shown
    drawn = figures(text)
    assert len(drawn) == 6  # rates, sweep, spread, thresholds, cosines, explained variance
    kinds = [figure["data"][0]["type"] for figure in drawn]
    assert kinds.count("heatmap") == 1
    assert kinds.count("box") == 1


def test_text_stays_text(text):
    assert ATTACK not in text
    assert "window.hurt" in text  # it is shown, escaped
    tags = Tags(text)
    assert not [attributes for attributes in tags.of("img") if "onerror" in attributes]
    scripts = [attributes for attributes in tags.of("script") if "type" not in attributes]
    assert len(scripts) == 2  # plotly.js, and the page's own


def test_the_page_is_one_file_that_asks_for_nothing(text, folder):
    assert (folder / "report.html").stat().st_size < MOST_BYTES
    tags = Tags(text)
    assert not [a for a in tags.of("script") if "src" in a]
    assert not tags.of("link")
    [policy] = [a["content"] for a in tags.of("meta") if "http-equiv" in a]
    assert "default-src 'none'" in policy


def test_the_page_can_be_read_without_seeing_it(text):
    tags = Tags(text)
    assert [a["lang"] for a in tags.of("html")] == ["en"]
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(tags.of(landmark)) == 1, landmark
    assert all("scope" in a for a in tags.of("th"))
    assert len(tags.of("caption")) == len(tags.of("table"))
    plots = [a for a in tags.of("div") if a.get("role") == "img"]
    assert len(plots) == 6
    assert all(len(a["aria-label"]) > 10 for a in plots)
    ids = [a["id"] for _, a in tags.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for attribute in ("for", "aria-labelledby"):
        assert {a[attribute] for _, a in tags.tags if attribute in a} <= set(ids)
    assert {a["href"][1:] for a in tags.of("a")} <= set(ids)
    assert all("aria-valuetext" in a for a in tags.of("input"))


def test_a_report_of_a_hundred_thousand_rows_stays_small(tmp_path):
    strengths = np.linspace(0, 1, 12_500)
    sweep_table(strengths).to_parquet(tmp_path / "many.parquet")
    pd.DataFrame({"text": ["x" * 50] * 100_000}).to_parquet(tmp_path / "raw.parquet")
    written = report(tmp_path, tmp_path / "out" / "page.html")
    assert written.stat().st_size < MOST_BYTES
    assert "100,000 rows" in written.read_text()


def test_what_cannot_be_drawn_is_said(tmp_path):
    sweep_table(vectors=[f"v{n}" for n in range(20)]).to_parquet(tmp_path / "wide.parquet")
    assert "Not drawn: 40 vectors" in report(tmp_path).read_text()


def test_an_empty_or_missing_directory_is_refused(tmp_path):
    with pytest.raises(sl.SteerlensError, match="no directory"):
        report(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(sl.SteerlensError, match=r"no results to report; notes\.txt"):
        report(tmp_path)


def test_the_command_writes_the_page(folder, tmp_path):
    done = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "p.html")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "p.html").is_file()
    assert CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")]).exit_code == 2


def test_a_listing_says_how_much_it_leaves_out():
    listing = Listing.of(pd.DataFrame({"n": [1.5, np.nan, 3.0]}), "Numbers", most=2)
    assert listing.rows == (("1.5",), ("–",))
    assert "first 2 of 3" in listing.caption
    [[cell]] = Listing.of(pd.DataFrame({"text": ["x" * 9999]}), "Long").rows
    assert cell == "x" * 2000 + " …"


def test_sections_without_blocks_are_left_out():
    text = page("Title", "Lead", [Section("Empty", []), Section("Full", ["Words."])])
    assert "Empty" not in text
    assert "Plotly" not in text  # no figure, no library
    assert "Plotly" in page("Title", "Lead", [Section("One", [go.Figure(go.Bar(y=[1]))])])
