"""A/B questions (CAA, arXiv 2312.06681): the probability of each of two answers, steered or not."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from steerlens.activations.batching import by_length
from steerlens.data.prompts import Passage, require_prompt
from steerlens.data.questions import Question
from steerlens.errors import SteerlensError
from steerlens.files import PathLike, write_json, write_text
from steerlens.intervals import mean
from steerlens.models.fast_forward import forward_pass
from steerlens.models.hooking import placed
from steerlens.models.host import Model, next_logits
from steerlens.models.progress import progress_bar
from steerlens.models.tokenizing import TokenRow, left_padded, pad_token, tokenize
from steerlens.steering.batch_plans import BatchPlan, Plan, Plans, as_plans, decoding_run, for_rows
from steerlens.steering.clocks import DecodingClock
from steerlens.steering.fitting import require_fit
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector


class _Choice(NamedTuple):
    """The tokens that both answers share, and the first token at which they differ."""

    row: TokenRow
    matching: int
    """Token of the matching answer."""
    other: int
    """Token of the other answer."""


def answer_sides(
    model: Model, questions: Sequence[Question]
) -> tuple[list[Passage], list[Passage]]:
    """Each question followed by its matching and by its other answer, for `extract`.

    Use them with `tokens="last"`: both end at the answer's letter ("(A" of "(A)"), the token at
    which CAA reads the residual stream. The answer opens the reply in the chat template, or follows
    "Answer:" if the model has no template.

    Args:
        model: Decides which of the two forms applies.
        questions: As `load_questions` reads them.

    >>> q = Question("Is tea nice?\\n(A) Yes\\n(B) No", "(A)", "(B)")
    >>> extract(model, answer_sides(model, [q]), estimators.mean_difference)
    SteeringVector('pairs', resid_post, layers 0–5, d 192)
    """
    templated = model.tokenizer.chat_template is not None

    def passage(text: str, answer: str) -> Passage:
        asked = text.rstrip()
        opening = " " if asked.lower().endswith("answer:") else "\nAnswer: "
        letter = answer.strip().removesuffix(")")
        return Passage(text, letter) if templated else Passage(asked, opening + letter)

    return (
        [passage(question.text, question.matching) for question in questions],
        [passage(question.text, question.other) for question in questions],
    )


def choice_probabilities(
    model: Model,
    questions: Sequence[Question],
    steering: Plans = None,
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> Float[np.ndarray, " question"]:
    """p(matching) / (p(matching) + p(other)) of the next token, for each question.

    The two tokens are those at which the two answers, tokenised after the question, first differ;
    other spellings of a letter are not counted.

    Args:
        questions: As `load_questions` reads them.
        steering: A steering, several that act together, or None for the unsteered model.
        batch_size: Questions in one forward pass.

    Raises:
        SteerlensError: If one answer's tokens begin the other's, or a steering touches no token.

    >>> q = Question("Is tea nice?\\n(A) Yes\\n(B) No", "(A)", "(B)")
    >>> choice_probabilities(load_model(), [q]).shape
    (1,)
    """
    plans = as_plans(steering)
    choices = _choices(model, questions)
    require_fit(model, plans, [choice.row for choice in choices])
    return _probabilities(model, choices, plans, batch_size, progress)


def choice_sweep(
    model: Model,
    vector: SteeringVector,
    questions: Sequence[Question],
    layers: Sequence[int] | None = None,
    strengths: Sequence[float] = (-1.0, 0.0, 1.0),
    *,
    batch_size: int = 64,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """`choice_probabilities` at every layer and strength, one layer steered at a time.

    The columns are layer, strength, question (its index) and p_match.

    Args:
        questions: As `load_questions` reads them.
        layers: The layers to sweep; None is every layer of the vector.
        strengths: Steering coefficients; 0 is unsteered.
        batch_size: Rows (question × layer × strength) in one forward pass.
        settings: Those of `Steering`, such as `relative=True`.

    >>> q = Question("Is tea nice?\\n(A) Yes\\n(B) No", "(A)", "(B)")
    >>> choice_summary(choice_sweep(model, vector, [q], [2, 3], [-1, 0, 1])).shape
    (6, 6)
    """
    steering = Steering(vector, layers, **settings)
    swept = steering.layers_steered
    if not len(strengths):
        raise SteerlensError("got no strengths; expected at least one")
    choices = _choices(model, questions)
    cells = pd.MultiIndex.from_product(
        [swept, map(float, strengths), range(len(questions))],
        names=["layer", "strength", "question"],
    ).to_frame(index=False)
    column = torch.tensor([swept.index(layer) for layer in cells["layer"]])
    matrix = torch.zeros(len(cells), len(swept))
    matrix[torch.arange(len(cells)), column] = torch.tensor(cells["strength"].to_list())
    plan = BatchPlan(steering, matrix)
    rows = [choices[question] for question in cells["question"]]
    if matrix.any():
        require_fit(model, plan, [choice.row for choice in rows])
    return cells.assign(p_match=_probabilities(model, rows, [plan], batch_size, progress))


def choice_summary(sweep: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean p_match over questions at each layer and strength, with n and bootstrap interval.

    Args:
        sweep: A table that `choice_sweep` returned.
        seed: Of the bootstrap.

    >>> cells = {"layer": 2, "strength": 1.0, "question": [0, 1], "p_match": [0.25, 0.75]}
    >>> choice_summary(pd.DataFrame(cells)).p_match.tolist()
    [0.5]
    """
    rows = []
    for (layer, strength), cell in sweep.groupby(["layer", "strength"]):
        value = mean(cell["p_match"].to_numpy(), seed=seed)
        rows.append((layer, strength, len(cell), value.value, value.low, value.high))
    return pd.DataFrame(rows, columns=["layer", "strength", "n", "p_match", "low", "high"])


def write_choices(
    path: PathLike,
    sweep: pd.DataFrame,
    summary: pd.DataFrame,
    *,
    run: Mapping[str, Any],
    seed: int,
) -> None:
    """Write p_match of every question as CSV, or as JSON with the summary and the run's settings.

    Args:
        path: Ends in `.csv` or `.json`.
        sweep: The table of `choice_sweep`.
        summary: The table of `choice_summary`.
        run: The settings to record.
        seed: Of the summary's bootstrap.
    """
    if str(path).endswith(".csv"):
        write_text(path, sweep.to_csv(index=False))
        return
    tables = {"summary": summary, "questions": sweep}
    records = {name: table.to_dict("records") for name, table in tables.items()}
    write_json(path, {"run": dict(run), "seed": seed, **records})


def _choices(model: Model, questions: Sequence[Question]) -> list[_Choice]:
    for index, question in enumerate(questions):
        require_prompt(question.text, f"question {index}")
    matching, other = (tokenize(model, side) for side in answer_sides(model, questions))
    choices = []
    for question, first, second in zip(questions, matching, other, strict=True):
        token_pairs = zip(first.ids, second.ids, strict=False)
        n_shared = sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], token_pairs))
        if n_shared == min(len(first.ids), len(second.ids)):
            raise SteerlensError(
                f"got the answers {question.matching!r} and {question.other!r} to "
                f"{question.text[:40]!r}, of which one begins the other; expected answers that "
                "differ at some token"
            )
        shared = first._replace(ids=first.ids[:n_shared])
        choices.append(_Choice(shared, first.ids[n_shared], second.ids[n_shared]))
    return choices


@torch.no_grad()
def _probabilities(
    model: Model,
    choices: Sequence[_Choice],
    plans: Sequence[Plan],
    batch_size: int,
    progress: bool,
) -> Float[np.ndarray, " row"]:
    probabilities = np.zeros(len(choices))
    lengths = [len(choice.row.ids) for choice in choices]
    with progress_bar(len(choices), "row", progress) as bar:
        for batch in by_length(lengths, rows=batch_size):
            asked = [choices[index] for index in batch]
            tokens, mask = left_padded([choice.row.ids for choice in asked], pad_token(model))
            batch_plans = [for_rows(plan, batch) for plan in plans]
            run = decoding_run(batch_plans, [choice.row for choice in asked], mask, model)
            assert isinstance(run.clock, DecodingClock)
            run.clock.show(0, tokens.shape[1], tokens)
            device = model.cfg.device
            work = partial(next_logits, model, tokens.to(device), mask.to(device).int())
            logits = forward_pass(model, work, placed(model, run.hooks())).float().cpu()
            pair = torch.tensor([[choice.matching, choice.other] for choice in asked])
            probabilities[batch] = logits.gather(1, pair).double().softmax(dim=1)[:, 0].numpy()
            bar.update(len(batch))
    return probabilities
