"""The greatest fraction of a strength at which replies to a few instructions stay whole."""

from collections.abc import Sequence
from typing import NamedTuple, Unpack

from steerlens.data.prompt_files import load_prompts
from steerlens.errors import SteerlensError
from steerlens.evaluation.kl_search import times
from steerlens.files import demo_file
from steerlens.judges.fluency import TOO_MANY_DEGENERATE, degenerate
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.tokenizing import Readable
from steerlens.steering.batch_plans import stacked
from steerlens.steering.generation import generate
from steerlens.steering.steering import Steering

N_PROMPTS = 30
"""Instructions that are replied to, unless others are given."""
REPLY_TOKENS = 40
"""Length of these replies: loops of up to ten words show."""
FEW_DEGENERATE = TOO_MANY_DEGENERATE / 4
"""Share of degenerate replies that is allowed: none of 30. Where one of 30 broke, up to 15 % of
other instructions did."""
FRACTIONS = (1.0, 0.8, 0.6, 0.45, 0.35, 0.25, 0.18, 0.12, 0.08)
"""Of a strength, tried in this order."""


class Trial(NamedTuple):
    """Replies at a fraction of a strength."""

    fraction: float
    degenerate: float
    """The share of the replies that were asked for."""


def instructions() -> list[str]:
    """The instructions that strengths are calibrated on by default.

    >>> len(instructions())
    30
    """
    return list(load_prompts(demo_file("questions.json"))["validation"][:N_PROMPTS])


def whole_replies(
    model: Model,
    steering: Steering,
    prompts: Sequence[Readable],
    budget: float,
    max_new_tokens: int,
    **run: Unpack[RunOptions],
) -> tuple[list[Trial], float]:
    """The fractions of a steering's strength that were tried, and the share that was allowed.

    From the whole strength down; the last is the first at which replies are within the budget. A
    fraction that breaks too many of the first half of the prompts is not asked for the rest.

    Args:
        model: The model that replies.
        steering: At the greatest strength to try.
        prompts: At least one.
        budget: Largest share of degenerate replies, or that of the unsteered model on the first
            half of the prompts if it is larger.
        max_new_tokens: Length of the replies.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    Raises:
        SteerlensError: If replies are degenerate at all fractions.
    """
    half = -(-len(prompts) // 2)

    def broken(cells: Sequence[Steering | None], asked: Sequence[Readable]) -> list[int]:
        """How many replies are degenerate under each."""
        replies = generate(
            model, list(asked) * len(cells), stacked(cells, len(asked)),
            max_new_tokens=max_new_tokens, **run,
        )  # fmt: skip
        texts = list(replies)
        starts = range(0, len(texts), len(asked))
        return [sum(map(degenerate, texts[start : start + len(asked)])) for start in starts]

    trials: list[Trial] = []
    allowed = budget
    for fraction in FRACTIONS:
        weaker = times(steering, fraction)
        if trials:
            [n_broken] = broken([weaker], prompts[:half])
        else:
            unsteered, n_broken = broken([None, weaker], prompts[:half])
            allowed = max(budget, unsteered / half)
        n_asked, most = half, allowed * len(prompts)
        if n_broken <= most and half < len(prompts):
            n_asked, n_broken = len(prompts), n_broken + broken([weaker], prompts[half:])[0]
        trials.append(Trial(fraction, n_broken / n_asked))
        if n_broken <= most:
            return trials, allowed
    raise SteerlensError(
        f"got a budget of {allowed:.0%} degenerate replies, which {steering} exceeds even at "
        f"{fraction:g} times this strength ({trials[-1].degenerate:.0%}); expected one that it can "
        "meet: give a larger degenerate_budget, or steer other layers"
    )
