"""Commands that let others use a steering: exported models, and the page to steer by hand."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steerlens.cli.names import TINY_CHAT, TOLERANCE
from steerlens.cli.options import (
    PROMPTS_HELP,
    SERVE,
    Layers,
    ModelName,
    PromptColumns,
    Relative,
    Strength,
    VectorFile,
    app,
    existing_file,
    one_of,
    require_places,
    taking,
)
from steerlens.cli.output import console, reporting, say
from steerlens.data.prompt_files import read_prompts
from steerlens.errors import SteerlensError


@app.command("export", rich_help_panel=SERVE)
@reporting
def export_command(
    vector: VectorFile,
    out: Annotated[Path, typer.Option(help="The directory (hf) or .gguf file to write.")],
    to: Annotated[
        str,
        taking(
            one_of(("hf", "gguf"), "form"),
            "FORM",
            "hf: a steered checkpoint; gguf: a control vector for llama.cpp.",
        ),
    ] = "hf",
    model: ModelName = TINY_CHAT,
    layers: Layers = None,
    strength: Strength = 1.0,
    relative: Relative = False,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Take one layer's direction out of the whole model.")
    ] = False,
    prompts: Annotated[
        Path | None, taking(existing_file, "FILE", f"To prove it on. {PROMPTS_HELP}")
    ] = None,
    prompt_column: PromptColumns = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of logits to steering by hooks.")
    ] = TOLERANCE,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write a steered model that other servers run: the vector in its biases, or beside it.

    Example: steerlens export refuse.safetensors --layers 2-3 --strength 0.3 --relative
    --out refusing-chat
    """
    if ablate and (strength != 1.0 or relative or to == "gguf"):
        raise SteerlensError("--ablate goes without --strength, --relative and --to gguf")
    if to == "gguf" and (out.suffix.lower() != ".gguf" or (out.exists() and not force)):
        raise SteerlensError(f"{str(out)!r} must end in .gguf and not exist yet, or --force")
    options: dict[str, Any] = {"tolerance": tolerance, "force": force}
    if prompts is not None:
        options["prompts"] = read_prompts(prompts, columns=prompt_column or ())
    if to == "gguf":
        require_places(out)
    from steerlens.export.exporting import control_vector, export_ablation, export_model
    from steerlens.steering.steering import Steering
    from steerlens.vectors.vector import SteeringVector

    direction = SteeringVector.load(vector)
    if ablate:
        made = export_ablation(direction, model, out, layers=layers, **options)
    else:
        plan = Steering(direction, layers, strength, relative=relative)
        if to == "gguf":
            control_vector(plan).save(out)
            say(f"wrote {plan} to {out}; the strength is in it. Steer with it by")
            say(f"  llama-cli -m MODEL.gguf --control-vector {out}")
            return
        made = export_model(plan, model, out, **options)
    say(made)
    say(f"wrote {out}; load it as you would {made.source}")


@app.command(rich_help_panel=SERVE)
@reporting
def playground(
    model: ModelName = TINY_CHAT,
    host: Annotated[
        str, typer.Option(help="The address to listen on; beyond loopback, a token is asked for.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8050,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Steer a model by hand, on a page in the browser: replies, gates and tokens side by side.

    Example: steerlens playground --open
    """
    from steerlens.playground.app import serve

    serve(model, host=host, port=port, open_browser=open_browser, console=console)
