"""The command that chooses layers and strength."""

from pathlib import Path
from typing import Annotated

import typer

from steerlens.cli.names import TINY_CHAT
from steerlens.cli.options import (
    MEASURE,
    JudgeName,
    KLBudget,
    Layers,
    MaxNewTokens,
    ModelName,
    Part,
    PromptColumns,
    PromptsFile,
    Seed,
    VectorFile,
    app,
    require_outputs,
)
from steerlens.cli.output import print_rows, reporting, say
from steerlens.data.prompt_files import read_prompts
from steerlens.errors import SteerlensError


@app.command("suggest", rich_help_panel=MEASURE)
@reporting
def suggest_command(
    vector: VectorFile,
    prompts: PromptsFile,
    model: ModelName = TINY_CHAT,
    judge: JudgeName = "refusal",
    lowers: Annotated[
        bool, typer.Option("--lowers", help="The steering is meant to lower the judge's score.")
    ] = False,
    layers: Layers = None,
    kl_budget: KLBudget = None,
    part: Part = "",
    prompt_column: PromptColumns = None,
    max_new_tokens: MaxNewTokens = 40,
    out: Annotated[
        Path | None, typer.Option(help="Also write all candidates (.csv or .json).")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Choose the layers and the strength with the most effect at equal side effect.

    Example: steerlens suggest refuse.safetensors demo-data/questions.json --part validation
    """
    if out is not None and out.suffix not in (".csv", ".json"):
        raise SteerlensError(f"got --out {str(out)!r}; expected a name that ends in .csv or .json")
    asked = read_prompts(prompts, part, prompt_column or ())
    require_outputs(out)
    from steerlens.evaluation.default_strength import default_budget
    from steerlens.evaluation.suggestion import suggest
    from steerlens.files import write_text
    from steerlens.judges.builtin import named_judges
    from steerlens.models.loading import load_model
    from steerlens.vectors.vector import SteeringVector

    loaded = load_model(model)
    found = suggest(
        loaded, SteeringVector.load(vector), asked, named_judges(judge)[0],
        kl_budget=kl_budget or default_budget(loaded), layers=layers, raises=not lowers,
        max_new_tokens=max_new_tokens, seed=seed,
    )  # fmt: skip
    if out is not None:
        of = found.table
        text = of.to_csv(index=False) if out.suffix == ".csv" else of.to_json(orient="records")
        write_text(out, text)
    shown = found.table[found.table["status"] == "met"]
    print_rows(
        ("layers", "strength", "KL p95", "effect", "degenerate", "n"),
        (
            (
                ", ".join(map(str, row.layers)), f"{row.strength:.3g}", f"{row.kl_p95:.3g}",
                f"{row.effect:+.3f} [{row.effect_low:+.3f}, {row.effect_high:+.3f}]",
                f"{row.degeneration:.0%}", f"{row.n:.0f}",
            )
            for row in shown.itertuples()
        ),
        title=f"{len(shown)} of {len(found.table)} candidates, by {judge}",
    )  # fmt: skip
    say(found)
    if out is not None:
        say(f"wrote {out}")
