"""Control vectors for learned ones: the same learning, on lessons whose labels are shuffled."""

import random
from collections.abc import Sequence

from steerlens.errors import SteerlensError
from steerlens.evaluation.controls import as_long_as, named_in_provenance
from steerlens.learning.learning import LESSONS, Job, Lessons, learned, prepared
from steerlens.learning.objectives import OBJECTIVES, Objective
from steerlens.learning.replies import ReplyPair, end_of_turn
from steerlens.learning.training import Training
from steerlens.models.fingerprint import model_provenance
from steerlens.models.host import Model
from steerlens.steering.positions import NAMED, Positions
from steerlens.vectors.vector import SteeringVector


def learned_controls(
    model: Model,
    vector: SteeringVector,
    data: LESSONS,
    count: int = 1,
    *,
    objective: Objective | None = None,
    positions: Positions | None = None,
    validation: LESSONS | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[SteeringVector, ...]:
    """Vectors learned as `vector` was, with wanted and unwanted swapped for half of the prompts.

    The same prompts, steps and budgets; afterwards as long as `vector` at each layer. Where such a
    vector does as much, the effect is that of any learned vector, not of the wanted replies. Each
    takes as long as `vector` took.

    Args:
        vector: From `learn`.
        data: What it was learned from; every prompt with an unwanted reply.
        count: How many control vectors.
        objective: Default: the one in the vector's provenance.
        positions: Likewise.
        validation: As given to `learn`.
        seed: Of the random halves.

    Raises:
        SteerlensError: If `vector` was not learned from `data`, or there are no unwanted replies.

    >>> lessons = [("Hi.", "No.", "Hello!"), ("Why?", "No.", "Because.")]
    >>> vector = learn(model, lessons, training=Training(steps=2))
    >>> [control] = learned_controls(model, vector, lessons)
    >>> control.provenance["name"]
    'shuffled 1'
    """
    told = vector.provenance
    if "training" not in told:
        raise SteerlensError(
            f"got {vector}, which `learn` did not make; use shuffled_labels() for extracted vectors"
        )
    if objective is None:
        objective = named_in_provenance(vector, "objective", OBJECTIVES, "the function")
    if positions is None:
        known = {name: name for name in NAMED}
        positions = named_in_provenance(vector, "positions", known, "what it was learned with")
    training = Training(**told["training"])
    job = prepared(model, data, vector.layers, vector.site, positions, validation, training)
    if job.account["pairs_hash"] != told.get("pairs_hash"):
        raise SteerlensError(
            f"got data that {vector} was not learned from; pass the same prompts, replies and "
            "validation, or use random_directions() only"
        )
    end = end_of_turn(model)
    return tuple(
        as_long_as(
            vector,
            learned(
                model,
                job._replace(lessons=_shuffled(job, end, random.Random(f"{seed}/{number}"))),
                objective,
                {"name": f"shuffled {number}", **model_provenance(model)},
                progress=progress,
            ),
        )
        for number in range(1, count + 1)
    )


def _shuffled(job: Job, end: int | None, drawn: random.Random) -> Lessons:
    """Exactly half of the prompts with their labels swapped, learned and held out alike."""
    lessons = job.lessons
    swapped = _half(lessons.learned, drawn) | _half(lessons.held_out, drawn)

    def of(pairs: Sequence[ReplyPair]) -> list[ReplyPair]:
        return [_swapped(pair, end) if _prompt(pair) in swapped else pair for pair in pairs]

    return Lessons([of(step) for step in lessons.steps], of(lessons.held_out))


def _prompt(pair: ReplyPair) -> tuple[int, ...]:
    return pair.wanted.ids[: pair.wanted.start]


def _half(pairs: Sequence[ReplyPair], drawn: random.Random) -> set[tuple[int, ...]]:
    prompts = list(dict.fromkeys(map(_prompt, pairs)))
    return set(drawn.sample(prompts, len(prompts) // 2))


def _swapped(pair: ReplyPair, end: int | None) -> ReplyPair:
    if pair.unwanted is None:
        raise SteerlensError(
            "got lessons without unwanted replies, so there are no labels to shuffle; give "
            "(prompt, wanted, unwanted), or use random_directions() only"
        )
    whole = pair.whole if end is None else pair.unwanted.ids[-1] == end
    return ReplyPair(pair.unwanted, pair.wanted, whole)
