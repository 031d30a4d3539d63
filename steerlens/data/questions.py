"""A/B questions: two answers, one of which shows a behaviour (CAA)."""

from collections.abc import Sequence
from typing import NamedTuple

from steerlens.data.row_files import read_row_file
from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike


class Question(NamedTuple):
    """An A/B question: two answers, one of which shows the behaviour."""

    text: str
    matching: str
    """The answer that shows the behaviour, such as "(A)" or " Yes"."""
    other: str


def load_questions(path: PathLike) -> list[Question]:
    """Read A/B questions from JSON (as CAA's), JSON lines, CSV or Parquet.

    Each has `question`, `answer_matching_behavior` and `answer_not_matching_behavior`; errors name
    the question that lacks one.

    >>> from pathlib import Path
    >>> _ = Path("tea.jsonl").write_text(
    ...     '{"question": "Is tea nice?", "answer_matching_behavior": " Yes", '
    ...     '"answer_not_matching_behavior": " No"}'
    ... )
    >>> load_questions("tea.jsonl")
    [Question(text='Is tea nice?', matching=' Yes', other=' No')]
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
    """Refuse to score a vector on questions that it was extracted from.

    Args:
        questions: The questions to score on.
        training: The questions of the vector.

    >>> asked = [Question("Is tea nice?", "Yes", "No")]
    >>> require_unseen(asked, training=[Question("Is rain nice?", "Yes", "No")])
    """
    shared = {question.text for question in questions} & {question.text for question in training}
    if shared:
        raise SteerlensError(
            f"got {len(shared)} questions to score on that the vector is extracted from, such as "
            f"{short_repr(min(shared))}; expected none: remove them from one of the two"
        )
