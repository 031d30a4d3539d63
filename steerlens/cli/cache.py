"""The command that lists and clears what is kept on disk."""

from typing import Annotated

import typer

from steerlens.cli.options import START, app
from steerlens.cli.output import reporting, say


@app.command("cache", rich_help_panel=START)
@reporting
def cache_command(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False,
) -> None:
    """List the models converted from GGUF files and the vectors of the playground, with sizes.

    STEERLENS_CACHE sets the place.

    Example: steerlens cache --clear
    """
    from steerlens.models.weight_cache import (
        cache_directory,
        cached_models,
        clear_cached_models,
    )
    from steerlens.playground.kept import clear_kept_files, kept_files

    if clear:
        say(f"{_megabytes(clear_cached_models() + clear_kept_files())} freed")
        return
    models, kept = cached_models(), kept_files()
    for model in models:
        say(f"{_megabytes(model.size)}  {model.source}")
    for file in kept:
        say(f"{_megabytes(file.size)}  {file.what}")
    total = _megabytes(sum(model.size for model in models) + sum(file.size for file in kept))
    directory = cache_directory()
    say(f"{total} in {len(models)} models and {len(kept)} files of the playground at {directory}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
