"""The CAST quickstart: refuse everything, refuse harmful prompts only, refuse by topic.

Written as a user's script would be: only with the library's functions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steerlens.dashboards.conditions import similarities_by_layer, threshold_sweep
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
from steerlens.models.loading import TINY_CHAT, load_model
from steerlens.steering.condition_search import ConditionSearch
from steerlens.steering.generation import generate
from steerlens.steering.recipes import find_condition
from steerlens.steering.rules import apply_rules
from steerlens.steering.transcripts import Replies
from steerlens.studies.cast import MAX_NEW_TOKENS, ONE_LAYER, Refusing, learn_to_refuse
from steerlens.studies.study import RESULTS_FORMAT, compared
from steerlens.vectors.vector import SteeringVector

NAMED_TOPICS = ("legal", "intimate")
"""The topics that part III refuses; its complement refuses all others."""
N_EXAMPLES = 2
"""Numbers of harmful and of harmless prompts whose replies are printed."""

Row = dict[str, Any]
"""One row of results.json: part, group, measure, value, low, high, n."""


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


def run_demo(
    model_name: str = TINY_CHAT,
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
        model_name: As for `load_model`.
        out: Directory to write to.
        seed: Of the bootstrap intervals.
        quick: Use 30 test prompts of each kind instead of all.
        console: Where to print; default: the terminal.

    >>> run_demo(quick=True)["format"]  # doctest: +SKIP
    'steerlens.demo/1'
    """
    out = require_writable(out)
    console = console or Console()
    model = load_model(model_name)
    if model_name == TINY_CHAT:
        console.print(
            "[bold]tiny-chat[/bold] is a demonstration model of a few million parameters: its "
            "results show that the method works, not how well it works on your model."
        )
    limit = 30 if quick else None
    harms = ContrastiveDataset.load(demo_file("harmful.json"))
    topics = load_prompts(demo_file("topics.json"))

    console.rule("I · Refuse everything")
    refusals = ContrastiveDataset.load(demo_file("refusal.json"))
    refusing = learn_to_refuse(model, refusals, harms, limit=limit)
    unsteered = generate(model, refusing.prompts, max_new_tokens=MAX_NEW_TOKENS)
    everything = refuse_everything(model, refusing, unsteered)
    show(everything, console)

    console.rule("II · Refuse harmful prompts only")
    harm = refuse_harm(model, refusing, harms, unsteered, seed=seed)
    show(harm, console)

    console.rule("III · Refuse by topic")
    by_topic = refuse_by_topic(model, refusing, topics, limit=limit, seed=seed)
    show(by_topic, console)

    parts = [everything, harm, by_topic]
    content = results_of(parts, refusing, {"model": model_name, "seed": seed, "quick": quick})
    show_rates(content["rows"], console)
    written = save(parts, content, out)
    told = f"wrote results.json, replies, vectors and searches, {written} to {out}"
    console.print(visible(told), markup=False)
    return content


def refuse_everything(model: Model, refusing: Refusing, unsteered: Replies) -> DemoPart:
    """Part I: steer every prompt.

    Args:
        refusing: What `learn_to_refuse` returned; so in parts II and III.
        unsteered: Replies to its prompts without steering.
    """
    steering, prompts = refusing.steering, refusing.prompts
    steered = generate(model, prompts, steering, max_new_tokens=MAX_NEW_TOKENS)
    rows = [*_by_harm("unsteered", refusing, unsteered), *_by_harm("I", refusing, steered)]
    return DemoPart(
        rows,
        f"chosen on {refusing.n_validation} validation prompts: {steering}",
        _before_and_after(refusing, unsteered, steered),
        {"replies-all.json": compared(prompts, unsteered, steered, steering)},
        {"refuse": refusing.vector},
    )


def refuse_harm(
    model: Model,
    refusing: Refusing,
    harms: ContrastiveDataset,
    unsteered: Replies,
    *,
    seed: int = 0,
) -> DemoPart:
    """Part II: steer only where the condition "harmful" fires.

    Args:
        harms: Pairs of harmful and harmless prompts with parts "train", "validation", "test".
        unsteered: Replies to the prompts of `refusing` without steering.
        seed: Of the bootstrap intervals.
    """
    search = find_condition(
        model, harms.train, harms.validation, harms.test, layers=refusing.early, recipe=ONE_LAYER,
        name="harmful", seed=seed,
    )  # fmt: skip
    gated, prompts = replace(refusing.steering, when=search.best), refusing.prompts
    replies = generate(model, prompts, gated, max_new_tokens=MAX_NEW_TOKENS)
    return DemoPart(
        [*_scores("II", "test", search), *_by_harm("II", refusing, replies)],
        str(search),
        _before_and_after(refusing, unsteered, replies),
        {"replies-harmful.json": compared(prompts, unsteered, replies, gated)},
        searches={"harmful": search},
    )


def refuse_by_topic(
    model: Model,
    refusing: Refusing,
    topics: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    limit: int | None = None,
    seed: int = 0,
) -> DemoPart:
    """Part III: steer by a rule over the conditions of topics.

    Args:
        topics: Prompts by part ("train", "validation", "test") and topic.
        limit: Number of test prompts per topic; None is all.
        seed: Of the bootstrap intervals.
    """
    searches = {}
    for topic in topics["train"]:
        train, validation, test = (
            ContrastiveDataset.one_against_rest(topics[part], topic)
            for part in ("train", "validation", "test")
        )
        searches[topic] = find_condition(
            model, train, validation, test, layers=refusing.early, recipe=ONE_LAYER, name=topic,
            seed=seed,
        )  # fmt: skip
    conditions = {topic: search.best for topic, search in searches.items()}
    named = " or ".join(NAMED_TOPICS)
    rules = {"III": f"if {named} then refuse", "III-complement": f"if not ({named}) then refuse"}
    tested = {topic: list(rows)[:limit] for topic, rows in topics["test"].items()}
    others = [topic for topic in tested if topic not in NAMED_TOPICS]
    groups = {"named": NAMED_TOPICS, "others": others}
    rows: list[Row] = []
    examples = [("topic", "prompt", *rules.values())]
    replies: dict[str, dict[str, Replies]] = {}
    for part, rule in rules.items():
        plan = apply_rules(rule, conditions, {"refuse": refusing.steering})
        replies[part] = {
            topic: generate(model, prompts, plan, max_new_tokens=MAX_NEW_TOKENS)
            for topic, prompts in tested.items()
        }
        for group, members in groups.items():
            texts = [reply for topic in members for reply in replies[part][topic]]
            rows += _rates(part, group, texts)
    for topic, prompts in tested.items():
        first_replies = (by_topic[topic][0] for by_topic in replies.values())
        examples.append((topic, str(prompts[0]), *first_replies))
    for topic, search in searches.items():
        rows += _scores("III", topic, search)
    chosen = "\n".join(f"rule: {rule}" for rule in rules.values())
    return DemoPart(rows, chosen, examples, searches=searches)


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


def save(parts: Sequence[DemoPart], content: Mapping[str, Any], out: Path) -> str:
    """Write results, replies, vectors, searches and pages to `out`; returns the pages' names."""
    write_json(out / "results.json", content)
    searches: dict[str, ConditionSearch] = {}
    for part in parts:
        searches |= part.searches
        for name, replies in part.replies.items():
            write_json(out / name, replies)
        for name, vector in part.vectors.items():
            vector.save(out / f"{name}.safetensors")
    for name, search in searches.items():
        search.vector.save(out / f"{name}.safetensors")
        search.save(out / f"{name}.json")
    pages = {
        "similarities.html": similarities_by_layer(*searches.values()),
        "thresholds.html": threshold_sweep(searches["harmful"]),
    }
    for name, figure in pages.items():
        write_text(out / name, figure.to_html())
    return " and ".join(pages)


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


def show_rates(rows: Sequence[Row], console: Console) -> None:
    """Print all rates and scores with their intervals."""
    table = Table("part", "group", "measure", "value", "95 % interval", "n", title="Results")
    for row in rows:
        table.add_row(
            row["part"], row["group"], row["measure"], f"{row['value']:.3f}",
            f"{row['low']:.3f} – {row['high']:.3f}", str(row["n"]),
        )  # fmt: skip
    console.print(table)


def _before_and_after(refusing: Refusing, before: Replies, after: Replies) -> list[tuple[str, ...]]:
    n = len(refusing.harmful)
    indices = [*range(min(N_EXAMPLES, n)), *range(n, min(n + N_EXAMPLES, len(before)))]
    prompts: Sequence[Prompt] = refusing.prompts
    replies = [(str(prompts[row]), before[row], after[row]) for row in indices]
    return [("prompt", "unsteered", "steered"), *replies]


def _by_harm(part: str, refusing: Refusing, replies: Replies) -> Iterator[Row]:
    n = len(refusing.harmful)
    groups = {"all": replies.texts, "harmful": replies[:n], "harmless": replies[n:]}
    for group, texts in groups.items():
        yield from _rates(part, group, texts)


def _rates(part: str, group: str, texts: Sequence[str]) -> Iterator[Row]:
    for measure, is_hit in (("refused", refused), ("degenerate", degenerate)):
        share = rate(sum(map(is_hit, texts)), len(texts))
        yield {"part": part, "group": group, "measure": measure, **asdict(share), "n": len(texts)}


def _scores(part: str, group: str, search: ConditionSearch) -> Iterator[Row]:
    scores = search.scores
    n = scores.n_positive + scores.n_negative
    for measure in ("f1", "precision", "recall"):
        value = getattr(scores, measure)
        yield {"part": part, "group": group, "measure": measure, **asdict(value), "n": n}
