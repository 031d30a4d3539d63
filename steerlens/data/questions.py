"""Questions with two answers, of which one shows a behaviour (CAA)."""

from collections.abc import Sequence
from typing import NamedTuple

from steerlens.data.row_files import read_row_file
from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike


class Question(NamedTuple):
    """A question with two answers, of which one shows the behaviour."""

    text: str
    matching: str
    """The answer that shows the behaviour, such as "(A)" or " Yes"."""
    other: str


def load_questions(path: PathLike) -> list[Question]:
    """Questions from CAA's JSON list, or from JSON lines, CSV or Parquet; raises with the place.

    Each has `question`, `answer_matching_behavior` and `answer_not_matching_behavior`.
    """
    entries = read_row_file(path).part("")
    if not entries:
        raise SteerlensError(f"{str(path)!r} holds no questions; expected a list of them")
    names = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
    questions = []
    for index, entry in enumerate(entries):
        values = [entry.get(name) for name in names] if isinstance(entry, dict) else [None]
        if not all(isinstance(value, str) and value.strip() for value in values):
            raise SteerlensError(
                f"question {index} of {str(path)!r} holds {short_repr(entry)}; expected text in "
                f"each of {', '.join(names)}"
            )
        questions.append(Question(*values))
    return questions


def require_unseen(questions: Sequence[Question], training: Sequence[Question]) -> None:
    """Refuse to score on questions that a vector was read from: it would answer from memory.

    >>> asked = [Question("Is tea nice?", "Yes", "No")]
    >>> require_unseen(asked, training=[Question("Is rain nice?", "Yes", "No")])
    """
    shared = {question.text for question in questions} & {question.text for question in training}
    if shared:
        raise SteerlensError(
            f"got {len(shared)} questions to score on that the vector is read from, such as "
            f"{short_repr(min(shared))}; expected others: take them out of one of the two"
        )
