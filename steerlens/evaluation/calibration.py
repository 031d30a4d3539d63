"""The greatest strength within two budgets: KL on neutral text, and replies that fall apart."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
import pandas as pd
import torch

from steerlens.display import Rows, card
from steerlens.errors import SteerlensError
from steerlens.evaluation.kl_search import (
    Tried,
    first_exceeding,
    percentiles,
    search_strengths,
    sign_of,
    times,
    with_strength,
)
from steerlens.evaluation.side_effects import neutral_texts
from steerlens.evaluation.whole_replies import (
    FEW_DEGENERATE,
    REPLY_TOKENS,
    instructions,
    whole_replies,
)
from steerlens.layer_text import as_layers
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.tokenizing import Readable, as_prompts, tokenize
from steerlens.steering.steering import Steering, require_steering

N_TEXTS = 24
"""Neutral texts that are calibrated on, unless others are given."""
KL_BUDGET = 0.5
"""95th percentile of KL per token, in nats, that leaves a pretrained model's text whole."""
NEAR = 0.05
"""How far below the KL budget a result may lie, as a share of it: in strength, half of that."""
MET, NEVER, ALWAYS = "met", "never exceeded", "always exceeded"


@dataclass(frozen=True, eq=False)
class Calibration:
    """A steering at the greatest strength within its budgets, and the strengths tried."""

    steering: Steering
    """At the strength that was found."""
    strength: float
    """The steering coefficient; for strengths by layer, the factor they are multiplied by."""
    kl: float
    """95th percentile of KL(unsteered ‖ steered) per token at this strength, in nats."""
    kl_budget: float
    status: str
    """ "met"; or "never exceeded" or "always exceeded": no strength tried brackets the budget."""
    tried: pd.DataFrame
    """Columns `strength`, `kl_p95` and `degenerate` (of the replies asked for; NaN: none), weakest
    first."""
    degenerate: float = np.nan
    """Share of degenerate replies at this strength (`judges.degenerate`)."""
    degenerate_budget: float = 1.0
    """The largest share allowed: that asked for, or the unsteered model's if that is larger."""
    texts: tuple[Readable, ...] = ()
    """The neutral texts of the KL."""
    prompts: tuple[Readable, ...] = ()
    """The instructions replied to; none if `degenerate_budget` is 1."""

    def __repr__(self) -> str:
        replies = f"; {self.replies_in_words}" if self.prompts else ""
        return (
            f"Calibration(strength {self.strength:.4g}: KL p95 {self.kl:.3g} nats per token, "
            f"budget {self.kl_budget:g} {self.status}{replies})"
        )

    @property
    def replies_in_words(self) -> str:
        """How many replies fell apart, and how many were allowed to."""
        n = len(self.prompts)
        return (
            f"{round(self.degenerate * n)} of {n} replies degenerate, "
            f"at most {self.degenerate_budget:.0%}"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the strength found, and every strength tried."""
        rows = self.tried.itertuples(index=False, name=None)
        return card(
            f"Calibration: strength {self.strength:.4g}",
            {
                "KL, 95th percentile": f"{self.kl:.3g} nats per token",
                "budget": f"{self.kl_budget:g} {self.status}",
                "replies": self.replies_in_words if self.prompts else None,
                "steering": repr(self.steering),
            },
            Rows(list(self.tried.columns), rows, len(self.tried), "All strengths tried", True),
        )


def calibrate_strength(
    model: Model,
    steering: Steering,
    kl_budget: float = KL_BUDGET,
    texts: Sequence[Readable] | None = None,
    *,
    degenerate_budget: float = FEW_DEGENERATE,
    prompts: Sequence[Readable] | None = None,
    max_new_tokens: int = REPLY_TOKENS,
    tolerance: float = NEAR,
    **run: Unpack[RunOptions],
) -> Calibration:
    """The greatest strength within two budgets: KL on neutral text, and degenerate replies.

    KL(unsteered ‖ steered) is teacher-forced on neutral text; its 95th percentile over tokens may
    reach `kl_budget`. It need not grow with strength: what is found is the lower side of the first
    crossing that strengths in steps of 4 show. Where too many replies to a few instructions
    are degenerate at that strength, it is lowered in steps of a fifth to a third until they are
    not.

    Args:
        steering: The sign of its strength is kept; strengths by layer keep their ratios.
        kl_budget: In nats per token.
        texts: Neutral texts (read without chat template); default: 24 of those of steerlens.
        degenerate_budget: Largest share of degenerate replies, or that of the unsteered model on
            half of the prompts if it is larger. 1: KL alone decides, and no replies are asked for.
        prompts: Instructions to reply to; default: 30 of the validation part of the demo's
            questions.
        max_new_tokens: Length of these replies.
        tolerance: How far below the KL budget the result may lie, as a share of it.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    Raises:
        SteerlensError: If no strength tried reaches the KL budget, all exceed it, or replies are
            degenerate at all of them.

    >>> calibrate_strength(model, steering, kl_budget=1.0, texts=prompts).status
    'met'
    """
    require_steering(steering)
    if not 0 <= degenerate_budget <= 1:
        raise SteerlensError(
            f"got degenerate_budget={degenerate_budget}; expected a share from 0 to 1"
        )
    [calibration] = at_kl_budget(model, [steering], kl_budget, texts, tolerance, **run)
    status, tried = calibration.status, calibration.tried
    if status != MET:
        span = f"{tried.strength.iloc[0]:.3g} to {tried.strength.iloc[-1]:.3g}"
        least, most = tried.kl_p95.min(), tried.kl_p95.max()
        advice = "give a larger budget" if status == ALWAYS else "give a smaller budget"
        if not most:
            advice = "the steering changes nothing in these texts: does its condition fire on them?"
        raise SteerlensError(
            f"got a KL budget of {kl_budget:g} nats, which is {status}: {steering} has a KL p95 of "
            f"{least:.3g} to {most:.3g} at strengths {span}; {advice}"
        )
    asked = instructions() if prompts is None else as_prompts(prompts)
    return with_whole_replies(model, calibration, asked, degenerate_budget, max_new_tokens, **run)


def calibrate_layers(
    model: Model,
    steering: Steering,
    kl_budget: float = KL_BUDGET,
    texts: Sequence[Readable] | None = None,
    *,
    layers: Iterable[int] | None = None,
    tolerance: float = NEAR,
    **run: Unpack[RunOptions],
) -> dict[int, Calibration]:
    """The strength at a KL budget for each layer steered alone, all layers in one batch.

    Replies are not looked at: `calibrate_strength` does that for one steering. A layer that cannot
    meet the budget raises nothing: its `status` says so.

    Args:
        steering: With one number as strength; its sign is kept.
        kl_budget: 95th percentile of KL per token, in nats.
        texts: Neutral texts (read without chat template); default: 24 of those of steerlens.
        layers: Default: those of the steering.
        tolerance: How far below the budget a result may lie, as a share of it.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    >>> by_layer = calibrate_layers(model, steering, texts=prompts, layers=[2, 3])
    >>> [by_layer[layer].status for layer in (2, 3)]
    ['met', 'met']
    """
    require_steering(steering)
    numbers = steering.layers_steered if layers is None else tuple(as_layers(layers))
    if torch.as_tensor(steering.strength).ndim:
        raise SteerlensError(
            f"got {steering} with strengths by layer; expected one number to calibrate each layer"
        )
    each = [replace(steering, layers=[layer]) for layer in numbers]
    calibrations = at_kl_budget(model, each, kl_budget, texts, tolerance, **run)
    return dict(zip(numbers, calibrations, strict=True))


def at_kl_budget(
    model: Model,
    steerings: Sequence[Steering],
    kl_budget: float,
    texts: Sequence[Readable] | None,
    tolerance: float,
    **run: Unpack[RunOptions],
) -> list[Calibration]:
    """Each steering at the KL budget; in lockstep: what they try next are rows of one batch.

    Args:
        model: The model.
        steerings: As for `calibrate_strength`.
        kl_budget: 95th percentile of KL per token, in nats.
        texts: Neutral texts; None: 24 of those of steerlens.
        tolerance: How far below the budget a result may lie, as a share of it.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.
    """
    if not kl_budget > 0 or not tolerance > 0:
        raise SteerlensError(
            f"got kl_budget={kl_budget} and tolerance={tolerance}; expected both above 0"
        )
    texts = neutral_texts()[:N_TEXTS] if texts is None else texts
    rows = tokenize(model, texts, chat=False)
    tried = search_strengths(model, rows, steerings, kl_budget, tolerance, **run)
    return [
        replace(_result(one, kls, kl_budget), texts=tuple(texts))
        for one, kls in zip(steerings, tried, strict=True)
    ]


def with_whole_replies(
    model: Model,
    found: Calibration,
    prompts: Sequence[Readable],
    budget: float,
    max_new_tokens: int,
    **run: Unpack[RunOptions],
) -> Calibration:
    """The calibration at the greatest fraction of its strength at which replies are whole.

    Args:
        model: The model.
        found: At the KL budget.
        prompts: Instructions to reply to.
        budget: Largest share of degenerate replies, as for `calibrate_strength`; 1: as it is.
        max_new_tokens: Length of these replies.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.
    """
    if budget == 1:
        return found
    trials, allowed = whole_replies(model, found.steering, prompts, budget, max_new_tokens, **run)
    table = pd.DataFrame(trials)
    weaker = [times(found.steering, trial.fraction) for trial in trials]
    rows = tokenize(model, found.texts, chat=False)
    kls = [found.kl, *(percentiles(model, rows, weaker[1:], **run) if weaker[1:] else [])]
    table.insert(0, "kl_p95", kls)
    table.insert(0, "strength", found.strength * table.pop("fraction"))
    rest = found.tried[found.tried["strength"] != found.strength]
    tried = pd.concat([rest.assign(degenerate=np.nan), table])
    return replace(
        found,
        steering=weaker[-1],
        strength=float(table["strength"].iloc[-1]),
        kl=kls[-1],
        tried=tried.iloc[tried["strength"].abs().argsort(kind="stable")].reset_index(drop=True),
        degenerate=trials[-1].degenerate,
        degenerate_budget=float(allowed),
        prompts=tuple(prompts),
    )


def _result(steering: Steering, tried: Tried, budget: float) -> Calibration:
    strengths, first = first_exceeding(tried, budget)
    greatest = strengths[max(first - 1, 0)]
    status = ALWAYS if first == 0 else NEVER if first == len(strengths) else MET
    calibrated, sign = with_strength(steering, greatest), sign_of(steering)
    table = pd.DataFrame({
        "strength": [sign * strength for strength in strengths],
        "kl_p95": [tried[strength] for strength in strengths],
    })  # fmt: skip
    return Calibration(calibrated, sign * greatest, tried[greatest], budget, status, table)
