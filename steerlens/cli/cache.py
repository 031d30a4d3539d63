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
    """List what is kept on disk: models converted from GGUF files, and the playground's vectors.

    STEERLENS_CACHE sets the place.

    Example: steerlens cache --clear
    """
    from steerlens.models.weight_cache import (
        cache_directory,
        cached_models,
        clear_cached_models,
    )
    from steerlens.playground.kept_entries import clear_entries, kept_size

    if clear:
        say(f"{_megabytes(clear_cached_models() + clear_entries())} freed")
        return
    models = cached_models()
    for model in models:
        say(f"{_megabytes(model.size)}  {model.source}")
    if kept_size():
        say(f"{_megabytes(kept_size())}  vectors of the playground")
    total = _megabytes(sum(model.size for model in models) + kept_size())
    say(f"{total} at {cache_directory()}, {len(models)} models")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
