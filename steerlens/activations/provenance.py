"""Whether a vector belongs to the model it is used on."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.models.fingerprint import fingerprint, processing
from steerlens.models.host import Model
from steerlens.models.sites import hook_name, site_width
from steerlens.vectors.vector import CENTRED_BY_PROJECTION, SteeringVector


class ProvenanceWarning(UserWarning):
    """A vector is used with other weights than it was extracted from."""


def check_provenance(
    model: Model,
    vector: SteeringVector,
    site: str | None = None,
    layers: Iterable[int] | None = None,
) -> None:
    """Refuse a vector whose width or layers do not fit the model; warn if its weights are others.

    `site` and `layers` are where it is used, if that is not all of where it was read. Equal
    weights are one model whatever its name; names are compared where a vector notes no weights.
    """
    site = vector.site if site is None else site
    for layer in vector.layers if layers is None else layers:
        hook_name(model, site, layer)
    if vector.width != site_width(model, site):
        raise SteerlensError(
            f"{vector} is {vector.width} wide, but {model.cfg.model_name}'s {site} "
            f"{site_width(model, site)}; it belongs to another model or site"
        )
    origins = list(_origins(vector.provenance))
    here, done = {"model": model.cfg.model_name}, processing(model)
    if any(origin.get("weights") for origin in origins):
        here["weights"] = fingerprint(model)
    for origin in origins:
        crossed = origin.get("processing") == CENTRED_BY_PROJECTION and "centred" in done
        compared = "weights" if origin.get("weights") and not crossed else "model"
        if origin.get(compared) not in (None, here[compared]):
            warnings.warn(
                f"{vector} comes from {_described(origin)}, but is used with {_described(here)}: "
                "another model, dtype or processing of weights; directions of one mean little in "
                "another" + _way_across(origin, done),
                ProvenanceWarning,
                stacklevel=2,
            )
            return


def _origins(provenance: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The provenance of each vector that went into one by arithmetic."""
    waiting: list[Any] = [provenance]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, Mapping):
            continue
        sides = (one.get(name) for name in ("sum", "difference"))
        parts = [part for side in sides if isinstance(side, list) for part in side]
        waiting.extend(parts)
        if not parts:
            yield one


def _way_across(origin: Mapping[str, Any], done: str) -> str:
    """What to do about another processing of the same model."""
    was = origin.get("processing", done)
    if "centred" in done and "centred" not in was:
        return ". If it is the same model, its stream is centred: use vector.centred()"
    if "centred" in was and "centred" not in done:
        return (
            ". The vector is of a centred stream, without the mean that this one has: added, it "
            "does the same, but for conditions and other edits extract it again"
        )
    return ""


def _described(origin: Mapping[str, Any]) -> str:
    weights = f" (weights {origin['weights']})" if origin.get("weights") else ""
    return f"{origin.get('model', 'a model')}{weights}"
