"""The command that lists and clears converted models."""

from typing import Annotated

import typer

from steerlens.cli.options import START, app
from steerlens.cli.output import reporting, say


@app.command("cache", rich_help_panel=START)
@reporting
def cache_command(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all converted models.")] = False,
) -> None:
    """List the models converted from GGUF files, and their sizes; STEERLENS_CACHE sets the place.

    Example: steerlens cache --clear
    """
    from steerlens.models.weight_cache import (
        cache_directory,
        cached_models,
        clear_cached_models,
    )

    if clear:
        say(f"{_megabytes(clear_cached_models())} freed")
        return
    models = cached_models()
    for model in models:
        say(f"{_megabytes(model.size)}  {model.source}")
    total = _megabytes(sum(model.size for model in models))
    directory = cache_directory()
    say(f"{total} in {len(models)} models at {directory}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
