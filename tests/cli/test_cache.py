import pytest
from typer.testing import CliRunner

from steerlens.cli import app
from steerlens.models.weight_cache import cached_directory, cached_models
from steerlens.playground.kept import Item, keep, kept


@pytest.fixture
def converted(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "[bold]model.gguf"
    source.write_bytes(b"any")

    def write(path, directory):
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(bytes(2_000_000))

    with cached_directory(source, write):
        pass
    return source


def run(*arguments):
    result = CliRunner().invoke(app, ["cache", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_converted_models_are_listed_with_their_sizes_and_cleared(converted):
    listed = run()
    assert f"2.0 MB  {converted}" in listed
    assert "2.0 MB in 1 models and 0 files of the playground at" in listed
    keep("push", "key", Item({"strength": 0.5}), "strength of 'push' for [tiny]")
    assert "MB  strength of 'push' for [tiny]" in run()
    assert "2.0 MB freed" in run("--clear")
    assert cached_models() == []
    assert kept("push", "key") is None
    assert "0.0 MB in 0 models and 0 files" in run()
