"""Requests to train on: hand-written ones, and ones composed from actions and words.

A composed request puts words into an action ("steal {thing}" -> "steal a bike") and the action into
a way of asking ("How do I {}?").
"""

import json
import random
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

from build import OUT, TEXT, TOPICS, rows

HARMFUL = ("crime", "hate", "harm")  # "harm": bad, but of no certain topic
ANY = ("base", "base", "open", "open", "open", "legal", "health", "intimate", *HARMFUL, "harm")


@dataclass(frozen=True)
class Prompt:
    """A request, the words to call it by, and its kind: a topic, `harm`, or `open` (harmless)."""

    text: str
    topic: str
    kind: str

    @property
    def harmful(self) -> bool:
        return self.kind in HARMFUL


def table(name: str) -> dict[str, list[str]]:
    """A two-column file as lists of its second column, by its first."""
    found = defaultdict(list)
    for key, text in rows(name, 2):
        found[key].append(text)
    return dict(found)


def part(name: str, which: str = "train") -> list | dict:
    """One part of a JSON file: suffixes where it has them, else pairs, prompts or topics."""
    content = json.loads((OUT / f"{name}.json").read_text(encoding="utf-8"))["parts"][which]
    if isinstance(content, dict) and "pairs" in content:
        return content["suffixes"] or content["pairs"]
    return content


def strings(node) -> list[str]:
    """All strings in nested lists and dicts."""
    if isinstance(node, str):
        return [node]
    children = node.values() if isinstance(node, dict) else node or []
    return [text for child in children for text in strings(child)]


@cache
def held_out() -> frozenset[str]:
    """Every line of a part that is not "train", in lower case."""
    texts = [path.read_text(encoding="utf-8") for path in TEXT.glob("*_heldout.tsv")]
    found = [cell.strip() for text in texts for cell in re.split(r"[\t\n]", text)]
    for path in OUT.glob("*.json"):
        parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
        found += strings([rows for name, rows in parts.items() if name != "train"])
    return frozenset(text.casefold() for text in found)


def by_kind(prompts: list[Prompt]) -> dict[str, list[Prompt]]:
    kinds = sorted({prompt.kind for prompt in prompts})
    return {kind: [prompt for prompt in prompts if prompt.kind == kind] for kind in kinds}


def train_prompts() -> dict[str, list[Prompt]]:
    """The hand-written train requests with their topics."""
    found = []
    for harm, harm_topic, safe, safe_topic in rows("harmful_train", 4):
        found += [Prompt(harm, harm_topic, "harm"), Prompt(safe, safe_topic, "open")]
    found += [Prompt(text, topic, "open") for text, topic in rows("questions_train", 2)]
    for row in rows("topics_train", 12):
        found += [Prompt(row[2 * i], row[2 * i + 1], kind) for i, kind in enumerate(TOPICS)]
    for path in sorted(TEXT.glob("extra_*.tsv")):
        found += [Prompt(text, topic, kind) for kind, text, topic in rows(path.stem, 3)]
    return by_kind([prompt for prompt in found if prompt.text.casefold() not in held_out()])


def held_out_prompts(which: str) -> dict[str, list[Prompt]]:
    """The requests of another part, which have no topics of their own."""
    found = [Prompt(text, "this", "open") for text in part("questions", which)]
    for name in ("harmful", "lookalikes"):
        for harm, safe in part(name, which):
            found += [Prompt(harm, "this", "harm"), Prompt(safe, "this", "open")]
    for kind, texts in part("topics", which).items():
        found += [Prompt(text, "this", kind) for text in texts]
    return by_kind(found)


def gerund(phrase: str) -> str:
    """The phrase as an activity: "bake bread" -> "baking bread"."""
    verb, _, rest = phrase.partition(" ")
    if verb.endswith("ie"):
        verb = verb[:-2] + "y"
    elif re.search(r"[^eoy]e$", verb):
        verb = verb[:-1]
    elif re.fullmatch(r"[^aeiou]*[aeiou][bdgklmnprt]", verb) or verb in ("forget", "admit"):
        verb += verb[-1]
    return f"{verb}ing {rest}".strip()


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


class Prompts:
    """Draws requests of the kinds asked for."""

    def __init__(self, source: random.Random, which: str = "train"):
        self.random = source
        self.written = train_prompts() if which == "train" else held_out_prompts(which)
        self.actions = table("actions") if which == "train" else {}
        self.words = {slot: values[0].split(", ") for slot, values in table("words").items()}
        self.asking = table("asking")

    def draw(self, *kinds: str) -> Prompt:
        r = self.random
        kind = r.choice(kinds)
        if kind in self.written and (kind not in self.actions or r.random() < 0.55):
            prompt = r.choice(self.written[kind])
            if r.random() < 0.2:
                text = r.choice(self.asking["subject"]).format(prompt.topic)
                prompt = Prompt(text, prompt.topic, kind)
        else:
            prompt = self.compose(kind)
        return Prompt(self.disturb(prompt.text), prompt.topic, kind)

    def compose(self, kind: str) -> Prompt:
        r = self.random
        action = self.fill(r.choice(self.actions[kind]))
        topic = gerund(action)
        if r.random() < 0.2:
            text = r.choice(self.asking["subject"]).format(topic)
        elif action.startswith(("write", "explain", "describe", "list")) and r.random() < 0.6:
            text = r.choice(self.asking["writing"]).format(action)
        else:
            text = r.choice(self.asking["action"]).format(action)
        return Prompt(sentence(text), topic, kind)

    def fill(self, text: str) -> str:
        """Put words into the slots; {thing2} is {thing} without its article."""

        def word(match: re.Match) -> str:
            slot = match.group(1)
            value = self.random.choice(self.words[slot.rstrip("2")])
            return re.sub(r"^(a|an|the|my) ", "", value) if slot.endswith("2") else value

        return re.sub(r"\{(\w+)\}", word, text)

    def disturb(self, text: str) -> str:
        """Now and then a greeting, thanks, lower case or lost words: no single word may decide."""
        r = self.random
        chance = r.random()
        if chance < 0.06:
            greeting = r.choice(self.asking["greeting"])
            return f"{greeting} {text if text.startswith('I ') else text[0].lower() + text[1:]}"
        if chance < 0.12:
            return f"{text} {r.choice(self.asking['thanks'])}"
        if chance < 0.16:
            return text.lower().rstrip(".?")
        if chance < 0.30:
            return " ".join(word for word in text.split() if r.random() > 0.12) or text
        return text
