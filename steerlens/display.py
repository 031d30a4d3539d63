"""How results are displayed: an HTML card in a notebook, shortened texts in a terminal.

No scripts, and no text or background colours: cards appear on light and dark pages. Everything that
a user or a model wrote is escaped here, once.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import islice
from typing import NamedTuple

MOST_ROWS = 20
"""Most rows of a table in a card."""
LONGEST_TEXT = 600
"""Most characters of one text in a card."""
SHORT = 24
"""Most characters of a cell that is not wrapped."""
_CELL = (
    "text-align: left; vertical-align: top; padding: 3px 12px 3px 0; "
    "border-bottom: 1px solid rgba(128, 128, 128, 0.4); "
)
_UNBROKEN = f'style="{_CELL}white-space: nowrap"'
_TEXT = f'style="{_CELL}white-space: pre-wrap; overflow-wrap: anywhere; min-width: 11em"'


class Rows(NamedTuple):
    """A table in a card; only its first rows are taken from `rows`."""

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]
    n: int
    """How many rows there are in all."""
    caption: str = ""
    folded: bool = False
    """Hidden until its caption is clicked."""


class Marked(NamedTuple):
    """Texts in a card, folded under a caption, with some of their pieces marked."""

    caption: str
    texts: Sequence[Sequence[tuple[str, bool]]]
    """Each text's pieces, and whether each is marked."""


def card(title: str, facts: Mapping[str, object], *parts: Rows | Marked | str) -> str:
    """The HTML of one result: a title, facts on one line, then tables and paragraphs.

    Args:
        title: The heading.
        facts: Name → value; empty values and None are left out.
        *parts: Tables, marked texts, and texts as paragraphs.

    >>> "&lt;b&gt;mine" in card("SteeringVector", {"name": "<b>mine"})
    True
    """
    facts_html = " · ".join(
        f'<span style="opacity: 0.75">{escape(name)}</span> {escape(shown(value))}'
        for name, value in facts.items()
        if value is not None and value != ""
    )
    body = "".join(_marked(part) if isinstance(part, Marked) else _table(part) for part in parts)
    return (
        '<div style="max-width: 72rem; line-height: 1.5; overflow-wrap: anywhere">'
        f"<div><strong>{escape(title)}</strong>{' &nbsp;' if facts_html else ''}{facts_html}"
        f"</div>{body}</div>"
    )


def shown(value: object) -> str:
    """A value for readers: four digits, "yes" and "no", a dash for a missing one.

    >>> shown(0.123456), shown(True), shown(None)
    ('0.1235', 'yes', '–')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else shortened(str(value), LONGEST_TEXT)


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters, with an ellipsis if it was cut.

    >>> shortened("Hello there.", 6)
    'Hello…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


_CONTROL = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_CONTROL |= dict.fromkeys([0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F)], "\ufffd")
"""Characters that would move a terminal's cursor, colour it, or turn the order of letters."""


def visible(text: object) -> str:
    """A text whose control characters are shown instead of obeyed by a terminal.

    >>> visible("red \\x1b[31m")
    'red ␛[31m'
    """
    return str(text).translate(_CONTROL)


def prompt_text(prompt: object) -> str:
    """A prompt as text: a chat turn by turn, token ids by their number.

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
    turns = [message for message in messages if isinstance(message, Mapping)]
    if turns:
        return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in turns)
    return f"{len(messages)} tokens"


def _table(part: Rows | str) -> str:
    if isinstance(part, str):
        return f'<div style="white-space: pre-wrap; margin: 4px 0">{escape(part)}</div>'
    head = "".join(f'<th scope="col" {_UNBROKEN}>{escape(name)}</th>' for name in part.columns)
    rows = list(islice(part.rows, MOST_ROWS))
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    n_more = part.n - len(rows)
    more = f'<div style="opacity: 0.75">and {n_more:,} more</div>' if n_more > 0 else ""
    table = (
        '<div style="overflow-x: auto"><table style="border-collapse: collapse; margin: 6px 0">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}"
    )
    if part.folded:
        return f"<details><summary>{escape(part.caption)}</summary>{table}</details>"
    caption = f'<div style="margin-top: 6px">{escape(part.caption)}</div>' if part.caption else ""
    return caption + table


def marked_html(pieces: Sequence[tuple[str, bool]]) -> str:
    """A text of pieces, some of them `<mark>`ed.

    >>> marked_html([("a", False), ("<b>", True)])
    'a<mark>&lt;b&gt;</mark>'
    """
    return "".join(f"<mark>{escape(text)}</mark>" if on else escape(text) for text, on in pieces)


def _marked(part: Marked) -> str:
    texts = (
        f'<div style="white-space: pre-wrap; margin: 4px 0">{marked_html(pieces)}</div>'
        for pieces in part.texts
    )
    return f"<details><summary>{escape(part.caption)}</summary>{''.join(texts)}</details>"


def _cell(value: object) -> str:
    text = shown(value)
    is_short = len(text) <= SHORT and "\n" not in text
    return f"<td {_UNBROKEN if is_short else _TEXT}>{escape(text)}</td>"
