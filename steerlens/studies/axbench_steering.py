"""AxBench's steering: does a reply show the concept, answer the instruction, and stay fluent?

Every arm replies to instructions at several settings (factors of its vector, or wordings of a
prompt). The setting is chosen on half of the instructions and scored on the other half. Factor 1
is the strength at which the arm spends the KL budget on neutral text, so that arms can also be
compared where their side effect is equal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.data.asking import instruction, system_message
from steerlens.data.axbench import AxBench, ConceptRows
from steerlens.data.prompt_files import load_prompts
from steerlens.data.prompts import Prompt
from steerlens.errors import SteerlensError
from steerlens.evaluation.calibration import MET, NEAR, at_kl_budget, neutral_texts
from steerlens.evaluation.kl_search import times
from steerlens.evaluation.whole_replies import instructions as calibration_instructions
from steerlens.files import PathLike, demo_file, digest, made_once, require_writable
from steerlens.intervals import Interval, mean, rate
from steerlens.learning.learning import default_layer, learn
from steerlens.learning.objectives import OBJECTIVES, Objective
from steerlens.learning.replies import SENTENCE_ENDS, Lesson
from steerlens.learning.training import Training
from steerlens.models.fingerprint import model_provenance
from steerlens.models.host import Model
from steerlens.models.progress import progress_bar
from steerlens.steering.batch_plans import stacked
from steerlens.steering.generation import generate
from steerlens.steering.steering import Steering
from steerlens.studies.axbench_judges import (
    GOLD,
    ConceptJudge,
    ReplyJudges,
    concept_judge,
    negatives_for_vectors,
    reply_judges,
)
from steerlens.studies.axbench_results import (
    ALL,
    COLUMNS,
    STEERING,
    AxBenchResults,
    cell,
    digest_of_bench,
)
from steerlens.studies.axbench_scores import ARMS, balanced, pooled_mean, read_each
from steerlens.vectors.vector import SteeringVector

FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Of the strength that spends the KL budget."""
EQUAL_KL = 1.0
N_INSTRUCTIONS = 12
REPLY_TOKENS = 40
N_TEXTS = 12
"""Neutral texts that the KL is measured on."""
KL_BUDGET = 1.0
"""95th percentile of KL per token on neutral text, in nats; twice what `calibrate_strength` allows,
since a concept is to be forced on instructions that have nothing to do with it."""
LESSON_CHARACTERS = 160
"""How much of a text is learned: about as long as the replies that are scored."""
TRAINING = Training(steps=30, batch_size=6, learning_rate=0.04, continued=0)
"""Of the arms that learn: under half of the default's texts, as there are many vectors."""
MEANS = "difference of means"
MINUS_MEANS = f" minus {MEANS}"
EQUAL_SCORE = "score at equal KL"
AHEAD = "share of concepts ahead of difference of means at equal KL"
PARTS = ("score", "concept", "instruction", "fluency")
UNSTEERED, PROMPT = "unsteered", "prompt"
WORDINGS: Mapping[str, Callable[[str, str], Prompt]] = {
    "before": lambda concept, asked: instruction(f"In your answer, use {concept}.")(asked),
    "after": lambda concept, asked: f"{asked}\n\nMake sure that your answer contains {concept}.",
    "system": lambda concept, asked: system_message(f"Every answer of yours contains {concept}.")(
        asked
    ),
}
"""How a prompt asks for a concept."""


@dataclass(frozen=True)
class Setup:
    """What is the same for all concepts and arms."""

    model: Model
    layer: int
    instructions: tuple[str, ...]
    """Those at even places choose the setting, the others score it."""
    factors: tuple[float, ...]
    kl_budget: float
    max_new_tokens: int
    training: Training
    judges: ReplyJudges
    pooled: "PooledTexts"


class PooledTexts:
    """Texts' mean activations at one layer, each read once."""

    def __init__(self, model: Model, layer: int) -> None:
        self._model, self._layer = model, layer
        self._known: dict[str, Float[Tensor, "1 d_model"]] = {}

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "text 1 d_model"]:
        """The texts' activations, in their order."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            read = read_each(
                self._model, new, [self._layer], pooled_mean, progress=False, what="training rows"
            )
            self._known |= dict(zip(new, read, strict=True))
        return torch.stack([self._known[text] for text in texts])


class Case(NamedTuple):
    """One concept, and whether a text shows it."""

    setup: Setup
    rows: ConceptRows
    judge: ConceptJudge

    @property
    def lessons(self) -> list[tuple[str, str]]:
        """Instructions with the beginnings of replies that show the concept."""
        return [
            (prompt, beginning(text))
            for prompt, text in zip(self.rows.train_prompts, self.rows.train_positive, strict=True)
            if prompt.strip()
        ]


class Option(NamedTuple):
    """A setting of an arm, and what it asks of the model."""

    setting: Any
    prompts: Sequence[Prompt]
    steering: Steering | None = None


Arm = Callable[[Case], tuple[list[Option], dict[str, Any]]]
"""`(case) -> (options, what is to be noted)`."""


def beginning(text: str, most: int = LESSON_CHARACTERS) -> str:
    """The whole sentences that fit, or as much as fits where the first is longer.

    >>> beginning("One. Two, three.", 8), beginning("One, two", 5)
    ('One.', 'One, ')
    """
    cut = text[:most]
    if len(text) <= most:
        return text
    last = max(cut.rfind(end + space) for end in SENTENCE_ENDS for space in " \n")
    return cut if last < 0 else cut[: last + 1]


def _unsteered(case: Case) -> tuple[list[Option], dict[str, Any]]:
    return [Option(UNSTEERED, case.setup.instructions)], {}


def _prompted(case: Case) -> tuple[list[Option], dict[str, Any]]:
    has_template = case.setup.model.tokenizer.chat_template is not None
    wordings = {name: one for name, one in WORDINGS.items() if has_template or name != "system"}
    return [
        Option(name, [wording(case.rows.name, asked) for asked in case.setup.instructions])
        for name, wording in wordings.items()
    ], {}


def _of_vector(
    vector_of: Callable[[Case], SteeringVector], case: Case
) -> tuple[list[Option], dict[str, Any]]:
    setup = case.setup
    whole = Steering(vector_of(case))
    texts = neutral_texts()[:N_TEXTS]
    [found] = at_kl_budget(setup.model, [whole], setup.kl_budget, texts, NEAR, progress=False)
    spent = {"strength": found.strength, "kl": found.kl, "status": found.status}
    if found.status != MET:
        raise SteerlensError(f"the KL budget of {setup.kl_budget:g} nats is {found.status}")
    return [
        Option(factor, setup.instructions, times(found.steering, factor))
        for factor in setup.factors
    ], spent


def _fitted(estimator: Callable[..., Tensor], case: Case) -> SteeringVector:
    sides = map(case.setup.pooled, (case.rows.train_positive, negatives_for_vectors(case.rows)))
    directions = estimator(*balanced(*sides)).float()
    return SteeringVector(directions, (case.setup.layer,))


def _learned(objective: Objective, case: Case) -> SteeringVector:
    setup = case.setup
    lessons: Sequence[Lesson] = case.lessons
    if not lessons:
        raise SteerlensError("no training row has an input, so that no reply can be learned")
    if objective.__name__ in ("bipo", "reps"):  # need replies that are not wanted
        asked = Option(UNSTEERED, [lesson[0] for lesson in lessons])
        plain = replies_of(setup.model, [asked], setup.max_new_tokens)
        pairs = zip(lessons, plain, strict=True)
        lessons = [(*lesson[:2], reply) for lesson, reply in pairs if reply.strip()]
    return learn(
        setup.model, lessons, objective, setup.layer, training=setup.training, progress=False
    )


STEERING_ARMS: dict[str, Arm] = {
    UNSTEERED: _unsteered,
    PROMPT: _prompted,
    **{name: partial(_of_vector, partial(_fitted, arm)) for name, arm in ARMS.items()},
    **{
        f"learned, {name.replace('_', ' ')}": partial(_of_vector, partial(_learned, objective))
        for name, objective in OBJECTIVES.items()
    },
}
"""What is compared: the model as it is, a prompt that asks for the concept, directions fitted to
activations, and vectors learned from replies."""


def steer(
    model: Model,
    bench: AxBench,
    *,
    layer: int | None = None,
    arms: Mapping[str, Arm] = STEERING_ARMS,
    factors: Sequence[float] = FACTORS,
    n_instructions: int = N_INSTRUCTIONS,
    max_new_tokens: int = REPLY_TOKENS,
    kl_budget: float = KL_BUDGET,
    training: Training = TRAINING,
    out: PathLike | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AxBenchResults:
    """AxBench's steering: each arm's scores, from 0 to 2, at the factor chosen on half of the asks.

    Instructions are questions of steerlens. Judges are local: see `axbench_judges`; a concept that
    its judge does not know from training texts (AUROC under .9) is named and left out. An arm that
    cannot be run for a concept is named too, and has no row there. Intervals of a concept are over
    instructions, those of all over concepts.

    Args:
        model: The model that is steered, and unsteered judges fluency and answers.
        bench: From `read_axbench`.
        layer: Of all vectors; None: a third of the way up.
        arms: Functions by name.
        factors: Of the strength that spends the KL budget; 1 among them.
        n_instructions: Even, at least 4.
        max_new_tokens: Length of replies.
        kl_budget: 95th percentile of KL per token on neutral text, in nats.
        training: Of the arms that learn.
        out: A directory: a file for each concept and arm, with all replies; what is done is not
            done again.
        seed: Of the intervals and the judges.
        progress: Whether to show progress.

    Raises:
        SteerlensError: An argument cannot be used, or no concept is left.
    """
    asked = load_prompts(demo_file("questions.json"))["test"][:n_instructions]
    if n_instructions % 2 or not 4 <= n_instructions <= len(asked) or EQUAL_KL not in factors:
        raise SteerlensError(
            f"got n_instructions={n_instructions} and factors={tuple(factors)}; expected an even "
            f"number of instructions from 4 on, as many as there are, and {EQUAL_KL:g} as a factor"
        )
    layer = default_layer(model.cfg.n_layers) if layer is None else layer
    folder = None if out is None else require_writable(out)
    known, dropped = _known(bench.concepts, seed)
    taught = calibration_instructions()
    plain = replies_of(model, [Option(UNSTEERED, taught)], max_new_tokens)
    setup = Setup(
        model, layer, tuple(map(str, asked)), tuple(factors), kl_budget, max_new_tokens, training,
        reply_judges(model, taught, plain, seed=seed), PooledTexts(model, layer),
    )  # fmt: skip
    settings = (*vars(setup).values(),)[1:-2]
    same = [model_provenance(model), [one.eval_positive for one in bench.concepts], settings, seed]
    cases = [Case(setup, *one) for one in known]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    total = len(cases) * len(arms)
    with progress_bar(total, "arm", progress, what="steering") as bar:
        for number, case in enumerate(cases):
            for name, arm in arms.items():
                path = None if folder is None else folder / f"{number:03d}-{_file_name(name)}.json"
                job = digest(repr([*same, case.rows, name]).encode())
                made = made_once(path, job, partial(_run, case, arm))
                found[case.rows.name, name] = made
                if "failed" in made:
                    dropped.append(f"{case.rows.name}, {name}: {made['failed']}")
                bar.update()
    table = pd.DataFrame(
        [*_judge_rows(cases), *measured(found, layer, seed)], columns=COLUMNS, dtype=object
    )
    return AxBenchResults(table, (*bench.dropped, *dropped), digest_of_bench(model, bench))


def _known(
    concepts: Sequence[ConceptRows], seed: int
) -> tuple[list[tuple[ConceptRows, ConceptJudge]], list[str]]:
    """Concepts with judges that know them, and what is left out."""
    judged = [(one, concept_judge(one, seed=seed)) for one in concepts]
    known = [(one, judge) for one, judge in judged if judge.auroc.value >= GOLD]
    dropped = [
        f"{one.name}: its judge's AUROC on training texts is {judge.auroc.value:.4f}; expected "
        f"{GOLD:g}"
        for one, judge in judged
        if judge.auroc.value < GOLD
    ]
    if not known:
        raise SteerlensError(f"no concept can be judged by its words: {'; '.join(dropped)}")
    return known, dropped


def replies_of(model: Model, options: Sequence[Option], max_new_tokens: int) -> list[str]:
    """Greedy replies to the prompts of all options, one option after the other."""
    plans = stacked([option.steering for option in options], len(options[0].prompts))
    prompts = [prompt for option in options for prompt in option.prompts]
    return list(generate(model, prompts, plans, max_new_tokens=max_new_tokens, progress=False))


def _run(case: Case, arm: Arm) -> dict[str, Any]:
    """The setting chosen, and the scored replies of an arm; or why there are none."""
    try:
        options, noted = arm(case)
    except SteerlensError as error:
        return {"failed": str(error)}
    choosing = _scored(case, options, 0)
    best = max(options, key=partial(_mean_score, choosing))
    scoring = [option for option in options if option is best or option.setting == EQUAL_KL]
    return {**noted, "chosen": best.setting, "replies": choosing + _scored(case, scoring, 1)}


def _mean_score(replies: Sequence[Mapping[str, Any]], option: Option) -> float:
    return float(np.mean([one["score"] for one in replies if one["setting"] == option.setting]))


def _scored(case: Case, options: Sequence[Option], half: int) -> list[dict[str, Any]]:
    """Replies of every option to the instructions of one half, each with its scores."""
    setup = case.setup
    places = range(half, len(setup.instructions), 2)
    asked = [option._replace(prompts=[option.prompts[at] for at in places]) for option in options]
    replies = replies_of(setup.model, asked, setup.max_new_tokens)
    own = [setup.instructions[at] for at in places] * len(options)
    scores = setup.judges.score(case.judge, own, replies)
    settings = [(option.setting, at) for option in options for at in places]
    return [
        {"setting": setting, "prompt": at, "half": half, "reply": reply, **score}
        for (setting, at), reply, score in zip(settings, replies, scores, strict=True)
    ]


def _file_name(arm: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in arm)


_row = partial(cell, STEERING)


def _judge_rows(cases: Sequence[Case]) -> list[tuple]:
    """How well each judge tells known texts apart."""
    judges = cases[0].setup.judges
    overall = {"auroc of answers": judges.answers.auroc, "auroc of fluency": judges.fluent.auroc}
    return [
        *(
            _row("judge", case.rows.name, None, "auroc on training texts", case.judge.auroc,
                 len(case.rows.train_positive) + len(negatives_for_vectors(case.rows)))
            for case in cases
        ),
        *(_row("judge", ALL, None, told, value, None) for told, value in overall.items()),
    ]  # fmt: skip


def measured(
    found: Mapping[tuple[str, str], Mapping[str, Any]], layer: int, seed: int
) -> list[tuple]:
    """Rows of each arm and concept, and of each arm over concepts.

    Args:
        found: What `_run` made, by concept and arm.
        layer: Of all vectors.
        seed: Of the intervals.
    """
    rows: list[tuple] = []
    by_arm: dict[tuple[str, str], list[float]] = {}
    for (concept, arm), made in found.items():
        if "failed" in made:
            continue
        at = layer if "strength" in made else None
        for measure, values in _values(made, found.get((concept, MEANS), {})).items():
            rows.append(_row(arm, concept, at, measure, mean(values, seed=seed), len(values)))
            by_arm.setdefault((arm, measure), []).append(float(values.mean()))
        if at is not None:
            chosen = Interval(made["chosen"], np.nan, np.nan)
            rows.append(_row(arm, concept, at, "factor chosen", chosen, None))
    for (arm, measure), of_concepts in by_arm.items():
        overall = mean(np.array(of_concepts), seed=seed)
        at = layer if (arm, EQUAL_SCORE) in by_arm else None
        rows.append(_row(arm, ALL, at, measure, overall, len(of_concepts)))
    ahead = [row for row in rows if row[4] == EQUAL_SCORE + MINUS_MEANS and row[2] != ALL]
    for arm in dict.fromkeys(row[1] for row in ahead):
        apart = [row[6] > 0 for row in ahead if row[1] == arm]
        rows.append(_row(arm, ALL, layer, AHEAD, rate(sum(apart), len(apart)), len(apart)))
    return rows


def _values(
    made: Mapping[str, Any], means: Mapping[str, Any]
) -> dict[str, Float[np.ndarray, " instruction"]]:
    """What one arm's replies to each instruction come to, by measure."""
    chosen = _by_instruction(made, made["chosen"], 1)
    found = {part: chosen[part].to_numpy(float) for part in PARTS}
    equal = _by_instruction(made, EQUAL_KL) if "strength" in made else None
    if equal is not None:
        found[EQUAL_SCORE] = equal["score"].to_numpy(float)
    if "replies" in means and means is not made:
        beside = _by_instruction(means, means["chosen"], 1)["score"]
        found["score" + MINUS_MEANS] = (chosen["score"] - beside).to_numpy(float)
        if equal is not None:
            apart = equal["score"] - _by_instruction(means, EQUAL_KL)["score"]
            found[EQUAL_SCORE + MINUS_MEANS] = apart.to_numpy(float)
    return found


def _by_instruction(made: Mapping[str, Any], setting: Any, half: int | None = None) -> pd.DataFrame:
    """Scores at one setting, of one half or of both, indexed by prompt."""
    table = pd.DataFrame(made["replies"]).set_index("prompt").sort_index()
    return table[
        (table["setting"] == setting) & (table["half"].isin([0, 1] if half is None else [half]))
    ]
