"""The commands that learn vectors, and compare ways to get one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steerlens.cli.names import (
    METHOD_NAMES,
    OBJECTIVE_NAMES,
    POSITION_NAMES,
    SITE_NAMES,
    TINY_CHAT,
)
from steerlens.cli.options import (
    MEASURE,
    VECTORS,
    JudgeName,
    KLBudget,
    Layers,
    MaxNewTokens,
    ModelName,
    PairsFile,
    Part,
    PromptsFile,
    Seed,
    app,
    one_of,
    parse_methods,
    require_outputs,
    taking,
)
from steerlens.cli.output import print_rows, reporting, say
from steerlens.data.prompt_files import read_pairs, read_prompts
from steerlens.files import require_writable, write_text

if TYPE_CHECKING:
    from steerlens.vectors.vector import SteeringVector

ObjectiveName = Annotated[
    str,
    taking(one_of(OBJECTIVE_NAMES, "objective"), "NAME", f"One of {', '.join(OBJECTIVE_NAMES)}."),
]


@app.command("learn", rich_help_panel=VECTORS)
@reporting
def learn_command(
    dataset: PairsFile,
    out: Annotated[Path, typer.Option(help="The vector file to write (.safetensors).")],
    model: ModelName = TINY_CHAT,
    part: Part = "",
    validation: Annotated[
        str, typer.Option(help="The part to check on; empty: some prompts are held out.")
    ] = "",
    objective: ObjectiveName = "reply_likelihood",
    layers: Layers = None,
    site: Annotated[
        str, taking(one_of(SITE_NAMES, "site"), "NAME", f"Where: one of {', '.join(SITE_NAMES)}.")
    ] = "resid_post",
    positions: Annotated[
        str,
        taking(
            one_of(POSITION_NAMES, "positions"),
            "NAME",
            f"Which tokens are steered: one of {', '.join(POSITION_NAMES)}.",
        ),
    ] = "all",
    steps: Annotated[int, typer.Option(min=1, help="Steps of Adam.")] = 50,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts of one step.")] = 8,
    learning_rate: Annotated[
        float, typer.Option(help="Of a step, as a fraction of the layer's activation norm.")
    ] = 0.025,
    norm_budget: Annotated[
        float | None, typer.Option(help="Longest vector, as a fraction of the activation norm.")
    ] = None,
    kl_budget: Annotated[
        float | None,
        typer.Option(help="Largest KL p95 on neutral text, in nats; it is shortened to it."),
    ] = None,
    seed: Seed = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would cost; write nothing.")
    ] = False,
) -> None:
    """Learn a vector that makes the model give the positive suffixes as its replies.

    Run again after Ctrl-C, it continues where it stopped.

    Example: steerlens learn demo-data/refusal.json --part train --out refuse.safetensors
    """
    data = read_pairs(dataset, ())
    lessons, checked = (data.part(name) if name else None for name in (part, validation))
    require_outputs(out)
    from steerlens.learning.forecast import forecast
    from steerlens.learning.learning import learn
    from steerlens.learning.objectives import OBJECTIVES
    from steerlens.learning.training import Training
    from steerlens.models.loading import load_model

    training = Training(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, norm_budget=norm_budget,
        kl_budget=kl_budget, seed=seed,
    )  # fmt: skip
    what = load_model(model), lessons or data, OBJECTIVES[objective], layers
    if dry_run:
        say(forecast(*what, site=site, positions=positions, validation=checked, training=training))
        return
    vector = learn(
        *what, site=site, positions=positions, validation=checked, training=training, out=out
    )
    _report(vector, out)


def _report(vector: "SteeringVector", out: Path) -> None:
    """Print the losses on held-out prompts, and where the vector was written."""
    run = vector.provenance
    print_rows(
        ("step", "held-out loss", "gain, nats per token"),
        (
            (check["step"], f"{check['loss']:.3f}", f"{check['gain']:+.3f}")
            for check in run["checks"]
        ),
    )
    if run["interrupted"]:
        say(f"stopped after {run['steps']} steps; run it again to continue")
        raise typer.Exit(130)
    say(f"wrote {vector} to {out}")


@app.command("compare", rich_help_panel=MEASURE)
@reporting
def compare_command(
    dataset: PairsFile,
    prompts: PromptsFile,
    out: Annotated[Path, typer.Option(help="The directory that keeps finished methods.")],
    model: ModelName = TINY_CHAT,
    part: Part = "",
    methods: Annotated[
        Any,
        taking(
            parse_methods,
            "NAMES",
            f"Separated by commas: {', '.join(METHOD_NAMES)}; empty: all of them.",
        ),
    ] = "",
    layer: Annotated[int | None, typer.Option(help="Default: a third of the way up.")] = None,
    judge: JudgeName = "refusal",
    kl_budget: KLBudget = None,
    prompts_part: Annotated[str, typer.Option(help="The part of the prompts to use.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the methods that learn.")] = 50,
    max_new_tokens: MaxNewTokens = 40,
    seed: Seed = 0,
) -> None:
    """Compare ways to get a vector, each at the strength that spends the same KL.

    Run again after Ctrl-C, it continues with the methods that are not done.

    Example: steerlens compare demo-data/refusal.json demo-data/questions.json --part train
    --prompts-part validation --out comparison
    """
    data = read_pairs(dataset, ())
    data = data.part(part) if part else data
    asked = read_prompts(prompts, prompts_part, ())
    require_writable(out)
    from steerlens.dashboards.learning import method_comparison
    from steerlens.evaluation.default_strength import default_budget
    from steerlens.judges.builtin import named_judges
    from steerlens.learning.comparing import METHODS, compare
    from steerlens.learning.training import Training
    from steerlens.models.loading import load_model

    loaded = load_model(model)
    found = compare(
        loaded, data, asked, methods={name: METHODS[name] for name in methods}, layer=layer,
        judge=named_judges(judge)[0], kl_budget=kl_budget or default_budget(loaded),
        training=Training(steps=steps, seed=seed), max_new_tokens=max_new_tokens, out=out,
    )  # fmt: skip
    method_comparison(found).write_html(out / "comparison.html")
    write_text(out / "comparison.csv", found.table.to_csv(index=False))
    say(found)
    say(f"wrote a vector for each method, comparison.html and comparison.csv to {out}")
