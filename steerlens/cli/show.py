"""Commands that show: the demo, pages and paper figures."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from steerlens.cli.options import ModelName, Seed, app, console, reporting
from steerlens.models.loading import TINY_CHAT
from steerlens.studies.quickstart import run_demo


@app.command()
@reporting
def demo(
    out: Annotated[Path, typer.Option(help="Where results, vectors and pages go.")] = Path(
        "out/demo"
    ),
    model: ModelName = TINY_CHAT,
    seed: Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer prompts: a first look.")] = False,
) -> None:
    """Run the CAST quickstart: refuse everything, refuse harm only, refuse by topic."""
    run_demo(model, out, seed=seed, quick=quick, console=console)


@app.command("report")
@reporting
def report_command(
    study: Annotated[Path, typer.Argument(help="A directory of results.")],
    out: Annotated[
        Path | None, typer.Option(help="The page to write. Default: report.html in it.")
    ] = None,
) -> None:
    """Write one page about a study: what a demo, a sweep or an evaluation left in a directory.

    Example: steerlens report out/demo
    """
    from steerlens.studies.reports import report

    console.print(f"wrote {report(study, out)}")


@app.command("figures")
@reporting
def figures_command(
    study: Annotated[Path, typer.Argument(help="A directory of results.")] = Path("figures/study"),
    scripts: Annotated[Path, typer.Option(help="The directory of figure scripts.")] = Path(
        "figures"
    ),
    out: Annotated[
        Path | None, typer.Option(help="Where they go. Default: beside the scripts.")
    ] = None,
    format: Annotated[list[str] | None, typer.Option(help="svg, pdf or png; repeatable.")] = None,
) -> None:
    """Draw all paper figures and tables again from saved results.

    Example: steerlens figures out/demo --scripts figures --out paper --format pdf
    """
    from steerlens.studies.paper import NoBrowserWarning, regenerate

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NoBrowserWarning)
        written = regenerate(scripts, study, out or scripts, format or ["svg"])
    for warning in caught:
        console.print(f"[yellow]{warning.message}[/]")
    console.print(f"wrote {', '.join(path.name for path in written)} to {out or scripts}")


@app.command()
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
