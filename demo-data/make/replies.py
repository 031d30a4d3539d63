"""Replies to a request: helpful or refusing, one to three sentences that keep their kind.

Sentences stand in changing order, some after a neutral opener ("Well,", "I see."): a reply's kind
cannot be read off its first word, and has to be carried on from sentence to sentence.
"""

import random
import re

from build import cut_beginnings, lines, rows
from prompts import Prompt, sentence, table

FORMS = (
    ("write", r"\b(write|compose|draft|poem|story|letter|song|rhyme)\b"),
    ("list", r"\b(list|ideas|suggest|names?|tips|three|five|which|recommend)\b"),
    ("explain", r"^(what|why|explain|describe|who|when|tell|where)\b"),
    ("how", r""),
)
PLAIN = r"n't|not|no\b|refus|declin|sorry|afraid"


def join(sentences: list[str], prompt: Prompt) -> str:
    """One text about the prompt's topic; after an opener with a comma it goes on in lower case."""
    text = ""
    for line in sentences:
        line = line.replace("{topic}", prompt.topic)
        if not text.endswith(","):
            line = sentence(line)
        elif not re.match(r"I\b", line):
            line = line[:1].lower() + line[1:]
        text = f"{text} {line}".strip()
    return text


class Replies:
    """Draws replies of kind `help` or `refuse`."""

    def __init__(self, source: random.Random, which: str = "train"):
        self.random = source
        self.helpful = table("helpful_sentences")
        self.refusals = lines("refusing_sentences")
        self.plain_refusals = [text for text in self.refusals if re.search(PLAIN, text)]
        self.openers = lines("neutral_openers")
        self.kind_openers = table("kind_openers")
        self.finishes = rows("finishes", 3)
        refusing, helping = cut_beginnings()[which]
        self.beginnings = {"refuse": refusing, "help": helping}

    def draw(self, prompt: Prompt, kind: str, count: int | None = None) -> str:
        r = self.random
        count = count or self.length()
        if kind == "refuse" and r.random() < 0.25:
            beginning = r.choice(self.beginnings["refuse"])
            body = [beginning + self.finish(beginning, kind), *self.refusing(count - 1)][:count]
        else:
            body = self.refusing(count) if kind == "refuse" else self.helping(prompt, count)
        named = r.random() < 0.15
        opener = [r.choice(self.kind_openers[prompt.kind])] if named else self.opener(0.15)
        return join(opener + body, prompt)

    def length(self) -> int:
        return self.random.choice((1, 2, 2, 2, 3, 3))

    def opener(self, chance: float) -> list[str]:
        return [self.random.choice(self.openers)] if self.random.random() < chance else []

    def helping(self, prompt: Prompt, count: int) -> list[str]:
        """Sentences of a helpful reply that fit the kind of request; empty words for a bad one."""
        r = self.random
        form = next(name for name, pattern in FORMS if re.search(pattern, prompt.text, re.I))
        if prompt.harmful:
            own = self.helpful[prompt.kind] + self.helpful["any"][:2]
        elif prompt.kind in self.helpful:
            own = self.helpful[prompt.kind]
        else:
            own = self.helpful[form] + self.helpful["any"]
        chosen = [r.choice(self.helpful["open"])] if r.random() < 0.8 else []
        chosen += r.sample(own, k=max(count - len(chosen), 0))
        if r.random() < 0.25:
            r.shuffle(chosen)
        return chosen

    def refusing(self, count: int) -> list[str]:
        """Different refusals, the first of them a plain one."""
        first = self.random.choice(self.plain_refusals)
        rest = self.random.sample(self.refusals, k=count)
        return [first, *(text for text in rest if text != first)][:count]

    def finish(self, beginning: str, kind: str) -> str:
        """The rest of a cut beginning's sentence, by the first pattern that fits its end."""
        endings = next(
            endings.split("|")
            for of_kind, pattern, endings in self.finishes
            if of_kind == kind and re.search(pattern, beginning)
        )
        ending = self.random.choice(endings)
        return ending if ending[0] in " .," else f" {ending}"
