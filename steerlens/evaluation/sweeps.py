"""Layers × strengths × vectors × positions × prompts, as the rows of one generation."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.evaluation.sweep_plan import SweepBatch, SweepPlan, SweepReplies, windows_of
from steerlens.evaluation.sweep_store import Sweep, open_directory, write_part
from steerlens.files import PathLike
from steerlens.judges.judging import Judge
from steerlens.layer_text import consecutive
from steerlens.models.engine import LOCAL, Engine
from steerlens.models.host import Model
from steerlens.models.progress import progress_bar
from steerlens.models.tokenizing import Readable, tokenize
from steerlens.steering.generation import generate
from steerlens.steering.hooks import KeepNorm, add_direction
from steerlens.steering.positions import Positions, describe
from steerlens.steering.predicates import Predicate
from steerlens.steering.sampling import Sampling
from steerlens.vectors.vector import SteeringVector

BATCH_TOKENS = 16_384
"""Tokens of prompts and replies, padding included, in one batch to begin with."""


def sweep(
    model: Model,
    vectors: SteeringVector | Mapping[str, SteeringVector],
    prompts: Sequence[Readable],
    *,
    layers: Iterable[int | Iterable[int]] | None = None,
    strengths: Iterable[float] = (1.0,),
    positions: Sequence[Positions] = ("all",),
    judges: Sequence[Judge] = (),
    out: PathLike | None = None,
    resume: bool = False,
    when: Predicate | None = None,
    edit: Callable[..., Any] = add_direction,
    relative: bool = False,
    keep_norm: bool | KeepNorm = False,
    skip_bos: bool = False,
    site: str | None = None,
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    chat: bool | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
    engine: Engine = LOCAL,
) -> Sweep:
    """Reply to every prompt in every cell and unsteered, with the tokens `generate` would give.

    Each of `layers` is a layer or a window of them (None: every layer of the vectors by itself).
    Finished batches are kept in the directory `out`; `resume=True` goes on with what stands there
    and refuses another plan. Batches halve when memory runs out. An `engine` such as
    `distributed.Ray` replies elsewhere; judges run here, as batches come.

    >>> v = extract(load_model(), (["I love you."], ["I hate you."]))
    >>> sweep(load_model(), v, ["How do I bake bread?"], layers=[2, (2, 3)], strengths=[-1, 1])
    Sweep(5 of 5 rows, 5 cells, judged by nobody, 0 failures)
    """
    named = {"vector": vectors} if isinstance(vectors, SteeringVector) else dict(vectors)
    steer = {"when": when, "edit": edit, "relative": relative, "keep_norm": keep_norm,
             "skip_bos": skip_bos, "site": site}  # fmt: skip
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    windows = windows_of(model, named, layers)
    plan = SweepPlan(
        model,
        named,
        tuple(dict.fromkeys(windows)),
        tuple(dict.fromkeys(map(float, strengths))),
        {_position_text(one): one for one in positions},
        tuple(prompts),
        tokenize(model, prompts, chat=chat),
        tuple(judges),
        steer,
        {"max_new_tokens": max_new_tokens, "chat": chat, **sampling.__dict__},
    )
    if out is None:
        with tempfile.TemporaryDirectory() as scratch:
            return _run(plan, Path(scratch), True, batch_tokens, progress, engine)
    return _run(plan, Path(out), resume, batch_tokens, progress, engine)


def _run(
    plan: SweepPlan, out: Path, resume: bool, batch_tokens: int, progress: bool, engine: Engine
) -> Sweep:
    done = open_directory(out, plan.manifest(), resume)
    most = max(1, batch_tokens // plan.width)
    waiting = [
        piece
        for chunk in _pieces(range(plan.n_rows), most)
        for piece in consecutive([row for row in chunk if row not in done])
    ]
    chosen = dict(plan.reply)
    reply = {name: chosen.pop(name) for name in ("max_new_tokens", "chat")}
    work = partial(_answer, reply=reply | {"sampling": Sampling(**chosen)})
    with progress_bar(plan.n_rows, "row", progress, what="sweeping", done=len(done)) as bar:
        questions = ((rows, plan.question(rows)) for rows in waiting)
        for rows, answer in engine.run(plan.model, work, questions):
            write_part(out, rows, plan.table(rows, answer))
            bar.update(len(rows))
    return Sweep.load(out)


def _answer(model: Model, question: SweepBatch, reply: Mapping[str, Any]) -> SweepReplies:
    replies = generate(
        model,
        question.prompts,
        question.steerings,
        draws=question.draws,
        batch_size=len(question.prompts),
        progress=False,
        **reply,
    )
    opened = [gate.open.tolist() for gate in replies.gates]
    return SweepReplies(replies.texts, [*map(len, replies.tokens)], replies.finished, opened)


def _pieces(rows: range, most: int) -> list[range]:
    return [rows[start : start + most] for start in range(0, len(rows), most)]


def _position_text(positions: Positions) -> str:
    if isinstance(positions, str):
        return positions
    if isinstance(positions, Tensor):
        raise SteerlensError(
            "a mask of positions came; a sweep takes names, slices and lists of indices"
        )
    return describe(positions).removeprefix("positions ")
