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
    """A vector is used with weights other than those it was extracted from."""


def check_provenance(
    model: Model,
    vector: SteeringVector,
    site: str | None = None,
    layers: Iterable[int] | None = None,
) -> None:
    """Refuse a vector whose width or layers do not fit the model; warn if its weights are others.

    Models are compared by their weights, or by name if the vector records no weights.

    Args:
        model: The model that the vector is used with.
        vector: The vector.
        site: Where it is used; None for the site it was read at.
        layers: Where it is used; None for all its layers.

    >>> check_provenance(load_model(), vector)
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
    here, processing_here = {"model": model.cfg.model_name}, processing(model)
    if any(origin.get("weights") for origin in origins):
        here["weights"] = fingerprint(model)
    for origin in origins:
        crossed = origin.get("processing") == CENTRED_BY_PROJECTION and "centred" in processing_here
        compared = "weights" if origin.get("weights") and not crossed else "model"
        if origin.get(compared) not in (None, here[compared]):
            warnings.warn(
                f"{vector} comes from {_described(origin)}, but is used with {_described(here)}: "
                "another model, dtype or processing of weights; a direction of one means little in "
                "another" + _centring_advice(origin, processing_here),
                ProvenanceWarning,
                stacklevel=2,
            )
            return


def _origins(provenance: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The provenance of each extracted vector that a sum or difference was computed from."""
    waiting: list[Any] = [provenance]
    while waiting:
        origin = waiting.pop()
        if not isinstance(origin, Mapping):
            continue
        operands = (origin.get(name) for name in ("sum", "difference"))
        parts = [part for operand in operands if isinstance(operand, list) for part in operand]
        waiting.extend(parts)
        if not parts:
            yield origin


def _centring_advice(origin: Mapping[str, Any], here: str) -> str:
    """What to do if the same model was processed otherwise."""
    there = origin.get("processing", here)
    if "centred" in here and "centred" not in there:
        return ". If it is the same model, its stream is centred: use vector.centred()"
    if "centred" in there and "centred" not in here:
        return (
            ". The vector comes from a centred stream, which lacks the mean of this one: adding it "
            "has the same effect, but extract it again for conditions and other edits"
        )
    return ""


def _described(origin: Mapping[str, Any]) -> str:
    weights = f" (weights {origin['weights']})" if origin.get("weights") else ""
    return f"{origin.get('model', 'a model')}{weights}"
