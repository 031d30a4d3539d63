"""Commands to start with: the demo, what a file is, which models load."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steerlens.cli.describing import describe
from steerlens.cli.names import TINY_CHAT, hub_names
from steerlens.cli.options import START, ModelName, Seed, app
from steerlens.cli.output import console, print_rows, reporting, say
from steerlens.errors import SteerlensError
from steerlens.files import require_writable


@app.command(rich_help_panel=START)
@reporting
def demo(
    out: Annotated[Path, typer.Option(help="The directory for results, vectors and pages.")] = Path(
        "out/demo"
    ),
    model: ModelName = None,
    seed: Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer prompts: a first look.")] = False,
) -> None:
    """Run the CAST quickstart: refuse everything, refuse harm only, refuse by topic.

    On SmolLM2 (five minutes) where it is installed; --model tiny-chat takes one minute.
    """
    require_writable(out)
    from steerlens.studies.quickstart import run_demo

    run_demo(model, out, seed=seed, quick=quick, console=console)


@app.command(rich_help_panel=START)
@reporting
def inspect(
    paths: Annotated[list[Path], typer.Argument(help="Files or directories.")],
) -> None:
    """Say what a file or directory is: a vector, a search, a sweep, data, an exported model.

    Example: steerlens inspect refuse.safetensors out/demo
    """
    unknown = []
    for path in paths:
        description = describe(path)
        say(f"{path}: {description.kind}", style="bold")
        for name, value in description.facts.items():
            say(f"  {name + ':':18} {value}")
        for warning in description.warnings:
            say(f"  warning: {warning}", style="yellow")
        unknown += [] if description.known else [str(path)]
    if unknown:
        raise SteerlensError(f"not understood: {', '.join(unknown)}")


@app.command(rich_help_panel=START)
@reporting
def models(
    names: Annotated[
        bool, typer.Option("--names", help="List the hub models that TransformerLens knows.")
    ] = False,
    like: Annotated[str, typer.Option(help="Only names that contain this text.")] = "",
) -> None:
    """List which architectures load, and on which of TransformerLens's hosts.

    Example: steerlens models --like gemma
    """
    if names:
        matching = [name for name in hub_names() if like.lower() in name.lower()]
        say("\n".join(matching) or f"no name contains {like!r}")
        return
    from steerlens.models.loading import supported_hosts

    host_names = {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}
    rows: Any = [
        (architecture, host_names[host])
        for architecture, host in supported_hosts().items()
        if like.lower() in architecture.lower()
    ]
    print_rows(("architecture of a local Hugging Face directory", "host"), rows)
    say(
        f"{TINY_CHAT} ships with steerlens; TransformerLens knows {len(hub_names())} hub models "
        "(--names); any other owner/name of these architectures loads, too."
    )
