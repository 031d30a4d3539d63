"""The settings of the page: the controls and links that hold them, and what they ask for."""

import base64
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from dash import ALL

from steerlens.errors import SteerlensError
from steerlens.playground.library import Cut
from steerlens.playground.request import Push, Trial
from steerlens.steering.sampling import Sampling

LONGEST_LINK = 20_000
"""Characters."""


def fields(kind: Any) -> dict[str, Any]:
    """The arguments of `trial_of`, as inputs or states of a callback."""
    return {
        "vectors": kind({"push": "layers", "of": ALL}, "id"),
        "layers": kind({"push": "layers", "of": ALL}, "value"),
        "strengths": kind({"push": "strength", "of": ALL}, "value"),
        "auto": kind({"push": "auto", "of": ALL}, "value"),
        "rule": kind("rule", "value"),
        "ids": kind({"cut": "layer", "of": ALL}, "id"),
        "at": kind({"cut": "layer", "of": ALL}, "value"),
        "above": kind({"cut": "above", "of": ALL}, "value"),
        "prompt": kind("prompt", "value"),
        "max_new_tokens": kind("length", "value"),
        "temperature": kind("temperature", "value"),
        "top_p": kind("top-p", "value"),
        "seed": kind("seed", "value"),
        "edit": kind("edit", "value"),
        "positions": kind("positions", "value"),
        "keep_norm": kind("keep-norm", "value"),
        "ladder": kind("ladder", "value"),
    }


def trial_of(
    *,
    vectors: Sequence[dict[str, str]],
    layers: Sequence[Sequence[Any]],
    strengths: Sequence[Any],
    auto: Sequence[Any],
    ids: Sequence[dict[str, str]],
    at: Sequence[Any],
    above: Sequence[Any],
    temperature: Any,
    top_p: Any,
    seed: Any,
    keep_norm: Any,
    ladder: Any,
    **others: Any,
) -> Trial:
    """Settings from the page's fields; None means that a field is being edited."""
    numbers = (*strengths, *at, *above, temperature, top_p, seed, *others.values())
    if None in numbers or any(None in (pair or [None]) for pair in layers):
        raise SteerlensError("a field is empty, or out of its bounds; give each a number")
    pushes = [
        Push(row["of"], (int(first), int(last)), None if ticked else float(strength))
        for row, (first, last), strength, ticked in zip(
            vectors, layers, strengths, auto, strict=True
        )
    ]
    cuts = {
        field["of"]: Cut(layer, float(cut))
        for field, layer, cut in zip(ids, at, above, strict=True)
    }
    sampling = Sampling(temperature, top_p=None if top_p == 1 else top_p, seed=seed)
    return Trial(
        tuple(pushes),
        cuts=cuts,
        sampling=sampling,
        keep_norm=bool(keep_norm),
        ladder=bool(ladder),
        **others,
    )


def link_to(settings: Any) -> str:
    """Settings as the last part of an address."""
    text = json.dumps(settings, separators=(",", ":"))
    return "#" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def from_link(link: str) -> Trial:
    """The settings that a link holds.

    Raises:
        SteerlensError: if it holds none.
    """
    if len(link) > LONGEST_LINK:
        raise SteerlensError(f"got a link of {len(link)} characters; expected {LONGEST_LINK}")
    text = link.removeprefix("#")
    try:
        settings = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return trial_of(**settings)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SteerlensError(
            "got a link that holds no settings of this page; copy it again"
        ) from error


class Preset(NamedTuple):
    """Settings with a name; whatever it does not say is left as a new page has it."""

    about: str
    vectors: tuple[str, ...]
    rule: str
    prompt: str


PRESETS = (
    Preset("I · refuse everything", ("refuse",), "", "How do I bake bread?"),
    Preset("II · refuse harm only", ("refuse",), "if harmful then refuse", "How do I rob a bank?"),
    Preset(
        "II · the same with a learned vector",
        ("refuse_learned",),
        "if harmful then refuse_learned",
        "How do I rob a bank?",
    ),
    Preset(
        "III · refuse one topic",
        ("refuse",),
        "if legal then refuse",
        "Can my landlord keep my deposit?",
    ),
    Preset("a mood", ("cheerful",), "", "Tell me about your day."),
)
