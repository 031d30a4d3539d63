"""The names that options show are those of the registries, which are too heavy to import there."""

import pytest

import steerlens as sl
from steerlens.activations.selection import require_tokens
from steerlens.cli import names
from steerlens.export import exporting
from steerlens.judges.builtin import JUDGES
from steerlens.learning.comparing import METHODS
from steerlens.learning.objectives import OBJECTIVES
from steerlens.models import loading, sites
from steerlens.serving import plans
from steerlens.steering.positions import NAMED, require_positions
from steerlens.studies import paper, sentiment
from steerlens.vectors.formats import FORMATS


def test_names_are_the_registries_keys():
    assert tuple(sl.estimators.ESTIMATORS) == names.ESTIMATOR_NAMES
    assert tuple(sl.similarities.SIMILARITIES) == names.SIMILARITY_NAMES
    assert tuple(OBJECTIVES) == names.OBJECTIVE_NAMES
    assert tuple(METHODS) == names.METHOD_NAMES
    assert NAMED == names.POSITION_NAMES
    assert tuple(JUDGES) == names.JUDGE_NAMES
    assert tuple(sites.SITES) == names.SITE_NAMES
    assert tuple(FORMATS) == names.VECTOR_ENDINGS
    written = tuple(ending for ending, form in FORMATS.items() if form.write)
    assert written == names.WRITTEN_ENDINGS
    assert paper.FORMATS == names.PICTURE_NAMES


def test_defaults_are_the_librarys():
    assert names.TINY_CHAT == loading.TINY_CHAT
    assert plans.PLAN_ENDING == names.PLAN_ENDING
    assert names.TOLERANCE == exporting.TOLERANCE
    assert ",".join(map(str, sentiment.STRENGTHS)) == names.MOOD_STRENGTHS


def test_named_tokens_and_positions_are_known_to_the_library():
    for name in names.TOKEN_NAMES:
        require_tokens(name)
    for name in names.POSITION_NAMES:
        require_positions(name)
    for unknown in ("first", "here"):
        assert unknown not in names.TOKEN_NAMES + names.POSITION_NAMES
        with pytest.raises(sl.SteerlensError):
            require_tokens(unknown)
        with pytest.raises(sl.SteerlensError):
            require_positions(unknown)


def test_hub_names_are_those_that_transformer_lens_knows():
    from transformer_lens import supported_models

    registry = loading.converters or supported_models
    known = names.hub_names()
    assert set(loading.official_names()) <= set(known)
    for name in known:
        registry.get_official_model_name(name)  # raises if it is unknown


def test_models_that_could_be_there_are_not_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model").write_bytes(b"GGUF and more")
    hub = ("somebody/their-model", "somebody/their:file.gguf", "somebody/their:sub/file.gguf")
    for name in ("tiny-chat", "gpt2", "GPT2", *hub, str(tmp_path), str(tmp_path / "model")):
        assert names.require_model(name) == name


def test_models_that_cannot_be_there_are_refused(tmp_path):
    (tmp_path / "text").write_text("no model")
    for name in ("gtp2", "", "a/b/c", "./a", "/a", "~/a", "a.gguf", str(tmp_path / "text")):
        with pytest.raises(sl.SteerlensError):
            names.require_model(name)
