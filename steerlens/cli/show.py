"""Commands that show data and results: findings, pages and paper figures."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from steerlens.cli.names import PICTURE_NAMES
from steerlens.cli.options import (
    SHOW,
    PairColumns,
    PairsFile,
    app,
    argument,
    existing_directory,
    parse_pictures,
    taking,
)
from steerlens.cli.output import reporting, say
from steerlens.data.prompt_files import read_pairs
from steerlens.errors import SteerlensError

StudyDirectory = Annotated[Path, argument(existing_directory, "STUDY", "A directory of results.")]


@app.command("lint", rich_help_panel=SHOW)
@reporting
def lint_command(dataset: PairsFile, pair_columns: PairColumns = None) -> None:
    """Say what in contrasting prompts would mislead: length, leaked words, duplicates.

    Example: steerlens lint demo-data/harmful.json
    """
    data = read_pairs(dataset, pair_columns or ())
    found = data.lint()
    for finding in found:
        say(finding)
    say(f"{len(found)} findings in {data!r}" if found else f"found nothing amiss in {data!r}")


@app.command("report", rich_help_panel=SHOW)
@reporting
def report_command(
    study: StudyDirectory,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page to write (.html), or its directory. Default: report.html in STUDY."
        ),
    ] = None,
) -> None:
    """Write an HTML page about the results of a demo, sweep or evaluation in a directory.

    Example: steerlens report out/demo
    """
    if out is not None and out.is_dir():
        out = out / "report.html"
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise SteerlensError(
            f"got --out {str(out)!r}; expected a directory, or a name that ends in .html"
        )
    from steerlens.studies.reports import report

    say(f"wrote {report(study, out)}")


@app.command("figures", rich_help_panel=SHOW)
@reporting
def figures_command(
    study: StudyDirectory = Path("figures/study"),
    scripts: Annotated[
        Path, taking(existing_directory, "DIRECTORY", "The directory of figure scripts.")
    ] = Path("figures"),
    out: Annotated[
        Path | None, typer.Option(help="Where to write them. Default: next to the scripts.")
    ] = None,
    format: Annotated[
        Any, taking(parse_pictures, "NAMES", f"Separated by commas: {', '.join(PICTURE_NAMES)}.")
    ] = "svg",
) -> None:
    """Draw all paper figures and tables from saved results.

    Example: steerlens figures out/demo --scripts figures --out paper --format pdf
    """
    from steerlens.studies.paper import NoBrowserWarning, regenerate

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NoBrowserWarning)
        written = regenerate(scripts, study, out or scripts, format)
    for warning in caught:
        say(warning.message, style="yellow")
    say(f"wrote {', '.join(path.name for path in written)} to {out or scripts}")
