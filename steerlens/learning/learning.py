"""From prompts and the replies that are wanted to a steering vector, by gradient."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.reading import read_rows
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.errors import SteerlensError
from steerlens.files import PathLike, digest
from steerlens.files import require_writable as require_writable_folder
from steerlens.learning.budgets import within_budget
from steerlens.learning.descent import Descent, Keeper, train
from steerlens.learning.losses import Directions, gain, mean_strength
from steerlens.learning.objectives import Objective, reply_likelihood
from steerlens.learning.passes import Passes
from steerlens.learning.replies import (
    Lesson,
    ReplyPair,
    ReplyText,
    end_of_turn,
    reply_pairs,
    shared_beginning,
)
from steerlens.learning.streams import keep_streams, start_of
from steerlens.learning.training import Training, schedule
from steerlens.models.fingerprint import model_provenance
from steerlens.models.host import Model
from steerlens.models.sites import (
    forward_order,
    require_writable,
    resolve_layers,
    site_width,
)
from steerlens.models.tokenizing import TokenRow
from steerlens.steering.generation import generate
from steerlens.steering.positions import Positions
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

PROMPTS_TO_RANK_BY = 2
"""Prompts whose replies are ranked by likelihood; more change little."""
READ_FOR_NORMS = 16
"""Texts that the stream's mean length is read from."""
LESSONS = ContrastiveDataset | Sequence[Lesson]
MOST_HELD_OUT = 32
"""Prompts; more would take time from learning."""
SEEN_AGAIN = 16
"""Prompts learned from, in the steps' order, that the gain on them is measured on."""


def learn(
    model: Model,
    data: LESSONS,
    objective: Objective = reply_likelihood,
    layers: Iterable[int] | int | None = None,
    *,
    site: str = "resid_post",
    positions: Positions = "all",
    validation: LESSONS | None = None,
    training: Training = Training(),  # noqa: B008 - frozen
    out: PathLike | None = None,
    name: str | None = None,
    progress: bool = True,
) -> SteeringVector:
    """A vector that makes the model give the wanted replies, learned through the steering itself.

    `data` is a dataset whose positive suffixes are the wanted replies and whose negative ones the
    unwanted, or tuples (prompt, wanted) or (prompt, wanted, unwanted). A reply that ends like a
    sentence is learned together with its end; a mere beginning is not, and behind it the model is
    kept near its unsteered self. `layers=None` is one layer, a third of the way up. What is learned
    is what `Steering(vector, positions=positions)` adds, at strength 1, which several layers share.
    Some prompts are held out; how much likelier the wanted replies have become on these stands in
    the vector's provenance. Ctrl-C keeps the best so far. With `out` (.safetensors), the
    vector is saved there, and a job that was stopped goes on where it was.

    >>> vector = learn(
    ...     load_model(), [("Hi.", "No."), ("Why?", "No.")], training=Training(steps=5)
    ... )
    >>> vector.layers, vector.provenance["steps"]
    ((2,), 5)
    """
    job = prepared(model, data, layers, site, positions, validation, training)
    called = name or (data.name if isinstance(data, ContrastiveDataset) else "lessons")
    origin = {**model_provenance(model), "objective": name_of(objective), **job.account}
    keeper = None
    if out is not None:
        keeper = _keeper(Path(out), origin)
        if (done := _done_before(Path(out), keeper.job)) is not None:
            return done
    told = {"name": called, **origin}
    vector = learned(model, job, objective, told, keeper=keeper, progress=progress)
    if out is not None and keeper is not None and not vector.provenance["interrupted"]:
        vector = replace(vector, provenance={**vector.provenance, "job": keeper.job})
        vector.save(out)
        keeper.path.unlink(missing_ok=True)
    return vector


def learned(
    model: Model,
    job: "Job",
    objective: Objective,
    told: Mapping[str, Any],
    *,
    keeper: Keeper | None = None,
    progress: bool = True,
) -> SteeringVector:
    """The vector of a job, with what is told of it and what it came to as its provenance."""
    begun = perf_counter()
    site, training = job.plan.site_written, job.training
    lessons = _with_continuations(model, job.lessons, training, progress)
    numbers, texts = job.plan.layers_steered, lessons.texts
    norms = _norms(model, texts, numbers, site, progress)
    passes = passes_of(model, job.plan, texts, progress)
    steps, held_out = lessons.steps, lessons.held_out
    descent = train(
        passes, objective, steps, held_out, norms, training, keeper=keeper, progress=progress
    )
    found = descent.found * mean_strength(passes, objective, lessons.learned, descent.found)
    vector = SteeringVector(found, numbers, site, norms=norms)
    vector, spent = within_budget(model, replace(job.plan, vector=vector), training.kl_budget)
    account = _account(passes, lessons, descent, vector.directions)
    seconds = {"seconds": round(perf_counter() - begun, 1)}
    return replace(vector, provenance={**told, **account, **spent, **seconds})


def _keeper(out: Path, origin: Mapping[str, Any]) -> Keeper:
    """Where the state of a job is kept, beside the vector that comes of it."""
    if out.suffix != ".safetensors":
        raise SteerlensError(
            f"got out={str(out)!r}; expected a .safetensors file, which keeps all of a vector"
        )
    require_writable_folder(out.parent)
    return Keeper(out.with_suffix(".learning.safetensors"), digest(repr(origin).encode()))


def _done_before(out: Path, job: str) -> SteeringVector | None:
    """The vector of an equal job that has ended; refuses to write over anything else."""
    if not out.exists():
        return None
    vector = SteeringVector.load(out)
    if vector.provenance.get("job") != job:
        raise SteerlensError(
            f"{str(out)!r} exists and is not what this job would make (other data, model or "
            "settings); choose another out=, or remove it"
        )
    return vector


class Lessons(NamedTuple):
    """What is learned from, and what is not."""

    steps: list[list[ReplyPair]]
    """The prompts of each step."""
    held_out: list[ReplyPair]

    @property
    def learned(self) -> list[ReplyPair]:
        """Each pair of the steps once."""
        return list(dict.fromkeys(pair for step in self.steps for pair in step))

    @property
    def texts(self) -> list[ReplyText]:
        """Every text once."""
        pairs = [*self.learned, *self.held_out]
        return list(dict.fromkeys(text for pair in pairs for text in _texts_of(pair)))


class Job(NamedTuple):
    """What is to be learned, where, and how; found possible."""

    plan: Steering
    """What will be run, with a vector of zeros."""
    lessons: Lessons
    training: Training

    @property
    def account(self) -> dict[str, Any]:
        """All that the vector depends on, but for the model and the objective."""
        positions = self.plan.positions
        return {
            "training": asdict(self.training),
            "positions": positions if isinstance(positions, str) else repr(positions),
            "pairs_hash": digest(
                repr((self.plan.site_written, self.plan.layers_steered)).encode(),
                repr(self.lessons).encode(),
            ),
        }


def prepared(
    model: Model,
    data: LESSONS,
    layers: Iterable[int] | int | None = None,
    site: str = "resid_post",
    positions: Positions = "all",
    validation: LESSONS | None = None,
    training: Training = Training(),  # noqa: B008 - frozen
) -> Job:
    """The job of `learn` with these arguments, before anything long is run."""
    numbers = _layers(model, layers)
    require_writable(model, site)
    blank = torch.zeros(len(numbers), site_width(model, site))
    plan = Steering(SteeringVector(blank, numbers, site), positions=positions)
    prompts = _likeliest(model, plan, reply_pairs(model, data), training.replies)
    held_out = None if validation is None else reply_pairs(model, validation)
    return Job(plan, _planned(prompts, held_out, training), training)


def default_layer(n_layers: int) -> int:
    """A third of the way up: below, vectors break the text sooner; above, they do less.

    >>> default_layer(30)
    10
    """
    return n_layers // 3


def _layers(model: Model, layers: Iterable[int] | int | None) -> tuple[int, ...]:
    if layers is None:
        return (default_layer(model.cfg.n_layers),)
    return resolve_layers(model, [layers] if isinstance(layers, int) else layers)


def _texts_of(pair: ReplyPair) -> list[ReplyText]:
    return [text for text in (pair.wanted, pair.unwanted) if text is not None]


def _likeliest(
    model: Model, plan: Steering, prompts: list[list[ReplyPair]], n_replies: int
) -> list[list[ReplyPair]]:
    """Of replies that all prompts have, the few that the unsteered model finds likeliest."""
    n_shared = len(prompts[0])
    if n_shared <= n_replies or any(len(pairs) != n_shared for pairs in prompts):
        return prompts
    scores = torch.zeros(n_shared)
    for pairs in prompts[:PROMPTS_TO_RANK_BY]:
        texts = [pair.wanted for pair in pairs]
        passes = passes_of(model, plan, texts, False)
        scores += passes.reply_logs(passes.unsteered(texts)).means.cpu()
    best = scores.topk(n_replies).indices.tolist()
    return [[pairs[index] for index in sorted(best)] for pairs in prompts]


def _planned(
    prompts: Sequence[Sequence[ReplyPair]],
    validation: Sequence[Sequence[ReplyPair]] | None,
    training: Training,
) -> Lessons:
    """Which prompts are held out, and what each step learns from."""
    order = list(prompts)
    drawn = random.Random(training.seed)
    if validation is None:
        n_held_out = min(MOST_HELD_OUT, int(training.held_out * len(order)))
        drawn.shuffle(order)
        validation, order = order[:n_held_out], order[n_held_out:]
    held_out = [drawn.choice(list(pairs)) for pairs in validation[:MOST_HELD_OUT]]
    return Lessons(schedule(order, training), held_out)


def _with_continuations(
    model: Model, lessons: Lessons, training: Training, progress: bool
) -> Lessons:
    """Beginnings with what the unsteered model writes after them."""
    beginnings = [pair for pair in (*lessons.learned, *lessons.held_out) if not pair.whole]
    if not beginnings or not training.continued or not training.drift_weight:
        return lessons
    texts = list(dict.fromkeys(pair.wanted for pair in beginnings))
    rows = [TokenRow(text.ids, None, text.words_end) for text in texts]
    room = model.cfg.n_ctx - max(len(row.ids) for row in rows)
    written = generate(model, rows, max_new_tokens=min(training.continued, room), progress=progress)
    end = end_of_turn(model)
    longer = {
        text: text._replace(
            ids=(*text.ids, *new, *((end,) if finished and end is not None else ()))
        )
        for text, new, finished in zip(texts, written.tokens, written.finished, strict=True)
    }

    def continued(pair: ReplyPair) -> ReplyPair:
        return pair._replace(wanted=longer.get(pair.wanted, pair.wanted))

    steps = [[continued(pair) for pair in step] for step in lessons.steps]
    return Lessons(steps, [continued(pair) for pair in lessons.held_out])


def _norms(
    model: Model, texts: Sequence[ReplyText], layers: Sequence[int], site: str, progress: bool
) -> Float[Tensor, " layer"]:
    """The stream's mean length over some of the texts."""
    rows = [TokenRow(text.ids) for text in texts[:READ_FOR_NORMS]]
    return read_rows(model, rows, layers, tokens="all", site=site, progress=progress).norms.mean(0)


def passes_of(model: Model, plan: Steering, texts: Sequence[ReplyText], progress: bool) -> Passes:
    """How the texts are read: from the first steered block, where the host can begin there."""
    first = min(plan.layers_steered, key=partial(forward_order, plan.site_written))
    start = start_of(model, plan.site_written, first)
    if start is None:
        return Passes(model, plan, None)
    shared = shared_beginning(texts)
    return Passes(model, plan, keep_streams(model, texts, start, shared, progress=progress))


def _account(
    passes: Passes, lessons: Lessons, descent: Descent, directions: Directions
) -> dict[str, Any]:
    """What was done, on what, and what it came to, on prompts seen and unseen."""
    found = directions.to(passes.model.cfg.device)
    learned = lessons.learned
    seen = gain(passes, learned[:SEEN_AGAIN], found)
    unseen = gain(passes, lessons.held_out, found) if lessons.held_out else None
    return {
        "steps": len(descent.losses),
        "interrupted": descent.interrupted,
        "loss": [round(loss, 5) for loss in descent.losses],
        "checks": [check._asdict() for check in descent.checks],
        "gain": {"learned": seen, "held_out": unseen},
        "pairs": len(learned),
        "held_out": len(lessons.held_out),
        "replies": {
            "different": len({pair.wanted.reply for pair in learned}),
            "whole": sum(pair.whole for pair in learned),
        },
        "lengths": [round(float(length), 4) for length in directions.norm(dim=1)],
    }


def name_of(objective: Objective) -> str:
    """What an objective is called, with its settings."""
    if isinstance(objective, partial):
        settings = [f"{key}={value!r}" for key, value in objective.keywords.items()]
        return f"{name_of(objective.func)}({', '.join(settings)})"
    return str(getattr(objective, "__qualname__", repr(objective)))
