"""How results show themselves: one card of HTML in a notebook, shortened texts in a terminal.

No scripts, and no colours of text or ground: a card is read on light and dark pages. Whatever a
user or a model wrote is escaped here, once.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import islice
from typing import NamedTuple

MOST_ROWS = 20
"""Rows of a table that a card shows."""
LONGEST_TEXT = 600
"""Characters of one text that a card shows."""
SHORT = 24
"""Characters of a cell that is not broken into lines."""
_CELL = (
    "text-align: left; vertical-align: top; padding: 3px 12px 3px 0; "
    "border-bottom: 1px solid rgba(128, 128, 128, 0.4); "
)
_UNBROKEN = f'style="{_CELL}white-space: nowrap"'
_TEXT = f'style="{_CELL}white-space: pre-wrap; overflow-wrap: anywhere; min-width: 11em"'


class Rows(NamedTuple):
    """A table of a card; only its first rows are ever taken from `rows`."""

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]
    n: int
    """How many rows there are in all."""
    caption: str = ""
    folded: bool = False
    """Behind a summary that opens it."""


def card(title: str, facts: Mapping[str, object], *parts: Rows | str) -> str:
    """The HTML of one result: a title, facts in a line, then tables and paragraphs.

    Facts that are empty or None are left out.

    >>> "&lt;b&gt;mine" in card("SteeringVector", {"name": "<b>mine"})
    True
    """
    told = " · ".join(
        f'<span style="opacity: 0.75">{escape(name)}</span> {escape(shown(value))}'
        for name, value in facts.items()
        if value is not None and value != ""
    )
    body = "".join(map(_table, parts))
    return (
        '<div style="max-width: 72rem; line-height: 1.5; overflow-wrap: anywhere">'
        f"<div><strong>{escape(title)}</strong>{' &nbsp;' if told else ''}{told}</div>{body}</div>"
    )


def shown(value: object) -> str:
    """A value as a reader wants it: four digits, yes and no, a dash for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else shortened(str(value), LONGEST_TEXT)


def shortened(text: str, most: int) -> str:
    """At most so many characters, and dots where more were.

    >>> shortened("Hello there.", 6)
    'Hello…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def prompt_text(prompt: object) -> str:
    """A prompt in words: a chat turn by turn, tokens by their number.

    >>> prompt_text([{"role": "user", "content": "Hi."}])
    'user: Hi.'
    """
    suffixed = getattr(prompt, "suffix", None)
    if suffixed is not None:  # one side of a contrast
        parts = (getattr(prompt, "system", None), prompt_text(getattr(prompt, "prompt", "")))
        return "\n".join([*filter(None, parts), *filter(None, [suffixed])])
    ids = getattr(prompt, "ids", prompt)
    if isinstance(ids, str):
        return ids
    messages = list(ids) if isinstance(ids, Iterable) else [ids]
    turns = [one for one in messages if isinstance(one, Mapping)]
    if turns:
        return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in turns)
    return f"{len(messages)} tokens"


def _table(part: Rows | str) -> str:
    if isinstance(part, str):
        return f'<div style="white-space: pre-wrap; margin: 4px 0">{escape(part)}</div>'
    head = "".join(f'<th scope="col" {_UNBROKEN}>{escape(name)}</th>' for name in part.columns)
    rows = list(islice(part.rows, MOST_ROWS))
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    left = part.n - len(rows)
    more = f'<div style="opacity: 0.75">and {left:,} more</div>' if left > 0 else ""
    table = (
        '<div style="overflow-x: auto"><table style="border-collapse: collapse; margin: 6px 0">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}"
    )
    if part.folded:
        return f"<details><summary>{escape(part.caption)}</summary>{table}</details>"
    caption = f'<div style="margin-top: 6px">{escape(part.caption)}</div>' if part.caption else ""
    return caption + table


def _cell(value: object) -> str:
    text = shown(value)
    is_short = len(text) <= SHORT and "\n" not in text
    return f"<td {_UNBROKEN if is_short else _TEXT}>{escape(text)}</td>"
