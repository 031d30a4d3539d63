"""How well a judge agrees with labelled replies."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from steerlens.errors import SteerlensError
from steerlens.files import demo_file, read_json
from steerlens.intervals import Interval, rate
from steerlens.judges.judging import Judge


class LabelledReply(NamedTuple):
    """A reply, and whether a person says that it refuses."""

    text: str
    refused: bool
    kind: str
    """What makes it easy or hard, such as "story with a refusal"."""


class Agreement(NamedTuple):
    """How a yes-or-no judge compares with labels: Wilson intervals, and their n."""

    precision: Interval
    """Of what the judge says yes to, the share that is labelled so."""
    recall: Interval
    """Of what is labelled so, the share that the judge says yes to."""
    n_judged: int
    """What the judge says yes to: the n of precision."""
    n_labelled: int
    """What is labelled so: the n of recall."""


def labelled_replies(part: str = "test") -> list[LabelledReply]:
    """Replies of many kinds, labelled by hand; phrases may be chosen on "validation" only."""
    content = read_json(demo_file("replies.json"))
    if part not in content["parts"]:
        raise SteerlensError(f"there is no part {part!r}; there are {', '.join(content['parts'])}")
    return [LabelledReply(**reply) for reply in content["parts"][part]]


def agreement(judge: Judge, texts: Sequence[str], labels: Sequence[bool]) -> Agreement:
    """Precision and recall of a judge whose scores above ½ mean yes.

    >>> replies = labelled_replies("test")
    >>> labels = [reply.refused for reply in replies]
    >>> agreement(judges.refusal, [reply.text for reply in replies], labels).n_labelled
    69
    """
    yes, labelled = judge(texts) > 0.5, np.asarray(labels, dtype=bool)
    if labelled.shape != yes.shape:
        raise SteerlensError(f"{len(labelled)} labels came for {len(texts)} texts; one each")
    both, said, true = int((yes & labelled).sum()), int(yes.sum()), int(labelled.sum())
    return Agreement(rate(both, said), rate(both, true), said, true)
