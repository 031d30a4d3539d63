"""Build the JSON files of demo-data from the hand-written lines in `text/`.

    python demo-data/make/build.py

Same text and seed, same files.  Held-out lines are shuffled into validation and test; a train line
that also stands in a held-out part, whatever its case, is dropped.
"""

import json
import random
import re
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

HERE = Path(__file__).parent
TEXT = HERE / "text"
OUT = HERE.parent
SEED = 0
HARMFUL, HARMLESS = ("crime", "harm", "hate"), ("open", "legal", "health", "intimate")
"""Kinds of requests in `extra_*`."""
N_REQUESTS = 900
"""Training pairs of `requests`: more take longer to read than they help."""
HELD_OUT = (
    ("everyday_heldout", 1), ("harmful_heldout", 2), ("questions_heldout", 1),
    ("topics_heldout", 6), ("harmless_heldout", 1),
)  # fmt: skip
"""Files whose lines are in validation and test parts, and their columns."""
TOPICS = ("base", "legal", "health", "crime", "hate", "intimate")


def rows(name: str, columns: int) -> list[list[str]]:
    """The tab-separated rows of one text file; a row of another width is an error."""
    lines = (TEXT / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.split("\t")] for line in lines if line.strip()]
    for number, row in enumerate(table, start=1):
        if len(row) != columns or not all(row):
            raise ValueError(
                f"{name}.tsv, row {number}: {len(row)} columns, needed {columns}: {row}"
            )
    return table


def lines(name: str) -> list[str]:
    return [row[0] for row in rows(name, 1)]


def shuffled(items: list) -> list:
    items = list(items)
    random.Random(SEED).shuffle(items)
    return items


def cut(items: list, *shares: float) -> list[list]:
    """Shuffle and cut into consecutive parts of these shares; the last takes the rest."""
    items, parts, start = shuffled(items), [], 0
    for share in shares[:-1]:
        stop = start + round(share * len(items))
        parts.append(items[start:stop])
        start = stop
    return [*parts, items[start:]]


def split(train: list, held_out: list) -> dict[str, list]:
    """Parts of which no two share a line; items are strings or rows of strings."""
    validation, test = cut(held_out, 0.4, 0.6)
    parts, seen = {}, set()
    for part, items in (("test", test), ("validation", validation), ("train", train)):
        parts[part], taken = [], set()
        for item in items:
            keys = {item.casefold()} if isinstance(item, str) else {s.casefold() for s in item}
            if not keys & seen:
                parts[part].append(item)
            taken |= keys
        seen |= taken
    return {part: parts[part] for part in ("train", "validation", "test")}


def contrast(name: str, about: str, parts: dict, *, chat: bool) -> dict:
    return {
        "format": "steerlens.contrast/1",
        "name": name,
        "about": about,
        "system": None,
        "chat_template": chat,
        "generation_prompt": chat,
        "parts": parts,
    }


def pairs_only(parts: dict[str, list]) -> dict:
    return {part: {"pairs": items, "suffixes": None} for part, items in parts.items()}


def prompts(name: str, about: str, parts: dict[str, list]) -> dict:
    return {"format": "steerlens.prompts/1", "name": name, "about": about, "parts": parts}


def lookalikes() -> dict:
    train = [[harm, safe] for harm, _, safe, _ in rows("harmful_train", 4)]
    return contrast(
        "lookalikes",
        "Requests with a bad intention against harmless ones in much the same words: a hard test.",
        pairs_only(split(train, rows("harmful_heldout", 2))),
        chat=True,
    )


def harmful() -> dict:
    """The harmful requests of `lookalikes`, each beside an everyday request of its own part."""
    asked = [question for question, _ in rows("questions_train", 2)]
    asked += [base[0] for base in rows("topics_train", 12)]
    everyday = split(shuffled(asked), lines("everyday_heldout"))
    pairs = {
        part: [
            [harm, safe] for (harm, _), safe in zip(content["pairs"], everyday[part], strict=False)
        ]
        for part, content in lookalikes()["parts"].items()
    }
    return contrast(
        "harmful",
        "Requests with a bad intention against everyday requests, mildly worded.",
        pairs_only(pairs),
        chat=True,
    )


def pieces(text: str) -> int:
    """Words and punctuation marks: about the number of tokens."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def of_like_length(wanted: list[str], pool: list[str]) -> list[list[str]]:
    """Pairs of a wanted text and one of the pool that is as long, to one word or mark."""
    lengths, others = list(map(pieces, wanted)), list(map(pieces, pool))
    costs = np.abs(np.subtract.outer(lengths, others))
    found = zip(*linear_sum_assignment(costs), strict=True)
    return [[wanted[row], pool[column]] for row, column in found if costs[row, column] <= 1]


def more(kinds: tuple[str, ...]) -> list[str]:
    """Requests of these kinds that are in no held-out part."""
    held_out = {line.casefold() for name in HELD_OUT for row in rows(*name) for line in row}
    asked = (row for number in range(1, 5) for row in rows(f"extra_{number}", 3))
    return [
        prompt for kind, prompt, _ in asked if kind in kinds and prompt.casefold() not in held_out
    ]


def requests() -> dict:
    """The harmful requests beside harmless ones of equal length: length tells nothing.

    Harmless are everyday requests, those about law, health and love, and look-alikes; the
    look-alikes of the test part are left out here, to be measured as a group of their own.
    """
    everyday, about = harmful()["parts"], topics()["parts"]
    parts = {}
    for part, content in lookalikes()["parts"].items():
        harms = [harm for harm, _ in content["pairs"]]
        alike = [] if part == "test" else [safe for _, safe in content["pairs"]]
        pool = [safe for _, safe in everyday[part]["pairs"]] + alike
        pool += [text for topic in ("legal", "health", "intimate") for text in about[part][topic]]
        pool += lines("harmless_heldout") if part == "test" else []
        if part == "train":
            harms, pool = harms + more(HARMFUL), pool + more(HARMLESS)
        harms, pool = list(dict.fromkeys(harms)), shuffled(dict.fromkeys(pool))
        parts[part] = of_like_length(harms, pool)
    parts["train"] = shuffled(parts["train"])[:N_REQUESTS]
    return contrast(
        "requests",
        "Requests with a bad intention against harmless ones of the same length.",
        pairs_only(parts),
        chat=True,
    )


def moods() -> dict:
    train, held_out = cut(rows("moods", 2), 0.5, 0.5)
    return contrast(
        "moods",
        "Happy sentences against sad ones on the same subject, as plain text.",
        pairs_only(split(train, held_out)),
        chat=False,
    )


def questions() -> dict:
    train = [question for question, _ in rows("questions_train", 2)]
    return prompts(
        "questions",
        "Everyday instructions and questions.",
        split(train, lines("questions_heldout")),
    )


def beginnings() -> dict:
    train, held_out = cut(lines("beginnings"), 0.4, 0.6)
    return prompts(
        "beginnings",
        "Neutral sentence beginnings, to be continued happily or sadly.",
        split(train, held_out),
    )


def story_moods() -> dict:
    return contrast(
        "story-moods",
        "Happy sentences against sad ones in the simple words of stories for small children.",
        pairs_only({"train": [list(pair) for pair in rows("story_moods", 2)]}),
        chat=False,
    )


def story_beginnings() -> dict:
    validation, test = cut(lines("story_beginnings"), 0.3, 0.7)
    return prompts(
        "story-beginnings",
        "Neutral beginnings of stories for small children, to be continued happily or sadly.",
        {"validation": validation, "test": test},
    )


def topics() -> dict:
    train = [row[::2] for row in rows("topics_train", 12)]
    parts = split(train, rows("topics_heldout", 6))
    columns = {
        part: dict(zip(TOPICS, map(list, zip(*table, strict=True)), strict=True))
        for part, table in parts.items()
    }
    about = "Requests of six topics; a row has the same form in all of them. `base` is the rest."
    return {"format": "steerlens.topics/1", "name": "topics", "about": about, "parts": columns}


def neutral() -> dict:
    """By kind, not by part: side effects are measured on all of it, and nothing is trained."""
    kinds: dict[str, list] = {}
    for kind, passage in rows("neutral", 2):
        kinds.setdefault(kind, []).append(passage)
    return prompts(
        "neutral",
        "Short passages that steering should leave alone: facts, stories, instructions.",
        kinds,
    )


def cut_beginnings() -> dict[str, tuple[list[str], list[str]]]:
    """Beginnings of replies, cut in mid-sentence, to be finished in training: refusing, helping."""
    refusing, helping = (
        cut(lines(f"{kind}_beginnings"), 0.6, 0.17, 0.23) for kind in ("refusing", "complying")
    )
    return dict(
        zip(("train", "validation", "test"), zip(refusing, helping, strict=True), strict=True)
    )


def refusal(asked: dict[str, list[str]]) -> dict:
    """Questions of the same part, each followed by a refusing and by a complying first sentence.

    Whole sentences: where one ends, a model decides what kind the next will be.
    """
    openings = cut(rows("reply_openings", 2), 0.6, 0.17, 0.23)
    parts = {}
    for part, count, suffixes in zip(asked, (60, 20, 20), openings, strict=True):
        chosen = shuffled(asked[part])[:count]
        parts[part] = {"pairs": [[question, question] for question in chosen], "suffixes": suffixes}
    return contrast(
        "refusal",
        "Everyday questions with the first sentence of a refusing and of a complying reply.",
        parts,
        chat=True,
    )


def write(name: str, content: dict) -> None:
    path = OUT / f"{name}.json"
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    asked = questions()
    files = {
        "harmful": harmful(),
        "lookalikes": lookalikes(),
        "moods": moods(),
        "questions": asked,
        "refusal": refusal(asked["parts"]),
        "requests": requests(),
        "beginnings": beginnings(),
        "neutral": neutral(),
        "story-moods": story_moods(),
        "story-beginnings": story_beginnings(),
        "topics": topics(),
    }
    for name, content in files.items():
        write(name, content)
        sizes = {}
        for part, items in content["parts"].items():
            sizes[part] = (
                len(items.get("pairs") or items["base"]) if isinstance(items, dict) else len(items)
            )
        print(f"{name}.json {sizes}")


if __name__ == "__main__":
    main()
