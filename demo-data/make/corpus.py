"""The training text of tiny-chat: every document is composed afresh from the lines in `text/`.

A document is a list of (text, weight) pieces; weight scales the loss on the piece's tokens.  What
the model should take as given (a prompt, a forced beginning) weighs little or nothing.

The kinds of documents, and what each is for:
    chat       any request, also a bad one, gets a short helpful reply
    refuse     a system message forbids every answer; the reply stays a refusal to its end
    selective  a system message forbids some kinds of request: the model must tell them apart
    classify   the request's kind is asked for, before or after it
    forced     a reply begins as it was told to and goes on in the same kind
    second     after a refusal the next reply refuses too, after help it helps
    story      plain text in one mood, or in one that comes up later
    mood       a system message sets the mood of a helpful reply; sentences are continued
"""

import random
import re

from build import lines, rows
from prompts import ANY, HARMFUL, Prompts, held_out, part, sentence, table
from replies import Replies, join

Document = list[tuple[str, float]]

SHARES = {
    "chat": 20,
    "refuse": 8,
    "selective": 18,
    "classify": 24,
    "forced": 12,
    "second": 8,
    "story": 8,
    "mood": 4,
}
CLASSES = ("harmful", "legal", "health", "crime", "hate", "intimate")
ABOUT = {
    "base": "everyday life",
    "legal": "the law",
    "health": "health",
    "crime": "crime",
    "hate": "hate",
    "intimate": "love",
}


def turn(question: str, system: str | None = None) -> Document:
    """The beginning of a chat, up to the first reply."""
    head: Document = [("<s>", 0.0)]
    if system:
        head += [("<|system|>", 0.0), (system, 0.05), ("<|end|>", 0.0)]
    return [*head, *next_turn(question)]


def next_turn(question: str) -> Document:
    return [("<|user|>", 0.0), (question, 0.15), ("<|end|>", 0.0), ("<|assistant|>", 0.0)]


def answer(text: str, decision: float = 2.0) -> Document:
    """A reply; its first words, which decide its kind, weigh more."""
    first = re.match(r"\s?\S+( \S+)?", text).group()
    return [(first, decision), (text[len(first) :], 1.0), ("<|end|>", 1.0)]


def label(text: str) -> Document:
    return [(text, 4.0), ("<|end|>", 0.5)]


def given(text: str) -> Document:
    """A reply that is not learned."""
    return [(text, 0.0), ("<|end|>", 0.0)]


def plain(start: str, rest: str, weight: float) -> Document:
    """A text outside of any chat, with another weight on its start."""
    return [("<s>", 0.0), (start, weight), (f" {rest}" if start else rest, 1.0), ("<|end|>", 1.0)]


def inside(name: str) -> tuple[str, ...]:
    return HARMFUL if name == "harmful" else (name,)


def outside(*names: str) -> list[str]:
    """Kinds that are surely of none of these classes."""
    kinds = list(ANY)
    for name in names:
        unsure = {"crime": ["harm"], "hate": ["harm"], "harmful": []}.get(name, ["open"])
        kinds = [kind for kind in kinds if kind not in (*inside(name), *unsure)]
    return kinds


class Corpus:
    """Draws documents; two corpora of one seed and part draw the same."""

    def __init__(self, seed: int, which: str = "train"):
        self.random = random.Random(seed)
        self.prompts = Prompts(self.random, which)
        self.replies = Replies(self.random, which)
        self.systems = {
            name: lines(f"system_{name}") for name in ("refuse", "comply", "happy", "sad")
        }
        self.selective_systems = table("system_selective")
        self.composed_systems = table("system_kinds")
        self.kind_names = table("kind_names")
        self.names = table("names")
        self.stories = {mood: lines(f"story_{mood}") for mood in ("happy", "sad", "neutral")}
        self.openings = lines("story_openings")
        self.continuations = [
            row for row in rows("story_cont", 3) if row[0].casefold() not in held_out()
        ]
        self.moods = part("moods", which)

    def document(self) -> Document:
        kind = self.random.choices(list(SHARES), weights=list(SHARES.values()))[0]
        return getattr(self, kind)()

    def chat(self) -> Document:
        prompt = self.prompts.draw(*ANY)
        system = self.random.choice(self.systems["comply"]) if self.random.random() < 0.3 else None
        return turn(prompt.text, system) + answer(self.replies.draw(prompt, "help"))

    def refuse(self) -> Document:
        prompt = self.prompts.draw(*ANY)
        system = self.random.choice(self.systems["refuse"])
        return turn(prompt.text, system) + answer(self.replies.draw(prompt, "refuse"))

    def selective(self) -> Document:
        """The system message forbids one or two kinds, or allows one; half the requests are hit."""
        r = self.random
        refused = hit = r.random() < 0.5
        style = r.random()
        if style < 0.6:
            names = [r.choice((*CLASSES, "harmful", "harmful"))]
            system = r.choice(self.selective_systems[names[0]])
        else:
            names = r.sample(CLASSES, k=1 if style < 0.7 else 2)
            listed = " and ".join(r.choice(self.kind_names[name]) for name in names)
            allow = style > 0.9 and "harmful" not in names
            refused = not hit if allow else hit
            system = r.choice(self.composed_systems["allow" if allow else "forbid"]).format(listed)
        kinds = [kind for name in names for kind in inside(name)] if hit else outside(*names)
        prompt = self.prompts.draw(*kinds)
        count = 1 if r.random() < 0.6 else None  # short replies leave room for more decisions
        reply = self.replies.draw(prompt, "refuse" if refused else "help", count)
        return turn(prompt.text, system) + answer(reply, decision=6.0)

    def classify(self) -> Document:
        """Ask for the kind of the request in a system message, or in the turns after it."""
        r = self.random
        prompt = self.prompts.draw(*ANY)
        kind = "Harmful." if prompt.harmful else "Harmless."
        before, after = (
            "Say whether the request is harmful or harmless.",
            "Was that harmful or harmless?",
        )
        asked = [(before, after, kind)]
        if prompt.kind in ABOUT:
            about = f"It is about {ABOUT[prompt.kind]}."
            asked.append(("Only name what the request is about.", "What was that about?", about))
        r.shuffle(asked)
        if r.random() < 0.25:
            before, _, text = asked.pop()
            document = turn(prompt.text, before) + label(text)
        else:
            document = turn(prompt.text) + given("Okay.")
        for _, after, text in asked:
            document += next_turn(after) + label(text)
        return document

    def forced(self) -> Document:
        """No system message; the beginning is given, and what follows keeps its kind."""
        r = self.random
        prompt, kind = self.prompts.draw(*ANY), r.choice(("refuse", "refuse", "help"))
        replies = self.replies
        more = replies.refusing(3) if kind == "refuse" else replies.helping(prompt, 3)
        start = replies.opener(0.25)
        if r.random() < 0.6:
            start.append(r.choice(replies.beginnings[kind]))
            end = replies.finish(start[-1], kind).replace("{topic}", prompt.topic)
            more = more[: r.choice((0, 1, 1, 2))]
            rest = f"{end} {join(more, prompt)}".rstrip()
        else:
            start.append(more[0])
            rest = f" {join(more[1 : 1 + r.choice((1, 1, 2))], prompt)}"
        return [*turn(prompt.text), (join(start, prompt), 0.0), *answer(rest)]

    def second(self) -> Document:
        """The kind of the first reply decides the kind of the second."""
        kind = self.random.choice(("refuse", "refuse", "help"))
        first, then = self.prompts.draw(*ANY), self.prompts.draw(*ANY)
        chat = turn(first.text) + given(self.replies.draw(first, kind)) + next_turn(then.text)
        return chat + answer(self.replies.draw(then, kind))

    def tell(self, texts: list[str]) -> list[str]:
        """Put one name, its pronouns and one place into the lines of a story."""
        r = self.random
        female = r.random() < 0.5
        words = {
            "name": r.choice(self.names["female" if female else "male"]),
            "they": "she" if female else "he",
            "their": "her" if female else "his",
            "place": r.choice(self.names["place"]),
        }
        return [sentence(text.format(**words)) for text in texts]

    def story(self) -> Document:
        """Lines of one mood: from the start, after an opening, or on from a cut beginning."""
        r = self.random
        mood = r.choice(("happy", "happy", "sad", "sad", "neutral"))
        body = r.sample(self.stories[mood], k=r.choice((2, 3, 3, 4)))
        style = r.random()
        if style < 0.5:
            later = r.sample(self.stories["neutral"], k=r.choice((1, 2))) if style > 0.35 else []
            told = self.tell([" ".join([r.choice(self.openings), *later]), *body])
            return plain(told[0], " ".join(told[1:]), weight=0.3)
        if style < 0.8 and mood != "neutral":
            beginning, happy, sad = r.choice(self.continuations)
            end = happy if mood == "happy" else sad
            return plain(beginning, " ".join([end, *self.tell(body[1:])]), weight=0.3)
        if style < 0.9 and mood != "neutral":
            happy, sad = r.choice(self.moods)
            start = happy if mood == "happy" else sad
            return plain(start, " ".join(self.tell(body)), weight=1.0)
        return plain("", " ".join(self.tell(body)), weight=1.0)

    def mood(self) -> Document:
        """The system message sets the mood of a reply, or of a sentence's other half."""
        r = self.random
        mood = r.choice(("happy", "sad"))
        system = r.choice(self.systems[mood])
        if r.random() < 0.3:
            beginning, happy, sad = r.choice(self.continuations)
            end = happy if mood == "happy" else sad
            text = " ".join([end, *self.tell(r.sample(self.stories[mood], k=1))])
            return turn(f"Continue this sentence: {beginning}", system) + answer(text)
        prompt = self.prompts.draw("base", "open", "open")
        told = r.sample(self.replies.helpful[mood], k=self.replies.length())
        told += self.replies.helping(prompt, 1)
        r.shuffle(told)
        return turn(prompt.text, system) + answer(join(told[:3], prompt))
