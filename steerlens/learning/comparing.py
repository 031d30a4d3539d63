"""Ways to get a vector, compared where their side effects are equal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from steerlens.activations.extraction import extract
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.prompts import Prompt
from steerlens.errors import SteerlensError, short_repr
from steerlens.evaluation.calibration import (
    KL_BUDGET,
    MET,
    NEAR,
    at_kl_budget,
    with_whole_replies,
)
from steerlens.evaluation.whole_replies import FEW_DEGENERATE, instructions
from steerlens.files import PathLike, digest, made_once, require_writable
from steerlens.intervals import mean, rate
from steerlens.judges.builtin import refusal
from steerlens.judges.fluency import degenerate
from steerlens.judges.judging import Judge
from steerlens.learning.learning import LESSONS, default_layer, learn
from steerlens.learning.objectives import OBJECTIVES, Objective
from steerlens.learning.replies import replies_by_side
from steerlens.learning.training import Training
from steerlens.models.fingerprint import model_provenance
from steerlens.models.host import Model
from steerlens.models.progress import progress_bar
from steerlens.steering.generation import generate
from steerlens.steering.steering import Steering
from steerlens.vectors.estimators import linear_discriminant, mean_difference, pca_pairwise
from steerlens.vectors.vector import SteeringVector

Method = Callable[[Model, LESSONS, int, Training], SteeringVector]
"""`(model, data, layer, training) -> vector`; the training is for those that learn."""
UNSTEERED = "unsteered"


def _extracted(
    estimator: Any, model: Model, data: LESSONS, layer: int, _: Training
) -> SteeringVector:
    sides = data if isinstance(data, ContrastiveDataset) else replies_by_side(data)
    return extract(model, sides, estimator, tokens="suffix", layers=[layer], progress=False)


def _learned(
    objective: Objective, model: Model, data: LESSONS, layer: int, training: Training
) -> SteeringVector:
    return learn(model, data, objective, layer, training=training, progress=False)


METHODS: dict[str, Method] = {
    **{
        estimator.__name__: partial(_extracted, estimator)
        for estimator in (mean_difference, pca_pairwise, linear_discriminant)
    },
    **{name: partial(_learned, objective) for name, objective in OBJECTIVES.items()},
}
"""What is compared by default: classical directions, and each objective of learning."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What each method does at equal side effect; `str()` is a table."""

    table: pd.DataFrame
    """A row per method, unsteered first: `method`, `strength`, `kl` (p95, nats), `status`, `score`,
    `low`, `high` (the judge's mean with its interval), `degenerate`, `degenerate_low`,
    `degenerate_high`, `different` (replies), `n`."""
    judge: str
    layer: int
    kl_budget: float
    degenerate_budget: float

    @property
    def budgets(self) -> str:
        """Both budgets, in words."""
        return (
            f"KL p95 ≤ {self.kl_budget:g} nats, degenerate replies ≤ {self.degenerate_budget:.3g}"
        )

    def __str__(self) -> str:
        lines = [
            f"{row.method}: {self.judge} {row.score:.3f} [{row.low:.3f}, {row.high:.3f}], "
            f"degenerate {row.degenerate:.1%} [{row.degenerate_low:.1%}, {row.degenerate_high:.1%}]"
            f", KL {row.kl:.3g} at strength {row.strength:.3g}, "
            f"{row.different} different replies of {row.n}"
            for row in self.table.itertuples()
        ]
        return "\n".join([f"layer {self.layer}; {self.budgets}", *lines])


def compare(
    model: Model,
    data: LESSONS,
    prompts: Sequence[Prompt],
    *,
    methods: Mapping[str, Method] = METHODS,
    layer: int | None = None,
    judge: Judge = refusal,
    kl_budget: float = KL_BUDGET,
    degenerate_budget: float = FEW_DEGENERATE,
    training: Training = Training(),  # noqa: B008 - frozen
    max_new_tokens: int = 40,
    out: PathLike | None = None,
    progress: bool = True,
) -> Comparison:
    """Each method's vector at the strength that spends one budget, judged on new prompts.

    Every vector is brought to the greatest strength within both budgets, as `calibrate_strength`
    does it, so that none looks better by breaking more. With `out`, a method that is done is not
    done again.

    Args:
        data: Pairs with contrasting suffixes, or tuples (prompt, wanted, unwanted) as for `learn`.
        prompts: Not among those of `data`.
        methods: Functions by name.
        layer: Default: a third of the way up.
        kl_budget: 95th percentile of KL per token on neutral text, in nats.
        degenerate_budget: Largest share of degenerate replies to the instructions calibrated on.
        training: Of the methods that learn; its seed is also that of bootstrap intervals.
        out: A directory: a vector and a row for each method.
        progress: False hides the bar.

    >>> few = {"mean": METHODS["mean_difference"]}
    >>> found = compare(model, refusals.train, prompts, methods=few, kl_budget=3.0)
    >>> found.table.method.tolist()
    ['unsteered', 'mean']
    """
    content, asked_before = _content(data)
    if seen := [prompt for prompt in prompts if prompt in asked_before]:
        raise SteerlensError(
            f"got {len(seen)} prompts that the vectors are made from, such as "
            f"{short_repr(seen[0])}; expected others"
        )
    layer = default_layer(model.cfg.n_layers) if layer is None else layer
    ask = partial(_asked, model, prompts, judge, max_new_tokens, training.seed)
    settings = [
        model_provenance(model), content, prompts, layer, judge, kl_budget, degenerate_budget,
        training, max_new_tokens,
    ]  # fmt: skip
    job = digest(repr(settings).encode())
    folder = None if out is None else require_writable(out)
    plain = {"strength": 0.0, "kl": 0.0, "status": MET}

    def row(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = None if folder is None else folder / f"{name}.json"
        return {"method": name, **made_once(path, job, make)}

    def run(name: str, method: Method) -> dict[str, Any]:
        vector = method(model, data, layer, training)
        if folder is not None:
            vector.save(folder / f"{name}.safetensors")
        [found] = at_kl_budget(model, [Steering(vector)], kl_budget, None, NEAR, progress=False)
        if found.status == MET:
            found = with_whole_replies(
                model, found, instructions(), degenerate_budget, max_new_tokens, progress=False
            )
        spent = {"strength": found.strength, "kl": found.kl, "status": found.status}
        return spent | ask(found.steering)

    rows = []
    jobs = {UNSTEERED: lambda: plain | ask(None)} | {
        name: partial(run, name, method) for name, method in methods.items()
    }
    with progress_bar(len(jobs), "method", progress, what="comparing") as bar:
        for name, make in jobs.items():
            bar.set_postfix_str(name)
            rows.append(row(name, make))
            bar.update()
    return Comparison(pd.DataFrame(rows), judge.name, layer, kl_budget, degenerate_budget)


def _content(data: LESSONS) -> tuple[list[Any], list[Prompt]]:
    """All that the vectors are made from, for a digest; and the prompts of it."""
    if isinstance(data, ContrastiveDataset):
        asked = [prompt for pair in data.pairs for prompt in pair]
        return [data, data.pairs, data.suffixes], asked
    return list(data), [lesson[0] for lesson in data]


def _asked(
    model: Model,
    prompts: Sequence[Prompt],
    judge: Judge,
    max_new_tokens: int,
    seed: int,
    steering: Steering | None,
) -> dict[str, Any]:
    """What the replies come to, each share with its interval."""
    replies = list(
        generate(model, prompts, steering, max_new_tokens=max_new_tokens, progress=False)
    )
    scores = judge(replies)
    hits = all(score in (0, 1) for score in scores)
    score = rate(int(scores.sum()), len(scores)) if hits else mean(scores, seed=seed)
    broken = rate(sum(map(degenerate, replies)), len(replies))
    return {
        "score": score.value, "low": score.low, "high": score.high,
        "degenerate": broken.value, "degenerate_low": broken.low, "degenerate_high": broken.high,
        "different": len(set(replies)), "n": len(replies),
    }  # fmt: skip
