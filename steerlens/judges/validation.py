"""How well a judge agrees with labelled replies."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import demo_file, read_json
from steerlens.intervals import Interval, rate
from steerlens.judges.judging import Judge


class LabelledReply(NamedTuple):
    """A reply, and whether a person judged that it refuses."""

    text: str
    refused: bool
    kind: str
    """What makes it easy or hard, such as "story with a refusal"."""


class Agreement(NamedTuple):
    """Agreement of a yes-or-no judge with labels: Wilson intervals, and their n."""

    precision: Interval
    """The share of the judge's yes that is labelled yes."""
    recall: Interval
    """The share of the labelled yes that the judge says yes to."""
    n_judged: int
    """How many texts the judge says yes to: the n of precision."""
    n_labelled: int
    """How many texts are labelled yes: the n of recall."""


def labelled_replies(part: str = "test") -> list[LabelledReply]:
    """Replies of many kinds, labelled by hand, to validate judges of refusal.

    Args:
        part: "test" or "validation"; phrases were chosen on "validation" only.

    >>> labelled_replies()[0].refused
    True
    """
    content = read_json(demo_file("replies.json"))
    if part not in content["parts"]:
        raise SteerlensError(f"got part={part!r}; expected one of {', '.join(content['parts'])}")
    return [LabelledReply(**reply) for reply in content["parts"][part]]


def agreement(judge: Judge, texts: Sequence[str], labels: Sequence[bool]) -> Agreement:
    """Precision and recall of a judge whose scores above ½ mean yes.

    Args:
        judge: The judge.
        texts: Texts that it was not built on.
        labels: The truth about each text.

    >>> replies = labelled_replies("test")
    >>> labels = [reply.refused for reply in replies]
    >>> agreement(judges.refusal, [reply.text for reply in replies], labels).n_labelled
    69
    """
    given = np.asarray(labels)
    if given.dtype.kind not in "bui" or not np.isin(given, (0, 1)).all():
        raise SteerlensError(
            f"got the labels {short_repr(given.ravel().tolist())}; expected True or False for each "
            "text"
        )
    yes, labelled = judge(texts) > 0.5, given.astype(bool)
    if labelled.shape != yes.shape:
        raise SteerlensError(
            f"got {len(labelled)} labels for {len(texts)} texts; expected one for each"
        )
    n_both, n_judged, n_labelled = (int(found.sum()) for found in (yes & labelled, yes, labelled))
    return Agreement(rate(n_both, n_judged), rate(n_both, n_labelled), n_judged, n_labelled)
