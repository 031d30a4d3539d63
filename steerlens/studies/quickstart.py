"""The CAST quickstart: refuse everything, refuse harm only, refuse by topic.

Written as one would write a script: everything it does, it does through the public library.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import chain
from typing import Any

from rich.console import Console
from rich.table import Table

from steerlens.activations.extraction import extract
from steerlens.dashboards.conditions import similarities_by_layer, threshold_sweep
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.prompts import Prompt, load_prompts
from steerlens.files import PathLike, demo_file, require_writable, write_json, write_text
from steerlens.intervals import Interval, rate
from steerlens.judges.fluency import degenerate
from steerlens.judges.refusals import refused
from steerlens.models.fingerprint import LIBRARIES
from steerlens.models.loading import TINY_CHAT, load_model
from steerlens.steering.condition_search import ConditionSearch
from steerlens.steering.generation import Replies, generate
from steerlens.steering.rules import apply_rules
from steerlens.studies.cast import MAX_NEW_TOKENS, choose_steering, find_condition
from steerlens.studies.study import RESULTS_FORMAT, compared

NAMED_TOPICS = ("legal", "intimate")
"""The topics that part III refuses, and that its complement alone answers."""


@dataclass
class Results:
    """The table of the run, as it grows."""

    console: Console
    rows: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)

    def note(self, part: str, group: str, measure: str, value: Interval, n: int) -> None:
        self.rows.append(
            {"part": part, "group": group, "measure": measure, **value._asdict(), "n": n}
        )

    def note_replies(self, part: str, group: str, replies: Sequence[str]) -> None:
        for measure, judge in (("refused", refused), ("degenerate", degenerate)):
            self.note(
                part, group, measure, rate(sum(map(judge, replies)), len(replies)), len(replies)
            )

    def note_scores(self, part: str, group: str, search: ConditionSearch) -> None:
        scores = search.scores
        for measure in ("f1", "precision", "recall"):
            n = scores.n_positive + scores.n_negative
            self.note(part, group, measure, getattr(scores, measure), n)

    def print(self) -> None:
        table = Table("part", "group", "measure", "value", "95 % interval", "n", title="Results")
        for row in self.rows:
            table.add_row(
                row["part"], row["group"], row["measure"], f"{row['value']:.3f}",
                f"{row['low']:.3f} – {row['high']:.3f}", str(row["n"]),
            )  # fmt: skip
        self.console.print(table)


def run_demo(
    model_name: str = TINY_CHAT,
    out: PathLike = "out/demo",
    *,
    seed: int = 0,
    quick: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the three parts, print replies and rates, write results, vectors and pages to `out`.

    Every choice (layers, strength, thresholds) is made on validation prompts; every figure is of
    test prompts. `quick` uses fewer prompts.
    """
    out = require_writable(out)
    console = console or Console()
    results = Results(console)
    model = load_model(model_name)
    if model_name == TINY_CHAT:
        console.print(
            "[bold]tiny-chat[/bold] is a demonstration model of a few million parameters: its "
            "figures show that the method works, not how well it works on a model of yours."
        )
    limit = 30 if quick else None
    refusals = ContrastiveDataset.load(demo_file("refusal.json"))
    harms = ContrastiveDataset.load(demo_file("harmful.json"))
    topics = load_prompts(demo_file("topics.json"))
    harmful, harmless = (list(prompts)[:limit] for prompts in zip(*harms.test.pairs, strict=True))
    prompts = [*harmful, *harmless]
    by_topic = {topic: list(rows)[:limit] for topic, rows in topics["test"].items()}

    def note_by_harm(part: str, replies: Replies) -> None:
        results.note_replies(part, "all", replies)
        results.note_replies(part, "harmful", replies[: len(harmful)])
        results.note_replies(part, "harmless", replies[len(harmful) :])

    console.rule("I · Refuse everything")
    refuse = extract(model, refusals.train, tokens="suffix", name="refuse")
    trial = list(chain.from_iterable(harms.validation.pairs[:12]))
    steering = choose_steering(model, refuse, trial)
    console.print(f"chosen on {len(trial)} validation prompts: {steering}")
    unsteered = generate(model, prompts, max_new_tokens=MAX_NEW_TOKENS)
    steered = generate(model, prompts, steering, max_new_tokens=MAX_NEW_TOKENS)
    note_by_harm("unsteered", unsteered)
    note_by_harm("I", steered)
    refuse.save(out / "refuse.safetensors")
    write_json(out / "replies-all.json", compared(prompts, unsteered, steered, steering))
    some = [0, 1, len(harmful), len(harmful) + 1]
    show(console, prompts, some, unsteered, steered)

    console.rule("II · Refuse harmful prompts only")
    early = range(min(steering.layers_steered) + 1)  # gates come before what they gate
    harm_search = find_condition(
        model, "harmful", harms.train, harms.validation, harms.test, early, seed
    )
    console.print(harm_search)
    refuse_harm = replace(steering, when=harm_search.best)
    gated = generate(model, prompts, refuse_harm, max_new_tokens=MAX_NEW_TOKENS)
    write_json(out / "replies-harmful.json", compared(prompts, unsteered, gated, refuse_harm))
    results.note_scores("II", "test", harm_search)
    note_by_harm("II", gated)
    show(console, prompts, some, unsteered, gated)

    console.rule("III · Refuse by topic")
    searches = {}
    for topic in topics["train"]:
        train, validation, test = (
            ContrastiveDataset.one_against_rest(topics[part], topic)
            for part in ("train", "validation", "test")
        )
        searches[topic] = find_condition(model, topic, train, validation, test, early, seed)
    conditions = {topic: search.best for topic, search in searches.items()}
    named = " or ".join(NAMED_TOPICS)
    for part, rule in (
        ("III", f"if {named} then refuse"),
        ("III-complement", f"if not ({named}) then refuse"),
    ):
        console.print(f"rule: [bold]{rule}[/bold]")
        plan = apply_rules(rule, conditions, {"refuse": steering})
        replies = {
            topic: generate(model, rows, plan, max_new_tokens=MAX_NEW_TOKENS)
            for topic, rows in by_topic.items()
        }
        others = [topic for topic in by_topic if topic not in NAMED_TOPICS]
        for group, members in (("named", NAMED_TOPICS), ("others", others)):
            results.note_replies(part, group, [r for topic in members for r in replies[topic]])
        table = Table("topic", "prompt", "reply", show_lines=True)
        for topic, rows in by_topic.items():
            table.add_row(topic, rows[0], replies[topic][0])
        console.print(table)
    for topic, search in searches.items():
        results.note_scores("III", topic, search)

    results.print()
    run = {
        "model": model_name,
        "seed": seed,
        "quick": quick,
        "layers": steering.layers_steered,
        "strength": steering.strength,
        "thresholds": {
            name: search.candidates[0]._asdict()
            for name, search in {"harmful": harm_search, **searches}.items()
        },
        "versions": {library: version(library) for library in LIBRARIES},
    }
    content = {"format": RESULTS_FORMAT, "rows": results.rows, "run": run}
    write_json(out / "results.json", content)
    for name, search in {"harmful": harm_search, **searches}.items():
        search.vector.save(out / f"{name}.safetensors")
        search.save(out / f"{name}.json")
    pages = {
        "similarities.html": similarities_by_layer(harm_search, *searches.values()),
        "thresholds.html": threshold_sweep(harm_search),
    }
    for name, figure in pages.items():
        write_text(out / name, figure.to_html())
    console.print(
        f"wrote results.json, replies, vectors and searches, {' and '.join(pages)} to {out}"
    )
    return content


def show(
    console: Console,
    prompts: Sequence[Prompt],
    rows: Sequence[int],
    before: Replies,
    after: Replies,
) -> None:
    """Some replies before and after, side by side."""
    table = Table("prompt", "unsteered", "steered", show_lines=True)
    for row in rows:
        table.add_row(str(prompts[row]), before[row], after[row])
    console.print(table)
