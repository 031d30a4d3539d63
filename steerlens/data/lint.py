"""What would mislead whoever learns from a dataset's pairs: length, leaked words, repeats."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from steerlens.data.prompts import Prompt

FEWEST = 10
"""Pairs below which shares say nothing."""
SKEWED = 0.65
"""How often, of a positive and a negative drawn at random, the same side's is the longer one."""
LEAKED = 0.5
"""Difference of the shares of prompts with a word, from which on the word alone gives them away."""
ALIKE = 0.8
"""Jaccard similarity of the words of two prompts that are near-duplicates."""
UNEVEN = 2.0
"""Ratio of the sides' different prompts."""
LONG = 10
"""Times the median length, in words."""
MARKS = re.compile(
    r"<\|[^|>]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>"
    r"|^#{2,3} ?(?:Instruction|Response|Human|Assistant)\b|^(?:Human|Assistant|User): ",
    re.MULTILINE,
)
"""What chat templates write, and prompts should not."""


class LintWarning(UserWarning):
    """A dataset's pairs differ in more than what they are meant to contrast."""


class Finding(NamedTuple):
    """Something that is not as it should be, with its number."""

    kind: str
    told: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.told}"


def lint_pairs(
    pairs: Sequence[tuple[Prompt, Prompt]],
    parts: Mapping[str, range],
    *,
    same_prompts: bool = False,
) -> list[Finding]:
    """All findings about pairs of prompts.

    Args:
        pairs: (positive, negative) prompts.
        parts: The pairs of each part.
        same_prompts: Whether the sides differ in suffixes or system messages instead, so that
            their prompts may be the same.

    >>> [finding.kind for finding in lint_pairs([("Hi.", "Hi.")], {})]
    ['prompts on both sides']
    """
    positive, negative = ([text_of(prompt) for prompt in side] for side in zip(*pairs, strict=True))
    texts = [*positive, *negative]
    found = [*_odd_rows(texts), *_repeats(pairs), *_between_parts(positive, negative, parts)]
    if same_prompts:
        return found
    return [
        *_length_skew(positive, negative),
        *_leaked_words(positive, negative),
        *_on_both_sides(positive, negative),
        *_balance(positive, negative),
        *found,
    ]


def text_of(prompt: Prompt) -> str:
    """A prompt's words; of a chat, those that are not the assistant's."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(one["content"] for one in prompt if one["role"] != "assistant")


def _length_skew(positive: Sequence[str], negative: Sequence[str]) -> Iterator[Finding]:
    from statistics import median  # slow to import

    if len(positive) < FEWEST:
        return
    lengths = [[len(text.split()) for text in side] for side in (positive, negative)]
    longer = _share_longer(*lengths)
    if max(longer, 1 - longer) >= SKEWED:
        middles = [median(side) for side in lengths]
        yield Finding(
            "length skew",
            f"positive prompts have {middles[0]:g} words, negative ones {middles[1]:g} (medians); "
            f"length alone orders {max(longer, 1 - longer):.0%} of them right",
        )


def _share_longer(positive: Sequence[int], negative: Sequence[int]) -> float:
    """How often a positive is longer than a negative, ties counted half: the area under the ROC."""
    from bisect import bisect_left, bisect_right

    ordered = sorted(negative)
    wins = sum(bisect_left(ordered, one) + bisect_right(ordered, one) for one in positive)
    return wins / (2 * len(positive) * len(negative))


def _leaked_words(positive: Sequence[str], negative: Sequence[str]) -> Iterator[Finding]:
    if len(positive) < FEWEST:
        return
    counts: list[dict[str, int]] = []
    for side in (positive, negative):
        counts.append({})
        for text in side:
            for word in words_of(text):
                counts[-1][word] = counts[-1].get(word, 0) + 1
    shares = {
        word: [
            count.get(word, 0) / len(side)
            for count, side in zip(counts, (positive, negative), strict=True)
        ]
        for word in {*counts[0], *counts[1]}
    }
    leaked = sorted(
        (word for word, (here, there) in shares.items() if abs(here - there) >= LEAKED),
        key=lambda word: (-abs(shares[word][0] - shares[word][1]), word),
    )
    if leaked:
        some = ", ".join(
            f"{word!r} ({shares[word][0]:.0%} of positive, {shares[word][1]:.0%} of negative)"
            for word in leaked[:5]
        )
        yield Finding("leaked words", some)


def words_of(text: str) -> frozenset[str]:
    """The different words of a text, in lower case."""
    return frozenset(re.findall(r"\w+", text.lower()))


def _on_both_sides(positive: Sequence[str], negative: Sequence[str]) -> Iterator[Finding]:
    both = {*positive} & {*negative}
    if both:
        yield Finding("prompts on both sides", f"{len(both)}, such as {_short(min(both))}")


def _balance(positive: Sequence[str], negative: Sequence[str]) -> Iterator[Finding]:
    few, many = sorted((len({*positive}), len({*negative})))
    if len(positive) >= FEWEST and many > UNEVEN * few:
        yield Finding(
            "class balance",
            f"{len({*positive})} different positive and {len({*negative})} different negative "
            "prompts",
        )


def _repeats(pairs: Sequence[tuple[Prompt, Prompt]]) -> Iterator[Finding]:
    seen: set[str] = set()
    again = []
    for pair in pairs:
        if repr(pair) in seen:
            again.append(text_of(pair[0]))
        seen.add(repr(pair))
    if again:
        yield Finding("duplicates", f"{len(again)} pairs repeat another, as of {_short(again[0])}")


def _odd_rows(texts: Sequence[str]) -> Iterator[Finding]:
    from statistics import median

    empty = sum(not text.strip() for text in texts)
    if empty:
        yield Finding("empty rows", f"{empty} prompts")
    marked = [(text, match[0]) for text in texts if (match := MARKS.search(text))]
    if marked:
        text, mark = marked[0]
        yield Finding(
            "template tokens in prompts",
            f"{len(marked)} prompts, such as {mark!r} in {_short(text)}: the template is applied "
            "by the package",
        )
    lengths = [len(text.split()) for text in texts]
    long = [length for length in lengths if length > LONG * max(1, median(lengths))]
    if len(texts) >= FEWEST and long:
        yield Finding(
            "over-long rows",
            f"{len(long)} prompts have more than {LONG} times the median of {median(lengths):g} "
            f"words, up to {max(long)}",
        )


def _between_parts(
    positive: Sequence[str], negative: Sequence[str], parts: Mapping[str, range]
) -> Iterator[Finding]:
    """Prompts that almost stand in a later part too: what is scored there was learned from."""
    names = list(parts)
    of_part = {
        name: list(dict.fromkeys(side[row] for row in rows for side in (positive, negative)))
        for name, rows in parts.items()
    }
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            alike = near_duplicates(of_part[first], of_part[second])
            if alike:
                one, other = alike[0]
                yield Finding(
                    "near-duplicates between parts",
                    f"{len(alike)} prompts of {second!r} are almost in {first!r}, such as "
                    f"{_short(other)} and {_short(one)}",
                )


def near_duplicates(known: Sequence[str], asked: Sequence[str]) -> list[tuple[str, str]]:
    """For each asked text that is almost one of the known ones, both: (known, asked).

    They share at least `ALIKE` of their different words. Texts of fewer than four words must be
    equal: of so few, other words are another prompt.

    >>> near_duplicates(["How do I bake good bread?"], ["How do I bake bread, good?", "Why?"])
    [('How do I bake good bread?', 'How do I bake bread, good?')]
    """
    sets = [words_of(text) for text in known]
    holders: dict[str, list[int]] = {}
    for index, words in enumerate(sets):
        for word in words:
            holders.setdefault(word, []).append(index)
    found = []
    for text in asked:
        words = words_of(text)
        # Of two alike sets, the second holds one of any (1 − ALIKE) · n + 1 words of the first:
        # looking for the rarest of them is enough.
        rarest = sorted(words, key=lambda word: (len(holders.get(word, ())), word))
        enough = rarest[: int((1 - ALIKE) * len(words)) + 1]
        near = dict.fromkeys(index for word in enough for index in holders.get(word, ()))
        match = next((known[index] for index in near if _alike(sets[index], words)), None)
        if match is not None:
            found.append((match, text))
    return found


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    if min(len(one), len(other)) < 4:
        return one == other
    return len(one & other) >= ALIKE * len(one | other)


def _short(text: str) -> str:
    return repr(text if len(text) <= 50 else text[:47] + "…")
