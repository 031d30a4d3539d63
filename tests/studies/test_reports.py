"""One page about a study: everything that is there, nothing that runs, nothing that crashes."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from helpers import PROMPTS, random_vector
from plotly.offline import get_plotlyjs
from studies_made import ATTACK, made_search, make_study, sweep_table
from typer.testing import CliRunner

import steerlens as sl
from steerlens.cli.options import app
from steerlens.judges.judging import judge
from steerlens.studies.findings import findings
from steerlens.studies.html import Fold, Listing, Section, page
from steerlens.studies.reports import report
from steerlens.studies.study import Study, read_study

MOST_BYTES = 5_000_000


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
    assert "search without its vector" in read_study(tmp_path).left_out["alone.json"]


def test_of_two_results_of_one_name_none_is_lost_unsaid(tmp_path):
    sweep_table().to_parquet(tmp_path / "sweep.parquet")
    sweep_table().to_csv(tmp_path / "sweep.csv")
    study = read_study(tmp_path)
    assert set(study.tables) == {"sweep"}
    assert "rename one" in study.left_out["sweep.parquet"]


def test_the_page_shows_what_there_is_and_lists_what_it_could_not(text):
    for shown in (
        "Question 0?", "did not fire", "steerlens demo --model tiny-chat --seed 3 --quick",
        "steerlens sweep plan.json", "planted.safetensors"[:7], "Files not shown",
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
    assert len(scripts) == 1  # the page's own; it unpacks plotly.js


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
    assert "Not drawn: got 40 vectors" in report(tmp_path).read_text()


def test_an_empty_or_missing_directory_is_refused(tmp_path):
    with pytest.raises(sl.SteerlensError, match="which is no directory"):
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


def test_plotly_is_packed_into_the_page_once(text):
    [packed] = re.findall(r'id="plotly">([^<]*)</script>', text)
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()
    assert len(packed) < 0.45 * len(get_plotlyjs())


DEMO = [
    ("unsteered", "harmful", 0.05, 0.03, 0.09),
    ("unsteered", "harmless", 0.02, 0.01, 0.05),
    ("II", "harmful", 0.96, 0.92, 0.98),
    ("II", "harmless", 0.04, 0.02, 0.09),
    ("III", "named", 0.94, 0.88, 0.97),
    ("III", "others", 0.05, 0.03, 0.08),
]


def demo_study(rows):
    table = [
        {"part": part, "group": group, "measure": "refused", "value": value, "low": low,
         "high": high, "n": 180}
        for part, group, value, low, high in rows
    ]  # fmt: skip
    return Study(Path("study"), results={"results": {"rows": table, "run": {}}})


def test_the_findings_of_the_demo_say_what_the_intervals_allow():
    harm, topics = findings(demo_study(DEMO))
    assert "96.0% [92.0%, 98.0%] of harmful prompts refused, 5.0% [3.0%, 9.0%] unsteered" in harm
    assert "unsteered (an increase beyond chance)" in harm
    assert "harmless prompts refused, 2.0% [1.0%, 5.0%] unsteered (no difference shown" in harm
    assert topics.endswith("of the others (a difference beyond chance).")
    fewer = [("unsteered", "harmful", 0.9, 0.8, 0.95), ("II", "harmful", 0.1, 0.0, 0.2),
             ("II", "harmless", 0.1, 0.0, 0.2)]  # fmt: skip
    [harm] = findings(demo_study(fewer))
    assert "(a decrease beyond chance)" in harm
    [nothing] = findings(demo_study([("II", "all", 0.5, 0.4, 0.6)]))
    assert nothing.startswith("No verdict")


def test_sweeps_and_evaluations_are_read_and_shown_as_what_they_are(model, tmp_path):
    vector, quiet = random_vector(model), {"max_new_tokens": 4, "progress": False}
    long = judge("long", lambda text: float(len(text) > 12))
    asked = list(PROMPTS[:3])
    swept = sl.sweep(
        model, vector, asked, layers=[2], strengths=[0.5], judges=[long],
        out=tmp_path / "swept", **quiet,
    )  # fmt: skip
    found = sl.evaluate(
        model, sl.Steering(vector, [2]), asked, controls=1, judges=[long], texts=asked,
        safety=asked, **quiet,
    )  # fmt: skip
    found.save(tmp_path / "found")
    study = read_study(tmp_path)
    assert list(study.sweeps) == ["swept"]
    assert list(study.evaluations) == ["found"]
    assert not study.left_out
    assert not study.tables
    text = report(tmp_path).read_text()
    claim = found.verdict.claim()
    [line] = findings(study)
    assert line.startswith(f"found: {claim}")
    assert ("degenerate" in line) == (found.verdict.degenerate > 0.1)
    assert text.index(claim) < text.index("<h2")  # before all sections
    assert {figure["data"][0]["type"] for figure in figures(text)} >= {"heatmap", "scatter"}
    assert len(figures(text)) == 3
    alone = read_study(tmp_path / "swept")  # the directory itself
    assert alone.sweeps["swept"].table.equals(swept.table)


def test_what_is_folded_counts_as_a_figure_and_keeps_its_place():
    bars = go.Figure(go.Bar(y=[1]))
    text = page("Title", "Lead", [Section("One", [Fold("More", [bars, "Words."])], "Why.", True)])
    assert "Plotly" in text
    assert text.index("<summary>More") < text.index('class="plot"') < text.index("Words.")
    assert '<details class="section">' in text
    assert '<p class="about">Why.</p>' in text
    opened = page("Title", "Lead", [Section("One", ["Words."])])
    assert '<details class="section" open>' in opened


def test_the_first_threshold_is_open_and_the_others_folded(tmp_path):
    for name in ("first", "second"):
        search = made_search(name)
        search.vector.save(tmp_path / f"{name}.safetensors")
        search.save(tmp_path / f"{name}.json")
    text = report(tmp_path).read_text()
    assert "<summary>Threshold of second" in text
    assert "<summary>Threshold of first" not in text
