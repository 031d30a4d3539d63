"""The strength of a steering for which nobody gave one."""

from dataclasses import replace
from typing import Unpack

from steerlens.evaluation.calibration import KL_BUDGET, calibrate_strength
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.loading import TINY_CHAT
from steerlens.steering.steering import Steering

TINY_CHAT_BUDGET = 6.0
"""The KL budget of tiny-chat, which is small and sure of every token."""


def default_budget(model: Model) -> float:
    """The KL budget for a model, in nats per token: `KL_BUDGET`, but for tiny-chat.

    >>> default_budget(load_model("tiny-chat"))
    6.0
    """
    return TINY_CHAT_BUDGET if model.cfg.model_name == TINY_CHAT else KL_BUDGET


def default_steering(
    model: Model, steering: Steering, **run: Unpack[RunOptions]
) -> tuple[Steering, str]:
    """The steering at a strength that leaves text whole, and in words how that was found.

    A learned vector is used at strength 1, at which it was learned; any other is calibrated with
    the default budgets (6 nats for tiny-chat), as though its condition always held.

    Args:
        model: The model that is to be steered.
        steering: Its strength is not used.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    >>> steering, how = default_steering(model, Steering(vector, [2, 3], relative=True))
    >>> how.startswith("strength")
    True
    """
    if "objective" in steering.vector.provenance and not steering.relative:
        return replace(steering, strength=1.0), "strength 1, at which the vector was learned"
    always = replace(steering, when=None, strength=1.0)
    found = calibrate_strength(model, always, default_budget(model), **run)
    words = (
        f"strength {found.strength:.3g}, calibrated: KL p95 {found.kl:.2g} of {found.kl_budget:g} "
        f"nats on {len(found.texts)} neutral texts, {found.replies_in_words}"
    )
    return replace(steering, strength=found.strength), words
