"""Judges: texts → scores."""

from steerlens.judges.builtin import (
    JUDGES,
    degeneration,
    distinct,
    lexicon,
    named_judges,
    refusal,
    repetition,
    sentiment,
    vader,
)
from steerlens.judges.endpoints import endpoint
from steerlens.judges.fluency import degenerate, distinct_words, longest_echo
from steerlens.judges.judging import (
    Failure,
    Judge,
    Judged,
    JudgeError,
    JudgeWarning,
    judge,
    judge_texts,
    try_judge,
)
from steerlens.judges.models import bits_per_character, classifier
from steerlens.judges.refusals import REFUSAL_PHRASES, refusal_reasons, refused
from steerlens.judges.validation import Agreement, LabelledReply, agreement, labelled_replies

__all__ = [
    "JUDGES",
    "REFUSAL_PHRASES",
    "Agreement",
    "Failure",
    "Judge",
    "JudgeError",
    "JudgeWarning",
    "Judged",
    "LabelledReply",
    "agreement",
    "bits_per_character",
    "classifier",
    "degenerate",
    "degeneration",
    "distinct",
    "distinct_words",
    "endpoint",
    "judge",
    "judge_texts",
    "labelled_replies",
    "lexicon",
    "longest_echo",
    "named_judges",
    "refusal",
    "refusal_reasons",
    "refused",
    "repetition",
    "sentiment",
    "try_judge",
    "vader",
]
